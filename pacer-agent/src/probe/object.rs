//! The eBPF object inside this binary.

/// The object, if the binary was built with one (see `build.rs`).
#[cfg(pacer_ebpf)]
pub(super) const EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(
    env!("OUT_DIR"),
    "/pacer-ebpf"
)));

/// The object, if the binary was built with one (see `build.rs`).
#[cfg(not(pacer_ebpf))]
pub(super) const EMBEDDED: Option<&[u8]> = None;
