//! Numbers that depend on a seed alone.

/// xorshift64*, Vigna 2016.
pub(crate) struct Random(u64);

impl Random {
    /// Another sequence for each pair of `seed` and `stream`.
    pub(crate) const fn new(seed: u64, stream: u64) -> Self {
        let mixed = (seed ^ stream.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        Self(mixed ^ 0x2545_F491_4F6C_DD1D | 1)
    }

    /// The next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, 0 for a bound of 0. The bias of the remainder
    /// does not matter here.
    pub(crate) const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        (self.next() >> 8) % bound
    }
}
