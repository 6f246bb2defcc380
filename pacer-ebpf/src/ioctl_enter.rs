//! `sys_enter_ioctl`: the calls by which QEMU works with KVM's dirty logs.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::call::{CLEAR_DIRTY_LOG, Call, GET_DIRTY_LOG, SET_REGION};
use pacer_common::event::{DIRTY_LOG, LOG_CLEARED, RawEvent, SLOT_REGISTERED};
use pacer_common::slot::{FLAG_LOG_DIRTY_PAGES, PAGE_SHIFT};

use crate::calls;
use crate::filter::candidate_thread;
use crate::user::read_user;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/kvm.h
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_SET_USER_MEMORY_REGION2: u32 = 0x40a0_ae49;
const KVM_GET_DIRTY_LOG: u32 = 0x4010_ae42;
const KVM_CLEAR_DIRTY_LOG: u32 = 0xc018_aec0;

// Where the tracepoint keeps the call's arguments.
const CMD_OFFSET: usize = 24;
const ARG_OFFSET: usize = 32;

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

#[tracepoint]
fn ioctl_enter(context: TracePointContext) -> u32 {
    let _ = try_ioctl_enter(&context);
    0
}

#[inline(always)]
fn try_ioctl_enter(context: &TracePointContext) -> Option<()> {
    // 32 bits: the tracepoint has the whole register, and older QEMUs (7.2)
    // pass an `int`, whose sign fills the rest for KVM_CLEAR_DIRTY_LOG.
    // SAFETY: the tracepoint has 8 bytes there, the lower half first.
    let cmd = unsafe { context.read_at::<u32>(CMD_OFFSET) }.ok()?;
    // vCPU threads come here once per exit to user space: leave early.
    if !matches!(
        cmd,
        KVM_SET_USER_MEMORY_REGION
            | KVM_SET_USER_MEMORY_REGION2
            | KVM_GET_DIRTY_LOG
            | KVM_CLEAR_DIRTY_LOG
    ) {
        return None;
    }
    let thread = candidate_thread()?;
    // SAFETY: the tracepoint has 8 bytes there.
    let arg = unsafe { context.read_at::<u64>(ARG_OFFSET) }.ok()?;
    let call = match cmd {
        KVM_GET_DIRTY_LOG => get_dirty_log(read_user(arg)?),
        KVM_CLEAR_DIRTY_LOG => clear_dirty_log(read_user(arg)?),
        _ => set_region(read_user(arg)?),
    };
    calls::enter(thread, &call);
    Some(())
}

#[inline(always)]
fn set_region(region: MemoryRegion) -> Call {
    Call {
        kind: SET_REGION,
        event: RawEvent {
            kind: SLOT_REGISTERED,
            subject: region.slot,
            a: region.bytes >> PAGE_SHIFT,
            b: region.user_address,
            c: u64::from(region.flags & FLAG_LOG_DIRTY_PAGES),
            ..RawEvent::default()
        },
        ..Call::default()
    }
}

#[inline(always)]
fn get_dirty_log(log: DirtyLog) -> Call {
    Call {
        kind: GET_DIRTY_LOG,
        event: RawEvent {
            kind: DIRTY_LOG,
            subject: log.slot,
            ..RawEvent::default()
        },
        address: log.bitmap,
        ..Call::default()
    }
}

#[inline(always)]
fn clear_dirty_log(log: ClearDirtyLog) -> Call {
    Call {
        kind: CLEAR_DIRTY_LOG,
        event: RawEvent {
            kind: LOG_CLEARED,
            subject: log.slot,
            a: log.first_page,
            b: u64::from(log.pages),
            ..RawEvent::default()
        },
        ..Call::default()
    }
}
