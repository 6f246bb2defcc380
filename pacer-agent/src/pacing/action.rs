//! What a session is given, and what it asks of its driver.

use std::time::Duration;

use super::baseline::Baselines;
use super::forecast::Percentiles;
use super::ledger::PassRecord;
use super::objective::{Limits, Objective, Reason, Verdict};

/// What a session is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// What the operator asked for.
    pub objective: Objective,
    /// What must not be exceeded.
    pub limits: Limits,
    /// What a switchover takes besides copying.
    pub switchover_overhead: Duration,
    /// From t0: until then it is held. `None` is not at all.
    pub not_before: Option<Duration>,
}

/// What the driver should do.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a forecast is made once a second"
)]
pub enum Action {
    /// Set the bucket.
    SetRate {
        /// Bytes a second; `u64::MAX` is no limit.
        bytes_per_second: u64,
        /// Why.
        reason: Reason,
    },
    /// Open the bucket: the guest is stopped.
    OpenBucket {
        /// Why.
        reason: Reason,
    },
    /// A forecast, once a second.
    Forecast(ForecastRecord),
    /// The verdict, or the earliest finish of an infeasible one, changed.
    Verdict {
        /// Whether the objective can be reached.
        verdict: Verdict,
        /// The earliest finish, from t0; `None` where unknown or never.
        earliest_feasible: Option<Duration>,
        /// Why the present rate was chosen.
        reason: Reason,
    },
    /// A pass ended.
    PassEnded(PassRecord),
    /// Set QEMU's `max-cpu-throttle`: auto-converge may slow the guest by as much.
    Throttle {
        /// 1 to 99.
        percent: u8,
        /// Why.
        reason: Reason,
    },
}

/// One forecast, as the report keeps it. Seconds are from t0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForecastRecord {
    /// When it was made.
    pub at_seconds: f64,
    /// The rate then in force.
    pub rate_bytes_per_second: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// The earliest finish.
    pub earliest_feasible_seconds: Option<f64>,
    /// The finish if the controller goes on as planned.
    pub finish_seconds: Percentiles,
    /// The finish at the rate in force; while held back, at the last before.
    pub at_constant_rate_seconds: Percentiles,
    /// From STOP to running at the destination.
    pub downtime_seconds: Percentiles,
    /// On the wire in all, by the end.
    pub bytes: Percentiles,
    /// How much of the forecast work is done, in percent.
    pub percent: f64,
    /// Since the forecast before, a sync was found that is no noise: the guest
    /// has changed what it does.
    pub change: bool,
    /// What others would say, in seconds from t0.
    pub baselines: Baselines,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// QEMU has not begun to send.
    Waiting,
    /// Memory is copied while the guest runs.
    Copying {
        /// From 1.
        pass: u64,
    },
    /// The guest is stopped.
    Switchover,
    /// The guest runs at the destination.
    Arrived,
}
