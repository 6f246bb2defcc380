//! Counts what the programs leave of a large slot's dirty log. They run without
//! being interrupted, so each run counts 64 GiB at most; the rest is read here,
//! from QEMU's memory.
//!
//! QEMU may change its bitmap meanwhile, which a program notes at the beginning
//! of each such call. What was read is counted only if none came.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use pacer_common::device::{DEVICE_PIECES, DevicePiece, GROUP_WORDS, NO_PIECE, RANGES, Ranges};
use pacer_common::dirty_log::{
    PART_PAGES, PIECE_BYTES, PIECE_PAGES, PIECE_WORDS, bitmap_bytes, pieces,
};
use pacer_common::event::RawEvent;
use pacer_common::slot::{self, SLOTS, Slot};

use super::EventKind;

/// The pages of a part, or of all parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) dirty_pages: u64,
    pub(super) device_pages: u64,
}

impl Counts {
    const fn add(&mut self, other: Self) {
        self.dirty_pages += other.dirty_pages;
        self.device_pages += other.device_pages;
    }
}

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Rest {
    pub(super) counts: Counts,
    /// [`EventKind::DirtyPart`]s.
    pub(super) parts: Vec<EventKind>,
}

/// Counts the log that `event`, a `LOG_REST`, is about. `None` if QEMU was
/// faster, or its memory cannot be read (it needs CAP_SYS_PTRACE).
pub(super) fn count(ebpf: &Ebpf, event: &RawEvent) -> Option<Rest> {
    let key = slot::key(event.tgid, event.subject);
    let slots: HashMap<_, u64, Slot> = HashMap::try_from(ebpf.map(SLOTS)?).ok()?;
    let slot = slots.get(&key, 0).ok()?;
    if slot.version != event.c {
        return None;
    }
    let memory = File::open(format!("/proc/{}/mem", event.tgid)).ok()?;
    let log = Log {
        slot: event.subject,
        first_page: event.a,
        pages: slot.pages,
    };
    let mut device = DeviceBitmap::of(ebpf, &slot, key);
    let rest = log.count(
        |offset, bytes| memory.read_exact_at(bytes, event.b + offset).ok(),
        |number, piece| {
            device
                .as_mut()
                .map_or(0, |device| device.take_only(number, piece))
        },
    )?;
    let after = slots.get(&key, 0).ok()?;
    (after.version == event.c).then_some(rest)
}

/// The part of a log that is to be counted.
struct Log {
    slot: u32,
    first_page: u64,
    pages: u64,
}

impl Log {
    /// `read` fills a buffer from the bitmap, at an offset in bytes;
    /// `device_only` takes out the pages of a piece that are not in the log.
    fn count(
        &self,
        mut read: impl FnMut(u64, &mut [u8]) -> Option<()>,
        mut device_only: impl FnMut(u64, &[u64; PIECE_WORDS]) -> u64,
    ) -> Option<Rest> {
        let bytes = bitmap_bytes(self.pages);
        let mut rest = Rest::default();
        let mut part = Counts::default();
        for piece in self.first_page / PIECE_PAGES..pieces(bytes) {
            let words = read_piece(piece, bytes, &mut read)?;
            part.add(Counts {
                dirty_pages: words.iter().map(|word| u64::from(word.count_ones())).sum(),
                device_pages: device_only(piece, &words),
            });
            let end = ((piece + 1) * PIECE_PAGES).min(self.pages);
            if end == self.pages || end.is_multiple_of(PART_PAGES) {
                rest.counts.add(part);
                rest.parts.push(EventKind::DirtyPart {
                    slot: self.slot,
                    first_page: (end - 1) / PART_PAGES * PART_PAGES,
                    dirty_pages: part.dirty_pages,
                    device_pages: part.device_pages,
                });
                part = Counts::default();
            }
        }
        Some(rest)
    }
}

/// Piece number `piece` of a bitmap of `bytes` bytes; what is beyond is 0.
fn read_piece(
    piece: u64,
    bytes: u64,
    read: &mut impl FnMut(u64, &mut [u8]) -> Option<()>,
) -> Option<[u64; PIECE_WORDS]> {
    let mut buffer = [0; PIECE_BYTES as usize];
    let offset = piece * u64::from(PIECE_BYTES);
    let length =
        usize::try_from(bytes - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
    read(offset, buffer.get_mut(..length)?)?;
    let mut words = [0; PIECE_WORDS];
    for (word, bytes) in words.iter_mut().zip(buffer.as_chunks::<8>().0) {
        *word = u64::from_ne_bytes(*bytes);
    }
    Some(words)
}

/// The programs' bitmap of what devices wrote, mapped while it is looked at.
struct DeviceBitmap {
    pieces: NonNull<DevicePiece>,
    bytes: usize,
    first_piece: u32,
    count: u32,
}

impl DeviceBitmap {
    /// `None` if the slot has none.
    fn of(ebpf: &Ebpf, slot: &Slot, key: u64) -> Option<Self> {
        let ranges: Array<_, Ranges> = Array::try_from(ebpf.map(RANGES)?).ok()?;
        let ranges = ranges.get(&0, 0).ok()?;
        let range = ranges.ranges.get(usize::try_from(slot.range).ok()?)?;
        if range.key != key || range.first_piece == NO_PIECE {
            return None;
        }
        let Map::Array(map) = ebpf.map(DEVICE_PIECES)? else {
            return None;
        };
        Self::map(map, range.first_piece, range.pieces)
    }

    fn map(map: &MapData, first_piece: u32, count: u32) -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let entries = first_piece.checked_add(count)?;
        let bytes = size_of::<DevicePiece>() * usize::try_from(entries).ok()?;
        // SAFETY: a new mapping, at a place of the kernel's choice, of a map that
        // was made for it; the kernel refuses what is beyond its end.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd(),
                0,
            )
        };
        Some(Self {
            pieces: NonNull::new(address.ok()?.cast())?,
            bytes,
            first_piece,
            count,
        })
    }

    /// Takes out what piece `number` of the slot has, and counts the pages of it
    /// that `log` lacks.
    fn take_only(&mut self, number: u64, log: &[u64; PIECE_WORDS]) -> u64 {
        let Some(number) = u32::try_from(number)
            .ok()
            .filter(|&number| number < self.count)
        else {
            return 0;
        };
        let index = usize::try_from(self.first_piece + number).unwrap_or(usize::MAX);
        // SAFETY: within the mapping, which has `first_piece + count` pieces.
        let piece = unsafe { self.pieces.add(index) }.as_ptr();
        // SAFETY: a word of the mapping, which the programs change atomically.
        let take = |word: *mut u64| unsafe { AtomicU64::from_ptr(word) }.swap(0, Ordering::Relaxed);
        // SAFETY: the piece is within the mapping.
        let groups = take(unsafe { &raw mut (*piece).groups });
        let mut pages = 0;
        for (at, logged) in log.iter().enumerate() {
            if groups >> (at / GROUP_WORDS) & 1 == 1 {
                // SAFETY: as above; the words come first in a piece.
                let word = take(unsafe { piece.cast::<u64>().add(at) });
                pages += u64::from((word & !logged).count_ones());
            }
        }
        pages
    }
}

impl Drop for DeviceBitmap {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing refers to it now.
        let result = unsafe { rustix::mm::munmap(self.pieces.as_ptr().cast(), self.bytes) };
        if let Err(error) = result {
            tracing::debug!(%error, "the device bitmap stays mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_where_the_programs_stopped() {
        // Two parts and 70 pages; the programs counted the first part.
        let log = Log {
            slot: 7,
            first_page: PART_PAGES,
            pages: 2 * PART_PAGES + 70,
        };
        let mut bitmap = vec![0_u8; usize::try_from(bitmap_bytes(log.pages)).expect("fits")];
        let byte = |page: u64| usize::try_from(page / 8).expect("fits");
        bitmap[byte(PART_PAGES - 8)] = 0xff;
        bitmap[byte(PART_PAGES)] = 0x81;
        bitmap[byte(2 * PART_PAGES - 8)] = 1;
        bitmap[byte(2 * PART_PAGES + 64)] = 0x3f;
        let read = |offset: u64, bytes: &mut [u8]| {
            let offset = usize::try_from(offset).expect("fits");
            bytes.copy_from_slice(bitmap.get(offset..offset + bytes.len())?);
            Some(())
        };
        let rest = log.count(read, |piece, _| piece).expect("it can be read");
        let part = |first_page, dirty_pages, device_pages| EventKind::DirtyPart {
            slot: 7,
            first_page,
            dirty_pages,
            device_pages,
        };
        let parts = [
            part(PART_PAGES, 3, (8..16).sum()),
            part(2 * PART_PAGES, 6, 16),
        ];
        assert_eq!(rest.parts, parts);
        let counts = Counts {
            dirty_pages: 9,
            device_pages: (8..=16).sum(),
        };
        assert_eq!(rest.counts, counts);
    }

    #[test]
    fn what_cannot_be_read_is_not_counted() {
        let log = Log {
            slot: 7,
            first_page: 0,
            pages: 100,
        };
        assert!(log.count(|_, _| None, |_, _| 0).is_none());
    }
}
