//! Guests that do something else from a time on.

use std::time::Duration;

use super::{Scenario, ScenarioGuest};
use crate::guest::bare::BareGuest;
use crate::guest::bare::pattern::{BarePattern, BarePhase};

const PAGES_PER_MIB: u32 = 256;

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestChange {
    /// So many times as many pages a second.
    Pace {
        /// That many.
        times: u32,
    },
    /// The same writes, to as many other pages.
    Set,
}

impl Scenario {
    /// The same guest, which changes so long after it began to write. `None` of
    /// one that does not do the same from first to last, or writes nothing.
    #[must_use]
    pub fn changing(self, change: GuestChange, after: Duration) -> Option<Self> {
        let ScenarioGuest::Bare(guest) = self.guest else {
            return None;
        };
        let pattern = guest.pattern?;
        let [phase, same] = pattern.phases;
        if phase != same {
            return None;
        }
        let (working_set_pages, later) = match change {
            GuestChange::Pace { times } => {
                let pages_per_second = phase.pages_per_second.saturating_mul(times);
                let later = BarePhase {
                    pages_per_second,
                    ..phase
                };
                (guest.working_set_pages, later)
            }
            GuestChange::Set => {
                let later = BarePhase {
                    first_page: guest.working_set_pages,
                    ..phase
                };
                (guest.working_set_pages * 2, later)
            }
        };
        let more_mib = (working_set_pages - guest.working_set_pages).div_ceil(PAGES_PER_MIB);
        let milliseconds = u32::try_from(after.as_millis()).ok()?;
        let changed = BarePattern::changing(pattern.seed, phase, milliseconds, later);
        Some(Self {
            guest: ScenarioGuest::Bare(BareGuest {
                ram_mib: guest.ram_mib + more_mib,
                working_set_pages,
                pattern: Some(changed),
                ..guest
            }),
            change_after: Some(after),
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    const AFTER: Duration = Duration::from_secs(20);

    fn guest(change: GuestChange, index: usize) -> Option<(BareGuest, BareGuest)> {
        let before = Scenario::draw(index, &mut Rng::with_seed(3));
        let after = before.clone().changing(change, AFTER)?;
        assert!(after.changes() && !before.changes());
        match (before.guest, after.guest) {
            (ScenarioGuest::Bare(before), ScenarioGuest::Bare(after)) => Some((before, after)),
            _ => None,
        }
    }

    #[test]
    fn a_guest_becomes_busier() {
        let (before, after) = guest(GuestChange::Pace { times: 4 }, 0).unwrap();
        let [first, second] = after.pattern.unwrap().phases;
        assert_eq!(second.pages_per_second, first.pages_per_second * 4);
        assert_eq!(first.writes, first.pages_per_second * 20);
        assert_eq!(before.working_set_pages, after.working_set_pages);
        assert!(after.bios().is_ok());
    }

    #[test]
    fn a_set_moves_to_pages_of_its_own() {
        let (before, after) = guest(GuestChange::Set, 0).unwrap();
        let [first, second] = after.pattern.unwrap().phases;
        assert_eq!(second.first_page, first.first_page + first.pages);
        assert_eq!(after.working_set_pages, before.working_set_pages * 2);
        assert!(after.bios().is_ok());
    }

    #[test]
    fn what_changes_anyway_or_never_writes_is_not_changed() {
        // sqlite, change-set, none-mostly-zero, burst-short.
        for index in [1, 3, 5, 6] {
            assert!(guest_of(index).is_none(), "{index}");
        }
    }

    fn guest_of(index: usize) -> Option<Scenario> {
        Scenario::draw(index, &mut Rng::with_seed(3)).changing(GuestChange::Set, AFTER)
    }
}
