//! Uprobe on QEMU's helpers for stores of a guest under TCG,
//! `helper_stb_mmu(env, address, …)` and the like: the first store to a page
//! after a sync of the dirty bitmap comes here, later ones mostly do not.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::slot::PAGE_SHIFT;
use pacer_common::store::StoreCounts;

use crate::atomic;
use crate::maps::{STORE_COUNTS, STORES};

#[uprobe]
fn guest_store(context: ProbeContext) -> u32 {
    // Attached to the observed process alone.
    let _ = try_guest_store(&context);
    0
}

#[inline(always)]
fn try_guest_store(context: &ProbeContext) -> Option<()> {
    let address: u64 = context.arg(1)?;
    let page = address >> PAGE_SHIFT;
    let counts = STORE_COUNTS.get_ptr_mut(0)?;
    // SAFETY: the map's value; its fields are changed atomically.
    let epoch = unsafe { (&raw const (*counts).epoch).read() };
    let is_first = match STORES.get_ptr_mut(page) {
        // SAFETY: as above. Read first: most stores are not a page's first.
        Some(last) => unsafe { last.read() != epoch && atomic::exchange(last, epoch) != epoch },
        None => insert(page, epoch, counts),
    };
    if is_first {
        // SAFETY: as above.
        unsafe { atomic::add(&raw mut (*counts).pages, 1) };
    }
    Some(())
}

/// Whether it was this store that made the entry.
#[inline(always)]
fn insert(page: u64, epoch: u64, counts: *mut StoreCounts) -> bool {
    const EEXIST: i64 = -17;
    match STORES.insert(page, epoch, u64::from(BPF_NOEXIST)) {
        Ok(()) => true,
        // Another thread's was first, and counts.
        Err(error) if i64::from(error) == EEXIST => false,
        Err(_) => {
            // SAFETY: the map's value; its fields are changed atomically.
            unsafe { atomic::add(&raw mut (*counts).overflow, 1) };
            false
        }
    }
}
