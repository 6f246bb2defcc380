//! What the link really takes, told from what was commanded and what went.

use std::collections::VecDeque;
use std::time::Duration;

use super::number::to_f64;
use super::time::Time;

/// The most the link was seen to take.
#[derive(Clone, Debug, Default)]
pub struct LinkCap {
    points: VecDeque<Point>,
    cap: Option<f64>,
    raised_at: Time,
    /// By how much the next probe raises the cap; it grows while they succeed.
    probe: f64,
    commanded: f64,
    /// Bytes that the commanded rates allowed up to `allowed_at`.
    allowed: f64,
    allowed_at: Time,
    best: f64,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    at: Time,
    bytes: f64,
    /// Bytes that the commanded rates allowed up to here.
    allowed: f64,
}

/// Shorter spans say more about bursts than about the link.
const LEAST_SPAN: Duration = Duration::from_millis(1000);
/// Longer ones say what it was.
const LONGEST_SPAN: Duration = Duration::from_millis(2000);
/// A link that takes less than this share of what was commanded is the limit.
const SHORT: f64 = 0.9;
/// So small a share is an outage, which says nothing about the rate after it.
const OUTAGE: f64 = 0.05;
/// How often a known limit is tried again, and by how much more.
const PROBE_EVERY: Duration = Duration::from_secs(3);
const PROBE: f64 = 1.1;
const LARGEST_PROBE: f64 = 2.0;

impl LinkCap {
    /// Bytes a second, or `None` while the link took all that was commanded.
    #[must_use]
    pub const fn bytes_per_second(&self) -> Option<f64> {
        self.cap
    }

    /// What went per second over the last seconds; `None` while too little was
    /// seen.
    #[must_use]
    pub fn achieved(&self) -> Option<f64> {
        let (first, last) = (self.points.front()?, self.points.back()?);
        let seconds = last.at.since(first.at).as_secs_f64();
        (seconds > 0.3).then(|| (last.bytes - first.bytes) / seconds)
    }

    /// The most that ever went per second, seen over a second; 0 at first.
    #[must_use]
    pub const fn best(&self) -> f64 {
        self.best
    }

    /// The rate from `now` on. `None` is no limit, which nothing falls short of.
    pub fn command(&mut self, bytes_per_second: Option<f64>, now: Time) {
        self.count_allowed(now);
        self.commanded = bytes_per_second.unwrap_or(0.0);
    }

    fn count_allowed(&mut self, now: Time) {
        self.allowed += self.commanded * now.since(self.allowed_at).as_secs_f64();
        self.allowed_at = self.allowed_at.max(now);
    }

    /// Starts to look afresh: what was sent up to now was not the link's doing.
    pub fn forget(&mut self) {
        self.points.clear();
    }

    /// Counts: this much had been put on the wire at `now`.
    pub fn observe(&mut self, bytes_on_wire: u64, now: Time) {
        let bytes = to_f64(bytes_on_wire);
        self.count_allowed(now);
        let allowed = self.allowed;
        // Nothing at all for a while is an outage: what it took before and what
        // it takes after are looked at apart.
        if let Some(last) = self.points.back()
            && bytes - last.bytes < OUTAGE * (allowed - last.allowed)
        {
            self.points.clear();
        }
        self.points.push_back(Point {
            at: now,
            bytes,
            allowed,
        });
        while self
            .points
            .front()
            .is_some_and(|point| now.since(point.at) > LONGEST_SPAN)
        {
            self.points.pop_front();
        }
        self.judge(now);
    }

    fn judge(&mut self, now: Time) {
        let (Some(first), Some(last)) = (self.points.front(), self.points.back()) else {
            return;
        };
        let span = last.at.since(first.at);
        let allowed = last.allowed - first.allowed;
        let sent = last.bytes - first.bytes;
        if span < LEAST_SPAN || allowed <= 0.0 {
            return;
        }
        let achieved = sent / span.as_secs_f64();
        self.best = self.best.max(achieved);
        if sent < SHORT * allowed {
            self.cap = Some(achieved);
            self.raised_at = now;
            self.probe = PROBE;
            self.points.clear();
        } else if let Some(cap) = self.cap
            && now.since(self.raised_at) >= PROBE_EVERY
        {
            // Only a limit that is made use of can be found to have risen.
            if achieved >= SHORT * cap {
                self.cap = Some(cap * self.probe);
                self.probe = (self.probe * self.probe).min(LARGEST_PROBE);
            }
            self.raised_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cap: &mut LinkCap, from: u64, link: impl Fn(u64) -> u64, commanded: f64) -> u64 {
        let mut sent = 0;
        for tick in from..from + 100 {
            let rate = cap.bytes_per_second().unwrap_or(commanded).min(commanded);
            cap.command(
                Some(rate),
                Time::from_nanos(tick.saturating_sub(1) * 100_000_000),
            );
            #[expect(
                clippy::cast_sign_loss,
                clippy::cast_possible_truncation,
                reason = "test"
            )]
            let wanted = rate as u64 / 10;
            sent += wanted.min(link(tick) / 10);
            cap.observe(sent, Time::from_nanos(tick * 100_000_000));
        }
        sent
    }

    #[test]
    fn a_slow_link_is_found_and_its_recovery_too() {
        let mut cap = LinkCap::default();
        run(&mut cap, 0, |_| 5_000_000, 10e6);
        let found = cap.bytes_per_second().expect("short");
        assert!((4.9e6..6.2e6).contains(&found), "{found}");
        cap.forget();
        run(&mut cap, 100, |_| 20_000_000, 10e6);
        assert!(cap.bytes_per_second().expect("kept") > found);
    }

    #[test]
    fn an_outage_is_no_limit() {
        let mut cap = LinkCap::default();
        let link = |tick| {
            if (30..60).contains(&tick) {
                0
            } else {
                20_000_000
            }
        };
        run(&mut cap, 0, link, 10e6);
        assert_eq!(cap.bytes_per_second(), None);
    }
}
