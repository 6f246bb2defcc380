//! What Prometheus scrapes.

use std::sync::Mutex;

use prometheus::{
    Encoder as _, Gauge, GaugeVec, IntCounter, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::observe::families::ProbeFamilies;
use crate::observe::line::Line;
use crate::pacing::action::ForecastRecord;
use crate::pacing::objective::Reason;
use crate::pacing::sample::StreamCounters;
use crate::units::to_f64;

/// The families of one agent, with one migration.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    progress: Gauge,
    deadline: Gauge,
    elapsed: Gauge,
    downtime: Gauge,
    rate: GaugeVec,
    finish: GaugeVec,
    forecast_downtime: GaugeVec,
    forecast_bytes: GaugeVec,
    dirty_rate: GaugeVec,
    verdict: IntGaugeVec,
    rate_reason: IntGaugeVec,
    outcome: IntGaugeVec,
    bytes: [IntCounter; 2],
    pages: [IntCounter; 2],
    passes: IntCounter,
    probe: ProbeFamilies,
    last: Mutex<StreamCounters>,
}

const VERDICTS: [&str; 3] = ["feasible", "infeasible", "unknown"];

impl Metrics {
    /// The families of an agent on this `side`: `source` or `destination`.
    ///
    /// # Errors
    ///
    /// If a name is not Prometheus's kind of name: a mistake in this file.
    pub fn new(side: &str) -> prometheus::Result<Self> {
        let registry = Registry::new_custom(
            Some("pacer".to_owned()),
            Some([("side".to_owned(), side.to_owned())].into()),
        )?;
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = GaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        let flags = |name: &str, help: &str, label: &str| {
            let flags = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(flags.clone()))?;
            Ok::<_, prometheus::Error>(flags)
        };
        let labelled = |opts: Opts| {
            let counter = IntCounter::with_opts(opts)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let counter = |name: &str, help: &str| labelled(Opts::new(name, help));
        let kind = |name: &str, help: &str, label: &str, value: &str| {
            labelled(Opts::new(name, help).const_label(label, value))
        };
        const BYTES: &str = "Bytes of the migration stream on QEMU's memory channels: read from \
                             QEMU (from_qemu), or given to or taken from QUIC (wire), without \
                             the overhead of QUIC and UDP.";
        const PAGES: &str = "RAM pages of 4 KiB seen in the stream, sent with their content \
                             (normal) or announced as zero (zero).";
        let metrics = Self {
            progress: gauge(
                "migration_progress_ratio",
                "Share of the forecast work that is done, 0 to 1; never falls.",
            )?,
            deadline: gauge(
                "migration_deadline_seconds",
                "When the guest is to run at the destination, from t0; absent or 0 without one.",
            )?,
            elapsed: gauge("migration_elapsed_seconds", "Time since t0.")?,
            downtime: gauge(
                "migration_downtime_seconds",
                "From the guest's stop until it ran at the destination; 0 before that.",
            )?,
            rate: gauges(
                "migration_rate_bytes_per_second",
                "Stream bytes per second: commanded by the controller (+Inf is no limit) or \
                 achieved over the last seconds.",
                "kind",
            )?,
            finish: gauges(
                "migration_forecast_finish_seconds",
                "Forecast of when the guest runs at the destination, from t0.",
                "quantile",
            )?,
            forecast_downtime: gauges(
                "migration_forecast_downtime_seconds",
                "Forecast of the downtime.",
                "quantile",
            )?,
            forecast_bytes: gauges(
                "migration_forecast_bytes",
                "Forecast of the bytes put on the wire in all, by the end.",
                "quantile",
            )?,
            dirty_rate: gauges(
                "guest_dirty_bytes_per_second",
                "Distinct memory the guest writes within a window of this many seconds, per \
                 second, by the fitted dirty curve; it depends on the window.",
                "window",
            )?,
            verdict: flags(
                "migration_verdict",
                "1 for the verdict in force: can the deadline be met?",
                "verdict",
            )?,
            rate_reason: flags(
                "migration_rate_reason",
                "1 for why the commanded rate is what it is, 0 for the other reasons.",
                "reason",
            )?,
            outcome: flags(
                "migration_outcome",
                "1 for how the migration ended; absent before.",
                "outcome",
            )?,
            bytes: [
                kind("migration_bytes_total", BYTES, "at", "from_qemu")?,
                kind("migration_bytes_total", BYTES, "at", "wire")?,
            ],
            pages: [
                kind("migration_pages_total", PAGES, "kind", "normal")?,
                kind("migration_pages_total", PAGES, "kind", "zero")?,
            ],
            passes: counter(
                "migration_passes_total",
                "Sweeps of QEMU over the pages it holds dirty that have begun.",
            )?,
            probe: ProbeFamilies::register(&registry)?,
            last: Mutex::default(),
            registry,
        };
        Ok(metrics)
    }

    /// The stream's counters now.
    pub fn set_bytes(&self, now: StreamCounters) {
        let mut last = lock(&self.last);
        let before = std::mem::replace(&mut *last, now);
        let grown = |now: u64, before: u64| now.saturating_sub(before);
        self.bytes[0].inc_by(grown(now.bytes_from_qemu, before.bytes_from_qemu));
        self.bytes[1].inc_by(grown(now.bytes_on_wire, before.bytes_on_wire));
        self.pages[0].inc_by(grown(now.normal_pages, before.normal_pages));
        self.pages[1].inc_by(grown(now.zero_pages, before.zero_pages));
        self.passes.inc_by(grown(now.passes, before.passes));
    }

    /// What the probe has seen.
    pub fn set_probe(&self, line: Line) {
        self.probe.set(line);
    }

    /// How far it is.
    pub fn set_progress(&self, percent: f64, elapsed_seconds: f64, deadline_seconds: Option<f64>) {
        self.progress.set(percent / 100.0);
        self.elapsed.set(elapsed_seconds);
        self.deadline.set(deadline_seconds.unwrap_or(0.0));
    }

    /// The rates; `u64::MAX` is no limit.
    pub fn set_rates(&self, commanded: Option<u64>, achieved: Option<f64>) {
        if let Some(commanded) = commanded {
            let value = match commanded {
                u64::MAX => f64::INFINITY,
                limit => to_f64(limit),
            };
            self.rate.with_label_values(&["commanded"]).set(value);
        }
        if let Some(achieved) = achieved {
            self.rate.with_label_values(&["achieved"]).set(achieved);
        }
    }

    /// Why that rate was commanded.
    pub fn set_rate_reason(&self, reason: Reason) {
        for other in Reason::ALL {
            self.rate_reason
                .with_label_values(&[other.word()])
                .set(i64::from(other == reason));
        }
    }

    /// A forecast.
    pub fn set_forecast(&self, forecast: &ForecastRecord) {
        for (family, figures) in [
            (&self.finish, forecast.finish_seconds),
            (&self.forecast_downtime, forecast.downtime_seconds),
            (&self.forecast_bytes, forecast.bytes),
        ] {
            let quantiles = [
                ("0.05", figures.p05),
                ("0.5", figures.p50),
                ("0.95", figures.p95),
            ];
            for (quantile, value) in quantiles {
                match value {
                    Some(value) => family.with_label_values(&[quantile]).set(value),
                    // Absent before, and then nothing is there to remove.
                    None => drop(family.remove_label_values(&[quantile])),
                }
            }
        }
        for word in VERDICTS {
            self.verdict
                .with_label_values(&[word])
                .set(i64::from(word == forecast.verdict.word()));
        }
    }

    /// The dirty curve at a window.
    pub fn set_dirty_rate(&self, window: &str, bytes_per_second: f64) {
        self.dirty_rate
            .with_label_values(&[window])
            .set(bytes_per_second);
    }

    /// The downtime, once it is over.
    pub fn set_downtime(&self, seconds: f64) {
        self.downtime.set(seconds);
    }

    /// How it ended.
    pub fn set_outcome(&self, word: &str) {
        self.outcome.with_label_values(&[word]).set(1);
    }

    /// Where the families are.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// All families of `registry` in Prometheus's text format.
///
/// # Errors
///
/// If a family cannot be written: a mistake in this file.
pub fn render(registry: &Registry) -> prometheus::Result<String> {
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Plain numbers: whole after every assignment.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_is_rendered() {
        let metrics = Metrics::new("source").unwrap();
        metrics.set_bytes(StreamCounters {
            bytes_on_wire: 7,
            ..StreamCounters::default()
        });
        metrics.set_rates(Some(u64::MAX), Some(5.0));
        metrics.set_outcome("completed");
        metrics.set_rate_reason(Reason::Steady);
        metrics.set_rate_reason(Reason::Held);
        let text = render(metrics.registry()).unwrap();
        for line in [
            "pacer_migration_bytes_total{at=\"wire\",side=\"source\"} 7",
            "pacer_migration_rate_bytes_per_second{kind=\"commanded\",side=\"source\"} inf",
            "pacer_migration_outcome{outcome=\"completed\",side=\"source\"} 1",
            "pacer_migration_rate_reason{reason=\"held\",side=\"source\"} 1",
            "pacer_migration_rate_reason{reason=\"steady\",side=\"source\"} 0",
        ] {
            assert!(
                text.to_lowercase().contains(&line.to_lowercase()),
                "{line}\n{text}"
            );
        }
    }
}
