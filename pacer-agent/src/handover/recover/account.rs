//! The report of a migration whose agent died: what was kept of it, and how it
//! ended after all.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::SourceArgs;
use crate::clock;
use crate::exit::Exit;
use crate::journal::{Entry, Journal};
use crate::pacing::time::Time;
use crate::report::{Outcome, Report, write_json};

/// What STOP is called among the steps.
const STOP: &str = "P2 STOP";

/// A report in the making.
pub(super) struct Account {
    report: Value,
    early_is_fine: bool,
    t0: Time,
    steps: Vec<(Time, String)>,
    outcome: Outcome,
}

impl Account {
    /// Of what the agent that died has left behind; without a journal of
    /// nothing but the command line.
    pub(super) fn of(args: &SourceArgs, left: Option<(&Journal, &Entry)>) -> Self {
        let kept: Value = left
            .and_then(|(journal, _)| std::fs::read(journal.report_path()).ok())
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let (t0, steps) = match left {
            Some((_, entry)) => (
                Time::from_nanos(entry.recovery.t0_ns),
                entry.recovery.steps.clone(),
            ),
            None => (clock::now(), Vec::new()),
        };
        let report = match kept.get("report") {
            Some(report) if report.is_object() => report.clone(),
            _ => fresh(args, t0),
        };
        let mut account = Self {
            early_is_fine: kept["early_is_fine"]
                .as_bool()
                .unwrap_or(args.objective.by.is_some()),
            t0,
            steps: kept_steps(&report, t0),
            outcome: Outcome::Returned,
            report,
        };
        for (at, name) in steps {
            account.step(&name, Time::from_nanos(at));
        }
        account
    }

    /// A step of the handover, if it is not known yet.
    pub(super) fn step(&mut self, name: &str, at: Time) {
        if !self.steps.iter().any(|(_, known)| known == name) {
            tracing::info!("{name}");
            self.steps.push((at, name.to_owned()));
        }
    }

    /// When the last step was taken.
    pub(super) fn last_step(&self) -> Option<Time> {
        let before = self.steps.iter().rev();
        before
            .map(|(at, name)| (*at, name))
            .find(|(_, name)| name.starts_with('P'))
            .map(|(at, _)| at)
    }

    /// It ended so; the guest runs at the destination since `arrived_at`.
    pub(super) fn end(
        &mut self,
        outcome: Outcome,
        reason: Option<String>,
        arrived_at: Option<Time>,
    ) {
        self.outcome = outcome;
        self.report["outcome"] = json!(outcome);
        self.report["reason"] = json!(reason);
        self.report["finished_at"] = json!(clock::wall().to_string());
        if let Some(at) = arrived_at {
            self.arrive(at);
        }
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|(at, step)| json!({ "at_seconds": self.seconds(*at), "step": step }))
            .collect();
        self.report["handover"] = json!(steps);
    }

    fn arrive(&mut self, at: Time) {
        // The rule of the deadline is the report's own.
        let mut judged = Report::new(clock::wall(), 0.0);
        judged.deadline_seconds = self.report["deadline_seconds"].as_f64();
        judged.arrive(self.seconds(at), self.early_is_fine);
        self.report["total_seconds"] = json!(judged.total_seconds);
        self.report["deadline_error_seconds"] = json!(judged.deadline_error_seconds);
        self.report["deadline_met"] = json!(judged.deadline_met);
        let stopped = self.steps.iter().find(|(_, name)| name == STOP);
        let downtime = stopped.map(|(stopped_at, _)| at.since(*stopped_at).as_secs_f64());
        self.report["downtime_seconds"] = json!(downtime);
    }

    fn seconds(&self, at: Time) -> f64 {
        at.since(self.t0).as_secs_f64()
    }

    /// Writes the report, says how it ended, and returns the exit code.
    pub(super) fn conclude(&self, args: &SourceArgs) -> Exit {
        if let Some(path) = &args.report
            && let Err(error) = write_json(&self.report, path)
        {
            tracing::error!("the report {} was not written: {error}", path.display());
        }
        let reason = self.report["reason"].as_str().unwrap_or("its agent died");
        let (exit, words) = match self.outcome {
            Outcome::Completed if self.report["deadline_met"] == false => {
                (Exit::DeadlineMissed, "arrived after its deadline")
            }
            Outcome::Completed => (Exit::Success, "arrived"),
            Outcome::Returned => (
                Exit::Returned,
                "not migrated; the guest belongs to the source",
            ),
            Outcome::Cancelled => (Exit::Returned, "cancelled; the guest belongs to the source"),
            Outcome::Stopped => (Exit::Stopped, "THE GUEST IS STOPPED"),
            Outcome::GuestEnded => (Exit::GuestEnded, "not migrated; the guest ended"),
            Outcome::Lost => (Exit::GuestEnded, "THE GUEST IS LOST"),
        };
        eprintln!("{words}: {reason}");
        exit
    }
}

/// The report of a migration of which nothing was kept.
fn fresh(args: &SourceArgs, t0: Time) -> Value {
    let since = clock::now().since(t0);
    let started_at = clock::wall() - jiff::SignedDuration::try_from(since).unwrap_or_default();
    let mut report = Report::new(started_at, args.downtime_limit.as_secs_f64());
    let deadline = args.objective.deadline.or_else(|| {
        let at = args.objective.finish_at.or(args.objective.by)?;
        Duration::try_from(at.duration_since(started_at)).ok()
    });
    report.deadline_seconds = deadline.map(|deadline| deadline.as_secs_f64());
    // It has no value that JSON has not.
    serde_json::to_value(&report).unwrap_or_default()
}

fn kept_steps(report: &Value, t0: Time) -> Vec<(Time, String)> {
    let steps = report["handover"].as_array().into_iter().flatten();
    steps
        .filter_map(|step| {
            let after = Duration::try_from_secs_f64(step["at_seconds"].as_f64()?).ok()?;
            Some((t0 + after, step["step"].as_str()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(flags: &[&str]) -> SourceArgs {
        let peer = format!("sha256:{}", "0".repeat(64));
        let always = [
            "pacer",
            "source",
            "--listen",
            "127.0.0.1:1",
            "--connect",
            "127.0.0.1:2",
            "--identity",
            "/etc/pacer",
            "--peer",
            &peer,
        ];
        match Cli::parse_from(always.iter().chain(flags)).command {
            Command::Source(args) => *args,
            _ => unreachable!("it is `source`"),
        }
    }

    #[test]
    fn an_arrival_is_judged_and_timed_from_what_was_kept() {
        let args = args(&["--deadline", "10s"]);
        let mut account = Account::of(&args, None);
        let at = |seconds: u64| account.t0 + Duration::from_secs(seconds);
        let (stopped_at, arrived_at) = (at(9), at(11));
        account.step(STOP, stopped_at);
        account.step(STOP, arrived_at);
        account.end(Outcome::Completed, None, Some(arrived_at));
        let report = &account.report;
        assert_eq!(report["schema"], 1);
        assert_eq!(report["outcome"], "completed");
        assert_eq!(report["deadline_met"], false);
        assert_eq!(report["downtime_seconds"], 2.0);
        assert_eq!(report["handover"].as_array().map(Vec::len), Some(1));
        assert_eq!(account.conclude(&args), Exit::DeadlineMissed);
    }

    #[test]
    fn a_guest_that_stays_has_an_outcome_too() {
        let args = args(&[]);
        let mut account = Account::of(&args, None);
        account.end(Outcome::Cancelled, Some("so".to_owned()), None);
        assert_eq!(account.report["outcome"], "cancelled");
        assert_eq!(account.report["total_seconds"], Value::Null);
        assert_eq!(account.conclude(&args), Exit::Returned);
    }
}
