//! Arrays of `struct iovec` in the process' memory.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

use crate::user::read_user;

/// Most vectors walked: `UIO_MAXIOV`, the kernel's own limit.
pub(crate) const MAX_VECTORS: u32 = 1024;

/// Size of an [`IoVec`].
pub(crate) const VECTOR_BYTES: u64 = 16;

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct IoVec {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
}

/// A walk over vectors: where they are, and the sum so far.
struct Sum {
    address: u64,
    bytes: u64,
}

/// Bytes of `count` vectors at `address`.
#[inline(always)]
pub(crate) fn total_bytes(address: u64, count: u64) -> u64 {
    let mut sum = Sum { address, bytes: 0 };
    // SAFETY: the callback has the form the helper wants, and `sum` outlives
    // the call.
    unsafe {
        bpf_loop(
            at_most(count),
            add_vector as *mut c_void,
            (&raw mut sum).cast(),
            0,
        )
    };
    sum.bytes
}

unsafe extern "C" fn add_vector(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `total_bytes` passes its `Sum`, and nothing else uses it now.
    let sum = unsafe { &mut *context.cast::<Sum>() };
    if let Some(vector) = read_user::<IoVec>(sum.address + u64::from(index) * VECTOR_BYTES) {
        sum.bytes += vector.bytes;
    }
    0
}

/// `count` as the helper takes it, within what is walked.
#[inline(always)]
pub(crate) fn at_most(count: u64) -> u32 {
    u32::try_from(count).map_or(MAX_VECTORS, |count| count.min(MAX_VECTORS))
}
