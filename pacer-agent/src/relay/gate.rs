//! The migration's one token bucket, shared by its channels.

use std::sync::Mutex;

use tokio::sync::Notify;

use crate::clock;
use crate::pacing::token_bucket::{Rate, TokenBucket};

/// Pieces at the rate in force. Small enough that QEMU, which measures its bandwidth over
/// 100 ms, sees an even flow, and that two of them are in the bucket's burst: with one
/// alone each late timer costs rate.
const PIECES_PER_SECOND: u64 = 200;
const LEAST_PIECE_BYTES: u64 = 4 * 1024;
const MOST_PIECE_BYTES: u64 = 64 * 1024;

/// Lets bytes through at the rate the controller sets.
#[derive(Debug)]
pub struct Gate {
    bucket: Mutex<TokenBucket>,
    changed: Notify,
}

impl Gate {
    /// A gate at `rate`.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            bucket: Mutex::new(TokenBucket::new(rate, clock::now())),
            changed: Notify::new(),
        }
    }

    /// Changes the rate; whoever waits asks again.
    pub fn set_rate(&self, rate: Rate) {
        self.lock().set_rate(rate, clock::now());
        self.changed.notify_waiters();
    }

    /// How many bytes to ask for at a time.
    #[must_use]
    pub fn piece_bytes(&self) -> usize {
        let bytes = piece_bytes(self.lock().rate());
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Waits until `bytes` may go. Cancel safe: nothing is taken before it
    /// returns.
    pub async fn pass(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        loop {
            // Registered before the bucket is asked, so that no change between
            // the two is missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let blocked = match self.lock().try_take(bytes, clock::now()) {
                Ok(()) => return,
                Err(blocked) => blocked,
            };
            match blocked.until {
                Some(until) => tokio::select! {
                    () = clock::sleep_until(until) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, TokenBucket> {
        // The bucket is whole after every call, so a panic elsewhere leaves it usable.
        self.bucket
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn piece_bytes(rate: Rate) -> u64 {
    match rate {
        Rate::Open => MOST_PIECE_BYTES,
        Rate::BytesPerSecond(rate) => {
            (rate / PIECES_PER_SECOND).clamp(LEAST_PIECE_BYTES, MOST_PIECE_BYTES)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pacing::time::Time;
    use crate::units::to_f64;

    /// Bytes let through in ten seconds by a timer of whole milliseconds that is a
    /// little late each time.
    fn passed(rate: u64) -> u64 {
        const END: Time = Time::from_nanos(10_000_000_000);
        const MILLISECOND: u64 = 1_000_000;
        let rate = Rate::BytesPerSecond(rate);
        let (mut now, mut bytes) = (Time::ZERO, 0);
        let mut bucket = TokenBucket::new(rate, now);
        while now < END {
            match bucket.try_take(piece_bytes(rate), now) {
                Ok(()) => bytes += piece_bytes(rate),
                Err(blocked) => {
                    let until = blocked.until.expect("it is not closed").as_nanos();
                    let due = until.next_multiple_of(MILLISECOND);
                    now = Time::from_nanos(due) + Duration::from_micros(700);
                }
            }
        }
        bytes
    }

    #[test]
    fn late_timers_cost_no_rate() {
        for rate in [
            500_000, 2_000_000, 4_780_000, 6_290_000, 9_000_000, 40_000_000,
        ] {
            let passed = passed(rate);
            let share = to_f64(passed) / to_f64(10 * rate);
            assert!((0.995..1.01).contains(&share), "{rate}: {share}");
        }
    }

    #[tokio::test]
    async fn a_closed_gate_lets_bytes_through_once_it_opens() {
        let gate = Gate::new(Rate::BytesPerSecond(0));
        let waiting = gate.pass(1 << 20);
        tokio::pin!(waiting);
        let before = tokio::select! {
            biased;
            () = &mut waiting => "passed",
            () = std::future::ready(()) => "waits",
        };
        assert_eq!(before, "waits");
        gate.set_rate(Rate::Open);
        waiting.await;
    }
}
