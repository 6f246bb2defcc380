//! What KVM is told and asked about a guest's memory.

use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use pacer_common::counter;
use pacer_common::event::{
    DIRTY_LOG, INFERRED, LOG_CLEARED, LOG_REST, LOG_UNREAD, PARTIAL, RINGS_RESET, RawEvent,
    SLOT_REGISTERED,
};
use pacer_common::slot::{self, FLAG_LOG_DIRTY_PAGES, NO_RANGE, PAGE_SHIFT, Slot};

use crate::atomic;
use crate::dirty_log::{self, Log};
use crate::filter::own_tgid;
use crate::maps::{PUSHED, SLOTS};
use crate::ranges;
use crate::report::{count, report, report_now};
use crate::user::read_user;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/kvm.h
pub(crate) const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
pub(crate) const SET_USER_MEMORY_REGION2: u32 = 0x40a0_ae49;
pub(crate) const GET_DIRTY_LOG: u32 = 0x4010_ae42;
pub(crate) const CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;
pub(crate) const RESET_DIRTY_RINGS: u32 = 0xaec7;

/// `struct kvm_userspace_memory_region`; its second version begins the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest_address: u64,
    bytes: u64,
    user_address: u64,
}

/// `struct kvm_dirty_log`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DirtyLog {
    slot: u32,
    padding: u32,
    bitmap: u64,
}

/// `struct kvm_clear_dirty_log`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ClearDirtyLog {
    slot: u32,
    pages: u32,
    first_page: u64,
    bitmap: u64,
}

/// The call `request` succeeded; `argument` is the address of its struct.
#[inline(always)]
pub(crate) fn on_call(context: &TracePointContext, request: u32, argument: u64) -> Option<()> {
    let tgid = own_tgid()?;
    match request {
        GET_DIRTY_LOG => on_log(context, tgid, read_user(argument)?),
        CLEAR_DIRTY_LOG => {
            on_clear(tgid, read_user(argument)?);
            Some(())
        }
        _ => {
            on_region(tgid, read_user(argument)?);
            Some(())
        }
    }
}

/// The call `request` begins; `argument` is the address of its struct. Notes
/// that what user space counts of the slot's bitmap may change.
#[inline(always)]
pub(crate) fn before_call(request: u32, argument: u64) -> Option<()> {
    let tgid = own_tgid()?;
    let (id, end) = if request == GET_DIRTY_LOG {
        let log: DirtyLog = read_user(argument)?;
        (log.slot, u64::MAX)
    } else {
        let log: ClearDirtyLog = read_user(argument)?;
        (log.slot, log.first_page.wrapping_add(u64::from(log.pages)))
    };
    let slot = SLOTS.get_ptr_mut(slot::key(tgid, id))?;
    if end > dirty_log::run_pages() {
        // SAFETY: a map's value lives as long as the map; one thread works with
        // a slot at a time.
        unsafe { (*slot).version += 1 };
    }
    Some(())
}

/// The dirty rings were emptied of `pages` pages.
#[inline(always)]
pub(crate) fn on_rings_reset(pages: u64) {
    let pushed = match PUSHED.get_ptr_mut(0) {
        // SAFETY: the map's value, which all programs change atomically.
        Some(pushed) => unsafe { atomic::exchange(pushed, 0) },
        None => 0,
    };
    report_now(RawEvent {
        kind: RINGS_RESET,
        a: pages,
        b: pushed,
        ..RawEvent::default()
    });
}

/// Remembers the slot before telling of it.
#[inline(always)]
fn on_region(tgid: u32, region: MemoryRegion) {
    let key = slot::key(tgid, region.slot);
    let pages = region.bytes >> PAGE_SHIFT;
    let logged = region.flags & FLAG_LOG_DIRTY_PAGES != 0;
    if pages == 0 {
        // A slot that was there before this program was is not in the map.
        let _ = SLOTS.remove(key);
        ranges::remove(key);
    } else {
        let range = ranges::register(key, region.user_address, region.bytes, logged);
        let slot = Slot {
            pages,
            range: range.unwrap_or(NO_RANGE),
            ..Slot::default()
        };
        if SLOTS.insert(key, slot, 0).is_err() {
            count(counter::MAP_FULL);
        }
    }
    report_now(RawEvent {
        kind: SLOT_REGISTERED,
        subject: region.slot,
        a: pages,
        b: region.user_address,
        c: u64::from(logged),
        ..RawEvent::default()
    });
}

#[inline(always)]
fn on_clear(tgid: u32, log: ClearDirtyLog) {
    let inferred = infer(
        slot::key(tgid, log.slot),
        log.first_page + u64::from(log.pages),
    );
    report(RawEvent {
        kind: LOG_CLEARED,
        subject: log.slot,
        a: log.first_page,
        b: u64::from(log.pages),
        flags: if inferred { INFERRED } else { 0 },
        ..RawEvent::default()
    });
}

/// Learns from a part of a log that it was cleared, which KVM lets nobody do
/// beyond a slot's end, that the slot has at least `pages` pages, if it was
/// registered before this program came. True for such slots.
#[inline(always)]
fn infer(key: u64, pages: u64) -> bool {
    if let Some(slot) = SLOTS.get_ptr_mut(key) {
        // SAFETY: a map's value lives as long as the map; one thread works with
        // a slot at a time.
        let slot = unsafe { &mut *slot };
        if slot.inferred != 0 && slot.pages < pages {
            slot.pages = pages;
        }
        return slot.inferred != 0;
    }
    let slot = Slot {
        pages,
        range: NO_RANGE,
        inferred: 1,
        version: 0,
    };
    if SLOTS.insert(key, slot, 0).is_ok() {
        count(counter::INFERRED_SLOTS);
    } else {
        count(counter::MAP_FULL);
    }
    true
}

#[inline(always)]
fn on_log(context: &TracePointContext, tgid: u32, log: DirtyLog) -> Option<()> {
    let key = slot::key(tgid, log.slot);
    // SAFETY: QEMU changes its slots under the lock it reads their logs under.
    let Some(&slot) = (unsafe { SLOTS.get(key) }) else {
        count(counter::UNKNOWN_SLOTS);
        // Rare: once a slot and sync of a QEMU that was not seen to begin.
        debug!(
            context,
            "process {} read the dirty log of slot {}, which it registered before", tgid, log.slot
        );
        report_unread(log.slot, 0);
        return None;
    };
    let Some(counts) = dirty_log::count_pages(&Log {
        slot: log.slot,
        address: log.bitmap,
        pages: slot.pages,
        device_piece: ranges::first_piece(slot.range, key),
    }) else {
        report_unread(log.slot, 1);
        return None;
    };
    let mut flags = if slot.inferred != 0 { INFERRED } else { 0 };
    if counts.pages < slot.pages {
        flags |= PARTIAL;
        report_now(RawEvent {
            kind: LOG_REST,
            subject: log.slot,
            a: counts.pages,
            b: log.bitmap,
            c: slot.version,
            ..RawEvent::default()
        });
    }
    report(RawEvent {
        kind: DIRTY_LOG,
        subject: log.slot,
        a: counts.dirty,
        b: slot.pages,
        c: counts.device_only,
        flags,
        ..RawEvent::default()
    });
    Some(())
}

#[inline(always)]
fn report_unread(slot: u32, reason: u64) {
    report(RawEvent {
        kind: LOG_UNREAD,
        subject: slot,
        a: reason,
        ..RawEvent::default()
    });
}
