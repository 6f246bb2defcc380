//! Where this kernel's tracepoints keep their fields. Only those of system
//! calls are the same everywhere; the rest the loader reads from tracefs.

use core::mem::{align_of, size_of};

/// Name of the global with the [`TracepointLayout`].
pub const TRACEPOINT_LAYOUT: &str = "TRACEPOINT_LAYOUT";

/// Offsets of fields, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TracepointLayout {
    /// `io_uring_complete`: address of the request.
    pub complete_request: u32,
    /// `io_uring_complete`: bytes done, or an error.
    pub complete_result: u32,
    /// `sock_send_length`: address of the socket.
    pub send_socket: u32,
    /// `sock_send_length`: address family.
    pub send_family: u32,
    /// `sock_send_length`: protocol.
    pub send_protocol: u32,
    /// `sock_send_length`: bytes accepted, or an error.
    pub send_result: u32,
    /// `sock_recv_length`: bytes received, or an error.
    pub receive_result: u32,
    /// `sock_recv_length`: flags of the call.
    pub receive_flags: u32,
}

const _: () = {
    assert!(size_of::<TracepointLayout>() == 32);
    assert!(align_of::<TracepointLayout>() == 4);
};

// SAFETY: `repr(C)`, integers only, 8 of 4 bytes that fill it without padding
// (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TracepointLayout {}
