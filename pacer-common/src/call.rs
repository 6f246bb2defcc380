//! System calls that threads are in, from their enter program to their exit
//! program.

use core::mem::{align_of, offset_of, size_of};

use crate::event::RawEvent;

/// Name of the hash from thread (`u64`: tgid and pid) to [`Call`].
pub const CALLS: &str = "CALLS";

/// Room for threads inside an observed call at once.
pub const MAX_CALLS: u32 = 4096;

/// `KVM_SET_USER_MEMORY_REGION` or its second version.
pub const SET_REGION: u32 = 1;
/// `KVM_GET_DIRTY_LOG`; `address` is the bitmap.
pub const GET_DIRTY_LOG: u32 = 2;
/// `KVM_CLEAR_DIRTY_LOG`.
pub const CLEAR_DIRTY_LOG: u32 = 3;
/// `pwrite64`, `pwritev` or `pwritev2`.
pub const WRITE: u32 = 4;
/// `io_submit`; `address` is the array of pointers to iocbs.
pub const IO_SUBMIT: u32 = 5;

/// A call that was entered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// What to report if the call succeeds, as far as it is known at its enter.
    pub event: RawEvent,
    /// An address in the process that the exit reads from, else 0.
    pub address: u64,
    /// Which call: one of this module's constants.
    pub kind: u32,
    /// Always 0.
    pub padding: u32,
}

const _: () = {
    assert!(size_of::<Call>() == 64);
    assert!(align_of::<Call>() == 8);
    assert!(offset_of!(Call, address) == 48);
    assert!(offset_of!(Call, kind) == 56);
    assert!(offset_of!(Call, padding) == 60);
};

// SAFETY: `repr(C)`, integers only, 64 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Call {}
