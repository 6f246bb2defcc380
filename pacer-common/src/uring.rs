//! io_uring requests between their submission and their completion.

use core::mem::{align_of, size_of};

use crate::file::FileKey;

/// Name of the hash from a request's address (`u64`) to [`Request`].
pub const REQUESTS: &str = "REQUESTS";

/// Room for requests in flight. QEMU's rings have 128 entries each.
pub const MAX_REQUESTS: u32 = 8192;

/// A read or a write.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Of which file.
    pub file: FileKey,
    /// Where in it, in bytes.
    pub offset: u64,
    /// 1 for a write, 0 for a read.
    pub is_write: u64,
}

const _: () = {
    assert!(size_of::<Request>() == 32);
    assert!(align_of::<Request>() == 8);
};

// SAFETY: `repr(C)`, integers only, 32 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Request {}
