//! What the guest asked of its disks, above any image format.

use core::mem::{align_of, size_of};

/// Name of the hash from [`BackendKey`] to [`BackendCounts`]; user space sums
/// over the threads.
pub const BACKENDS: &str = "BACKENDS";

/// Room for pairs of a block backend and a thread.
pub const MAX_BACKENDS: u32 = 4096;

/// A block backend as one thread uses it. By thread and not by CPU, because
/// uprobes may be preempted: nobody else writes this thread's counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendKey {
    /// Address of QEMU's `BlockBackend`.
    pub address: u64,
    /// The thread.
    pub thread: u64,
}

/// What one thread asked of one backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounts {
    /// Writes of content.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Ranges made zero.
    pub zeroes: u64,
    /// Their bytes.
    pub zeroed_bytes: u64,
    /// Ranges given back.
    pub discards: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
}

const _: () = {
    assert!(size_of::<BackendKey>() == 16);
    assert!(align_of::<BackendKey>() == 8);
    assert!(size_of::<BackendCounts>() == 48);
    assert!(align_of::<BackendCounts>() == 8);
};

// SAFETY: `repr(C)`, integers of 8 bytes only (asserted above): no padding, and
// every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for BackendKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for BackendCounts {}
