//! The report (a contract): one JSON object, written however the migration ends.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::pacing::baseline::Baselines;
use crate::pacing::controller::Verdict;
use crate::pacing::forecast::Percentiles;
use crate::pacing::ledger::PassRecord;
use crate::pacing::session::ForecastRecord;
use crate::preflight::Finding;

/// The report's schema; it changes when a field changes its meaning.
const SCHEMA: u32 = 1;

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest runs at the destination.
    Completed,
    /// It failed; the guest runs at the source.
    Returned,
    /// The operator, or a rule of theirs, ended it; the guest runs at the source.
    Cancelled,
    /// The guest is stopped and whole on a named side.
    Stopped,
    /// The guest ended by itself.
    GuestEnded,
    /// The process that held the only copy ended.
    Lost,
}

impl Outcome {
    /// The word the report uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Returned => "returned",
            Self::Cancelled => "cancelled",
            Self::Stopped => "stopped",
            Self::GuestEnded => "guest-ended",
            Self::Lost => "lost",
        }
    }
}

/// The whole report. Seconds are from t0, on the source's monotonic clock.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, for people; added where it did not complete.
    pub reason: Option<String>,
    /// t0 by the wall.
    pub started_at: String,
    /// The end by the wall.
    pub finished_at: String,
    /// The deadline.
    pub deadline_seconds: Option<f64>,
    /// Other deadlines, set while it ran or by a step of the wall's clock.
    pub deadline_changes: Vec<serde_json::Value>,
    /// t0 until the guest runs at the destination.
    pub total_seconds: Option<f64>,
    /// Total less deadline.
    pub deadline_error_seconds: Option<f64>,
    /// Whether the deadline was met.
    pub deadline_met: Option<bool>,
    /// STOP until the guest runs at the destination.
    pub downtime_seconds: Option<f64>,
    /// The limit asked for.
    pub downtime_limit_seconds: f64,
    /// Stream bytes read from QEMU.
    pub bytes_from_qemu: u64,
    /// Stream bytes given to QUIC.
    pub bytes_on_wire: u64,
    /// The last verdict before the switchover.
    pub verdict: &'static str,
    /// The last earliest finish before the switchover.
    pub earliest_feasible_seconds: Option<f64>,
    /// Passes over RAM.
    pub passes: Vec<Pass>,
    /// Forecasts, at least one a second.
    pub forecasts: Vec<Forecast>,
    /// What other ways of predicting said with the first forecast.
    pub baselines: Vec<Baseline>,
    /// Changes of the rate.
    pub rates: Vec<Rate>,
    /// Steps of the handover.
    pub handover: Vec<Step>,
    /// What the guest did by itself: reset, panic, shutdown, an error of a disk.
    pub guest_events: Vec<serde_json::Value>,
    /// What slowed the guest.
    pub throttle: Vec<serde_json::Value>,
    /// Disks moved; none in this version.
    pub disks: Vec<serde_json::Value>,
    /// Outages survived; none in this version.
    pub outages: Vec<serde_json::Value>,
    /// What was compared before anything moved.
    pub preflight: Vec<Finding>,
    /// Both QEMUs.
    pub qemu: Qemu,
    /// What eBPF did.
    pub probe: Probe,
}

/// One pass.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Pass {
    at_seconds: f64,
    seconds: f64,
    bytes: u64,
    pages: u64,
    dirty_pages: u64,
}

/// One forecast.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Forecast {
    at_seconds: f64,
    rate_bytes_per_second: Option<u64>,
    verdict: &'static str,
    earliest_feasible_seconds: Option<f64>,
    finish_seconds: Interval,
    at_constant_rate_seconds: Interval,
    downtime_seconds: Interval,
    bytes: Interval,
    percent: f64,
    change: bool,
}

/// What another way of predicting said.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Baseline {
    name: &'static str,
    /// From t0; null: never.
    finish_seconds: Option<f64>,
}

/// A figure and its doubt; empty where unknown.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Interval {
    p05: Option<f64>,
    p50: Option<f64>,
    p95: Option<f64>,
}

/// One change of the rate.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// When.
    pub at_seconds: f64,
    /// The rate from then on; null is no limit.
    pub commanded_bytes_per_second: Option<u64>,
    /// What was achieved up to then; null while too little was seen.
    pub achieved_bytes_per_second: Option<u64>,
    /// Why it changed.
    pub reason: String,
}

/// One step of the handover.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// When.
    pub at_seconds: f64,
    /// Its name.
    pub step: String,
}

/// Both QEMUs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Qemu {
    /// The source's version, where QMP says.
    pub source_version: Option<String>,
    /// The destination's version, where QMP says.
    pub destination_version: Option<String>,
    /// Whether the stream has a return path; null if none began.
    pub return_path: Option<bool>,
    /// `kvm` or `tcg`, where it is known.
    pub accelerator: Option<String>,
}

/// What eBPF did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Probe {
    /// The programs were attached.
    pub attached: bool,
    /// Events they saw.
    pub events: u64,
    /// Events that were lost on the way.
    pub lost_events: u64,
    /// Those, and everything else that is known not to be counted, in whole or
    /// in part.
    pub not_counted: u64,
    /// The programs' run time, where the kernel counts it.
    pub run_ns: Option<u64>,
    /// How often they ran, where the kernel counts it.
    pub run_count: Option<u64>,
}

impl Report {
    /// A report of a migration that begins at `started_at`.
    #[must_use]
    pub fn new(started_at: jiff::Timestamp, downtime_limit_seconds: f64) -> Self {
        Self {
            schema: SCHEMA,
            outcome: Outcome::Returned,
            reason: None,
            started_at: started_at.to_string(),
            finished_at: started_at.to_string(),
            deadline_seconds: None,
            deadline_changes: Vec::new(),
            total_seconds: None,
            deadline_error_seconds: None,
            deadline_met: None,
            downtime_seconds: None,
            downtime_limit_seconds,
            bytes_from_qemu: 0,
            bytes_on_wire: 0,
            verdict: Verdict::Unknown.word(),
            earliest_feasible_seconds: None,
            passes: Vec::new(),
            forecasts: Vec::new(),
            baselines: Vec::new(),
            rates: Vec::new(),
            handover: Vec::new(),
            preflight: Vec::new(),
            guest_events: Vec::new(),
            throttle: Vec::new(),
            disks: Vec::new(),
            outages: Vec::new(),
            qemu: Qemu::default(),
            probe: Probe::default(),
        }
    }

    /// Keeps a forecast.
    pub fn forecast(&mut self, forecast: &ForecastRecord) {
        if self.baselines.is_empty() && forecast.verdict != Verdict::Unknown {
            self.baselines = named(forecast.baselines);
        }
        self.forecasts.push((*forecast).into());
    }

    /// Notes the arrival after `total_seconds` and judges the deadline: missed
    /// is more than max(0.5 s, 0.5 %) away from it, or after it where any time
    /// before will do.
    pub fn arrive(&mut self, total_seconds: f64, early_is_fine: bool) {
        self.total_seconds = Some(total_seconds);
        let Some(deadline) = self.deadline_seconds else {
            return;
        };
        let error = total_seconds - deadline;
        let tolerance = (deadline * 0.005).max(0.5);
        self.deadline_error_seconds = Some(error);
        self.deadline_met = Some(error <= tolerance && (early_is_fine || error >= -tolerance));
    }

    /// Writes the report to `path`, wholly or not at all.
    ///
    /// # Errors
    ///
    /// What the system says, for instance a full disk.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        write_json(self, path)
    }
}

/// Writes `value` to `path` as JSON, wholly or not at all.
///
/// # Errors
///
/// What the system says, for instance a full disk.
pub fn write_json(value: &impl Serialize, path: &Path) -> std::io::Result<()> {
    {
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let draft = directory.join(format!(".pacer-report-{}", std::process::id()));
        let written = std::fs::File::create(&draft).and_then(|mut file| {
            serde_json::to_writer_pretty(&mut file, value)?;
            file.write_all(b"\n")?;
            file.sync_all()
        });
        let renamed = written.and_then(|()| std::fs::rename(&draft, path));
        if renamed.is_err() {
            // What is left of a failed draft is of no use to anybody.
            let _ = std::fs::remove_file(&draft);
        }
        renamed
    }
}

fn named(baselines: Baselines) -> Vec<Baseline> {
    let baseline = |(name, finish_seconds)| Baseline {
        name,
        finish_seconds,
    };
    let all = [
        ("remaining-over-rate", baselines.remaining_over_rate),
        ("geometric", baselines.geometric),
        ("dirty-vector", baselines.dirty_vector),
    ];
    all.map(baseline).into()
}

impl Verdict {
    /// The word the report uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Feasible => "feasible",
            Self::Infeasible => "infeasible",
            Self::Unknown => "unknown",
        }
    }
}

impl From<Percentiles> for Interval {
    fn from(percentiles: Percentiles) -> Self {
        Self {
            p05: percentiles.p05,
            p50: percentiles.p50,
            p95: percentiles.p95,
        }
    }
}

impl From<PassRecord> for Pass {
    fn from(record: PassRecord) -> Self {
        Self {
            at_seconds: record.at_seconds,
            seconds: record.seconds,
            bytes: record.bytes,
            pages: record.pages,
            dirty_pages: record.dirty_pages,
        }
    }
}

impl From<ForecastRecord> for Forecast {
    fn from(record: ForecastRecord) -> Self {
        Self {
            at_seconds: record.at_seconds,
            rate_bytes_per_second: limited(record.rate_bytes_per_second),
            verdict: record.verdict.word(),
            earliest_feasible_seconds: record.earliest_feasible_seconds,
            finish_seconds: record.finish_seconds.into(),
            at_constant_rate_seconds: record.at_constant_rate_seconds.into(),
            downtime_seconds: record.downtime_seconds.into(),
            bytes: record.bytes.into(),
            percent: record.percent,
            change: record.change,
        }
    }
}

/// A rate as the report has it: `None` for no limit.
#[must_use]
pub const fn limited(bytes_per_second: u64) -> Option<u64> {
    match bytes_per_second {
        u64::MAX => None,
        limit => Some(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(deadline: f64, total: f64, early_is_fine: bool) -> Option<bool> {
        let mut report = Report::new(jiff::Timestamp::UNIX_EPOCH, 0.3);
        report.deadline_seconds = Some(deadline);
        report.arrive(total, early_is_fine);
        report.deadline_met
    }

    #[test]
    fn early_is_as_wrong_as_late() {
        assert_eq!(arrived(30.0, 30.4, false), Some(true));
        assert_eq!(arrived(30.0, 29.6, false), Some(true));
        assert_eq!(arrived(30.0, 30.6, false), Some(false));
        assert_eq!(arrived(30.0, 29.4, false), Some(false));
        assert_eq!(arrived(1000.0, 1004.0, false), Some(true));
    }

    #[test]
    fn any_time_before_will_do_for_by() {
        assert_eq!(arrived(30.0, 3.0, true), Some(true));
        assert_eq!(arrived(30.0, 31.0, true), Some(false));
    }

    #[test]
    fn a_report_is_written_wholly_or_not_at_all() {
        let home = tempfile::tempdir().unwrap();
        let report = Report::new(jiff::Timestamp::UNIX_EPOCH, 0.3);
        let path = home.path().join("report.json");
        report.write(&path).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["schema"], 1);
        assert!(
            report
                .write(&home.path().join("absent/report.json"))
                .is_err()
        );
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
