//! What KVM is told and asked about a guest's memory.

use aya_ebpf::programs::TracePointContext;
use aya_log_ebpf::debug;
use pacer_common::counter;
use pacer_common::event::{DIRTY_LOG, LOG_CLEARED, RawEvent, SLOT_REGISTERED};
use pacer_common::slot::{self, FLAG_LOG_DIRTY_PAGES, NO_RANGE, PAGE_SHIFT, Slot};

use crate::dirty_log::{self, Log};
use crate::filter::own_tgid;
use crate::maps::SLOTS;
use crate::ranges;
use crate::report::{count, report};
use crate::user::read_user;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/kvm.h
pub(crate) const SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
pub(crate) const SET_USER_MEMORY_REGION2: u32 = 0x40a0_ae49;
pub(crate) const GET_DIRTY_LOG: u32 = 0x4010_ae42;
pub(crate) const CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;

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
            on_clear(read_user(argument)?);
            Some(())
        }
        _ => {
            on_region(tgid, read_user(argument)?);
            Some(())
        }
    }
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
            padding: 0,
        };
        if SLOTS.insert(key, slot, 0).is_err() {
            count(counter::MAP_FULL);
        }
    }
    report(RawEvent {
        kind: SLOT_REGISTERED,
        subject: region.slot,
        a: pages,
        b: region.user_address,
        c: u64::from(logged),
        ..RawEvent::default()
    });
}

#[inline(always)]
fn on_clear(log: ClearDirtyLog) {
    report(RawEvent {
        kind: LOG_CLEARED,
        subject: log.slot,
        a: log.first_page,
        b: u64::from(log.pages),
        ..RawEvent::default()
    });
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
        return None;
    };
    let counts = dirty_log::count_pages(&Log {
        slot: log.slot,
        address: log.bitmap,
        pages: slot.pages,
        device_piece: ranges::first_piece(slot.range, key),
    })?;
    report(RawEvent {
        kind: DIRTY_LOG,
        subject: log.slot,
        a: counts.dirty,
        b: slot.pages,
        c: counts.device_only,
        ..RawEvent::default()
    });
    Some(())
}
