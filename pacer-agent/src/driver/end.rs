//! From the end of the loop to the exit code: the handover, or the guest's way
//! back, the report, the summary.

use std::time::Duration;

use super::inbox::Event;
use super::{Driver, End};
use crate::cli::SourceAfter;
use crate::clock;
use crate::exit::Exit;
use crate::handover::continue_guest;
use crate::handover::source::{Completed, Ended, quit_source};
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
            End::GuestEnded => {
                self.tell_abort("the guest ended").await;
                let reason = "the guest ended by itself".to_owned();
                (Outcome::GuestEnded, Some(reason))
            }
            End::Lost => {
                self.tell_abort("the source's QEMU ended").await;
                let reason = "the source's QEMU ended before the destination had the guest";
                (Outcome::Lost, Some(reason.to_owned()))
            }
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
        let Some((journal, mut entry)) = self.journal.take() else {
            return (Outcome::Stopped, Some(unclear("its process was not found")));
        };
        entry.continue_guest &= !self.paused;
        let record = &mut self.record;
        let mut on_step = |name: &str, at: Time| record.step(name, at);
        let monitored = self.prepared.monitored.as_ref();
        let ended = Completed {
            link: self.link.take(),
            qmp: monitored.map(|monitored| &monitored.qmp),
            qemu: entry.qemu,
            journal: &journal,
            entry: entry.clone(),
            status_timeout: self.prepared.args.switchover_timeout,
            commit_timeout: self.prepared.args.agent.outage_budget,
            asked_to_end: &self.asked_to_end,
            on_step: &mut on_step,
        }
        .finish()
        .await;
        match ended {
            Ended::Arrived { at } => {
                self.arrive(stopped_at, at).await;
                if self.prepared.args.source_after == SourceAfter::Leave {
                    self.put_back(&entry.saved).await;
                }
                (Outcome::Completed, None)
            }
            Ended::Returned { reason } => {
                self.put_back(&entry.saved).await;
                (Outcome::Returned, Some(reason))
            }
            Ended::Stopped { message } => (Outcome::Stopped, Some(message)),
        }
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
        let should_run = monitored.was_running && !self.paused;
        match resumed(&qmp, should_run).await {
            Resumed::Yes => {}
            // It completed at the last moment after all.
            Resumed::Completed => return Box::pin(self.hand_over()).await,
            Resumed::No(_) if !qemu.is_alive() => {
                self.tell_abort("the source's QEMU ended").await;
                let outcome = if self.guest_ended {
                    Outcome::GuestEnded
                } else {
                    Outcome::Lost
                };
                return (
                    outcome,
                    Some(format!("{reason}; and the source's QEMU has ended")),
                );
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
        self.tell_abort(&reason).await;
        let saved = self.journal.as_ref().map(|(_, entry)| entry.saved.clone());
        if let Some(saved) = saved {
            self.put_back(&saved).await;
        }
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

    async fn tell_abort(&mut self, reason: &str) {
        let Some(mut link) = self.link.take() else {
            return;
        };
        let abort = Message::Abort {
            attempt: self.prepared.attempt,
            reason: reason.to_owned(),
        };
        // The destination notices by itself if it does not hear it.
        let _ = link.ask(&abort, ANSWER).await;
        link.close().await;
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
            (Ok(info), _) if info.is("completed") => return Resumed::Completed,
            (Ok(info), _) if info.is_under_way() && now < until => {}
            (_, Ok(status)) if status.running || !should_run => return Resumed::Yes,
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
