//! Memory as O_DIRECT wants it.

/// The strictest alignment that any disk asks for.
const ALIGNMENT_BYTES: usize = 4096;

/// Bytes that begin at a page.
pub(crate) struct AlignedBuffer {
    bytes: Vec<u8>,
    from: usize,
}

impl AlignedBuffer {
    /// Zeroes.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT_BYTES];
        let from = bytes.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self { bytes, from }
    }

    /// Bytes from `value`, none of which is 0: a block of them is never taken
    /// for zeroes.
    pub(crate) fn filled(len: usize, value: impl FnMut() -> u8) -> Self {
        let mut buffer = Self::zeroed(len);
        buffer.bytes.fill_with(value);
        for byte in &mut buffer.bytes {
            *byte |= 1;
        }
        buffer
    }

    /// The first `len` bytes.
    pub(crate) fn first(&self, len: usize) -> &[u8] {
        &self.bytes[self.from..self.from + len]
    }

    /// The first `len` bytes.
    pub(crate) fn first_mut(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.from..self.from + len]
    }
}
