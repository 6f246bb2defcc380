//! What is kept for the report, the metrics and the person who watches.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::metrics::Metrics;
use crate::observe::feed::Feed;
use crate::pacing::objective::{Objective, Reason, Verdict};
use crate::pacing::sample::Sample;
use crate::pacing::session::{Action, Session, SessionConfig};
use crate::pacing::time::Time;
use crate::probe::Probe;
use crate::progress::{Progress, View};
use crate::report::{self, Outcome, Report, Step, limited};
use crate::source::Prepared;
use crate::trace::{Entry, Header, TraceWriter};
use crate::units::{from_f64, show_rate, show_seconds};

/// Windows at which the dirty curve is shown.
const WINDOWS: [(&str, f64); 3] = [("0.1", 0.1), ("1", 1.0), ("10", 10.0)];
const PAGE_BYTES: f64 = 4096.0;
/// What the probe has seen is read for the metrics this often.
const FEED_EVERY: Duration = Duration::from_secs(1);

/// The record of one migration.
pub(super) struct Record {
    pub(super) report: Report,
    pub(super) metrics: Arc<Metrics>,
    pub(super) progress: Progress,
    pub(super) t0: Time,
    trace: Option<TraceWriter>,
    feed: Option<Feed>,
    next_feed: Time,
    /// Runs of programs that the kernel had left out by then.
    missed_runs: u64,
    /// Why the last rate was what it was.
    last_reason: Option<Reason>,
    /// How many of the probe's warnings were told.
    warnings_told: usize,
}

impl Record {
    pub(super) fn new(prepared: &mut Prepared, objective: Objective, now: Time) -> Self {
        let limit = prepared.args.downtime_limit.as_secs_f64();
        let mut report = Report::new(clock::wall(), limit);
        report.deadline_seconds = objective.deadline().map(|deadline| deadline.as_secs_f64());
        report.preflight.clone_from(&prepared.findings);
        report.qemu.destination_version = prepared.ready.qemu_version.clone();
        if let Some(monitored) = &prepared.monitored {
            report.qemu.source_version = Some(monitored.qmp.version());
            report.qemu.accelerator = Some(monitored.accelerator.word().to_owned());
        }
        Self {
            report,
            metrics: Arc::clone(&prepared.metrics),
            progress: Progress::new(now),
            t0: now,
            trace: prepared.trace.take(),
            feed: None,
            next_feed: now,
            missed_runs: 0,
            last_reason: None,
            warnings_told: 0,
        }
    }

    /// Seconds since t0.
    pub(super) fn seconds(&self, at: Time) -> f64 {
        at.since(self.t0).as_secs_f64()
    }

    /// t0 is now.
    pub(super) fn start(&mut self, t0: Time, config: &SessionConfig) {
        self.t0 = t0;
        self.report.started_at = clock::wall().to_string();
        let deadline = config.objective.deadline();
        self.report.deadline_seconds = deadline.map(|deadline| deadline.as_secs_f64());
        if let Some(trace) = &mut self.trace {
            let header = Header {
                pacer_version: env!("CARGO_PKG_VERSION").to_owned(),
                started_at: self.report.started_at.clone(),
                qemu_version: self.report.qemu.source_version.clone(),
                accelerator: self.report.qemu.accelerator.clone(),
                objective: config.objective,
                limits: config.limits,
                switchover_overhead: config.switchover_overhead,
                not_before: config.not_before,
            };
            trace.begin(&header, t0);
        }
    }

    /// Keeps what the session is told.
    pub(super) fn told(&mut self, sample: Sample, at: Time) {
        self.trace(at, &Entry::Sample(sample));
    }

    /// Keeps what happened.
    pub(super) fn trace(&mut self, at: Time, entry: &Entry) {
        if let Some(trace) = &mut self.trace {
            trace.entry(at, entry);
        }
    }

    /// A step of the handover.
    pub(super) fn step(&mut self, name: &str, at: Time) {
        tracing::info!("{name}");
        let at_seconds = self.seconds(at);
        self.report.handover.push(Step {
            at_seconds,
            step: name.to_owned(),
        });
    }

    /// Keeps what the session did.
    pub(super) fn action(&mut self, action: &Action, session: &Session, now: Time) {
        match action {
            Action::SetRate {
                bytes_per_second,
                reason,
            } => {
                self.reason(*bytes_per_second, *reason);
                self.rate(*bytes_per_second, reason.to_string(), session, now);
            }
            Action::OpenBucket { reason } => {
                self.reason(u64::MAX, *reason);
                self.rate(u64::MAX, reason.to_string(), session, now);
            }
            Action::Forecast(forecast) => {
                self.metrics.set_forecast(forecast);
                self.verdict(forecast.verdict, forecast.earliest_feasible_seconds);
                self.report.forecast(forecast);
                if forecast.change {
                    tracing::info!(
                        "the guest writes its memory otherwise than before; forecast anew"
                    );
                }
                if let Some(trace) = &mut self.trace {
                    trace.flush();
                }
            }
            Action::Verdict {
                verdict,
                earliest_feasible,
                reason,
            } => {
                let earliest = earliest_feasible.map(|at| at.as_secs_f64());
                self.verdict(*verdict, earliest);
                self.say_verdict(*verdict, earliest, &reason.to_string());
            }
            Action::PassEnded(pass) => self.report.passes.push((*pass).into()),
            Action::Throttle { percent, reason } => {
                tracing::info!("max-cpu-throttle is set to {percent} ({reason})");
                self.trace(now, &Entry::Throttle(*percent));
                let at_seconds = self.seconds(now);
                self.report.throttle.push(serde_json::json!({
                    "at_seconds": at_seconds, "what": "max-cpu-throttle", "value": percent
                }));
            }
        }
    }

    /// What is aimed at from `now` on.
    pub(super) fn objective(&mut self, objective: Objective, now: Time) {
        self.trace(now, &Entry::Objective(objective));
        let deadline = objective.deadline().map(|deadline| deadline.as_secs_f64());
        if deadline == self.report.deadline_seconds {
            return;
        }
        let at_seconds = self.seconds(now);
        self.report.deadline_seconds = deadline;
        self.report.deadline_changes.push(serde_json::json!({
            "at_seconds": at_seconds, "deadline_seconds": deadline
        }));
    }

    /// Says another reason: rates for the same one follow each other many times.
    fn reason(&mut self, rate: u64, reason: Reason) {
        if self.last_reason.replace(reason) != Some(reason) {
            let rate = limited(rate).map_or_else(|| "no limit".to_owned(), show_rate);
            tracing::info!("rate: {rate} ({reason})");
            self.metrics.set_rate_reason(reason);
        }
    }

    pub(super) fn rate(&mut self, rate: u64, reason: String, session: &Session, now: Time) {
        tracing::debug!(rate, reason, "rate");
        let at_seconds = self.seconds(now);
        let entry = Entry::Rate {
            bytes_per_second: rate,
            reason: reason.clone(),
        };
        self.trace(now, &entry);
        self.metrics.set_rates(Some(rate), session.achieved_rate());
        self.report.rates.push(report::Rate {
            at_seconds,
            commanded_bytes_per_second: limited(rate),
            achieved_bytes_per_second: session.achieved_rate().map(from_f64),
            reason,
        });
    }

    fn verdict(&mut self, verdict: Verdict, earliest_seconds: Option<f64>) {
        self.report.verdict = verdict.word();
        self.report.earliest_feasible_seconds = earliest_seconds;
    }

    fn say_verdict(&self, verdict: Verdict, earliest_seconds: Option<f64>, reason: &str) {
        let Some(deadline) = self.report.deadline_seconds else {
            return;
        };
        let deadline = show_seconds(deadline);
        match (verdict, earliest_seconds) {
            (Verdict::Feasible, _) => {
                self.progress
                    .say(&format!("feasible: arrives at {deadline} ({reason})"));
            }
            (Verdict::Infeasible, Some(earliest)) => tracing::warn!(
                "the deadline of {deadline} cannot be met; the earliest feasible finish is at {}",
                show_seconds(earliest)
            ),
            (Verdict::Infeasible, None) => tracing::warn!(
                "the deadline of {deadline} cannot be met: at the highest rate allowed the guest \
                 dirties its memory faster than it is copied"
            ),
            (Verdict::Unknown, _) => tracing::info!("not enough is seen yet for a verdict"),
        }
    }

    /// Shows how it goes.
    pub(super) fn show(&mut self, session: &Session, now: Time) {
        let elapsed_seconds = self.seconds(now);
        let deadline_seconds = self.report.deadline_seconds;
        self.metrics
            .set_progress(session.percent(), elapsed_seconds, deadline_seconds);
        self.metrics
            .set_rates(session.rate(), session.achieved_rate());
        for (name, seconds) in WINDOWS {
            if let Some(pages) = session
                .dirty_curve()
                .pages(Duration::from_secs_f64(seconds))
            {
                self.metrics
                    .set_dirty_rate(name, pages * PAGE_BYTES / seconds);
            }
        }
        let view = View {
            phase: session.phase(),
            percent: session.percent(),
            elapsed_seconds,
            deadline_seconds,
            finish_seconds: session.eta(),
            commanded: session.rate(),
            achieved: session.achieved_rate(),
            verdict: session.verdict().word(),
        };
        self.progress.show(&view, now);
    }

    /// Keeps what the probe did.
    pub(super) fn probe(&mut self, probe: &mut Option<Probe>) {
        if let Some(probe) = probe {
            let counters = probe.counters();
            self.report.probe = report::Probe {
                attached: true,
                events: counters.events,
                lost_events: counters.lost_events,
                not_counted: counters.not_counted() + self.missed_runs,
                run_ns: counters.run_ns,
                run_count: counters.run_count,
            };
            for warning in self.new_warnings(probe) {
                tracing::warn!("probe: {warning}");
            }
        }
    }

    /// The probe's warnings that were not returned before.
    pub(super) fn new_warnings<'a>(&mut self, probe: &'a Probe) -> &'a [String] {
        let warnings = probe.warnings();
        let new = warnings.get(self.warnings_told..).unwrap_or_default();
        self.warnings_told = warnings.len();
        new
    }

    /// The probe observes this process from now on.
    pub(super) fn attached(&mut self, pid: u32, now: Time) {
        self.feed = Some(Feed::new(pid, now));
    }

    /// A point of the dirty curve that the probe saw at `at`.
    pub(super) fn sample(&mut self, sample: Sample, at: Time) {
        if let Some(feed) = &mut self.feed {
            feed.handle_sample(Some(sample), at);
        }
    }

    /// Hands what the probe has seen to the metrics, every second.
    pub(super) fn show_probe(&mut self, probe: &mut Option<Probe>, now: Time) {
        let (Some(probe), Some(feed)) = (probe, &mut self.feed) else {
            return;
        };
        if now >= self.next_feed {
            self.next_feed = now + FEED_EVERY;
            let line = feed.line(probe, false);
            let programs = line.probe.programs.iter();
            self.missed_runs = programs.map(|program| program.missed).sum();
            self.metrics.set_probe(line);
        }
    }

    /// The migration ended.
    pub(super) fn end(&mut self, outcome: Outcome, reason: Option<String>) {
        self.report.outcome = outcome;
        self.report.reason = reason;
        self.report.finished_at = clock::wall().to_string();
        self.metrics.set_outcome(outcome.word());
        let ended = Entry::Ended {
            outcome: outcome.word().to_owned(),
        };
        self.trace(clock::now(), &ended);
        // Whatever could not be written was said.
        let _ = self.trace.as_mut().map(TraceWriter::finish);
        self.progress.clear();
    }
}
