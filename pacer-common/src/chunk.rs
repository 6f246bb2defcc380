//! How often the chunks of a file are written: a table of fixed size in sets of
//! a few chunks. A chunk that finds its set full takes the place of the one
//! written longest ago.

use core::mem::{align_of, size_of};

use crate::file::FileKey;

/// Name of the array of [`ChunkSet`], which user space maps to look through it.
pub const CHUNKS: &str = "CHUNKS";

/// Sets in the table: a power of two. With [`WAYS`] it holds 64 Ki chunks, that
/// is 64 GiB under writes at a time, in 3 MiB.
pub const SETS: u32 = 1 << SET_BITS;

const SET_BITS: u32 = 14;

/// Chunks in a set.
pub const WAYS: usize = 4;

/// log2 of a chunk's size: 1 MiB, the unit in which QEMU's block migration
/// copies.
pub const CHUNK_SHIFT: u32 = 20;

/// Most chunks that one write is told of. Longer ones, which QEMU does not
/// make, are cut and counted.
pub const MAX_CHUNKS: u32 = 64;

/// Classes of mean intervals. Class 0: written once. Class `k` from 1: below
/// 2^(k+20) ns and, but for the first, at least half of that; the last is open.
pub const CLASSES: usize = LAST_CLASS as usize + 1;

/// The class of the longest intervals, from 73 minutes.
const LAST_CLASS: u32 = 23;

/// log2 of the upper end of class 1's intervals in ns, about 2 ms.
const FIRST_SHIFT: u32 = 21;

/// A chunk under writes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Its file.
    pub file: FileKey,
    /// Its number in the file.
    pub number: u64,
    /// When it was last written, `bpf_ktime_get_ns`; 0: no chunk is here.
    pub written_at_ns: u64,
    /// Mean of the intervals between its writes, the newest weighing an eighth; 0
    /// while it was written once.
    pub interval_ns: u64,
}

/// The chunks whose hash is the same.
pub type ChunkSet = [Chunk; WAYS];

const _: () = {
    assert!(size_of::<Chunk>() == 48);
    assert!(align_of::<Chunk>() == 8);
    assert!(SETS.is_power_of_two());
};

/// The class of a chunk that was written more than once, with mean interval
/// `interval_ns`.
#[inline(always)]
#[must_use]
pub const fn class_of(interval_ns: u64) -> u32 {
    let bits = u64::BITS - (interval_ns >> FIRST_SHIFT).leading_zeros();
    if bits < LAST_CLASS {
        bits + 1
    } else {
        LAST_CLASS
    }
}

/// The lower end of a class' intervals in ns. Class 0 has no intervals.
#[must_use]
pub const fn class_start_ns(class: u32) -> u64 {
    if class <= 1 {
        0
    } else {
        1 << (FIRST_SHIFT + class - 2)
    }
}

/// The mean after one more interval.
#[inline(always)]
#[must_use]
pub const fn mean_with(mean_ns: u64, interval_ns: u64) -> u64 {
    if mean_ns == 0 {
        if interval_ns == 0 { 1 } else { interval_ns }
    } else {
        mean_ns - mean_ns / 8 + interval_ns / 8
    }
}

/// The set that a chunk belongs to, below [`SETS`]. Neighbours go to neighbouring
/// sets: what is written often then lies on a few pages of the table, and to reach
/// one costs more than all else about a chunk.
#[inline(always)]
#[must_use]
pub const fn set_of(file: &FileKey, number: u64) -> u32 {
    // Fibonacci hashing: files begin far apart.
    let mixed = (file.inode ^ file.super_block.rotate_left(32) ^ file.generation)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 32).wrapping_add(number) as u32 & (SETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_meet_without_gaps() {
        for class in 1..=LAST_CLASS {
            let start = class_start_ns(class);
            assert_eq!(class_of(start), class);
            if class > 1 {
                assert_eq!(class_of(start - 1), class - 1);
            }
        }
        assert_eq!(class_of(u64::MAX), LAST_CLASS);
    }

    #[test]
    fn the_mean_follows_its_intervals() {
        let mut mean = mean_with(0, 1000);
        assert_eq!(mean, 1000);
        for _ in 0..100 {
            mean = mean_with(mean, 8000);
        }
        assert!((7900..=8000).contains(&mean), "{mean}");
    }

    #[test]
    fn neighbours_are_spread() {
        let file = FileKey {
            inode: 42,
            super_block: 7,
            generation: 0,
        };
        let mut used = [0u8; SETS as usize];
        for number in 0..u64::from(SETS) {
            used[set_of(&file, number) as usize] += 1;
        }
        let most = used.iter().max().copied();
        assert!(most <= Some(8), "{most:?}");
    }
}
