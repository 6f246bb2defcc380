//! How far the guest's processors are slowed so that its deadline can be met. Pure.
//!
//! QEMU's auto-converge slows a guest at syncs, by more each time, up to
//! `max-cpu-throttle`. That is the one thing that may be set while a migration runs, and
//! it is raised as little as makes the deadline feasible. It is never lowered: QEMU looks
//! at it only where it slows the guest further.

use std::time::Duration;

use super::time::Time;

/// What auto-converge is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    percent: u8,
    /// What it was when the guest was last seen.
    seen_percent: u8,
    raised_at: Option<(Time, u64)>,
}

/// What is set before the start: next to nothing.
const FIRST: u8 = 1;
/// QEMU takes no more.
const MOST: u8 = 99;
/// A raise is by so many percent at least, and at most: QEMU's own first step is of 20.
const LEAST_STEP: u8 = 5;
const LARGEST_STEP: u8 = 20;
/// QEMU slows the guest at the second sync that finds too much, and what that does shows
/// at the next.
const SYNCS: u64 = 3;
/// Where passes are short, that is no time to see it in.
const EFFECT: Duration = Duration::from_secs(2);

impl Default for Throttle {
    fn default() -> Self {
        Self {
            percent: FIRST,
            seen_percent: FIRST,
            raised_at: None,
        }
    }
}

impl Throttle {
    /// What is in force, in percent.
    #[must_use]
    pub const fn percent(&self) -> u8 {
        self.percent
    }

    /// How fast the guest will work, of how fast it was seen to.
    #[must_use]
    pub fn pace(&self) -> f64 {
        self.pace_at(self.percent)
    }

    fn pace_at(&self, percent: u8) -> f64 {
        f64::from(100 - percent) / f64::from(100 - self.seen_percent)
    }

    /// A sync has been seen at `now`, the beginning of `pass`.
    pub fn on_sync(&mut self, pass: u64, now: Time) {
        if self.has_shown(pass, now) {
            self.seen_percent = self.percent;
            self.raised_at = None;
        }
    }

    fn has_shown(&self, pass: u64, now: Time) -> bool {
        self.raised_at
            .is_none_or(|(at, then)| pass >= then + SYNCS && now.since(at) >= EFFECT)
    }

    /// What is to be in force from `now` on, in the pass `pass`, if it is more than is.
    /// `meets` says whether the deadline is met where the guest works at such a pace.
    pub fn raise(&mut self, pass: u64, now: Time, meets: impl Fn(f64) -> bool) -> Option<u8> {
        if self.percent >= MOST || !self.has_shown(pass, now) || meets(self.pace()) {
            return None;
        }
        let most = self.percent.saturating_add(LARGEST_STEP).min(MOST);
        let mut percent = self.percent;
        while percent < most {
            percent = percent.saturating_add(LEAST_STEP).min(most);
            if meets(self.pace_at(percent)) {
                break;
            }
        }
        self.percent = percent;
        self.raised_at = Some((now, pass));
        Some(percent)
    }

    /// Whether the deadline is met where the guest is slowed as far as can be.
    #[must_use]
    pub fn could(&self, meets: impl Fn(f64) -> bool) -> bool {
        meets(self.pace_at(MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn it_is_raised_as_far_as_needed_and_no_further() {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.raise(1, at(1), |pace| pace <= 1.0), None);
        assert_eq!(throttle.raise(1, at(1), |pace| pace < 0.9), Some(11));
        // Time for it to be seen.
        assert_eq!(throttle.raise(2, at(2), |_| false), None);
        assert_eq!(throttle.raise(4, at(2), |_| false), None);
        assert_eq!(throttle.raise(4, at(4), |_| true), None);
        assert_eq!(throttle.raise(4, at(4), |_| false), Some(31));
    }

    #[test]
    fn what_is_seen_is_not_counted_twice() {
        let mut throttle = Throttle::default();
        throttle.raise(1, at(1), |pace| pace < 0.9);
        assert!((throttle.pace() - 89.0 / 99.0).abs() < 1e-9);
        throttle.on_sync(2, at(5));
        assert!(throttle.pace() < 1.0);
        throttle.on_sync(4, at(9));
        assert!((throttle.pace() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn it_ends_at_what_qemu_takes() {
        let mut throttle = Throttle::default();
        let mut last = 1;
        for step in 1..20 {
            if let Some(percent) = throttle.raise(step * 3, at(step * 5), |_| false) {
                assert!(percent > last && percent <= MOST);
                last = percent;
            }
            throttle.on_sync(step * 3, at(step * 5));
        }
        assert_eq!(throttle.percent(), MOST);
    }
}
