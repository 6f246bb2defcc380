//! Guest memory that QEMU's devices write: KVM's dirty logs do not show it.
//! Where each slot lies in QEMU, and a bitmap like its dirty log, of the pages
//! that QEMU had read into since the log was read last.

use core::mem::{align_of, size_of};

use crate::dirty_log::PIECE_WORDS;

/// Name of the array with the one [`Ranges`].
pub const RANGES: &str = "RANGES";

/// Room for slots of the observed process. QEMU's guests have ten to forty.
pub const MAX_RANGES: u32 = 64;

/// [`Range::first_piece`] of a slot without a bitmap.
pub const NO_PIECE: u32 = u32::MAX;

/// Name of the array of [`DevicePiece`]. The loader sets its size, by what the
/// guest needs.
pub const DEVICE_PIECES: &str = "DEVICE_PIECES";

/// Name of the global with the size of that array (`u32`).
pub const DEVICE_ENTRIES: &str = "DEVICE_ENTRIES";

/// Pieces where the guest's size is not known: 256 GiB, in 8 MiB.
pub const DEFAULT_PIECES: u32 = 2048 + MAX_RANGES;

/// Most pieces: 1 TiB, in 32 MiB. What is beyond has no bitmap.
pub const MAX_PIECES: u32 = 8192 + MAX_RANGES;

/// Words of a piece that one bit of [`DevicePiece::groups`] stands for.
pub const GROUP_WORDS: usize = PIECE_WORDS / 64;

/// A bitmap of as many pages as a piece of a dirty log has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePiece {
    /// The pages.
    pub words: [u64; PIECE_WORDS],
    /// Bit n: a word of the n-th group is not 0.
    pub groups: u64,
}

/// Where the memory of one slot lies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Its first address in QEMU.
    pub start: u64,
    /// The address after its last; 0: this entry is free.
    pub end: u64,
    /// Whose it is: [`crate::slot::key`].
    pub key: u64,
    /// The first of its pieces, or [`NO_PIECE`].
    pub first_piece: u32,
    /// How many.
    pub pieces: u32,
    /// 1 while its dirty pages are logged, else 0: nothing is noted then.
    pub logged: u32,
    /// Always 0.
    pub padding: u32,
}

/// All slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Entries that were ever used.
    pub used: u32,
    /// Pieces given out.
    pub used_pieces: u32,
    /// The entries.
    pub ranges: [Range; MAX_RANGES as usize],
}

const _: () = {
    assert!(size_of::<DevicePiece>() == 4096 + 8);
    assert!(align_of::<DevicePiece>() == 8);
    assert!(size_of::<Range>() == 40);
    assert!(align_of::<Range>() == 8);
    assert!(size_of::<Ranges>() == 8 + 40 * MAX_RANGES as usize);
    assert!(GROUP_WORDS == 8);
};

// SAFETY: `repr(C)`, integers only, which fill it without padding (its size is
// asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Ranges {}
