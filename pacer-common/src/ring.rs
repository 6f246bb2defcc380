//! KVM's dirty rings: the other way to log dirty pages.

/// Name of the array with one `u64`: pages pushed into the rings since they
/// were emptied.
pub const PUSHED: &str = "PUSHED";
