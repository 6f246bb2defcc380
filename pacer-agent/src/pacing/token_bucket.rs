//! How many bytes may go now, and when to ask again.
//!
//! The shape is that of Firecracker's rate limiter; the clock is a parameter.
//! Credit is kept in billionths of a byte, so that `rate × nanoseconds` is
//! added without any division: no rounding, hence no remainder to carry, and
//! no token is ever made or lost. The only rounding is of the time to wait,
//! upwards to the next nanosecond, and the credit of that fraction stays.

use std::time::Duration;

use super::time::Time;

/// What the bucket lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// This many bytes a second. 0 closes the bucket.
    BytesPerSecond(u64),
    /// Everything, at once.
    Open,
}

impl Rate {
    /// A rate as decisions carry it: `u64::MAX` means no limit.
    #[must_use]
    pub const fn from_bytes_per_second(bytes_per_second: u64) -> Self {
        match bytes_per_second {
            u64::MAX => Self::Open,
            limited => Self::BytesPerSecond(limited),
        }
    }
}

/// The bytes asked for may not go yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bucket is empty")]
pub struct Blocked {
    /// The earliest time to ask again. `None` while the bucket is closed: ask
    /// again after the next change of rate.
    pub until: Option<Time>,
}

/// A token bucket in bytes.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate: Rate,
    /// Billionths of a byte; negative is debt.
    credit: i128,
    refilled_at: Time,
}

/// Billionths of a byte in a byte, and nanoseconds in a second.
const NANO: i128 = 1_000_000_000;
/// The bucket's depth in time. Long enough for a timer of 1 ms to be late a few
/// times without losing rate, short against QEMU's 100 ms of measuring.
const BURST: Duration = Duration::from_millis(10);
/// Two writes of 16 KiB, the largest asked for in the ordinary case. A bucket
/// of one is full whenever one may go, and every late timer costs rate.
const LEAST_BURST_BYTES: i128 = 32 * 1024;

impl TokenBucket {
    /// A bucket that is full at `now`.
    #[must_use]
    pub fn new(rate: Rate, now: Time) -> Self {
        Self {
            rate,
            credit: burst(rate),
            refilled_at: now,
        }
    }

    /// The rate in force.
    #[must_use]
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Changes the rate from `now` on. Credit beyond the new burst is lost,
    /// debt stays. Writers that were blocked should ask again.
    pub fn set_rate(&mut self, rate: Rate, now: Time) {
        self.refill(now);
        if self.rate == Rate::Open {
            // An open bucket keeps no account; start even.
            self.credit = 0;
        }
        self.rate = rate;
        self.credit = self.credit.min(burst(rate));
    }

    /// Lets everything through from `now` on. Writers that were blocked should
    /// ask again.
    pub fn open(&mut self, now: Time) {
        self.set_rate(Rate::Open, now);
    }

    /// Takes `bytes` at `now`. A write larger than the burst goes once the
    /// bucket is full and leaves a debt that later ones wait for.
    ///
    /// # Errors
    ///
    /// [`Blocked`] with the time to ask again; nothing was taken.
    pub fn try_take(&mut self, bytes: u64, now: Time) -> Result<(), Blocked> {
        let Rate::BytesPerSecond(rate) = self.rate else {
            return Ok(());
        };
        if rate == 0 {
            // Closed: what credit is left stays.
            return Err(Blocked { until: None });
        }
        self.refill(now);
        let wanted = i128::from(bytes) * NANO;
        let missing = wanted.min(burst(self.rate)) - self.credit;
        if missing > 0 {
            return Err(Blocked {
                until: wait(missing, rate).map(|span| self.refilled_at + span),
            });
        }
        // Bounded: a debt is at most one write of 2^64 bytes, 2^94.
        self.credit -= wanted;
        Ok(())
    }

    /// Adds what was earned since the last refill. A clock that goes back adds
    /// nothing and is not followed, so that no span is earned twice.
    fn refill(&mut self, now: Time) {
        let elapsed = now.since(self.refilled_at).as_nanos();
        if elapsed == 0 {
            return;
        }
        self.refilled_at = now;
        if let Rate::BytesPerSecond(rate) = self.rate {
            let earned = elapsed.saturating_mul(u128::from(rate));
            let earned = i128::try_from(earned).unwrap_or(i128::MAX);
            self.credit = self.credit.saturating_add(earned).min(burst(self.rate));
        }
    }
}

fn burst(rate: Rate) -> i128 {
    match rate {
        Rate::Open => 0,
        Rate::BytesPerSecond(rate) => {
            let nanos = i128::try_from(BURST.as_nanos()).unwrap_or(0);
            (i128::from(rate) * nanos).max(LEAST_BURST_BYTES * NANO)
        }
    }
}

/// How long `missing` billionths of a byte take, rounded up; `None` for ever.
fn wait(missing: i128, rate: u64) -> Option<Duration> {
    let missing = u128::try_from(missing).unwrap_or(0);
    let nanos = missing
        .checked_add(u128::from(rate).saturating_sub(1))?
        .checked_div(u128::from(rate))?;
    Some(Duration::from_nanos(
        u64::try_from(nanos).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at_micros(micros: u64) -> Time {
        Time::from_nanos(micros * 1000)
    }

    #[test]
    fn a_closed_bucket_names_no_time() {
        let mut bucket = TokenBucket::new(Rate::BytesPerSecond(0), Time::ZERO);
        assert_eq!(
            bucket.try_take(1, at_micros(1 << 40)),
            Err(Blocked { until: None })
        );
        bucket.open(at_micros(1 << 40));
        assert_eq!(bucket.try_take(u64::MAX, at_micros(1 << 40)), Ok(()));
    }

    #[test]
    fn a_large_write_leaves_a_debt() {
        let mut bucket = TokenBucket::new(Rate::BytesPerSecond(1 << 20), Time::ZERO);
        assert_eq!(bucket.try_take(1 << 20, Time::ZERO), Ok(()));
        let blocked = bucket.try_take(1, Time::ZERO).unwrap_err();
        let until = blocked.until.expect("open bucket");
        assert!(until > at_micros(960_000) && until < at_micros(1_000_000));
        assert_eq!(bucket.try_take(1, until), Ok(()));
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut bucket = TokenBucket::new(Rate::BytesPerSecond(u64::MAX), Time::ZERO);
        let end = Time::from_nanos(u64::MAX);
        assert_eq!(bucket.try_take(u64::MAX, end), Ok(()));
        let _blocked = bucket.try_take(u64::MAX, end);
        bucket.set_rate(Rate::BytesPerSecond(1), Time::ZERO);
        assert!(bucket.try_take(u64::MAX, end).is_err());
    }

    proptest! {
        #[test]
        fn no_window_carries_more_than_rate_and_burst(
            rate in 1_u64..10_000_000_000,
            asks in prop::collection::vec((0_u64..200_000, 1_u64..200_000), 1..80),
        ) {
            let mut bucket = TokenBucket::new(Rate::BytesPerSecond(rate), Time::ZERO);
            let mut now = 0;
            let mut taken = Vec::new();
            for (micros, bytes) in asks {
                now += micros;
                if bucket.try_take(bytes, at_micros(now)).is_ok() {
                    taken.push((now, bytes));
                }
            }
            let largest = taken.iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
            for (first, &(start, _)) in taken.iter().enumerate() {
                let mut sum: u128 = 0;
                for &(end, bytes) in &taken[first..] {
                    sum += u128::from(bytes);
                    let earned = u128::from(rate) * u128::from(end - start) / 1_000_000;
                    let burst = (u128::from(rate) / 100).max(32 * 1024);
                    prop_assert!(sum <= earned + burst + u128::from(largest) + 1);
                }
            }
        }

        #[test]
        fn the_rate_is_achieved(rate in 1_u64..20_000_000_000, write in 1_u64..300_000) {
            let mut bucket = TokenBucket::new(Rate::BytesPerSecond(rate), Time::ZERO);
            let mut now = Time::ZERO;
            let mut sent: u128 = 0;
            for _ in 0..2000 {
                match bucket.try_take(write, now) {
                    Ok(()) => sent += u128::from(write),
                    Err(blocked) => {
                        let until = blocked.until.expect("not closed");
                        prop_assert!(until > now);
                        now = until;
                    }
                }
            }
            let earned = u128::from(rate) * u128::from(now.as_nanos()) / 1_000_000_000;
            // The last thing may have been a refusal, one write short.
            prop_assert!((sent + u128::from(write)) * 100 >= earned * 99);
        }
    }
}
