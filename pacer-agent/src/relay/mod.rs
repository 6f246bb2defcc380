//! The relay: QEMU's TCP connections over one QUIC connection.

mod beats;
pub mod channel;
pub mod control;
pub mod endpoint;
pub mod frame;
pub mod gate;
pub mod link_model;
pub mod padding;
pub mod tls;
