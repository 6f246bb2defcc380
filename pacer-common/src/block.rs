//! The maps with what block devices did.

use core::mem::{align_of, size_of};

/// Name of the per-CPU hash from a device's number (`u32`, as the kernel packs
/// it) to [`DeviceCounts`]. A device that is in it is watched: user space puts
/// it there, and sums over the CPUs.
pub const DEVICES: &str = "DEVICES";

/// Room for watched devices.
pub const MAX_DEVICES: u32 = 256;

/// Name of the hash from a request's address (`u64`) to [`BlockRequest`].
pub const BLOCK_REQUESTS: &str = "BLOCK_REQUESTS";

/// Room for requests that watched devices have in hand: those of a few fast
/// devices (NVMe: up to 1023 a queue), of which some queues are full.
pub const MAX_BLOCK_REQUESTS: u32 = 8192;

/// Index of reads in [`DeviceCounts::directions`].
pub const READ: u32 = 0;
/// Index of writes in [`DeviceCounts::directions`].
pub const WRITE: u32 = 1;

/// Classes of latency: class `k` holds 2^k up to 2^(k+1) ns; the first also what
/// is below, the last, from nine minutes, what is above.
pub const LATENCY_CLASSES: u32 = 40;

/// A request that a device has in hand.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockRequest {
    /// When the device got it, `bpf_ktime_get_ns`.
    pub issued_ns: u64,
    /// Which device.
    pub device: u32,
    /// [`READ`] or [`WRITE`].
    pub direction: u32,
}

/// What one device completed in one direction, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectionCounts {
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Time from issue to completion, summed over the requests.
    pub latency_ns: u64,
    /// Requests by class of latency.
    pub by_latency: [u64; LATENCY_CLASSES as usize],
}

/// What one device completed, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCounts {
    /// By direction.
    pub directions: [DirectionCounts; 2],
}

impl DeviceCounts {
    /// Nothing yet.
    pub const NONE: Self = Self {
        directions: [DirectionCounts {
            requests: 0,
            bytes: 0,
            latency_ns: 0,
            by_latency: [0; LATENCY_CLASSES as usize],
        }; 2],
    };
}

/// Name of the global with the [`BlockLayout`].
pub const BLOCK_LAYOUT: &str = "BLOCK_LAYOUT";

/// Offsets of fields, in bytes: from a request to its device, and what it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLayout {
    /// `request.q`
    pub request_queue: u32,
    /// `request.cmd_flags`
    pub request_flags: u32,
    /// `request.__data_len`
    pub request_bytes: u32,
    /// `request_queue.disk`
    pub queue_disk: u32,
    /// `gendisk.major`
    pub disk_major: u32,
    /// `gendisk.first_minor`
    pub disk_minor: u32,
}

const _: () = {
    assert!(size_of::<BlockRequest>() == 16);
    assert!(align_of::<BlockRequest>() == 8);
    assert!(size_of::<DirectionCounts>() == (3 + LATENCY_CLASSES as usize) * 8);
    assert!(size_of::<DeviceCounts>() == 2 * size_of::<DirectionCounts>());
    assert!(align_of::<DeviceCounts>() == 8);
    assert!(size_of::<BlockLayout>() == 24);
    assert!(align_of::<BlockLayout>() == 4);
};

/// The class of a latency, below [`LATENCY_CLASSES`].
#[inline(always)]
#[must_use]
pub const fn latency_class(latency_ns: u64) -> u32 {
    let class = u64::BITS - 1 - (latency_ns | 1).leading_zeros();
    let last = LATENCY_CLASSES - 1;
    if class < last { class } else { last }
}

// SAFETY: `repr(C)`, integers only, 16 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for BlockRequest {}

// SAFETY: `repr(C)`, integers of 8 bytes only (asserted above): no padding, and
// every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for DeviceCounts {}

// SAFETY: `repr(C)`, six integers of 4 bytes that fill it without padding
// (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for BlockLayout {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        assert_eq!(latency_class(0), 0);
        assert_eq!(latency_class(1), 0);
        for class in 1..LATENCY_CLASSES {
            let start = 1u64 << class;
            assert_eq!(latency_class(start), class);
            assert_eq!(latency_class(start - 1), class - 1);
        }
        assert_eq!(latency_class(u64::MAX), LATENCY_CLASSES - 1);
    }
}
