//! What the link takes, told from what was commanded and what went.
//!
//! A stretch in which less went than was allowed shows the link's limit; where there
//! was no limit, what went is the link. A limit is tried again each second that it is
//! made use of, so that a link that is back is found to be.

use std::collections::VecDeque;
use std::time::Duration;

use super::number::to_f64;
use super::time::Time;

/// What is known of the link.
#[derive(Clone, Debug, Default)]
pub struct LinkCap {
    /// What was sent lately while the link had something to do, oldest first.
    stretches: VecDeque<Stretch>,
    /// The last count; what comes from there on is a stretch.
    last: Option<(Time, f64)>,
    cap: Option<f64>,
    is_told: bool,
    tried_at: Time,
    /// By how much the next probe raises the cap; it grows while they succeed.
    probe: f64,
    /// `None` is no limit.
    commanded: Option<f64>,
    /// Bytes that the commanded rates allowed since the last count, up to `allowed_at`.
    allowed: f64,
    allowed_at: Time,
    /// Nothing is judged before: the link was away.
    quiet_until: Time,
    best: f64,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    ended: Time,
    seconds: f64,
    sent: f64,
    /// Infinite where there was no limit.
    allowed: f64,
}

/// Shorter spans say more about bursts than about the link.
const LEAST_SECONDS: f64 = 0.95;
/// And so do spans in which fewer bytes than this were to go: they go in pieces.
const LEAST_BYTES: f64 = 512.0 * 1024.0;
/// Longer ones say what it was.
const LONGEST_SECONDS: f64 = 1.95;
/// What was sent before this says nothing either.
const LONGEST_AGE: Duration = Duration::from_secs(5);
/// A link that takes less than this share of what was commanded is the limit,
const SHORT: f64 = 0.9;
/// which is then what went in so many last seconds: it may have changed within the span.
const LATEST_SECONDS: f64 = 0.45;
/// So small a share is an outage, which says nothing about the rate after it,
const OUTAGE: f64 = 0.05;
/// if this many bytes were to be sent: less goes in single pieces.
const OUTAGE_BYTES: f64 = 64.0 * 1024.0;
/// After an outage QUIC takes this long to find its speed again.
const RECOVERY: Duration = Duration::from_secs(1);
/// How often a known limit is tried again, and by how much more.
const TRY_EVERY: Duration = Duration::from_secs(1);
const PROBE: f64 = 1.25;
const LARGEST_PROBE: f64 = 2.0;

impl LinkCap {
    /// Bytes a second, or `None` while the link took all that was commanded and
    /// nobody has told what it takes.
    #[must_use]
    pub const fn bytes_per_second(&self) -> Option<f64> {
        self.cap
    }

    /// Whether the link was measured before, and not only seen to take what it was
    /// given.
    #[must_use]
    pub const fn is_told(&self) -> bool {
        self.is_told
    }

    /// The link was measured. What it then takes, or fails to, counts more.
    pub fn tell(&mut self, bytes_per_second: f64, now: Time) {
        self.cap = Some(bytes_per_second.max(1.0));
        self.is_told = true;
        self.tried_at = now;
        self.probe = PROBE;
    }

    /// What went per second over the last seconds; `None` while too little was
    /// seen.
    #[must_use]
    pub fn achieved(&self) -> Option<f64> {
        let (seconds, sent, _) = self.sum(f64::INFINITY);
        (seconds > 0.3).then(|| sent / seconds)
    }

    /// The most that ever went per second, seen over a second; 0 at first.
    #[must_use]
    pub const fn best(&self) -> f64 {
        self.best
    }

    /// The rate from `now` on. `None` is no limit: what goes then is the link.
    pub fn command(&mut self, bytes_per_second: Option<f64>, now: Time) {
        self.count_allowed(now);
        self.commanded = bytes_per_second;
    }

    fn count_allowed(&mut self, now: Time) {
        let seconds = now.since(self.allowed_at).as_secs_f64();
        if seconds > 0.0 {
            self.allowed += self.commanded.unwrap_or(f64::INFINITY) * seconds;
        }
        self.allowed_at = self.allowed_at.max(now);
    }

    /// What is sent up to the next count is not the link's doing.
    pub const fn skip(&mut self) {
        self.last = None;
    }

    /// Starts to look afresh.
    pub fn forget(&mut self) {
        self.stretches.clear();
        self.skip();
    }

    /// Counts: this much had been put on the wire at `now`.
    pub fn observe(&mut self, bytes_on_wire: u64, now: Time) {
        let bytes = to_f64(bytes_on_wire);
        self.count_allowed(now);
        let allowed = std::mem::take(&mut self.allowed);
        let Some((before, bytes_before)) = self.last.replace((now, bytes)) else {
            return;
        };
        let seconds = now.since(before).as_secs_f64();
        let sent = bytes - bytes_before;
        if seconds <= 0.0 {
            return;
        }
        // Nothing at all for a while is an outage: what it took before and what
        // it takes after are looked at apart.
        let usual = self.cap.unwrap_or(self.best.max(OUTAGE_BYTES / seconds)) * seconds;
        let expected = allowed.min(usual);
        if expected >= OUTAGE_BYTES && sent < OUTAGE * expected {
            self.stretches.clear();
            self.quiet_until = now + RECOVERY;
            return;
        }
        if now < self.quiet_until {
            return;
        }
        self.stretches.push_back(Stretch {
            ended: now,
            seconds,
            sent,
            allowed,
        });
        self.drop_old(now);
        self.judge(now);
    }

    fn drop_old(&mut self, now: Time) {
        let mut seconds: f64 = self.stretches.iter().map(|one| one.seconds).sum();
        while let Some(first) = self.stretches.front()
            && (seconds - first.seconds >= LONGEST_SECONDS || now.since(first.ended) > LONGEST_AGE)
        {
            seconds -= first.seconds;
            self.stretches.pop_front();
        }
    }

    /// Seconds, bytes sent and bytes allowed of so many last seconds.
    fn sum(&self, last_seconds: f64) -> (f64, f64, f64) {
        let (mut seconds, mut sent, mut allowed) = (0.0, 0.0, 0.0);
        for stretch in self.stretches.iter().rev() {
            if seconds >= last_seconds {
                break;
            }
            seconds += stretch.seconds;
            sent += stretch.sent;
            allowed += stretch.allowed;
        }
        (seconds, sent, allowed)
    }

    fn judge(&mut self, now: Time) {
        let (seconds, sent, allowed) = self.sum(f64::INFINITY);
        if seconds < LEAST_SECONDS || allowed < LEAST_BYTES {
            return;
        }
        let achieved = sent / seconds;
        self.best = self.best.max(achieved);
        let (last_seconds, last_sent, last_allowed) = self.sum(LEAST_SECONDS);
        if last_allowed.is_infinite() {
            self.cap = Some(last_sent / last_seconds);
            (self.tried_at, self.probe) = (now, PROBE);
        } else if allowed.is_finite() && sent < SHORT * allowed {
            let (seconds, sent, allowed) = self.sum(LATEST_SECONDS);
            // It may be back already.
            if sent < SHORT * allowed {
                self.cap = Some(sent / seconds);
                (self.tried_at, self.probe) = (now, PROBE);
            }
            self.stretches.clear();
        } else if let Some(cap) = self.cap {
            self.probe(cap, last_sent / last_seconds, now);
        }
    }

    /// The link took what it was given, `achieved` bytes a second.
    fn probe(&mut self, cap: f64, achieved: f64, now: Time) {
        if achieved > cap {
            self.cap = Some(achieved);
        }
        // Only a limit that is made use of can be found to have risen.
        if achieved >= SHORT * cap && now.since(self.tried_at) >= TRY_EVERY {
            self.cap = Some(cap.max(achieved) * self.probe);
            self.probe = (self.probe * PROBE).min(LARGEST_PROBE);
            self.tried_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 100 ms each; `commanded` in bytes a second, `None` is no limit.
    fn run(
        cap: &mut LinkCap,
        ticks: std::ops::Range<u64>,
        link: impl Fn(u64) -> u64,
        commanded: Option<f64>,
    ) {
        let mut sent = cap.last.map_or(0, |(_, bytes)| to_bytes(bytes));
        for tick in ticks {
            let rate = commanded.map(|most| cap.bytes_per_second().unwrap_or(most).min(most));
            let before = Time::from_nanos(tick.saturating_sub(1) * 100_000_000);
            cap.command(rate, before);
            let wanted = rate.map_or(u64::MAX, |rate| to_bytes(rate) / 10);
            sent += wanted.min(link(tick) / 10);
            cap.observe(sent, Time::from_nanos(tick * 100_000_000));
        }
    }

    fn to_bytes(rate: f64) -> u64 {
        crate::pacing::number::to_u64(rate)
    }

    fn known(cap: &LinkCap) -> f64 {
        cap.bytes_per_second().expect("known")
    }

    #[test]
    fn a_slow_link_is_found_and_its_recovery_too() {
        let mut cap = LinkCap::default();
        run(&mut cap, 0..100, |_| 5_000_000, Some(10e6));
        let found = known(&cap);
        assert!((4.9e6..6.5e6).contains(&found), "{found}");
        cap.skip();
        run(&mut cap, 100..200, |_| 20_000_000, Some(10e6));
        assert!(known(&cap) > 9e6);
    }

    #[test]
    fn a_halved_link_is_found_within_two_seconds_each_way() {
        for commanded in [Some(20e6), None] {
            let mut cap = LinkCap::default();
            let link = |tick| {
                if (100..200).contains(&tick) {
                    10_000_000
                } else {
                    20_000_000
                }
            };
            run(&mut cap, 0..100, link, commanded);
            run(&mut cap, 100..122, link, commanded);
            assert!((9e6..13e6).contains(&known(&cap)), "{}", known(&cap));
            run(&mut cap, 122..200, link, commanded);
            run(&mut cap, 200..222, link, commanded);
            assert!(known(&cap) > 15e6, "{} {commanded:?}", known(&cap));
            run(&mut cap, 222..240, link, commanded);
            assert!(known(&cap) > 18e6, "{} {commanded:?}", known(&cap));
        }
    }

    #[test]
    fn pieces_at_a_trickle_say_nothing_of_the_link() {
        let mut cap = LinkCap::default();
        let mut sent = 0;
        for tick in 0..100 {
            let now = Time::from_nanos(tick * 100_000_000);
            cap.command(Some(50e3), now);
            // One every 340 ms, less than was allowed for some time.
            sent += if tick % 4 == 3 { 16_384 } else { 0 };
            cap.observe(sent, now);
        }
        assert_eq!(cap.bytes_per_second(), None);
    }

    #[test]
    fn an_outage_is_no_limit() {
        let mut cap = LinkCap::default();
        let link = |tick| match tick {
            30..60 => 0,
            // QUIC is slow to begin with.
            60..70 => 2_000_000,
            _ => 20_000_000,
        };
        run(&mut cap, 0..100, link, Some(10e6));
        assert_eq!(cap.bytes_per_second(), None);
    }

    #[test]
    fn what_goes_without_a_limit_is_the_link() {
        let mut cap = LinkCap::default();
        run(&mut cap, 0..15, |_| 70_000_000, None);
        assert!((known(&cap) / 70e6 - 1.0).abs() < 0.01);
        let link = |tick| if tick < 30 { 0 } else { 70_000_000 };
        run(&mut cap, 15..60, link, None);
        assert!((known(&cap) / 70e6 - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_link_that_was_measured_is_no_law() {
        let mut cap = LinkCap::default();
        cap.tell(10e6, Time::ZERO);
        run(&mut cap, 0..40, |_| 30_000_000, Some(30e6));
        assert!(known(&cap) > 20e6, "{}", known(&cap));
        cap.tell(40e6, Time::from_nanos(4_000_000_000));
        run(&mut cap, 40..70, |_| 15_000_000, Some(30e6));
        assert!((14e6..20e6).contains(&known(&cap)), "{}", known(&cap));
    }

    proptest! {
        #[test]
        fn a_steady_link_is_known_within_a_quarter(
            link in 200_000_u64..1_000_000_000, over in 1.3_f64..20.0,
        ) {
            let mut cap = LinkCap::default();
            let link_rate = to_f64(link);
            run(&mut cap, 0..60, |_| link, Some(link_rate * over));
            let mut last = known(&cap);
            prop_assert!((0.95..=1.3).contains(&(last / link_rate)));
            // What it is taken for changes no more than once a second, up and down.
            let mut changes = 0;
            for tick in 60..160 {
                run(&mut cap, tick..tick + 1, |_| link, Some(link_rate * over));
                changes += u32::from((known(&cap) / last - 1.0).abs() > 0.02);
                last = known(&cap);
            }
            prop_assert!(changes <= 20, "{changes}");
        }
    }
}
