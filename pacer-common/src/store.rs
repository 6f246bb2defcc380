//! Pages that a guest under TCG stores to, counted between two syncs of QEMU's
//! dirty bitmap.

use core::mem::{align_of, size_of};

/// Name of the hash from a page's number in the guest's address space (`u64`)
/// to the epoch (`u64`) in which it was stored to last.
pub const STORES: &str = "STORES";

/// Room for pages: 1 GiB that is written, in about 20 MiB, which are taken as
/// pages come.
pub const MAX_STORES: u32 = 1 << 18;

/// Name of the array with the one [`StoreCounts`].
pub const STORE_COUNTS: &str = "STORE_COUNTS";

/// Name of the array with one `u32`: 0 while the store helpers are not all
/// watched, else a number that no time of watching had before.
pub const STORES_WATCHED: &str = "STORES_WATCHED";

/// What is counted between two syncs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Syncs so far.
    pub epoch: u64,
    /// Distinct pages since the last.
    pub pages: u64,
    /// Stores since then to pages that found no room.
    pub overflow: u64,
}

const _: () = {
    assert!(size_of::<StoreCounts>() == 24);
    assert!(align_of::<StoreCounts>() == 8);
};
