//! From the end of the loop to the exit code: the handover, or the guest's way
//! back, the report, the summary.

use std::time::Duration;

use super::inbox::Event;
use super::{Driver, End};
use crate::cli::SourceAfter;
use crate::clock;
use crate::exit::Exit;
use crate::handover::source::{Completed, Ended, quit_source};
use crate::handover::{continue_guest, has_completed, is_broken, is_left_by_migration};
use crate::journal::Step;
use crate::pacing::sample::Sample;
use crate::pacing::time::Time;
use crate::qmp::Qmp;
use crate::relay::channel;
use crate::relay::frame::Message;
use crate::report::{Outcome, Report};
use crate::settings;
use crate::units::{show_bytes, show_seconds};

/// A source whose migration has failed runs its guest again within this.
const RESUME_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
const ANSWER: Duration = Duration::from_secs(1);
/// How long the destination is looked for that is to give up the guest.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

impl Driver {
    /// Ends what began, and says how.
    pub(super) async fn finish(mut self, end: End) -> Exit {
        let (outcome, reason) = match end {
            End::Completed => self.hand_over().await,
            End::Failed(reason) => self.go_back(Outcome::Returned, reason).await,
            End::Cancelled(reason) => self.go_back(Outcome::Cancelled, reason).await,
            End::Refused(reason) => {
                let (_, reason) = self.go_back(Outcome::Returned, reason).await;
                let reason = reason.unwrap_or_default();
                self.conclude(Outcome::Returned, Some(reason));
                return Exit::Refused;
            }
            End::Stopped(reason) => self.stay_stopped(reason).await,
            End::GuestEnded => {
                self.keep_stopped().await;
                self.tell_abort("the guest ended").await;
                let reason = "the guest ended by itself".to_owned();
                (Outcome::GuestEnded, Some(reason))
            }
            End::Lost => self.source_gone("the source's QEMU ended").await,
            End::Unclear(reason) => (Outcome::Stopped, Some(unclear(&reason))),
        };
        let exit = self.conclude(outcome, reason);
        if outcome == Outcome::Completed {
            self.end_source().await;
        }
        exit
    }

    /// P3 to P6.
    async fn hand_over(&mut self) -> (Outcome, Option<String>) {
        let completed_at = clock::now();
        self.take_probe_events();
        let stopped_at = self.switchover.stopped_at.unwrap_or(completed_at);
        self.tell(Sample::Stopped, stopped_at);
        self.observe(completed_at);
        match self.ask_destination(false).await {
            Some(Ended::Arrived { at }) => {
                self.arrive(stopped_at, at).await;
                if self.prepared.args.source_after == SourceAfter::Leave {
                    let saved = self.saved();
                    self.put_back(&saved).await;
                }
                (Outcome::Completed, None)
            }
            Some(Ended::Returned { reason }) => {
                let saved = self.saved();
                self.put_back(&saved).await;
                (Outcome::Returned, Some(reason))
            }
            Some(Ended::Lost { reason }) => (Outcome::Lost, Some(reason)),
            Some(Ended::Stopped { message }) => (Outcome::Stopped, Some(message)),
            None => (Outcome::Stopped, Some(unclear("its process was not found"))),
        }
    }

    /// The handover from `completed` on or, where the source's QEMU `is_gone`, to a
    /// destination that may have loaded the guest. `None` without a journal.
    async fn ask_destination(&mut self, is_gone: bool) -> Option<Ended> {
        let (journal, mut entry) = self.journal.clone()?;
        for step in &self.record.report.handover {
            let at = self.record.t0 + Duration::from_secs_f64(step.at_seconds.max(0.0));
            entry.recovery.step(&step.step, at);
        }
        let record = &mut self.record;
        let on_step = Box::new(|name: &str, at: Time| record.step(name, at));
        let monitored = self.prepared.monitored.as_ref();
        let completed = Completed {
            link: self.link.take(),
            qmp: monitored.map(|monitored| &monitored.qmp),
            qemu: entry.qemu,
            journal: &journal,
            entry,
            status_timeout: self.prepared.args.switchover_timeout,
            commit_timeout: self.prepared.args.agent.outage_budget,
            asked_to_end: &self.asked_to_end,
            on_step,
        };
        Some(match is_gone {
            true => completed.inherit().await,
            false => completed.finish().await,
        })
    }

    /// The source's QEMU has ended, and not because its guest did: what the
    /// destination has loaded by then is the guest.
    async fn source_gone(&mut self, reason: &str) -> (Outcome, Option<String>) {
        if self.guest_ended {
            self.tell_abort("the guest ended").await;
            return (Outcome::GuestEnded, Some(reason.to_owned()));
        }
        let lost = format!("{reason} before the destination had the guest");
        let Some(qemu) = self.prepared.qemu else {
            return (Outcome::Stopped, Some(unclear(reason)));
        };
        if !qemu.is_gone_within(RESUME_TIMEOUT).await {
            return (Outcome::Stopped, Some(unclear(reason)));
        }
        if !self.under_way {
            self.tell_abort(reason).await;
            return (Outcome::Lost, Some(lost));
        }
        self.shared.abort.cancel();
        let stopped_at = self.switchover.stopped_at;
        match self.ask_destination(true).await {
            Some(Ended::Arrived { at }) => {
                self.arrive(stopped_at.unwrap_or(at), at).await;
                tracing::warn!("{reason}; the destination had the guest, which goes on there");
                (Outcome::Completed, None)
            }
            Some(Ended::Stopped { message }) => (Outcome::Stopped, Some(message)),
            Some(Ended::Lost { reason } | Ended::Returned { reason }) => {
                (Outcome::Lost, Some(format!("{lost} ({reason})")))
            }
            None => (Outcome::Stopped, Some(unclear(reason))),
        }
    }

    /// The guest stands still at the source, for a reason of its own: a person
    /// mends that and continues it.
    async fn stay_stopped(&mut self, reason: String) -> (Outcome, Option<String>) {
        self.keep_stopped().await;
        self.tell_abort(&reason).await;
        let pid = self.prepared.qemu.map(|qemu| qemu.pid).unwrap_or_default();
        let remedy = format!(
            "the guest is whole at the source, in process {pid}: mend that, then type `cont` in \
             its monitor"
        );
        (Outcome::Stopped, Some(format!("{reason}; {remedy}")))
    }

    /// Leaves a QEMU that lives on as it was before, but for its guest, which
    /// does not go on: neither now nor by `pacer resolve`.
    async fn keep_stopped(&mut self) {
        self.shared.abort.cancel();
        let Some(monitored) = &self.prepared.monitored else {
            return;
        };
        let qmp = monitored.qmp.clone();
        let until = clock::now() + RESUME_TIMEOUT;
        while qmp.migration().await.is_ok_and(|info| info.is_under_way()) && clock::now() < until {
            tokio::time::sleep(POLL).await;
        }
        if !monitored.qemu.is_alive() {
            return;
        }
        if let Some((_, entry)) = &mut self.journal {
            entry.continue_guest = false;
        }
        self.journal_returned();
        let saved = self.saved();
        self.put_back(&saved).await;
    }

    /// Somebody paused the guest, or continued it: it arrives, or stays, so.
    pub(super) fn on_pause_changed(&mut self, paused: bool) {
        self.paused = paused;
        if let Some((journal, entry)) = &mut self.journal
            && entry.continue_guest == paused
        {
            entry.continue_guest = !paused;
            if let Err(error) = journal.write(entry) {
                tracing::warn!(%error, "the journal does not know whether the guest is paused");
            }
        }
    }

    fn saved(&self) -> serde_json::Value {
        let entry = self.journal.as_ref().map(|(_, entry)| entry);
        entry.map_or(serde_json::Value::Null, |entry| entry.saved.clone())
    }

    async fn arrive(&mut self, stopped_at: Time, at: Time) {
        self.tell(Sample::Running, at);
        let total = self.record.seconds(at);
        let downtime = at.since(stopped_at).as_secs_f64();
        let early_is_fine = self.prepared.wish.early_is_fine();
        self.record.report.arrive(total, early_is_fine);
        self.record.report.downtime_seconds = Some(downtime);
        self.record.metrics.set_downtime(downtime);
        self.record.show(&self.session, at);
    }

    /// P6: the source's QEMU is of no more use.
    async fn end_source(&self) {
        match &self.prepared.monitored {
            Some(monitored) if self.prepared.args.source_after == SourceAfter::Quit => {
                quit_source(&monitored.qmp, monitored.qemu, self.prepared.attempt).await;
            }
            Some(_) => {}
            None => tracing::info!("the source's QEMU is stopped; `quit` in its monitor ends it"),
        }
    }

    /// The guest stays at the source: sees to it that it runs there, and that
    /// the destination knows.
    async fn go_back(&mut self, outcome: Outcome, reason: String) -> (Outcome, Option<String>) {
        self.shared.abort.cancel();
        let Some(monitored) = &self.prepared.monitored else {
            self.hear_shut();
            if self.watch.was_loaded() {
                // The source may have completed: the loaded guest is kept.
                return (Outcome::Stopped, Some(unclear(&reason)));
            }
            self.tell_abort(&reason).await;
            return (outcome, Some(reason));
        };
        let qemu = monitored.qemu;
        let qmp = monitored.qmp.clone();
        let Some((_, entry)) = &self.journal else {
            // Nothing has begun: the guest is as it was.
            self.tell_abort(&reason).await;
            return (outcome, Some(reason));
        };
        match resumed(&qmp, entry.continue_guest).await {
            Resumed::Yes => {}
            // It completed at the last moment after all.
            Resumed::Completed => return Box::pin(self.hand_over()).await,
            Resumed::No(_) if !qemu.is_alive() => {
                let reason = format!("{reason}; and the source's QEMU has ended");
                return self.source_gone(&reason).await;
            }
            Resumed::No(error) => {
                let message = format!(
                    "{reason}; and the guest does not go on at the source, where it is whole \
                     ({error}): type `cont` in its monitor"
                );
                return (Outcome::Stopped, Some(message));
            }
        }
        self.journal_returned();
        let saved = self.saved();
        self.put_back(&saved).await;
        self.tell_abort(&reason).await;
        (outcome, Some(reason))
    }

    /// Takes in what channels have said and was not handled yet.
    fn hear_shut(&mut self) {
        while let Ok(event) = self.inbox.try_recv() {
            if let Event::Channel(channel::Event::Shut { value }) = event {
                self.watch.on_shut(value);
            }
        }
    }

    fn journal_returned(&mut self) {
        if let Some((journal, entry)) = &mut self.journal {
            entry.step = Step::Returned;
            if let Err(error) = journal.write(entry) {
                // START and a running guest say the same.
                tracing::warn!(%error, "the journal does not know that the guest is back");
            }
        }
    }

    async fn put_back(&self, saved: &serde_json::Value) {
        if let Some(monitored) = &self.prepared.monitored {
            settings::restore(&monitored.qmp, saved).await;
        }
    }

    /// The destination may hold what it has loaded for ever if it does not hear
    /// this: it is looked for if it may have loaded something.
    async fn tell_abort(&mut self, reason: &str) {
        let link = self.link.take();
        let Some((journal, entry)) = &self.journal else {
            if let Some(mut link) = link {
                let abort = Message::Abort {
                    attempt: self.prepared.attempt,
                    reason: reason.to_owned(),
                };
                let _ = link.ask(&abort, ANSWER).await;
                link.close().await;
            }
            return;
        };
        let patience = match self.under_way {
            true => ABORT_TIMEOUT,
            false => Duration::ZERO,
        };
        if link.is_none() && !self.under_way {
            return;
        }
        let asking = Completed {
            link,
            qmp: None,
            qemu: entry.qemu,
            journal,
            entry: entry.clone(),
            status_timeout: ANSWER,
            commit_timeout: ANSWER,
            asked_to_end: &self.asked_to_end,
            on_step: Box::new(|_, _| {}),
        };
        asking.abort(reason, patience).await;
    }

    /// The report and the words at the end.
    fn conclude(&mut self, outcome: Outcome, reason: Option<String>) -> Exit {
        self.record.probe(&mut self.probe);
        self.record.end(outcome, reason.clone());
        let report = &self.record.report;
        if let Some(path) = &self.prepared.args.report
            && let Err(error) = report.write(path)
        {
            tracing::error!("the report {} was not written: {error}", path.display());
        }
        eprintln!("{}", summary(report, reason.as_deref()));
        match outcome {
            Outcome::Completed if report.deadline_met == Some(false) => Exit::DeadlineMissed,
            Outcome::Completed => Exit::Success,
            Outcome::Returned | Outcome::Cancelled => Exit::Returned,
            Outcome::Stopped => Exit::Stopped,
            Outcome::GuestEnded | Outcome::Lost => Exit::GuestEnded,
        }
    }
}

enum Resumed {
    Yes,
    Completed,
    No(String),
}

/// Waits until the guest runs at the source again, as it does by itself. It is
/// continued where it does not: COMMIT was never sent.
async fn resumed(qmp: &Qmp, should_run: bool) -> Resumed {
    let until = clock::now() + RESUME_TIMEOUT;
    loop {
        let now = clock::now();
        match (qmp.migration().await, qmp.status().await) {
            (Ok(info), Ok(status)) if has_completed(&info, &status) => return Resumed::Completed,
            (Ok(info), _) if info.is_under_way() && now < until => {}
            (_, Ok(status)) if status.running => return Resumed::Yes,
            (_, Ok(status)) if is_broken(&status) => {
                return Resumed::No(format!("its state is `{}`", status.status));
            }
            (_, Ok(status)) if !should_run || !is_left_by_migration(&status) => {
                // It was paused by a person, not by the migration.
                return Resumed::Yes;
            }
            (Err(error), _) | (_, Err(error)) if now >= until => {
                return Resumed::No(error.to_string());
            }
            (Ok(info), Ok(_)) if info.is("failed") || info.is("cancelled") || now >= until => {
                return match continue_guest(qmp).await {
                    Ok(()) => Resumed::Yes,
                    Err(error) => Resumed::No(error.to_string()),
                };
            }
            _ => {}
        }
        tokio::time::sleep(POLL).await;
    }
}

fn unclear(reason: &str) -> String {
    format!(
        "{reason}. The guest is whole and paused at the destination. Type `info migrate` in the \
         source's monitor: if it says `completed`, end that QEMU and on the destination's host \
         type: pacer resolve --qmp PATH --peer-is-dead. If it says `failed`, the guest runs at \
         the source: end the destination's QEMU"
    )
}

fn summary(report: &Report, reason: Option<&str>) -> String {
    let moved = format!(
        "{} sent in {} passes",
        show_bytes(report.bytes_on_wire),
        report.passes.len().max(1)
    );
    match (report.outcome, report.total_seconds) {
        (Outcome::Completed, Some(total)) => {
            let deadline = report
                .deadline_error_seconds
                .map_or_else(String::new, |error| {
                    format!(
                        " ({:.2} s {} the deadline of {})",
                        error.abs(),
                        if error < 0.0 { "before" } else { "after" },
                        show_seconds(report.deadline_seconds.unwrap_or_default())
                    )
                });
            let downtime = report.downtime_seconds.unwrap_or_default() * 1000.0;
            format!(
                "arrived after {total:.2} s{deadline}; downtime {downtime:.0} ms (limit {:.0} \
                 ms); {moved}",
                report.downtime_limit_seconds * 1000.0
            )
        }
        (outcome, _) => {
            let what = match outcome {
                Outcome::Completed => "arrived",
                Outcome::Returned => "not migrated; the guest runs at the source",
                Outcome::Cancelled => "cancelled; the guest runs at the source",
                Outcome::Stopped => "THE GUEST IS STOPPED",
                Outcome::GuestEnded => "not migrated; the guest ended",
                Outcome::Lost => "THE GUEST IS LOST",
            };
            format!("{what}: {}", reason.unwrap_or("no reason is known"))
        }
    }
}
