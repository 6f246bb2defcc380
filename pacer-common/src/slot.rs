//! The map from KVM memory slots to their size.

/// Name of the hash from [`key`] to the slot's size in pages of 4 KiB (`u64`).
pub const SLOTS: &str = "SLOTS";

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
