//! Fields of tracepoints that are not the same in every kernel, at the offsets
//! that the loader found in tracefs.

use aya_ebpf::Global;
use aya_ebpf::programs::TracePointContext;
use pacer_common::tracepoint::TracepointLayout;

#[unsafe(no_mangle)]
static TRACEPOINT_LAYOUT: Global<TracepointLayout> = Global::new(TracepointLayout {
    complete_request: 0,
    complete_result: 0,
    send_socket: 0,
    send_family: 0,
    send_protocol: 0,
    send_result: 0,
    receive_result: 0,
    receive_flags: 0,
});

/// The offsets.
#[inline(always)]
pub(crate) fn layout() -> TracepointLayout {
    TRACEPOINT_LAYOUT.load()
}

/// The field at `offset`. `T` must be valid for every byte pattern.
#[inline(always)]
pub(crate) fn field<T: Copy>(context: &TracePointContext, offset: u32) -> Option<T> {
    // Copied by a helper: the verifier allows a plain load only at an offset
    // that is in the instruction ("dereference of modified ctx ptr").
    // SAFETY: the helper checks the address; callers ask for integers only.
    unsafe { context.read_at(offset as usize) }.ok()
}
