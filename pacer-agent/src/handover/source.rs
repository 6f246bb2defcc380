//! The source's half of the handover, from `completed` on: P3 to P6.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use uuid::Uuid;

use super::{continue_guest, end_qemu};
use crate::clock;
use crate::fault;
use crate::journal::{Entry, Journal, Step};
use crate::link::Link;
use crate::pacing::time::Time;
use crate::process::ProcessId;
use crate::qmp::Qmp;
use crate::relay::frame::{DestinationState, Handover, Message};

/// How long one question may take before the link is taken as gone.
const ANSWER: Duration = Duration::from_secs(1);
const ASK_AGAIN: Duration = Duration::from_millis(20);
const RECONNECT: Duration = Duration::from_millis(500);

/// Is told of a step as it is taken.
pub type OnStep<'a> = Box<dyn FnMut(&str, Time) + Send + 'a>;

/// What the source knows and may use once its QEMU says `completed`.
pub struct Completed<'a> {
    /// The link, while it is up.
    pub link: Option<Link>,
    /// The source's monitor, where there is one.
    pub qmp: Option<&'a Qmp>,
    /// The source's QEMU.
    pub qemu: ProcessId,
    /// The journal.
    pub journal: &'a Journal,
    /// What the journal holds.
    pub entry: Entry,
    /// How long the destination is looked for before the guest is taken back.
    pub status_timeout: Duration,
    /// How long COMMIT is repeated.
    pub commit_timeout: Duration,
    /// The operator asks to end: COMMIT is repeated for `status_timeout` only.
    pub asked_to_end: &'a AtomicBool,
    /// Told of each step as it is taken.
    pub on_step: OnStep<'a>,
}

/// How the handover ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest runs at the destination.
    Arrived {
        /// Since when, as the source's clock has it.
        at: Time,
    },
    /// The guest runs at the source again.
    Returned {
        /// Why.
        reason: String,
    },
    /// The source's QEMU is gone, and the destination does not have the guest.
    Lost {
        /// Why.
        reason: String,
    },
    /// The guest is stopped.
    Stopped {
        /// On which side it is whole, and what continues it.
        message: String,
    },
}

/// What STATUS led to.
enum Asked {
    Loaded,
    Running,
    /// The destination says that it will not run the guest.
    Never(String),
    /// It says nothing of use.
    Silent(String),
}

impl Completed<'_> {
    /// Takes the handover from P3 to its end.
    pub async fn finish(mut self) -> Ended {
        if self.entry.step == Step::Start {
            self.step("P3 source completed");
            if let Err(error) = self.journal_step(Step::Start) {
                // It is what the journal says already, but for the steps so far.
                tracing::warn!(error, "the journal does not know yet that QEMU completed");
            }
            fault::point("source-completed");
            match self.ask_status(self.status_timeout).await {
                Asked::Loaded => {}
                Asked::Running => return self.arrived().await,
                Asked::Never(reason) => return self.take_back(&reason, true).await,
                Asked::Silent(reason) => return self.take_back(&reason, false).await,
            }
            fault::point("source-status");
            if let Err(error) = self.journal_step(Step::Committing) {
                return self.take_back(&error, false).await;
            }
            self.step("P4 COMMITTING");
            fault::point("source-committing");
        }
        self.commit().await
    }

    /// The source's QEMU is certainly gone, and its guest did not end: if the
    /// destination has loaded it, it goes on there.
    pub async fn inherit(mut self) -> Ended {
        if self.entry.step == Step::Start {
            self.step("the source's QEMU is gone");
            // The destination may hold the only copy: it is looked for longer.
            let patience = match self.asked_to_end.load(Ordering::Relaxed) {
                true => self.status_timeout,
                false => self.commit_timeout,
            };
            match self.ask_status(patience).await {
                Asked::Loaded => {}
                Asked::Running => return self.arrived().await,
                Asked::Never(reason) => return self.lost(&reason).await,
                Asked::Silent(reason) => return self.only_there(&reason),
            }
            if let Err(error) = self.journal_step(Step::Committing) {
                // This side has no guest any more that could run.
                tracing::warn!(error, "the journal does not know of the handover");
            }
            self.step("P4 COMMITTING");
        }
        self.commit().await
    }

    /// Tells the destination that the guest stays here, for `patience` at most:
    /// what it has loaded it would keep for ever.
    pub async fn abort(mut self, reason: &str, patience: Duration) {
        let until = clock::now() + patience;
        let abort = Message::Abort {
            attempt: self.entry.attempt,
            reason: reason.to_owned(),
        };
        while self.ask(&abort).await.is_err() && clock::now() < until {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Tells the destination that nothing more will come, if it listens still.
    pub async fn done(mut self) {
        let done = Message::Done {
            attempt: self.entry.attempt,
        };
        // There is no answer to it but the end of the connection.
        let _ = self.ask(&done).await;
    }

    /// Why the destination cannot have the guest, if it says so within `patience`.
    pub async fn never_had_it(mut self, patience: Duration) -> Option<String> {
        match self.ask_status(patience).await {
            Asked::Never(reason) => Some(reason),
            Asked::Loaded | Asked::Running | Asked::Silent(_) => None,
        }
    }

    /// P3: where does the destination stand?
    async fn ask_status(&mut self, patience: Duration) -> Asked {
        let attempt = self.entry.attempt;
        let until = clock::now() + patience;
        let mut reason = "the destination says nothing".to_owned();
        while clock::now() < until {
            match self.ask(&Message::Status { attempt }).await {
                Ok(Message::State { state, .. }) => match state {
                    DestinationState::Loaded => return Asked::Loaded,
                    DestinationState::Running => return Asked::Running,
                    DestinationState::Failed { reason } => return Asked::Never(reason),
                    DestinationState::Loading => {
                        reason = "the destination does not finish loading".to_owned();
                        tokio::time::sleep(ASK_AGAIN).await;
                    }
                },
                Ok(Message::NeverRan { reason, .. }) => return Asked::Never(reason),
                Ok(other) => tracing::debug!(?other, "not an answer to STATUS"),
                Err(error) => {
                    reason = error;
                    tokio::time::sleep(ASK_AGAIN).await;
                }
            }
        }
        Asked::Silent(reason)
    }

    /// P4 and P6: COMMIT, again and again until the destination answers.
    async fn commit(&mut self) -> Ended {
        let commit = Message::Commit {
            attempt: self.entry.attempt,
            continue_guest: self.entry.continue_guest,
        };
        let started = clock::now();
        let mut failure = None;
        let mut told = false;
        loop {
            match self.ask(&commit).await {
                Ok(Message::Running { .. }) => return self.arrived().await,
                Ok(Message::NeverRan { reason, .. }) => {
                    return self.take_back(&reason, true).await;
                }
                Ok(Message::State {
                    state: DestinationState::Failed { reason },
                    ..
                }) => failure = Some(reason),
                Ok(other) => tracing::debug!(?other, "not an answer to COMMIT"),
                Err(error) => failure = Some(error),
            }
            let reason = failure.as_deref().unwrap_or("it gives no answer");
            let patience = if self.asked_to_end.load(Ordering::Relaxed) {
                self.status_timeout
            } else {
                self.commit_timeout
            };
            if clock::now() >= started + patience {
                return self.out_of_reach(reason);
            }
            if !told {
                told = true;
                tracing::warn!(
                    reason,
                    "the destination has been given the guest and does not confirm; repeating"
                );
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn arrived(&mut self) -> Ended {
        let at = clock::now();
        self.step("P6 RUNNING");
        if let Err(error) = self.journal_step(Step::Done) {
            // COMMITTING already forbids this side to run the guest.
            tracing::warn!(
                error,
                "the journal does not know yet that the guest arrived"
            );
        }
        fault::point("source-done");
        let done = Message::Done {
            attempt: self.entry.attempt,
        };
        if let Some(mut link) = self.link.take() {
            // The destination does without after a while.
            let _ = link.send(&done).await;
            tokio::time::sleep(ASK_AGAIN).await;
            link.close().await;
        }
        Ended::Arrived { at }
    }

    /// Runs the guest at the source again: the destination never may.
    /// `is_final`: the destination has said so itself.
    async fn take_back(&mut self, reason: &str, is_final: bool) -> Ended {
        if !self.qemu.is_alive() && self.qemu.is_gone_within(ANSWER).await {
            return match is_final {
                true => self.lost(reason).await,
                false => self.only_there(reason),
            };
        }
        let Some(qmp) = self.qmp else {
            return Ended::Stopped {
                message: format!(
                    "the destination did not take the guest ({reason}); it is whole and stopped \
                     at the source, process {}: type `cont` in its monitor, after the \
                     destination's QEMU has been ended",
                    self.qemu.pid
                ),
            };
        };
        if self.entry.handover != Handover::Pacer {
            return Ended::Stopped {
                message: format!(
                    "the destination cannot be asked ({reason}), and Pacer does not continue the \
                     guest there: see whether it runs at the destination; only if it does not, \
                     end that QEMU and type `cont` in the source's monitor"
                ),
            };
        }
        if let Err(error) = self.journal_step(Step::Returned) {
            if self.entry.step != Step::Start {
                return Ended::Stopped {
                    message: format!(
                        "the guest never ran at the destination ({reason}); it is whole and \
                         stopped here, and that cannot be recorded ({error}): type `cont` in \
                         the monitor of process {}",
                        self.qemu.pid
                    ),
                };
            }
            // Nothing was committed: START and a running guest say the same.
            tracing::warn!(error, "the journal does not know that the guest is back");
        }
        self.step("P3 taken back");
        let continued = match self.entry.continue_guest {
            true => continue_guest(qmp).await,
            false => Ok(()),
        };
        match continued {
            Ok(()) => {
                self.tell_abort(reason).await;
                Ended::Returned {
                    reason: reason.to_owned(),
                }
            }
            // The destination keeps what it has loaded: it may be the only copy.
            Err(error) if !self.qemu.is_alive() => self.only_there(&error.to_string()),
            Err(error) => Ended::Stopped {
                message: format!(
                    "the guest is whole at the source and does not go on there ({error}); type \
                     `cont` in its monitor"
                ),
            },
        }
    }

    async fn lost(&mut self, reason: &str) -> Ended {
        self.tell_abort(reason).await;
        Ended::Lost {
            reason: reason.to_owned(),
        }
    }

    fn only_there(&self, reason: &str) -> Ended {
        Ended::Stopped {
            message: format!(
                "the source's QEMU has ended and the destination ({address}) does not say whether \
                 it has the guest ({reason}). If it has, the guest is whole and paused there: \
                 pacer resolve --qmp PATH --peer-is-dead",
                address = self.entry.reach.address
            ),
        }
    }

    async fn tell_abort(&mut self, reason: &str) {
        let abort = Message::Abort {
            attempt: self.entry.attempt,
            reason: reason.to_owned(),
        };
        // It stays paused for good if it does not hear it.
        let _ = self.ask(&abort).await;
    }

    fn out_of_reach(&self, reason: &str) -> Ended {
        Ended::Stopped {
            message: format!(
                "the guest was handed over to the destination ({address}), which does not confirm \
                 ({reason}). It is stopped here and will not run here again. On the destination's \
                 host: pacer resolve --qmp PATH. Only if the destination's host is certainly \
                 dead, here: pacer resolve --qmp PATH --peer-is-dead",
                address = self.entry.reach.address
            ),
        }
    }

    /// Sends `message`, over a new link if the old one is gone, and returns the
    /// answer. A link that gives none is given up.
    async fn ask(&mut self, message: &Message) -> Result<Message, String> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => {
                let connecting = Link::connect(&self.entry.reach, self.entry.attempt, true);
                let (link, _) = tokio::time::timeout(ANSWER, connecting)
                    .await
                    .map_err(|_| "no connection to its agent".to_owned())?
                    .map_err(|error| error.to_string())?;
                link
            }
        };
        link.send(message)
            .await
            .map_err(|error| error.to_string())?;
        if matches!(message, Message::Commit { .. }) {
            // What QUIC has taken is sent by a task of its own.
            tokio::task::yield_now().await;
            fault::point("source-commit-sent");
        }
        let answer = link
            .next_within(ANSWER)
            .await
            .map_err(|error| error.to_string())?;
        self.link = Some(link);
        Ok(answer)
    }

    fn journal_step(&mut self, step: Step) -> Result<(), String> {
        let next = Entry {
            step,
            ..self.entry.clone()
        };
        self.journal
            .write(&next)
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        self.entry = next;
        Ok(())
    }

    fn step(&mut self, name: &str) {
        let now = clock::now();
        self.entry.recovery.step(name, now);
        (self.on_step)(name, now);
    }
}

/// Ends the source's QEMU, whose guest runs at the destination.
pub async fn quit_source(qmp: &Qmp, qemu: ProcessId, attempt: Uuid) {
    if !end_qemu(Some(qmp), qemu).await {
        tracing::warn!(
            pid = qemu.pid,
            %attempt,
            "the source's QEMU does not end; its guest runs at the destination: end it by hand"
        );
    }
}
