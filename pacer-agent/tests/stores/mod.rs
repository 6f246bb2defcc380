//! The stores of a guest under TCG, by functions that have the names of QEMU's
//! and are called as QEMU calls them.

use std::hint::black_box;

use pacer_agent::probe::{EventKind, Probe};
use pacer_common::store::MAX_STORES;

use crate::{alone, attach};

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn helper_stb_mmu(environment: u64, address: u64) -> u64 {
    black_box(environment ^ address)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn helper_stw_mmu(environment: u64, address: u64) -> u64 {
    black_box(environment ^ address ^ 1)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn helper_stl_mmu(environment: u64, address: u64) -> u64 {
    black_box(environment ^ address ^ 2)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn helper_stq_mmu(environment: u64, address: u64) -> u64 {
    black_box(environment ^ address ^ 3)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn migration_bitmap_sync_precopy(last_stage: u64) -> u64 {
    black_box(last_stage)
}

/// A store to each of `pages`, by turns of every size, then a sync: pages, and
/// stores without room, as counted.
fn store_and_sync(probe: &mut Probe, pages: std::ops::Range<u32>) -> (u64, u64) {
    let helpers = [
        helper_stb_mmu,
        helper_stw_mmu,
        helper_stl_mmu,
        helper_stq_mmu,
    ];
    for (page, helper) in pages.zip(helpers.iter().cycle()) {
        helper(7, u64::from(page) << 12);
    }
    migration_bitmap_sync_precopy(0);
    let counted = probe
        .drain()
        .into_iter()
        .find_map(|event| match event.kind {
            EventKind::StoresCounted {
                pages, overflow, ..
            } => Some((pages, overflow)),
            _ => None,
        });
    counted.expect("it is told at each sync")
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn each_time_of_watching_begins_with_room_for_all_pages() {
    let _alone = alone();
    let mut probe = attach();
    // No page of the first time comes again in the second.
    for first in [0, 2 * MAX_STORES] {
        probe.watch_stores(true).expect("the functions are here");
        let all = u64::from(MAX_STORES);
        assert_eq!(
            store_and_sync(&mut probe, first..first + MAX_STORES),
            (all, 0)
        );
        assert_eq!(store_and_sync(&mut probe, first..first + 9), (9, 0));
        let end = first + MAX_STORES;
        assert_eq!(store_and_sync(&mut probe, end..end + 8), (0, 8), "full");
        probe.watch_stores(false).expect("they are watched");
    }
}
