//! Uprobe on QEMU's `migration_bitmap_sync_precopy`: a pass begins. Under TCG no
//! system call shows it, and what the guest has stored to is counted here.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::event::{BITMAP_SYNC, RawEvent, STORES_COUNTED};

use crate::atomic;
use crate::filter::observed_thread;
use crate::maps::{STORE_COUNTS, STORES_WATCHED};
use crate::report::{report, report_now};

#[uprobe]
fn migration_bitmap_sync(_context: ProbeContext) -> u32 {
    if observed_thread().is_some() {
        report(RawEvent {
            kind: BITMAP_SYNC,
            ..RawEvent::default()
        });
        let _ = try_end_stores();
    }
    0
}

/// Pages count anew from here on.
#[inline(always)]
fn try_end_stores() -> Option<()> {
    let watched = *STORES_WATCHED.get(0)?;
    if watched == 0 {
        return None;
    }
    let counts = STORE_COUNTS.get_ptr_mut(0)?;
    // SAFETY: the map's value, whose fields all programs change atomically. A
    // store between the first two goes to the old count and the new epoch: it
    // is not lost.
    let (pages, overflow) = unsafe {
        atomic::add(&raw mut (*counts).epoch, 1);
        (
            atomic::exchange(&raw mut (*counts).pages, 0),
            atomic::exchange(&raw mut (*counts).overflow, 0),
        )
    };
    report_now(RawEvent {
        kind: STORES_COUNTED,
        a: pages,
        b: overflow,
        c: u64::from(watched),
        ..RawEvent::default()
    });
    Some(())
}
