//! What `pacer ctl` shows and changes.

use tokio::sync::mpsc;

use super::Driver;
use crate::clock;
use crate::config::{Wish, limits, not_before};
use crate::ctl::Checked;
use crate::ctl::server::{Asked, What};
use crate::ctl::status::Status;
use crate::pacing::session::Phase;
use crate::pacing::time::Time;
use crate::report::limited;
use crate::supervisor;
use crate::trace::Entry;
use crate::units::{from_f64, show_seconds};

/// A cancel that came over the socket.
pub(super) const CANCEL: &str = "pacer ctl cancel";

impl Driver {
    /// Does what was asked, and answers.
    pub(super) fn handle_asked(&mut self, asked: Asked, now: Time) {
        let answer = match self.switchover.stopped_at.is_some() || self.ending.is_some() {
            true => Err("it is too late for that: the migration ends".to_owned()),
            false => match asked.what {
                What::Set(change) => self.set(change, now),
                What::Held(is_held) => Ok(self.hold(is_held, now)),
            },
        };
        match &answer {
            Ok(message) => tracing::info!("pacer ctl: {message}"),
            Err(error) => tracing::info!("pacer ctl was refused: {error}"),
        }
        // Before the answer: who asks next sees what it led to.
        self.publish(now);
        let _ = asked.answer.send(answer);
    }

    /// Does what was asked while the loop could not.
    pub(super) fn handle_all_asked(&mut self, now: Time) {
        loop {
            match self.control.asked.try_recv() {
                Ok(asked) => self.handle_asked(asked, now),
                Err(mpsc::error::TryRecvError::Empty | mpsc::error::TryRecvError::Disconnected) => {
                    return;
                }
            }
        }
    }

    fn set(&mut self, change: Checked, now: Time) -> Result<String, String> {
        let args = &mut self.prepared.args;
        let wish = change.wish.unwrap_or(self.prepared.wish);
        let max_rate = change.max_rate.or(args.max_rate);
        // A deadline may be past, and is then out of reach; a new one may not.
        if change.wish.is_some() || matches!(wish, Wish::Rate(_)) {
            wish.check(max_rate, clock::wall())
                .map_err(|failure| failure.to_string())?;
        }
        args.max_rate = max_rate;
        self.prepared.wish = wish;
        let limits = limits(args);
        self.session.set_limits(limits, now);
        self.record.trace(now, &Entry::Limits(limits));
        self.follow_wish(now);
        let most = max_rate.map_or_else(String::new, |rate| format!(", at most {rate}"));
        Ok(format!("set: {}{most}", self.objective_words()))
    }

    fn hold(&mut self, is_held: bool, now: Time) -> String {
        self.is_held = is_held;
        self.session.set_held(is_held, now);
        self.record.trace(now, &Entry::Held(is_held));
        match is_held {
            true => "held: it comes to the brink and waits there for `pacer ctl release`",
            false => "released: it goes on to what is aimed at",
        }
        .to_owned()
    }

    /// Aims at what is wished, by the clock as it is now.
    pub(super) fn follow_wish(&mut self, now: Time) {
        let elapsed = now.since(self.record.t0);
        let t0 = clock::wall() - jiff::SignedDuration::try_from(elapsed).unwrap_or_default();
        let objective = self.prepared.wish.objective(t0);
        self.session.set_objective(objective, now);
        let not_before = not_before(&self.prepared.args, t0);
        self.session.set_not_before(not_before, now);
        self.record.objective(objective, now);
    }

    fn objective_words(&self) -> String {
        let deadline = self.session.objective().deadline();
        let after = deadline.map_or_else(String::new, |deadline| {
            format!("{} after the start", show_seconds(deadline.as_secs_f64()))
        });
        match self.prepared.wish {
            Wish::After(_) => format!("arrive {after}"),
            Wish::At(time) => format!("arrive at {time} ({after})"),
            Wish::By(time) => format!("arrive by {time} (before {after})"),
            Wish::Rate(rate) => format!("send at {rate}"),
            Wish::Fastest => "arrive as early as possible".to_owned(),
        }
    }

    /// Shows whoever asks how it goes.
    pub(super) fn publish(&self, now: Time) {
        let session = &self.session;
        let phase = match session.phase() {
            _ if self.switchover.stopped_at.is_some() => "switchover",
            _ if self.ending.is_some() => "ending",
            Phase::Waiting if self.prepared.monitored.is_some() => "measuring",
            Phase::Waiting => "waiting",
            Phase::Copying { .. } => "copying",
            Phase::Switchover | Phase::Arrived => "switchover",
        };
        let pass = match session.phase() {
            Phase::Copying { pass } => Some(pass),
            _ => None,
        };
        let elapsed_seconds = self.record.seconds(now);
        let deadline_seconds = session
            .objective()
            .deadline()
            .map(|deadline| deadline.as_secs_f64());
        let eta = session.eta();
        let rate = session.rate();
        let report = &self.record.report;
        let pending = session.outlook_at(1.0, now).map(|outlook| outlook.state);
        self.control.publish(Status {
            pid: supervisor::own_pid(),
            qemu_pid: self.prepared.qemu.map(|qemu| qemu.pid),
            attempt: self.prepared.attempt.to_string(),
            phase: phase.to_owned(),
            pass,
            percent: session.percent(),
            elapsed_seconds,
            objective: self.objective_words(),
            deadline_seconds,
            time_left_seconds: deadline_seconds.map(|deadline| deadline - elapsed_seconds),
            finish_seconds: [eta.p05, eta.p50, eta.p95],
            downtime_seconds: self
                .forecast
                .and_then(|forecast| forecast.downtime_seconds.p50),
            verdict: session.verdict().word().to_owned(),
            earliest_feasible_seconds: report.earliest_feasible_seconds,
            commanded_bytes_per_second: rate.and_then(limited),
            achieved_bytes_per_second: session.achieved_rate().map(from_f64),
            reason: report
                .rates
                .last()
                .map_or_else(String::new, |rate| rate.reason.clone()),
            max_rate_bytes_per_second: session.limits().max_rate,
            held: session.is_held(now),
            pending_bytes: pending.map(|state| from_f64(state.pending_bytes())),
            bytes_on_wire: report.bytes_on_wire,
        });
    }
}
