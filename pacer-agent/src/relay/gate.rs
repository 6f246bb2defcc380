//! The migration's one token bucket, shared by its channels.

use std::sync::Mutex;

use tokio::sync::Notify;

use crate::clock;
use crate::pacing::token_bucket::{Rate, TokenBucket};

/// How long a piece takes at the rate in force. Small enough that QEMU, which
/// measures its bandwidth over 100 ms, sees an even flow.
const PIECES_PER_SECOND: u64 = 100;
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
        let bytes = match self.lock().rate() {
            Rate::Open => MOST_PIECE_BYTES,
            Rate::BytesPerSecond(rate) => {
                (rate / PIECES_PER_SECOND).clamp(LEAST_PIECE_BYTES, MOST_PIECE_BYTES)
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

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
