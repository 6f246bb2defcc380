//! The map with what was read from and written to each file, and asked of each
//! block backend.

use core::mem::{align_of, size_of};

/// Name of the per-CPU hash from [`FileKey`] to [`FileCounts`]; user space sums
/// over the CPUs.
pub const FILES: &str = "FILES";

/// Room for files and backends. QEMU has a few for each disk, and some devices.
pub const MAX_FILES: u32 = 1024;

/// A file, however many descriptors it has, or a block backend of QEMU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileKey {
    /// Its inode, or the address of QEMU's `BlockBackend`.
    pub inode: u64,
    /// Address of its file system in the kernel, which stays while the file is
    /// open, or [`BACKEND`].
    pub super_block: u64,
    /// What tells it from files that had the inode before, as far as the file
    /// system numbers them.
    pub generation: u64,
}

/// In place of a file system, for backends: the address of none.
pub const BACKEND: u64 = 1;

/// What happened to one file, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCounts {
    /// The device of its file system, as the kernel packs it: the major number
    /// above the lower 20 bits. Set on the CPU that saw the file first, 0 on the
    /// others.
    pub device: u64,
    /// When it was first seen, `bpf_ktime_get_ns`; likewise.
    pub first_at_ns: u64,
    /// Writes of content.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Ranges made zero.
    pub zeroes: u64,
    /// Their bytes.
    pub zeroed_bytes: u64,
    /// Ranges given back to the file system or the device.
    pub discards: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Chunks forgotten to make room.
    pub evicted_chunks: u64,
}

impl FileCounts {
    /// Nothing yet.
    pub const NONE: Self = Self {
        device: 0,
        first_at_ns: 0,
        writes: 0,
        written_bytes: 0,
        zeroes: 0,
        zeroed_bytes: 0,
        discards: 0,
        discarded_bytes: 0,
        reads: 0,
        read_bytes: 0,
        evicted_chunks: 0,
    };
}

const _: () = {
    assert!(size_of::<FileKey>() == 24);
    assert!(align_of::<FileKey>() == 8);
    assert!(size_of::<FileCounts>() == 11 * 8);
    assert!(align_of::<FileCounts>() == 8);
};

// SAFETY: `repr(C)`, integers only, 24 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FileKey {}

// SAFETY: `repr(C)`, integers of 8 bytes only (asserted above): no padding, and
// every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for FileCounts {}
