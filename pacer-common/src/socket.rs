//! The map with what was handed to each connection.

use core::mem::{align_of, size_of};

/// Name of the per-CPU hash from [`SocketKey`] to bytes (`u64`); user space sums
/// over the CPUs. The connection used least recently makes room for a new one.
pub const SOCKETS: &str = "SOCKETS";

/// Room for connections. A migration has a few; a guest behind QEMU's own
/// network stack opens one on the host for each of its own.
pub const MAX_SOCKETS: u32 = 4096;

/// Address family of Unix sockets: `AF_UNIX`.
pub const UNIX: u16 = 1;
/// Address family of IPv4: `AF_INET`.
pub const IP4: u16 = 2;
/// Address family of IPv6: `AF_INET6`.
pub const IP6: u16 = 10;

/// A connection, as far as it is told apart from others.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketKey {
    /// Address family.
    pub family: u16,
    /// This end's port; 0 if it is not TCP.
    pub local_port: u16,
    /// The other end's port; 0 if it is not TCP.
    pub peer_port: u16,
    /// Always 0.
    pub padding: u16,
}

/// Name of the global with the [`SocketLayout`].
pub const SOCKET_LAYOUT: &str = "SOCKET_LAYOUT";

/// Offsets of fields in `struct sock`, in bytes. All 0: not known, and no ports
/// are told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketLayout {
    /// `sock.__sk_common.skc_num`
    pub local_port: u32,
    /// `sock.__sk_common.skc_dport`
    pub peer_port: u32,
}

const _: () = {
    assert!(size_of::<SocketKey>() == 8);
    assert!(align_of::<SocketKey>() == 2);
    assert!(size_of::<SocketLayout>() == 8);
    assert!(align_of::<SocketLayout>() == 4);
};

// SAFETY: `repr(C)`, four integers of 2 bytes that fill it without padding
// (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SocketKey {}

// SAFETY: `repr(C)`, two integers of 4 bytes that fill it without padding
// (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for SocketLayout {}
