//! Uprobe on QEMU's `vm_stop_force_state`: the guest is stopped for the
//! switchover.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::event::{GUEST_STOPPING, RawEvent};

use crate::filter::observed_thread;
use crate::report::report_now;

#[uprobe]
fn vm_stop(_context: ProbeContext) -> u32 {
    if observed_thread().is_some() {
        report_now(RawEvent {
            kind: GUEST_STOPPING,
            ..RawEvent::default()
        });
    }
    0
}
