//! Uprobes on QEMU's `blk_aio_pwritev`, `blk_aio_pwrite_zeroes` and
//! `blk_aio_pdiscard`: what a guest asks of its disks, at the offsets it knows.
//! The layout they read belongs to a build of QEMU: attached only to known ones.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::backend::{BackendCounts, BackendKey};
use pacer_common::counter;

use crate::filter::observed_thread;
use crate::maps::BACKENDS;
use crate::report::count;
use crate::user::read_user;

/// Where `QEMUIOVector` keeps its size.
const VECTOR_SIZE_OFFSET: u64 = 32;

#[uprobe]
fn backend_write(context: ProbeContext) -> u32 {
    if let Some(counts) = counts(&context)
        && let Some(vector) = context.arg::<u64>(2)
        && let Some(bytes) = read_user::<u64>(vector + VECTOR_SIZE_OFFSET)
    {
        counts.writes += 1;
        counts.written_bytes += bytes;
    }
    0
}

#[uprobe]
fn backend_zero(context: ProbeContext) -> u32 {
    if let Some(counts) = counts(&context)
        && let Some(bytes) = context.arg::<u64>(2)
    {
        counts.zeroes += 1;
        counts.zeroed_bytes += bytes;
    }
    0
}

#[uprobe]
fn backend_discard(context: ProbeContext) -> u32 {
    if let Some(counts) = counts(&context)
        && let Some(bytes) = context.arg::<u64>(2)
    {
        counts.discards += 1;
        counts.discarded_bytes += bytes;
    }
    0
}

/// The counts of this thread for the backend in the first argument.
#[inline(always)]
fn counts(context: &ProbeContext) -> Option<&'static mut BackendCounts> {
    observed_thread()?;
    let key = BackendKey {
        address: context.arg(0)?,
        thread: bpf_get_current_pid_tgid(),
    };
    let counts = match BACKENDS.get_ptr_mut(key) {
        Some(counts) => counts,
        None => {
            let _ = BACKENDS.insert(key, BackendCounts::default(), u64::from(BPF_NOEXIST));
            let Some(counts) = BACKENDS.get_ptr_mut(key) else {
                count(counter::MAP_FULL);
                return None;
            };
            counts
        }
    };
    // SAFETY: the value lives as long as the map, and only this thread, which
    // is here, writes it.
    Some(unsafe { &mut *counts })
}
