//! Uprobe on QEMU's `migrate_set_state(state *, old, new)`.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::event::{MIGRATION_STATE, RawEvent};

use crate::filter::observed_thread;
use crate::report::report_now;
use crate::user::read_user;

#[uprobe]
fn migrate_set_state(context: ProbeContext) -> u32 {
    let _ = try_migrate_set_state(&context);
    0
}

#[inline(always)]
fn try_migrate_set_state(context: &ProbeContext) -> Option<()> {
    observed_thread()?;
    let state: u64 = context.arg(0)?;
    let old: u32 = context.arg(1)?;
    let new: u32 = context.arg(2)?;
    // The function changes the state only if it is `old`, and is called on the
    // chance: https://gitlab.com/qemu-project/qemu/-/blob/v10.0.0/migration/migration.c
    if read_user::<u32>(state)? != old {
        return None;
    }
    report_now(RawEvent {
        kind: MIGRATION_STATE,
        a: u64::from(old),
        b: u64::from(new),
        ..RawEvent::default()
    });
    Some(())
}
