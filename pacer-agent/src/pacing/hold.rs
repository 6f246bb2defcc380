//! At the brink: what is dirty is little, and the migration does not complete.
//!
//! QEMU completes at a sync if what it finds is sent within the downtime limit at the
//! bandwidth it measured. So a pass may end only where its sync finds enough for that not
//! to be so at the rate in force. Until it would, the pass is stopped short of its end:
//! what waits longer finds more. For a guest that writes nothing it never ends.

use super::controller::{FADE_SECONDS, SYNC_SHARE};
use super::forecast::Outlook;
use super::passes::{NORMAL_PAGE_BYTES, PAGE_BYTES};

/// What the brink of a migration is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Brink {
    most: f64,
    keeps: Option<f64>,
}

/// How much calmer than expected, in deviations, the guest may be without the migration
/// completing.
const CALMER: f64 = 2.0;
/// A sync must find as many bytes: less goes into the sockets' buffers at once, whatever
/// the rate.
const LEAST_FOUND: f64 = 12e6;
/// A pass is stopped with this many bytes to go: QEMU has some in its own buffer, and a
/// write may be under way.
const STOP_SHORT: f64 = 1024.0 * 1024.0;
/// In the first pass it is known less well how much of what is left is not zero: by so
/// much of the guest's memory more.
const UNSURE_SHARE: f64 = 0.004;
/// What is dirty at the brink: what the link takes in so many seconds, or so many times
/// what is dirty at the highest rate.
const BRINK_SECONDS: f64 = 0.5;
const BRINK_OVER_LEAST: f64 = 2.0;
/// Up to so many times that, the brink is not lost.
const LOST: f64 = 1.5;
/// The longest that the dirty set is let grow for, in seconds.
const LONGEST: f64 = 1e4;
const ROUNDS: u32 = 12;
const HALVINGS: u32 = 24;

impl Brink {
    /// The brink of a migration that comes to it at `approach` bytes a second.
    pub(super) fn of(outlook: &Outlook<'_>, approach: f64, cap: f64) -> Self {
        Self {
            most: most(outlook),
            keeps: keeps(outlook, approach, cap),
        }
    }

    /// The highest rate at which the present pass does not complete, bytes a second; less
    /// than 1 stops it.
    pub(super) const fn most(&self) -> f64 {
        self.most
    }

    /// The least rate that keeps what is dirty as little as at the brink; `None` while it
    /// is more.
    pub(super) const fn keeps(&self) -> Option<f64> {
        self.keeps
    }
}

fn most(outlook: &Outlook<'_>) -> f64 {
    let Outlook { state, terms, .. } = outlook;
    let limit = terms.downtime_limit.max(1e-3);
    let calm = outlook.dirtying_at(-CALMER);
    let found = calm.pages_after(state.pass_seconds, state.total_pages) * PAGE_BYTES;
    let harmless = if found >= LEAST_FOUND {
        SYNC_SHARE * found / limit
    } else {
        0.0
    };
    let unsure = match state.zero_pages > 0.0 {
        true => UNSURE_SHARE * state.total_pages * PAGE_BYTES,
        false => 0.0,
    };
    // Pages that are zero count for QEMU and are sent in no time.
    let left = state.pending_bytes() - STOP_SHORT - unsure;
    let fading = left.max(0.0) / (limit + FADE_SECONDS);
    harmless.max(fading)
}

fn keeps(outlook: &Outlook<'_>, approach: f64, cap: f64) -> Option<f64> {
    let total = outlook.state.total_pages;
    let cap = cap.min(outlook.terms.link_rate).min(approach).max(1.0);
    let found = |seconds: f64| outlook.dirtying.pages_after(seconds, total) * NORMAL_PAGE_BYTES;
    // What goes round and round at the highest rate.
    let mut least = found(0.05);
    for _ in 0..ROUNDS {
        least = found((least / cap).max(0.05));
    }
    let brink = (cap * BRINK_SECONDS)
        .min(total * PAGE_BYTES)
        .max(least * BRINK_OVER_LEAST)
        .max(LEAST_FOUND * BRINK_OVER_LEAST);
    if outlook.state.pending_bytes() > brink * LOST {
        return None;
    }
    if found(LONGEST) <= brink {
        return Some(0.0);
    }
    let (mut short, mut long) = (0.0_f64, LONGEST);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(short, long);
        if found(middle) <= brink {
            short = middle;
        } else {
            long = middle;
        }
    }
    Some((brink / long).min(cap))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::passes::Dirtying;
    use crate::pacing::passes::tests::{TERMS, fresh, working_set};

    fn outlook(dirtying: Dirtying<'_>, normal_pages: f64, pass_seconds: f64) -> Outlook<'_> {
        let mut state = fresh(131_072.0);
        state.normal_pages = normal_pages;
        state.zero_pages = 0.0;
        state.pass_seconds = pass_seconds;
        state.sent_window = Some(pass_seconds);
        Outlook {
            state,
            mix_uncertainty: 0.01,
            dirtying,
            dirty_uncertainty: 0.1,
            extent_uncertainty: 0.2,
            terms: TERMS,
        }
    }

    #[test]
    fn a_guest_that_writes_nothing_never_ends_its_pass() {
        let idle = Dirtying::expected(None);
        let mut pages = 20_000.0;
        let mut seconds = 0.0;
        while seconds < 60.0 {
            let brink = Brink::of(&outlook(idle, pages, seconds), 100e6, 100e6);
            let rate = brink.most();
            // QEMU's own test, with what it measured some time before.
            assert!(pages * PAGE_BYTES > 1.3 * rate * TERMS.downtime_limit);
            pages -= rate * 0.1 / NORMAL_PAGE_BYTES;
            seconds += 0.1;
        }
        assert!((200.0..300.0).contains(&pages), "{pages}");
        let brink = Brink::of(&outlook(idle, pages, 1.0), 100e6, 100e6);
        assert_eq!(brink.keeps(), Some(0.0));
    }

    #[test]
    fn a_busy_guest_is_held_at_less_than_it_takes_to_complete() {
        let curve = working_set(131_072, 40_000, 8000);
        let busy = Dirtying::expected(Some(&curve));
        let brink = Brink::of(&outlook(busy, 5000.0, 5.0), 100e6, 100e6);
        let keeps = brink.keeps().expect("little is left");
        assert!(keeps < 35e6 && keeps > 5e6, "{keeps}");
        assert!(brink.most() > keeps);
        let far = Brink::of(&outlook(busy, 60_000.0, 5.0), 100e6, 100e6);
        assert_eq!(far.keeps(), None);
    }
}
