//! `sys_exit_ioctl`: what came of the calls that [`crate::ioctl_enter`] noted.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use pacer_common::call::{CLEAR_DIRTY_LOG, Call, GET_DIRTY_LOG, SET_REGION};
use pacer_common::counter;
use pacer_common::event::RawEvent;
use pacer_common::slot;

use crate::filter::{candidate_thread, own_tgid};
use crate::maps::SLOTS;
use crate::report::{count, report};
use crate::{calls, dirty_log};

/// Where the tracepoint keeps the call's result.
const RET_OFFSET: usize = 16;

#[tracepoint]
fn ioctl_exit(context: TracePointContext) -> u32 {
    let _ = try_ioctl_exit(&context);
    0
}

#[inline(always)]
fn try_ioctl_exit(context: &TracePointContext) -> Option<()> {
    let call = calls::leave(candidate_thread()?)?;
    let tgid = own_tgid()?;
    // SAFETY: the tracepoint has 8 bytes there.
    let ret = unsafe { context.read_at::<i64>(RET_OFFSET) }.ok()?;
    if ret != 0 {
        return None;
    }
    match call.kind {
        SET_REGION => set_region(tgid, &call.event),
        GET_DIRTY_LOG => get_dirty_log(context, tgid, &call)?,
        CLEAR_DIRTY_LOG => report(call.event),
        _ => {}
    }
    Some(())
}

/// Remembers the slot's size before telling of it.
#[inline(always)]
fn set_region(tgid: u32, event: &RawEvent) {
    let key = slot::key(tgid, event.subject);
    if event.a == 0 {
        // A slot that was there before this program was is not in the map.
        let _ = SLOTS.remove(key);
    } else if SLOTS.insert(key, event.a, 0).is_err() {
        count(counter::MAP_FULL);
    }
    report(*event);
}

#[inline(always)]
fn get_dirty_log(context: &TracePointContext, tgid: u32, call: &Call) -> Option<()> {
    // SAFETY: QEMU changes its slots under the lock it reads their logs under.
    let Some(&pages) = (unsafe { SLOTS.get(slot::key(tgid, call.event.subject)) }) else {
        count(counter::UNKNOWN_SLOTS);
        // Rare: once a slot and sync of a QEMU that was not seen to begin.
        debug!(
            context,
            "process {} read the dirty log of slot {}, which it registered before",
            tgid,
            call.event.subject
        );
        return None;
    };
    let dirty_pages = dirty_log::count_pages(call.address, pages)?;
    report(RawEvent {
        a: dirty_pages,
        b: pages,
        ..call.event
    });
    Some(())
}
