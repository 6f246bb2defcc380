//! The bare guest's disk and network card, driven by `devices.s`.

use super::{BASE_ADDRESS, BareGuest, dword};
use crate::guest::memory::PAGE_BYTES;

/// Frames have a page each and are received into these in turn.
pub(super) const NETWORK_BUFFER_PAGES: u32 = 256;
const SECTOR_BYTES: u32 = 512;
const MAX_REQUEST_BYTES: u32 = 256 << 10;
const MAX_QUEUE_DEPTH: u32 = 32;
/// Where the counters are in the control page.
const COUNTERS_OFFSET: usize = 0x40;

/// What the bare guest does to its disk, for ever or up to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareDisk {
    /// Reads or writes.
    pub direction: BareDirection,
    /// Of each request: a multiple of 512, at most 256 KiB.
    pub request_bytes: u32,
    /// Requests under way at a time, 1 to 32.
    pub queue_depth: u32,
    /// Requests in a second of guest time; 0 is as fast as it goes. What the
    /// disk could not take in time is made up for later.
    pub per_second: u32,
    /// Requests in all; `u32::MAX` is the most there can be.
    pub limit: u32,
    /// The part of the disk, from its beginning, that is read or written.
    pub span_bytes: u64,
    /// Where in it.
    pub walk: BareWalk,
    /// Pages that are read into, or written from, one after the other and then
    /// from the first again; at least a request's. They hold what the filler
    /// holds until something is read into them.
    pub buffer_pages: u32,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareDirection {
    /// From the disk to the guest's memory.
    Read,
    /// From the guest's memory to the disk.
    Write,
}

/// Where the next request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareWalk {
    /// Behind the last one, and from the span's end to its beginning.
    Sequential,
    /// To any multiple of the request's size, drawn by a linear congruential
    /// generator from this seed.
    Random(std::num::NonZeroU32),
}

/// What the devices have done since the start. All but `frame_bytes` wrap at
/// 2^32; of a guest that runs, that one may be 4 GiB short for an instant when
/// its lower half overflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BareCounters {
    /// Requests given to the disk; may be one ahead of what QEMU knows.
    pub requests_submitted: u32,
    /// Requests the guest has seen ended, each of
    /// [`BareDisk::request_bytes`]. Those that end while the guest is stopped
    /// are counted once it goes on.
    pub requests_completed: u32,
    /// Those among them that failed.
    pub requests_failed: u32,
    /// Frames taken from the network card.
    pub frames: u32,
    /// Their bytes, from the destination's address on.
    pub frame_bytes: u64,
}

impl BareDisk {
    /// Requests of 4 KiB, one at a time, all over `span_bytes` in order, as fast
    /// as they go, into 256 pages.
    #[must_use]
    pub const fn new(direction: BareDirection, span_bytes: u64) -> Self {
        Self {
            direction,
            request_bytes: 4096,
            queue_depth: 1,
            per_second: 0,
            limit: u32::MAX,
            span_bytes,
            walk: BareWalk::Sequential,
            buffer_pages: 256,
        }
    }

    /// Says what is wrong with it.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let bytes = self.request_bytes;
        if bytes == 0 || bytes > MAX_REQUEST_BYTES || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err("a request has 512 B to 256 KiB, in sectors");
        }
        if !(1..=MAX_QUEUE_DEPTH).contains(&self.queue_depth) {
            return Err("1 to 32 requests are under way");
        }
        if u64::from(self.buffer_pages) * (PAGE_BYTES as u64) < u64::from(bytes) {
            return Err("a request does not fit into the buffer");
        }
        if self.span_bytes < u64::from(bytes) || self.places().is_none() {
            return Err("the span holds no request, or 2^32");
        }
        Ok(())
    }

    /// Requests that fit into the span side by side.
    fn places(&self) -> Option<u32> {
        u32::try_from(self.span_bytes / u64::from(self.request_bytes)).ok()
    }
}

impl BareCounters {
    pub(super) fn read(control: &[u8]) -> Self {
        let word = |index: usize| dword(control, COUNTERS_OFFSET + 4 * index);
        Self {
            requests_submitted: word(0),
            requests_completed: word(1),
            requests_failed: word(2),
            frames: word(3),
            frame_bytes: u64::from(word(5)) << 32 | u64::from(word(4)),
        }
    }
}

impl BareGuest {
    /// Pages behind the filler that devices read and write.
    pub(super) fn buffer_pages(&self) -> u64 {
        u64::from(self.disk_pages())
            + u64::from(if self.network {
                NETWORK_BUFFER_PAGES
            } else {
                0
            })
    }

    fn disk_pages(&self) -> u32 {
        self.disk.map_or(0, |disk| disk.buffer_pages)
    }

    /// What `bare.s` has behind `pages_per_second`, in its order.
    pub(super) fn device_parameters(&self) -> [u32; 13] {
        let address = |page: u32| {
            let address = BASE_ADDRESS + u64::from(page) * PAGE_BYTES as u64;
            u32::try_from(address).unwrap_or(u32::MAX)
        };
        let buffer_start = self.pages_total();
        let buffer_end = buffer_start + self.disk_pages();
        let has_devices = self.disk.is_some() || self.network;
        let unpaced_disk = self.disk.is_some_and(|disk| disk.per_second == 0);
        let of_disk = |value: fn(&BareDisk) -> u32| self.disk.as_ref().map_or(0, value);
        [
            buffer_end,
            u32::from(has_devices),
            u32::from(self.pages_per_second == 0 || unpaced_disk),
            of_disk(|disk| disk.queue_depth),
            of_disk(|disk| u32::from(disk.direction == BareDirection::Write)),
            of_disk(|disk| disk.request_bytes),
            of_disk(|disk| disk.per_second),
            of_disk(|disk| disk.limit),
            of_disk(|disk| disk.places().unwrap_or(0)),
            of_disk(|disk| match disk.walk {
                BareWalk::Sequential => 0,
                BareWalk::Random(seed) => seed.get(),
            }),
            address(buffer_start),
            address(buffer_end),
            if self.network { address(buffer_end) } else { 0 },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: BareDisk = BareDisk::new(BareDirection::Read, 1 << 20);
    const GUEST: BareGuest = BareGuest {
        ram_mib: 20,
        working_set_pages: 512,
        disk: Some(DISK),
        network: true,
        ..BareGuest::PLAIN
    };

    #[test]
    fn buffers_count_as_memory() {
        assert!(GUEST.check().is_ok());
        let ram_mib = 19;
        assert!(BareGuest { ram_mib, ..GUEST }.check().is_err());
        let network = false;
        assert!(
            BareGuest {
                ram_mib,
                network,
                ..GUEST
            }
            .check()
            .is_ok()
        );
    }

    #[test]
    fn impossible_disks_are_refused() {
        let refused = |change: fn(&mut BareDisk)| {
            let mut disk = DISK;
            change(&mut disk);
            let guest = BareGuest {
                disk: Some(disk),
                ..GUEST
            };
            guest.bios().is_err()
        };
        assert!(!refused(|_| ()));
        assert!(refused(|disk| disk.request_bytes = 0));
        assert!(refused(|disk| disk.request_bytes = 513));
        assert!(refused(|disk| disk.request_bytes = 512 << 10));
        assert!(refused(|disk| disk.queue_depth = 33));
        assert!(refused(|disk| disk.buffer_pages = 0));
        assert!(refused(|disk| disk.span_bytes = 4095));
        assert!(refused(|disk| disk.span_bytes = 1 << 44));
    }
}
