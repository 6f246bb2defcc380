//! What fills a guest's memory before anything is written to it: nothing a
//! compressor can shrink, and no two pages alike.

/// Bytes of the content before it repeats; each page of it is then told from
/// the others by [`page_mark`].
pub const CONTENT_BYTES: usize = 16 << 20;

/// The content, the same on every machine and run.
#[must_use]
pub fn content() -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = Vec::with_capacity(CONTENT_BYTES);
    while bytes.len() < CONTENT_BYTES {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes
}

/// The dword at offset 8 of page `page`, counted from the first filled one: an
/// odd multiple and a constant, so no two pages have the same.
#[must_use]
pub const fn page_mark(page: u32) -> u32 {
    page.wrapping_mul(0x9E37_79B1) ^ 0x5BD1_E995
}

/// The dword at offset 4 of working-set page `page` in round `round`; the one
/// at offset 0 is the round itself.
#[must_use]
pub const fn round_mark(page: u32, round: u32) -> u32 {
    page.wrapping_mul(0x85EB_CA6B) ^ 0x2545_F491 ^ round
}
