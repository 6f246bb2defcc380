//! Uprobe on QEMU's `migration_bitmap_sync_precopy`: a pass begins. Under TCG no
//! system call shows it.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::event::{BITMAP_SYNC, RawEvent};

use crate::filter::observed_thread;
use crate::report::report;

#[uprobe]
fn migration_bitmap_sync(_context: ProbeContext) -> u32 {
    if observed_thread().is_some() {
        report(RawEvent {
            kind: BITMAP_SYNC,
            ..RawEvent::default()
        });
    }
    0
}
