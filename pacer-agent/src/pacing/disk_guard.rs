//! Holds the migration back while the guest's disk is slower than it may be. Pure.

use std::time::Duration;

use super::time::Time;

/// What the disk allows, found by trying: less as long as it is too slow, a little more
/// while it is well below.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskGuard {
    cap: Option<f64>,
    changed_at: Option<Time>,
}

/// So much is left of the rate where the disk is too slow,
const LESS: f64 = 0.7;
/// and so much is tried where it takes less than this share of the limit.
const MORE: f64 = 1.1;
const WELL_BELOW: f64 = 0.7;
/// A change takes this long to show in the disk's times.
const EFFECT: Duration = Duration::from_millis(500);
/// And a rise is to show more than one moment.
const RISE_EVERY: Duration = Duration::from_secs(1);
/// Bytes a second that there are always: a migration that stands still never ends.
const FLOOR: f64 = 1e6;

impl DiskGuard {
    /// The most that may be sent, in bytes a second; `None` where the disk does not mind.
    #[must_use]
    pub const fn cap(&self) -> Option<f64> {
        self.cap
    }

    /// The disk took `mean` for a request lately, while so much was `sent`; `limit` is how
    /// long it may take.
    pub fn observe(&mut self, mean: Duration, limit: Option<Duration>, sent: Sent, now: Time) {
        let Some(limit) = limit else {
            *self = Self::default();
            return;
        };
        let passed = self.changed_at.map(|at| now.since(at));
        let is_due = |least| passed.is_none_or(|passed| passed >= least);
        if mean > limit && is_due(EFFECT) {
            let present = self.cap.unwrap_or(f64::INFINITY).min(sent.rate);
            self.cap = Some((present * LESS).max(FLOOR));
            self.changed_at = Some(now);
        } else if let Some(cap) = self.cap
            && mean < limit.mul_f64(WELL_BELOW)
            && is_due(RISE_EVERY)
        {
            let cap = cap * MORE;
            self.cap = (cap < sent.highest).then_some(cap);
            self.changed_at = Some(now);
        }
    }
}

/// What is sent, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent {
    /// Now.
    pub rate: f64,
    /// At most, whatever the disk says.
    pub highest: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(10);

    /// A disk whose time for a request grows with what is sent; a sample every 500 ms.
    fn run(guard: &mut DiskGuard, seconds: std::ops::Range<u64>, mean: impl Fn(f64) -> f64) -> f64 {
        let mut rate = 0.0;
        for half in seconds.start * 2..seconds.end * 2 {
            rate = guard.cap().unwrap_or(100e6).min(100e6);
            let sent = Sent {
                rate,
                highest: 100e6,
            };
            let mean = Duration::from_secs_f64(mean(rate));
            guard.observe(
                mean,
                Some(LIMIT),
                sent,
                Time::from_nanos(half * 500_000_000),
            );
        }
        rate
    }

    #[test]
    fn a_disk_that_does_not_mind_sets_no_limit() {
        let mut guard = DiskGuard::default();
        run(&mut guard, 0..20, |_| 0.002);
        assert_eq!(guard.cap(), None);
    }

    #[test]
    fn a_disk_that_never_recovers_leaves_the_floor() {
        let mut guard = DiskGuard::default();
        run(&mut guard, 0..60, |_| 0.5);
        assert_eq!(guard.cap(), Some(FLOOR));
        // Somebody else was the reason, and is gone.
        run(&mut guard, 60..120, |_| 0.001);
        assert_eq!(guard.cap(), None);
    }

    #[test]
    fn without_a_limit_there_is_no_guard() {
        let mut guard = DiskGuard::default();
        run(&mut guard, 0..5, |_| 0.5);
        let sent = Sent {
            rate: 1e6,
            highest: 1e8,
        };
        guard.observe(LIMIT * 9, None, sent, Time::from_nanos(9_000_000_000));
        assert_eq!(guard.cap(), None);
    }

    proptest! {
        #[test]
        fn it_settles_where_the_disk_bears_it(bears in 2e6_f64..90e6) {
            let mut guard = DiskGuard::default();
            // 10 ms at what it bears.
            let mean = |rate: f64| 0.002 + 0.008 * (rate / bears).powi(3);
            run(&mut guard, 0..60, mean);
            for second in 60..90 {
                let rate = run(&mut guard, second..second + 1, mean);
                prop_assert!((0.5..=1.15).contains(&(rate / bears)), "{rate} {bears}");
            }
        }
    }
}
