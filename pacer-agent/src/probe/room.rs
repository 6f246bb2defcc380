//! What found no room in the programs' maps, in words and once.

use aya::Ebpf;
use aya::maps::Array;
use pacer_common::device::{DEVICE_PIECES, NO_PIECE, RANGES, Range, Ranges};
use pacer_common::dirty_log::{bitmap_bytes, pieces};
use pacer_common::slot::PAGE_SHIFT;

use crate::units::show_bytes;

/// Looks at what has no room when the counter of it rises.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// The counter when it was looked at last.
    map_full: u64,
    memory_told: bool,
    calls_told: bool,
}

impl Room {
    /// A warning, if `map_full` has risen and that was not told before.
    pub(super) fn check(
        &mut self,
        ebpf: &Ebpf,
        tgid: Option<u32>,
        map_full: u64,
    ) -> Option<String> {
        if map_full <= std::mem::replace(&mut self.map_full, map_full) {
            return None;
        }
        let bytes = tgid.and_then(|tgid| {
            let ranges = Array::<_, Ranges>::try_from(ebpf.map(RANGES)?).ok()?;
            let ranges = ranges.get(&0, 0).ok()?;
            Some(bytes_without_bitmap(&ranges, entries(ebpf)?, tgid))
        });
        self.tell(bytes.unwrap_or(0))
    }

    /// `bytes`: memory without a bitmap of what devices write.
    fn tell(&mut self, bytes: u64) -> Option<String> {
        if bytes > 0 {
            let is_new = !std::mem::replace(&mut self.memory_told, true);
            return is_new.then(|| {
                format!(
                    "what devices write into {} of the guest's memory is not counted: it was \
                     plugged since Pacer came, and is more than there is room for. Start Pacer \
                     again",
                    show_bytes(bytes)
                )
            });
        }
        let is_new = !std::mem::replace(&mut self.calls_told, true);
        is_new.then(|| NO_ROOM.to_owned())
    }
}

/// A remark for everything else that finds no room.
const NO_ROOM: &str = "some calls are not counted (map_full says how many): QEMU has used more \
     files, connections, requests at a time or memory slots than there is room for. Start Pacer \
     again if it uses fewer by now";

/// Pieces that there are.
fn entries(ebpf: &Ebpf) -> Option<u32> {
    // Typed it would be as long; a map's size needs no type.
    let aya::maps::Map::Array(map) = ebpf.map(DEVICE_PIECES)? else {
        return None;
    };
    map.info().ok().map(|info| info.max_entries())
}

/// Memory of the process that has no bitmap and would get none.
fn bytes_without_bitmap(ranges: &Ranges, entries: u32, tgid: u32) -> u64 {
    let left = u64::from(entries.saturating_sub(ranges.used_pieces));
    let is_left_out = |range: &&Range| {
        range.key >> 32 == u64::from(tgid)
            && range.first_piece == NO_PIECE
            && pieces(bitmap_bytes(bytes(range) >> PAGE_SHIFT)) > left
    };
    let used = usize::try_from(ranges.used).unwrap_or(0);
    let ranges = ranges.ranges.iter().take(used);
    ranges.filter(is_left_out).map(bytes).sum()
}

/// 0 once it is gone.
const fn bytes(range: &Range) -> u64 {
    range.end.saturating_sub(range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(tgid: u64, gib: u64, first_piece: u32) -> Range {
        Range {
            start: GIB,
            end: GIB + gib * GIB,
            key: tgid << 32,
            first_piece,
            ..Range::default()
        }
    }

    #[test]
    fn memory_without_a_bitmap_is_found() {
        let mut ranges = Ranges {
            used: 5,
            used_pieces: 90,
            ranges: [Range::default(); 64],
        };
        let gone = Range {
            end: 0,
            ..range(7, 9, NO_PIECE)
        };
        let of_another = range(8, 9, NO_PIECE);
        // Eight pieces would be left: 1 GiB would fit, 2 GiB do not.
        ranges.ranges[..5].copy_from_slice(&[
            range(7, 9, 0),
            gone,
            of_another,
            range(7, 2, NO_PIECE),
            range(7, 1, NO_PIECE),
        ]);
        assert_eq!(bytes_without_bitmap(&ranges, 98, 7), 2 * GIB);
        assert_eq!(bytes_without_bitmap(&ranges, 90, 7), 3 * GIB);
        assert_eq!(bytes_without_bitmap(&ranges, 200, 7), 0);
    }

    #[test]
    fn each_is_told_once() {
        let mut room = Room::default();
        let told = room.tell(64 * GIB).expect("the first time");
        assert!(told.contains("69 GB"), "{told}");
        assert_eq!(room.tell(65 * GIB), None);
        assert_eq!(room.tell(0).as_deref(), Some(NO_ROOM));
        assert_eq!(room.tell(0), None);
    }
}
