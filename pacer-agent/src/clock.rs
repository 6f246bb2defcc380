//! The clocks, read by the edge alone.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::pacing::time::Time;

/// Now, on CLOCK_MONOTONIC.
#[must_use]
pub fn now() -> Time {
    let timespec = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(timespec.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(timespec.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Now, by the wall.
#[must_use]
pub fn wall() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Sleeps until `when`; returns at once if it is past.
pub async fn sleep_until(when: Time) {
    let left = when.since(now());
    if left > Duration::ZERO {
        tokio::time::sleep(left).await;
    }
}
