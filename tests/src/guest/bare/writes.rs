//! Which pages the bare guest's CPU has written between two moments.
//!
//! From `R` on, a guest without devices stores to these pages and no other:
//!
//! - the working set, page after page and then from the first again, two
//!   dwords in each;
//! - its control page (0x8000), with each page written and each tick;
//! - its stack's page (0x6000), with each page written (a return address) and
//!   each tick (what an interrupt pushes).
//!
//! A guest that goes as fast as it can has no ticks. With devices the CPU
//! also stores to these:
//!
//! - disk: descriptors (0x30000), the ring of what is offered (0x31000) and the
//!   requests' headers (0x33000), with each request sent;
//! - network: the ring of what is offered (0x39000), with each frame taken.
//!
//! What QEMU writes for the devices is not the CPU's and not in KVM's log: the
//! rings of what is used (0x32000 and 0x3A000), the requests' results
//! (0x34000), and the buffers behind the filler: the disk's, if it reads, from
//! the first page to the last and again; then 256 pages for frames, one a
//! frame, in turn.

use std::collections::BTreeSet;

use super::devices::{BareCounters, BareDirection, BareDisk, NETWORK_BUFFER_PAGES};
use super::{BareGuest, BareState};
use crate::guest::content::round_mark;
use crate::guest::memory::PAGE_BYTES;

/// The control page and the stack's.
const PAGES_BESIDE: u64 = 2;
/// A ring of what is used, and for the disk the requests' results.
const PAGES_BESIDE_DISK: u64 = 2;
const PAGES_BESIDE_NETWORK: u64 = 1;

impl BareGuest {
    /// How many distinct pages the CPU wrote between two moments at which the
    /// guest was stopped: what KVM's dirty log has of that time, all slots
    /// together.
    ///
    /// `None` if it cannot be said to the page: the guest has devices or a
    /// pattern, it wrote fewer than two pages of its working set between, or it was not stopped.
    #[must_use]
    pub fn pages_written(&self, from: BareState, to: BareState) -> Option<u64> {
        if self.disk.is_some() || self.network || self.pattern.is_some() {
            return None;
        }
        // With two pages gone by, all of `write_page` has run at least once.
        if to.total_writes < from.total_writes + 2 {
            return None;
        }
        let first = from.total_writes + u64::from(from.stores? == 2);
        let end = to.total_writes + u64::from(to.stores? > 0);
        let distinct = (end - first).min(u64::from(self.working_set_pages));
        Some(distinct + PAGES_BESIDE)
    }

    /// How many distinct pages QEMU wrote for the guest's devices between two
    /// moments at which the guest was stopped. A guest stopped while it tells
    /// the disk of a request makes that request's pages count too early, and
    /// frames that it had not yet taken count too late.
    #[must_use]
    pub fn device_pages_written(&self, from: BareCounters, to: BareCounters) -> u64 {
        let requests = to.requests_submitted.wrapping_sub(from.requests_submitted);
        let disk = match self.disk {
            Some(disk) if requests > 0 => {
                disk.pages_read_into(from.requests_submitted, requests) + PAGES_BESIDE_DISK
            }
            _ => 0,
        };
        let frames = to.frames.wrapping_sub(from.frames);
        let network = match frames {
            0 => 0,
            frames => u64::from(frames.min(NETWORK_BUFFER_PAGES)) + PAGES_BESIDE_NETWORK,
        };
        disk + network
    }
}

impl BareDisk {
    /// Distinct pages of the buffer that so many requests from the one numbered
    /// `first` read into; a request's place in it follows from its number.
    fn pages_read_into(&self, first: u32, requests: u32) -> u64 {
        if self.direction == BareDirection::Write {
            return 0;
        }
        let bytes = u64::from(self.request_bytes);
        let page_bytes = PAGE_BYTES as u64;
        let places = u64::from(self.buffer_pages) * page_bytes / bytes;
        let numbers = (u64::from(first)..).take(requests as usize);
        let pages: BTreeSet<u64> = numbers
            .take(usize::try_from(places).unwrap_or(usize::MAX))
            .flat_map(|number| {
                let start = number % places * bytes;
                start / page_bytes..=(start + bytes - 1) / page_bytes
            })
            .collect();
        pages.len() as u64
    }
}

/// The first two dwords of a page that is about to be written in `round`:
/// before the two stores, between them, and behind both.
pub(super) const fn contents(page: u32, round: u32) -> [[u32; 2]; 3] {
    let earlier = round.wrapping_sub(1);
    let before = [earlier, round_mark(page, earlier)];
    let now = [round, round_mark(page, round)];
    [before, [now[0], before[1]], now]
}

/// How many of the two stores are made; `None` if none of that stands there.
pub(super) fn stores_made(page: u32, round: u32, found: [u32; 2]) -> Option<u8> {
    (0..)
        .zip(contents(page, round))
        .find_map(|(stores, content)| (content == found).then_some(stores))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: BareGuest = BareGuest {
        working_set_pages: 10,
        ..BareGuest::PLAIN
    };

    fn state(total_writes: u64, stores: u8) -> BareState {
        BareState {
            round: 0,
            page: 0,
            total_writes,
            stores: Some(stores),
        }
    }

    #[test]
    fn a_page_counts_if_a_store_falls_between() {
        for (from, to, pages) in [
            ((20, 0), (25, 0), 5),
            ((20, 1), (25, 0), 5),
            ((20, 2), (25, 0), 4),
            ((20, 0), (25, 1), 6),
            ((20, 2), (25, 2), 5),
            ((20, 2), (30, 1), 10),
            ((20, 2), (30, 0), 9),
            ((20, 0), (3000, 0), 10),
        ] {
            let [from, to] = [from, to].map(|(writes, stores)| state(writes, stores));
            assert_eq!(
                GUEST.pages_written(from, to),
                Some(pages + 2),
                "{from:?} {to:?}"
            );
        }
    }

    #[test]
    fn reads_go_round_the_buffer() {
        let disk = |request_bytes, buffer_pages| BareDisk {
            request_bytes,
            buffer_pages,
            ..BareDisk::new(BareDirection::Read, 1 << 20)
        };
        let pages = |disk: BareDisk, first, requests| disk.pages_read_into(first, requests);
        assert_eq!(pages(disk(4096, 10), 7, 5), 5);
        assert_eq!(pages(disk(4096, 10), 7, 500), 10);
        assert_eq!(
            pages(disk(512, 10), 7, 2),
            2,
            "the last sector and the next page"
        );
        assert_eq!(pages(disk(512, 10), 8, 8), 1);
        assert_eq!(
            pages(disk(12 << 10, 10), 0, 9),
            9,
            "the tenth page stays as it is"
        );
        assert_eq!(pages(disk(5120, 10), 1, 1), 2);
        assert_eq!(pages(disk(5120, 10), u32::MAX, 0), 0);
    }

    #[test]
    fn devices_write_their_rings_too() {
        let guest = BareGuest {
            disk: Some(BareDisk::new(BareDirection::Read, 1 << 20)),
            network: true,
            ..GUEST
        };
        let counters = |requests_submitted, frames| BareCounters {
            requests_submitted,
            frames,
            ..BareCounters::default()
        };
        let pages = |from, to| guest.device_pages_written(from, to);
        assert_eq!(pages(counters(5, 5), counters(5, 5)), 0);
        assert_eq!(pages(counters(5, 5), counters(8, 5)), 3 + 2);
        assert_eq!(pages(counters(5, 5), counters(5, 1000)), 256 + 1);
        assert_eq!(pages(counters(u32::MAX, 5), counters(1, 6)), 2 + 2 + 1 + 1);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        assert_eq!(GUEST.pages_written(state(20, 0), state(21, 0)), None);
        let running = BareState {
            stores: None,
            ..state(30, 0)
        };
        assert_eq!(GUEST.pages_written(state(20, 0), running), None);
        let network = BareGuest {
            network: true,
            ..GUEST
        };
        assert_eq!(network.pages_written(state(20, 0), state(30, 0)), None);
    }
}
