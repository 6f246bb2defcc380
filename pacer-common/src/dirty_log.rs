//! How a KVM dirty log is walked: a bitmap in QEMU's memory with one bit for a
//! page, copied piece by piece into a buffer of the CPU.

/// Name of the per-CPU array whose one slot is a piece's buffer.
pub const PIECE: &str = "PIECE";

/// 64-bit words of the bitmap in one piece (4 KiB: 128 MiB of guest memory).
pub const PIECE_WORDS: usize = 512;

/// Bytes of the bitmap in one piece.
pub const PIECE_BYTES: u32 = 4096;

/// Pages of the bitmap in one piece.
pub const PIECE_PAGES: u64 = PIECE_BYTES as u64 * 8;

/// Pieces in a part, the unit in which pages are told of: 1 GiB of guest
/// memory, as QEMU clears the log.
pub const PART_PIECES: u32 = 8;

/// Pages of a part; a slot's last part may have fewer.
pub const PART_PAGES: u64 = PART_PIECES as u64 * PIECE_PAGES;

/// Name of the global with how many pieces one run of a program counts (`u32`,
/// a multiple of [`PART_PIECES`]). Programs run without being interrupted; the
/// rest is counted in user space.
pub const RUN_PIECES: &str = "RUN_PIECES";

/// Pieces for 64 GiB: a run of a third of a millisecond.
pub const DEFAULT_RUN_PIECES: u32 = 64 * PART_PIECES;

const _: () = assert!(PIECE_WORDS * 8 == 4096 && PIECE_BYTES == 4096);
const _: () = assert!(PART_PAGES * 4096 == 1 << 30);

/// Bytes of the bitmap of a slot with `pages` pages: KVM rounds up to words.
#[inline(always)]
#[must_use]
pub const fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64) * 8
}

/// How many pieces a bitmap of `bytes` bytes is read in.
#[inline(always)]
#[must_use]
pub const fn pieces(bytes: u64) -> u64 {
    bytes.div_ceil(PIECE_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covers_every_page_once() {
        assert_eq!(bitmap_bytes(0), 0);
        assert_eq!(bitmap_bytes(1), 8);
        assert_eq!(bitmap_bytes(64), 8);
        assert_eq!(bitmap_bytes(65), 16);
        assert_eq!(pieces(0), 0);
        assert_eq!(pieces(8), 1);
        assert_eq!(pieces(4096), 1);
        assert_eq!(pieces(4104), 2);
        // 1 TiB of guest memory.
        assert_eq!(pieces(bitmap_bytes(1 << 28)), 8192);
    }
}
