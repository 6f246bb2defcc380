//! `kvm:kvm_dirty_ring_push`: a vCPU has written a page that is logged in its
//! ring. (Exact for a processor without QEMU; not proven on a guest, as QEMU's
//! hang with rings on the software KVM where this was written.)

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::atomic;
use crate::filter::observed_thread;
use crate::maps::PUSHED;

#[tracepoint]
fn dirty_ring_push(_context: TracePointContext) -> u32 {
    if observed_thread().is_some()
        && let Some(pushed) = PUSHED.get_ptr_mut(0)
    {
        // SAFETY: the map's value, which all programs change atomically.
        unsafe { atomic::add(pushed, 1) };
    }
    0
}
