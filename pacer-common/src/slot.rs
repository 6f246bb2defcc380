//! The map of KVM memory slots.

use core::mem::{align_of, size_of};

/// Name of the hash from [`key`] to [`Slot`].
pub const SLOTS: &str = "SLOTS";

/// [`Slot::range`] of a slot that found no entry.
pub const NO_RANGE: u32 = u32::MAX;

/// A memory slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its size, in pages of 4 KiB.
    pub pages: u64,
    /// Its entry in [`crate::device::Ranges`], which may have passed to another
    /// slot since (the entry says whose it is), or [`NO_RANGE`].
    pub range: u32,
    /// 1 where its registration was not seen: it has at least these pages, as
    /// QEMU has cleared so much of its log.
    pub inferred: u32,
    /// How often what is in its bitmap may have changed beyond what a program
    /// counts; noted only where something is.
    pub version: u64,
}

const _: () = {
    assert!(size_of::<Slot>() == 24);
    assert!(align_of::<Slot>() == 8);
};

// SAFETY: `repr(C)`, integers only, 24 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Slot {}

/// The key of the slot `slot` (address space in the upper, id in the lower 16
/// bits) of the process `tgid`.
#[inline(always)]
#[must_use]
pub const fn key(tgid: u32, slot: u32) -> u64 {
    ((tgid as u64) << 32) | slot as u64
}

/// Room for slots. QEMU asks for at most 32764 per address space and uses tens,
/// or one per DIMM and device BAR.
pub const MAX_SLOTS: u32 = 8192;

/// log2 of the size of a guest page as KVM's dirty log counts them on x86.
pub const PAGE_SHIFT: u32 = 12;

/// `KVM_MEM_LOG_DIRTY_PAGES`: the slot's dirty pages are logged.
pub const FLAG_LOG_DIRTY_PAGES: u32 = 1;
