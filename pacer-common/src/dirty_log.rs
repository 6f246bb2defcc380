//! How a KVM dirty log is walked: a bitmap in QEMU's memory with one bit for a
//! page, copied piece by piece into a buffer of the CPU.

/// Name of the per-CPU array whose one slot is a piece's buffer.
pub const PIECE: &str = "PIECE";

/// 64-bit words of the bitmap in one piece (4 KiB: 128 MiB of guest memory).
pub const PIECE_WORDS: usize = 512;

/// Bytes of the bitmap in one piece.
pub const PIECE_BYTES: u32 = 4096;

/// Most pieces of one bitmap: a slot of 1 TiB. `bpf_loop` allows 2^23.
pub const MAX_PIECES: u32 = 8192;

const _: () = assert!(PIECE_WORDS * 8 == 4096 && PIECE_BYTES == 4096);

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
        // 1 TiB of guest memory is what fits.
        assert_eq!(pieces(bitmap_bytes(1 << 28)), u64::from(MAX_PIECES));
    }
}
