//! QEMU's pre-copy, pass after pass, as a calculation.
//!
//! Seconds, pages and bytes are floats here: these are expectations.

use super::dirty_curve::DirtyCurve;

/// Bytes on the wire of a page sent with its content: 8 of header.
pub const NORMAL_PAGE_BYTES: f64 = 4104.0;
/// Bytes on the wire of a page announced as zero.
pub const ZERO_PAGE_BYTES: f64 = 9.0;
/// Bytes of a page as QEMU counts what remains.
pub const PAGE_BYTES: f64 = 4096.0;
/// QEMU clears its dirty log in chunks of this many pages (1 GiB), just before
/// the first page of a chunk is sent.
const CHUNK_PAGES: f64 = 262_144.0;
/// How long QEMU takes to notice a change of rate: it measures over 100 ms, and
/// a measurement that straddles the change is between the two.
const MEASURING_SECONDS: f64 = 0.15;
/// QEMU sends for so long (`MAX_WAIT` in its `migration/ram.c`) before it looks
/// again at what is left, so that no pass is shorter.
const ROUND_SECONDS: f64 = 0.05;
/// Passes followed at most; what takes more does not converge in practice.
const PASSES: u32 = 200;
/// Passes followed before the sprint if they do not settle.
const PATIENCE: u32 = 24;

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Pages with content that QEMU knows dirty and has not sent.
    pub normal_pages: f64,
    /// Pages it has yet to announce as zero.
    pub zero_pages: f64,
    /// Seconds since the present pass began.
    pub pass_seconds: f64,
    /// All of the guest's pages.
    pub total_pages: f64,
    /// Bytes between QEMU and the bucket: they delay the arrival.
    pub buffered_bytes: f64,
    /// Bytes a second that QEMU measured last; its threshold follows it.
    pub measured_rate: f64,
    /// The guest is stopped: only the rest is on its way.
    pub stopped: bool,
}

impl State {
    /// Bytes on the wire that the present pass has left.
    #[must_use]
    pub fn pending_bytes(&self) -> f64 {
        self.normal_pages * NORMAL_PAGE_BYTES + self.zero_pages * ZERO_PAGE_BYTES
    }
}

/// What does not change while a migration runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The longest QEMU may estimate its last copy to take, in seconds.
    pub downtime_limit: f64,
    /// Bytes a second once the bucket is open.
    pub link_rate: f64,
    /// Seconds of a switchover that are not copying.
    pub overhead: f64,
}

/// A rate, and from some moment on another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Bytes a second from now on.
    pub rate: f64,
    /// Seconds from now at which the sprint begins.
    pub sprint_at: f64,
    /// Bytes a second from then on.
    pub sprint: f64,
}

impl Plan {
    /// One rate for good.
    #[must_use]
    pub const fn constant(rate: f64) -> Self {
        Self {
            rate,
            sprint_at: 0.0,
            sprint: rate,
        }
    }

    const fn rate_at(&self, seconds: f64) -> f64 {
        if seconds < self.sprint_at {
            self.rate
        } else {
            self.sprint
        }
    }

    /// What QEMU takes the bandwidth to be. A rise is noticed late; a fall is
    /// taken as noticed at once, which errs towards another pass.
    fn measured_at(&self, seconds: f64, before: f64) -> f64 {
        let earlier = seconds - MEASURING_SECONDS;
        let old = if earlier < -1e-9 {
            before
        } else {
            self.rate_at(earlier + 1e-9)
        };
        old.min(self.rate_at(seconds))
    }

    /// The next moment at which the rate or QEMU's idea of it changes.
    fn next_change(&self, seconds: f64) -> f64 {
        [
            MEASURING_SECONDS,
            self.sprint_at,
            self.sprint_at + MEASURING_SECONDS,
        ]
        .into_iter()
        .filter(|&change| change > seconds + 1e-9)
        .fold(f64::INFINITY, f64::min)
    }
}

/// How the guest dirties memory, as one forecast supposes it.
#[derive(Clone, Copy, Debug)]
pub struct Dirtying<'a> {
    /// The learned curve; `None` supposes that nothing is written.
    pub curve: Option<&'a DirtyCurve>,
    /// Times as many pages as the curve says.
    pub scale: f64,
}

impl Dirtying<'_> {
    /// The same guest, `factor` times as busy.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            scale: self.scale * factor,
            ..self
        }
    }

    /// Pages found dirty by the sync that ends a pass of this length.
    #[must_use]
    pub fn pages_after(&self, pass_seconds: f64, total_pages: f64) -> f64 {
        let Some(curve) = self.curve else { return 0.0 };
        let chunks = (total_pages / CHUNK_PAGES).ceil().max(1.0);
        let pages = if chunks < 2.0 {
            curve.pages_in(pass_seconds)
        } else {
            // The windows are spread evenly from a chunk's share to the whole.
            let shortest = pass_seconds / chunks;
            let whole = curve.mean_pages_in(pass_seconds) * pass_seconds;
            let part = curve.mean_pages_in(shortest) * shortest;
            (whole - part).max(0.0) / (pass_seconds - shortest).max(f64::MIN_POSITIVE)
        };
        (pages * self.scale).clamp(0.0, total_pages)
    }
}

/// How a migration ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Seconds from now until the guest runs at the destination; infinite where
    /// it never does.
    pub finish: f64,
    /// Seconds from STOP until then.
    pub downtime: f64,
    /// Bytes on the wire from now on.
    pub bytes: f64,
    /// Syncs from now on.
    pub passes: u32,
}

impl Outcome {
    const NEVER: Self = Self {
        finish: f64::INFINITY,
        downtime: f64::INFINITY,
        bytes: f64::INFINITY,
        passes: PASSES,
    };

    /// Whether the migration ends at all.
    #[must_use]
    pub const fn converges(&self) -> bool {
        self.finish.is_finite()
    }
}

/// Follows `plan` to its end. At most 200 passes are looked at, and a sync that
/// finds and leaves as much as the one before it, both after whole passes at the
/// same rate, ends the search: the curve is monotone, so it goes on like that.
#[must_use]
pub fn simulate(state: &State, plan: &Plan, dirtying: &Dirtying<'_>, terms: &Terms) -> Outcome {
    if state.stopped {
        return switchover(state, 0.0, state.pending_bytes(), 0, terms);
    }
    let mut at = 0.0;
    let mut sent = 0.0;
    let mut now = *state;
    let (mut settled_found, mut settled_pending) = (f64::INFINITY, f64::INFINITY);
    let mut last_found = f64::NAN;
    for passes in 1..=PASSES {
        let settled = at > plan.sprint_at + MEASURING_SECONDS;
        let Some((seconds, bytes)) = finish_pass(&mut now, at, plan, terms) else {
            return Outcome::NEVER;
        };
        at += seconds;
        sent += bytes;
        let found = dirtying.pages_after(now.pass_seconds + seconds, now.total_pages);
        now.pass_seconds = 0.0;
        // What was left may have been written again: it counts once.
        let left = now.normal_pages;
        now.normal_pages = (left + found * (1.0 - left / now.total_pages)).min(now.total_pages);
        let threshold = plan.measured_at(at, state.measured_rate) * terms.downtime_limit;
        // A page of grace: with nothing found, what is left is the threshold.
        if (now.normal_pages + now.zero_pages - 1.0) * PAGE_BYTES <= threshold {
            return switchover(&now, at, sent + now.pending_bytes(), passes, terms);
        }
        let grows = found >= settled_found * 0.9999;
        if settled && grows && now.normal_pages >= settled_pending * 0.9999 {
            return Outcome::NEVER;
        }
        if settled {
            (settled_found, settled_pending) = (found, now.normal_pages);
        }
        // Long before the sprint QEMU goes round and round over the same set:
        // once passes are alike, the rest of them need not be followed.
        let alike = (found - last_found).abs() <= 0.02 * last_found;
        if (alike || passes % PATIENCE == 0) && at < plan.sprint_at {
            sent += plan.rate * (plan.sprint_at - at);
            at = plan.sprint_at;
        }
        last_found = found;
    }
    Outcome::NEVER
}

fn switchover(state: &State, at: f64, bytes: f64, passes: u32, terms: &Terms) -> Outcome {
    let rest = state.pending_bytes() + state.buffered_bytes;
    let downtime = rest / terms.link_rate.max(1.0) + terms.overhead;
    Outcome {
        finish: at + downtime,
        downtime,
        bytes,
        passes,
    }
}

/// Sends until no more is left than QEMU's threshold, `at` seconds from now.
/// `None` where that never happens, else the seconds and bytes it took.
fn finish_pass(now: &mut State, at: f64, plan: &Plan, terms: &Terms) -> Option<(f64, f64)> {
    let mut seconds = 0.0;
    let mut sent = 0.0;
    // Three changes of rate at most, and the end.
    for _ in 0..5 {
        let rate = plan.rate_at(at + seconds);
        let measured = plan.measured_at(at + seconds, now.measured_rate);
        let pages = now.normal_pages + now.zero_pages;
        let mut surplus = pages - measured * terms.downtime_limit / PAGE_BYTES;
        if now.pass_seconds == 0.0 && seconds == 0.0 && pages > 0.0 {
            let round = rate * ROUND_SECONDS * pages / now.pending_bytes().max(1.0);
            surplus = surplus.max(round.min(pages));
        }
        if surplus.is_nan() || surplus <= 0.0 {
            return Some((seconds, sent));
        }
        let bytes = now.pending_bytes() * surplus / pages;
        let needed = bytes / rate;
        let change = plan.next_change(at + seconds) - (at + seconds);
        if needed.min(change) >= 1e12 {
            return None;
        }
        let share = if needed <= change {
            1.0
        } else {
            change / needed
        };
        let kept = 1.0 - share * surplus / pages;
        now.normal_pages *= kept;
        now.zero_pages *= kept;
        seconds += needed * share;
        sent += bytes * share;
        if needed <= change {
            return Some((seconds, sent));
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pacing::sample::{DirtyWindow, Origin};
    use crate::pacing::time::Time;

    pub(in crate::pacing) const TERMS: Terms = Terms {
        downtime_limit: 0.3,
        link_rate: 100e6,
        overhead: 0.06,
    };

    pub(in crate::pacing) fn fresh(pages: f64) -> State {
        State {
            normal_pages: pages / 2.0,
            zero_pages: pages / 2.0,
            pass_seconds: 0.0,
            total_pages: pages,
            buffered_bytes: 0.0,
            measured_rate: 0.0,
            stopped: false,
        }
    }

    pub(in crate::pacing) fn working_set(total: u64, set: u64, per_second: u64) -> DirtyCurve {
        let mut curve = DirtyCurve::new(total);
        for millis in [50, 200, 1000, 3000, 10_000] {
            let window = DirtyWindow {
                window: Duration::from_millis(millis),
                pages: (per_second * millis / 1000).min(set),
                device_pages: 0,
                origin: Origin::DirtyLog,
            };
            curve.observe(window, Time::ZERO);
        }
        curve
    }

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let idle = Dirtying {
            curve: None,
            scale: 1.0,
        };
        let outcome = simulate(&fresh(100_000.0), &Plan::constant(10e6), &idle, &TERMS);
        let sweep = fresh(100_000.0).pending_bytes() / 10e6;
        assert_eq!(outcome.passes, 1);
        assert!((outcome.finish - sweep).abs() < 0.3, "{outcome:?} {sweep}");
    }

    #[test]
    fn a_hot_guest_converges_only_above_its_dirty_rate() {
        let curve = working_set(100_000, 50_000, 5000);
        let hot = Dirtying {
            curve: Some(&curve),
            scale: 1.0,
        };
        let at = |rate| simulate(&fresh(100_000.0), &Plan::constant(rate), &hot, &TERMS);
        assert!(!at(15e6).converges());
        assert!(at(40e6).converges());
    }

    #[test]
    fn a_closed_plan_never_ends() {
        let idle = Dirtying {
            curve: None,
            scale: 1.0,
        };
        let outcome = simulate(&fresh(1000.0), &Plan::constant(0.0), &idle, &TERMS);
        assert!(!outcome.converges());
    }
}
