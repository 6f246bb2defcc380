//! `pacer resolve`: after a crash, what this side may do now.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::destination::Destination;
use super::recover::settled;
use super::source::{Completed, Ended};
use super::{continue_guest, has_completed, is_left_by_migration};
use crate::cli::ResolveArgs;
use crate::exit::{Exit, Failure};
use crate::journal::{Entry, Journal, Step, directory};
use crate::process::ProcessId;
use crate::qmp::Qmp;
use crate::relay::frame::DestinationState;
use crate::settings::restore;
use crate::shutdown::Signals;

/// How long the other side is looked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what the journal of the QEMU at `args.qmp` allows, and says it.
///
/// # Errors
///
/// If QEMU or its journal cannot be read, or nothing is on record.
pub async fn run(args: ResolveArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    let qmp = Qmp::connect(&args.qmp).await.map_err(anyhow::Error::new)?;
    let pid = crate::qmp::owner(&args.qmp).map_err(anyhow::Error::new)?;
    let qemu = ProcessId::of(pid).map_err(anyhow::Error::new)?;
    let journal = Journal::of(&directory(), qemu).map_err(anyhow::Error::new)?;
    let Some(entry) = journal.read().map_err(anyhow::Error::new)? else {
        let status = qmp.status().await.map_err(anyhow::Error::new)?;
        if status.running {
            say("The guest runs here; no migration is on record.");
            return Ok(Exit::Success);
        }
        return Err(Failure::refused(format!(
            "nothing is on record of this QEMU (process {pid}, state `{}`): Pacer has not \
             migrated it and does not know where its guest is",
            status.status
        )));
    };
    let side = Side {
        qmp,
        qemu,
        journal,
        entry,
        peer_is_dead: args.peer_is_dead,
    };
    match side.entry.step {
        Step::Start | Step::Committing | Step::Done | Step::Returned => side.resolve_source().await,
        Step::Ready | Step::Committed | Step::Running | Step::Aborted => {
            side.resolve_destination(signals).await
        }
    }
}

struct Side {
    qmp: Qmp,
    qemu: ProcessId,
    journal: Journal,
    entry: Entry,
    peer_is_dead: bool,
}

impl Side {
    async fn resolve_source(self) -> Result<Exit, Failure> {
        let running = self.qmp.status().await.map_err(anyhow::Error::new)?.running;
        match self.entry.step {
            Step::Done => {
                say("The guest runs at the destination; this QEMU may be ended.");
                Ok(Exit::Success)
            }
            Step::Returned => self.run_here("The guest belongs here").await,
            Step::Committing if self.peer_is_dead => self.reclaim().await,
            Step::Committing => Ok(self.go_on().await),
            _ if running => {
                restore(&self.qmp, &self.entry.saved).await;
                say("The guest runs here; the migration did not complete.");
                Ok(Exit::Success)
            }
            _ => self.resolve_started().await,
        }
    }

    /// START is on record, and the guest does not run.
    async fn resolve_started(self) -> Result<Exit, Failure> {
        let (info, status) = settled(&self.qmp).await.map_err(anyhow::Error::new)?;
        if status.running {
            restore(&self.qmp, &self.entry.saved).await;
            say("The guest runs here again; the migration did not complete.");
            return Ok(Exit::Success);
        }
        if !has_completed(&info, &status) {
            return self.run_here("The migration did not complete").await;
        }
        if self.peer_is_dead {
            return self.reclaim().await;
        }
        Ok(self.go_on().await)
    }

    /// Goes on with the handover where the agent died.
    async fn go_on(self) -> Exit {
        let committing = self.entry.step == Step::Committing;
        let ended = Completed {
            link: None,
            qmp: Some(&self.qmp),
            qemu: self.qemu,
            journal: &self.journal,
            entry: self.entry.clone(),
            status_timeout: PATIENCE,
            commit_timeout: PATIENCE,
            asked_to_end: &AtomicBool::new(false),
            on_step: Box::new(|name, _| tracing::info!("{name}")),
        }
        .finish()
        .await;
        match ended {
            Ended::Arrived { .. } => {
                say("The guest runs at the destination; this QEMU may be ended.");
                Exit::Success
            }
            Ended::Returned { reason } => {
                restore(&self.qmp, &self.entry.saved).await;
                say(&format!(
                    "The guest runs here again: {}{reason}",
                    if committing {
                        "it never ran at the destination: "
                    } else {
                        ""
                    }
                ));
                Exit::Success
            }
            Ended::Lost { reason } => {
                say(&format!("The guest is lost: {reason}"));
                Exit::GuestEnded
            }
            Ended::Stopped { message } => {
                say(&message);
                Exit::Stopped
            }
        }
    }

    /// A person says that the destination is certainly gone.
    async fn reclaim(mut self) -> Result<Exit, Failure> {
        self.entry.step = Step::Returned;
        self.journal
            .write(&self.entry)
            .map_err(anyhow::Error::new)?;
        self.run_here("The destination is said to be dead").await
    }

    /// The guest belongs here. It is continued if it ran before, and if it was the
    /// migration that stopped it: who paused it since, or before, wanted that.
    async fn run_here(&self, why: &str) -> Result<Exit, Failure> {
        let status = self.qmp.status().await.map_err(anyhow::Error::new)?;
        let by_migration = is_left_by_migration(&status);
        let goes_on = !status.running && by_migration && self.entry.continue_guest;
        if goes_on {
            continue_guest(&self.qmp)
                .await
                .map_err(anyhow::Error::new)?;
        }
        restore(&self.qmp, &self.entry.saved).await;
        if goes_on || status.running {
            say(&format!("{why}: the guest runs here again."));
        } else {
            say(&format!(
                "{why}: the guest is here, stopped (`{}`), and not by the migration; `cont` in \
                 the monitor continues it.",
                status.status
            ));
        }
        Ok(Exit::Success)
    }

    async fn resolve_destination(self, signals: &mut Signals) -> Result<Exit, Failure> {
        let (peer_is_dead, step) = (self.peer_is_dead, self.entry.step);
        let mut destination = Destination::adopt(self.qmp, self.qemu, self.journal, self.entry);
        let state = destination.state().await;
        if state == DestinationState::Running {
            // Somebody else may have continued it: the next migration may begin.
            destination.mark_running();
        }
        match (step, state) {
            (Step::Committed | Step::Running, DestinationState::Running) => {
                say("The guest runs here.");
                // A source that still waits for its confirmation gets it.
                let _ = crate::dest::finish(destination, PATIENCE / 2, signals).await;
                Ok(Exit::Success)
            }
            (_, DestinationState::Running) => {
                say("The guest runs here.");
                Ok(Exit::Success)
            }
            (Step::Aborted, _) => {
                say("The attempt was given up: the guest belongs to the source.");
                Ok(Exit::Returned)
            }
            (Step::Committed, DestinationState::Loaded) => {
                destination.seize().await.map_err(Failure::not_started)?;
                say("The guest had been handed over to this side: it runs here now.");
                // A source that still waits for its confirmation gets it.
                let _ = crate::dest::finish(destination, PATIENCE / 2, signals).await;
                Ok(Exit::Success)
            }
            (_, DestinationState::Loaded) if peer_is_dead => {
                destination.seize().await.map_err(Failure::not_started)?;
                say("The source is said to be dead: the guest runs here now.");
                Ok(Exit::Success)
            }
            (_, DestinationState::Loaded) => wait_for_word(destination, signals).await,
            (_, DestinationState::Loading) => {
                say("The guest was not loaded here: it is at the source.");
                Ok(Exit::Returned)
            }
            (_, DestinationState::Failed { reason }) => {
                say(&format!(
                    "The guest does not run here ({reason}): it is at the source."
                ));
                Ok(Exit::Returned)
            }
        }
    }
}

async fn wait_for_word(destination: Destination, signals: &mut Signals) -> Result<Exit, Failure> {
    say(
        "The guest is loaded and paused here; waiting 10 s for the source's agent to hand it over.",
    );
    match crate::dest::finish(destination, PATIENCE, signals).await? {
        Exit::Success => {
            say("The guest was handed over to this side: it runs here now.");
            Ok(Exit::Success)
        }
        Exit::Returned => {
            say("The guest stays at the source.");
            Ok(Exit::Returned)
        }
        _ => {
            say(
                "The guest is whole and paused here and was not handed over. On the source's \
                 host: pacer resolve --qmp PATH. Only if the source's host is certainly dead, \
                 here: pacer resolve --qmp PATH --peer-is-dead",
            );
            Ok(Exit::Stopped)
        }
    }
}

fn say(text: &str) {
    println!("{text}");
}
