//! Settings of one run: a map and a global that the loader sets.

/// Name of the array with one `u32`: the observed process' thread group, as the
/// PID namespace of [`PID_NAMESPACE`] numbers it. 0: not known yet; then the
/// calls about dirty logs of every process are reported, and nothing else.
pub const OBSERVED: &str = "OBSERVED";

/// Name of the global with the loader's PID namespace.
pub const PID_NAMESPACE: &str = "PID_NAMESPACE";

/// A PID namespace, as `stat` of `/proc/PID/ns/pid` names it. All 0: the initial
/// one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PidNamespace {
    /// Device of the namespace's file.
    pub device: u64,
    /// Inode of the namespace's file.
    pub inode: u64,
}

const _: () = {
    assert!(size_of::<PidNamespace>() == 16);
    assert!(align_of::<PidNamespace>() == 8);
    assert!(core::mem::offset_of!(PidNamespace, inode) == 8);
};

// SAFETY: `repr(C)`, integers only, 16 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for PidNamespace {}
