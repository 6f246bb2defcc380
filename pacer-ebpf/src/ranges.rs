//! Where the slots lie in QEMU, and which bitmap each has for what devices
//! write. QEMU changes slots under a lock of its own, so there is one writer;
//! a reader may see an entry half changed, and then notes a page wrongly once.

use aya_ebpf::Global;
use pacer_common::counter;
use pacer_common::device::{MAX_RANGES, NO_PIECE, Range, Ranges};
use pacer_common::dirty_log::{bitmap_bytes, pieces};
use pacer_common::slot::PAGE_SHIFT;

use crate::maps::RANGES;
use crate::report::count;

/// Entries of the map of pieces, which the loader sizes.
#[unsafe(no_mangle)]
static DEVICE_ENTRIES: Global<u32> = Global::new(0);

/// The slot `key` has `bytes` of memory at `start`. Returns the number of its
/// entry; without one, and counted, what devices write there is not noted.
#[inline(always)]
pub(crate) fn register(key: u64, start: u64, bytes: u64, logged: bool) -> Option<u32> {
    let ranges = table()?;
    // A slot that comes back finds its own, and the bitmap it had.
    let index = match find(ranges, |range| range.key == key) {
        Some(index) => index,
        None => free_entry(ranges, key)?,
    };
    let used_pieces = ranges.used_pieces;
    let range = ranges.ranges.get_mut(index as usize)?;
    // Not found by its addresses while it changes.
    range.end = 0;
    range.start = start;
    range.key = key;
    range.logged = u32::from(logged);
    let needed = u32::try_from(pieces(bitmap_bytes(bytes >> PAGE_SHIFT))).ok()?;
    if logged && (range.first_piece == NO_PIECE || range.pieces < needed) {
        range.first_piece = NO_PIECE;
        let entries = DEVICE_ENTRIES.load();
        if used_pieces <= entries && needed <= entries - used_pieces {
            range.first_piece = used_pieces;
            range.pieces = needed;
            ranges.used_pieces = used_pieces + needed;
        } else {
            count(counter::MAP_FULL);
        }
    }
    let range = ranges.ranges.get_mut(index as usize)?;
    range.end = start + bytes;
    Some(index)
}

/// The slot `key` is gone. Its entry stays for when it comes back.
#[inline(always)]
pub(crate) fn remove(key: u64) {
    if let Some(ranges) = table()
        && let Some(index) = find(ranges, |range| range.key == key)
        && let Some(range) = ranges.ranges.get_mut(index as usize)
    {
        range.end = 0;
    }
}

/// The first piece of the slot `key`, whose entry is or was number `index`; or
/// [`NO_PIECE`].
#[inline(always)]
pub(crate) fn first_piece(index: u32, key: u64) -> u32 {
    match table().and_then(|ranges| ranges.ranges.get(index as usize)) {
        Some(range) if range.key == key && range.end != 0 => range.first_piece,
        _ => NO_PIECE,
    }
}

/// The range that `address` lies in.
#[inline(always)]
pub(crate) fn at(address: u64) -> Option<&'static Range> {
    let ranges = table()?;
    let index = find(ranges, |range| {
        range.start <= address && address < range.end
    })?;
    ranges.ranges.get(index as usize)
}

#[inline(always)]
fn table() -> Option<&'static mut Ranges> {
    let ranges = RANGES.get_ptr_mut(0)?;
    // SAFETY: a map's value lives as long as the map; who writes it is said
    // above.
    Some(unsafe { &mut *ranges })
}

#[inline(always)]
fn find(ranges: &Ranges, is_it: impl Fn(&Range) -> bool) -> Option<u32> {
    let used = ranges.used;
    for (index, range) in (0..).zip(&ranges.ranges) {
        if index >= used {
            return None;
        }
        if is_it(range) {
            return Some(index);
        }
    }
    None
}

/// An entry for one more slot.
#[inline(always)]
fn free_entry(ranges: &mut Ranges, key: u64) -> Option<u32> {
    let index = if ranges.used < MAX_RANGES {
        ranges.used
    } else if find(ranges, |range| range.key >> 32 != key >> 32).is_some() {
        // While it is not known which process matters, the last to register
        // its slots is likely it: the others' make room.
        ranges.used_pieces = 0;
        0
    } else if let Some(index) = find(ranges, |range| range.end == 0) {
        return Some(index);
    } else {
        count(counter::MAP_FULL);
        return None;
    };
    ranges.used = index + 1;
    *ranges.ranges.get_mut(index as usize)? = Range {
        first_piece: NO_PIECE,
        ..Range::default()
    };
    Some(index)
}
