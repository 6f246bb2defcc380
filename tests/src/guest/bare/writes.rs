//! Which pages the bare guest's CPU has written between two moments.
//!
//! From `R` on, a guest without devices stores to these pages and no other:
//!
//! - the working set, page after page and then from the first again, two
//!   dwords in each;
//! - its control page (0x8000), with each page written and each tick;
//! - its stack's page (0x6000), with each page written (a return address) and
//!   each tick (what an interrupt pushes).
//!
//! A guest that goes as fast as it can has no ticks. With devices the CPU
//! also stores to these:
//!
//! - disk: descriptors (0x30000), the ring of what is offered (0x31000) and the
//!   requests' headers (0x33000), with each request sent;
//! - network: the ring of what is offered (0x39000), with each frame taken.
//!
//! What QEMU writes for the devices is not the CPU's and not in KVM's log: the
//! rings of what is used (0x32000 and 0x3A000), the requests' results
//! (0x34000), and the buffers behind the filler: the disk's, if it reads, from
//! the first page to the last and again; then 256 pages for frames, one a
//! frame, in turn.

use super::{BareGuest, BareState};
use crate::guest::content::round_mark;

/// The control page and the stack's.
const PAGES_BESIDE: u64 = 2;

impl BareGuest {
    /// How many distinct pages the CPU wrote between two moments at which the
    /// guest was stopped: what KVM's dirty log has of that time, all slots
    /// together.
    ///
    /// `None` if it cannot be said to the page: the guest has devices, it wrote
    /// fewer than two pages of its working set between, or it was not stopped.
    #[must_use]
    pub fn pages_written(&self, from: BareState, to: BareState) -> Option<u64> {
        if self.disk.is_some() || self.network {
            return None;
        }
        // With two pages gone by, all of `write_page` has run at least once.
        if to.total_writes < from.total_writes + 2 {
            return None;
        }
        let first = from.total_writes + u64::from(from.stores? == 2);
        let end = to.total_writes + u64::from(to.stores? > 0);
        let distinct = (end - first).min(u64::from(self.working_set_pages));
        Some(distinct + PAGES_BESIDE)
    }
}

/// The first two dwords of a page that is about to be written in `round`:
/// before the two stores, between them, and behind both.
pub(super) const fn contents(page: u32, round: u32) -> [[u32; 2]; 3] {
    let earlier = round.wrapping_sub(1);
    let before = [earlier, round_mark(page, earlier)];
    let now = [round, round_mark(page, round)];
    [before, [now[0], before[1]], now]
}

/// How many of the two stores are made; `None` if none of that stands there.
pub(super) fn stores_made(page: u32, round: u32, found: [u32; 2]) -> Option<u8> {
    (0..)
        .zip(contents(page, round))
        .find_map(|(stores, content)| (content == found).then_some(stores))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: BareGuest = BareGuest {
        working_set_pages: 10,
        ..BareGuest::PLAIN
    };

    fn state(total_writes: u64, stores: u8) -> BareState {
        BareState {
            round: 0,
            page: 0,
            total_writes,
            stores: Some(stores),
        }
    }

    #[test]
    fn a_page_counts_if_a_store_falls_between() {
        for (from, to, pages) in [
            ((20, 0), (25, 0), 5),
            ((20, 1), (25, 0), 5),
            ((20, 2), (25, 0), 4),
            ((20, 0), (25, 1), 6),
            ((20, 2), (25, 2), 5),
            ((20, 2), (30, 1), 10),
            ((20, 2), (30, 0), 9),
            ((20, 0), (3000, 0), 10),
        ] {
            let [from, to] = [from, to].map(|(writes, stores)| state(writes, stores));
            assert_eq!(
                GUEST.pages_written(from, to),
                Some(pages + 2),
                "{from:?} {to:?}"
            );
        }
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        assert_eq!(GUEST.pages_written(state(20, 0), state(21, 0)), None);
        let running = BareState {
            stores: None,
            ..state(30, 0)
        };
        assert_eq!(GUEST.pages_written(state(20, 0), running), None);
        let network = BareGuest {
            network: true,
            ..GUEST
        };
        assert_eq!(network.pages_written(state(20, 0), state(30, 0)), None);
    }
}
