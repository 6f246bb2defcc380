//! The destination's half of the handover: P0 and P5.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{ContinueError, continue_guest, end_qemu, reconnect};
use crate::address::Address;
use crate::clock;
use crate::exit::Failure;
use crate::fault;
use crate::journal::{Entry, Journal, JournalError, Reach, Recovery, Step, directory, sweep};
use crate::preflight::{self, Facts};
use crate::process::ProcessId;
use crate::qmp::{Qmp, QmpError};
use crate::relay::frame::{DestinationState, Handover, Message};
use crate::supervisor;

/// What a paused destination would announce at load steals the guest's
/// traffic if the handover is then aborted; announced after `cont` instead.
const ANNOUNCE_ROUNDS: &str = "announce-rounds";
/// QEMU's monitor is not answered while the guest's last memory is loaded.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// The destination's QEMU and what is remembered of it.
#[derive(Debug)]
pub struct Destination {
    /// `None` only if Pacer does not continue the guest.
    control: Option<Control>,
    handover: Handover,
    reach: Reach,
    /// The destination's `SHUT` passed with this value: all that is known of
    /// the load without QMP.
    shut: Option<u32>,
    /// Without QMP: the attempt and whether it was committed.
    bare_attempt: Option<Uuid>,
}

/// A QEMU that Pacer can talk to.
#[derive(Debug)]
struct Control {
    qmp: Qmp,
    qemu: ProcessId,
    journal: Journal,
    entry: Option<Entry>,
    saved: Value,
}

impl Destination {
    /// Takes the destination's QEMU in hand (P0). A QEMU that an earlier agent
    /// had in hand is taken over where that one left it.
    ///
    /// # Errors
    ///
    /// If QEMU cannot be reached, does not wait for a migration, or the journal
    /// cannot be used.
    pub async fn prepare(
        qmp_path: Option<&Path>,
        handover: Handover,
        forward: &Address,
        reach: Reach,
    ) -> Result<Self, Failure> {
        let control = match qmp_path {
            Some(path) => Some(Control::open(path).await?),
            None if handover == Handover::Pacer => {
                return Err(Failure::refused(
                    "without --qmp Pacer cannot hold the guest at the destination until the \
                     source is known to be done with it; give --qmp PATH, or say who continues \
                     the guest: --handover external (libvirt or a person) or --handover qemu \
                     (QEMU by itself; a fault between load and acknowledgement doubles the guest)",
                ));
            }
            None => None,
        };
        let mut destination = Self {
            control,
            handover,
            reach,
            shut: None,
            bare_attempt: None,
        };
        if let Some(control) = &mut destination.control {
            if control.taken_over() {
                tracing::info!(
                    attempt = %control.attempt().unwrap_or_default(),
                    "taking over the attempt of an earlier agent"
                );
                control.finish_committed().await?;
            } else {
                // Remembered before anything of QEMU's is changed.
                let reach = destination.reach.clone();
                control.saved = control.before().await.map_err(anyhow::Error::new)?;
                control
                    .journal_new(Uuid::nil(), reach)
                    .map_err(anyhow::Error::new)?;
                control.set_up(handover, forward).await?;
            }
        }
        Ok(destination)
    }

    /// For [`super::resolve`]: a QEMU that an earlier agent had in hand.
    #[must_use]
    pub fn adopt(qmp: Qmp, qemu: ProcessId, journal: Journal, entry: Entry) -> Self {
        Self {
            reach: entry.reach.clone(),
            control: Some(Control {
                qmp,
                qemu,
                journal,
                saved: entry.saved.clone(),
                entry: Some(entry),
            }),
            handover: Handover::Pacer,
            shut: None,
            bare_attempt: None,
        }
    }

    /// The process, where it is known.
    #[must_use]
    pub fn qemu(&self) -> Option<ProcessId> {
        self.control.as_ref().map(|control| control.qemu)
    }

    /// QEMU's version, where it is known.
    #[must_use]
    pub fn qemu_version(&self) -> Option<String> {
        self.control.as_ref().map(|control| control.qmp.version())
    }

    /// How to reach the other agent, as told at the start.
    #[must_use]
    pub const fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The last step that is on record.
    #[must_use]
    pub fn step(&self) -> Option<Step> {
        Some(self.control.as_ref()?.entry.as_ref()?.step)
    }

    /// Whether only Pacer continues the guest here, so that an attempt given up
    /// never ran.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.control.is_some() && self.handover == Handover::Pacer
    }

    /// The attempt in hand.
    #[must_use]
    pub fn attempt(&self) -> Option<Uuid> {
        match &self.control {
            Some(control) => control.attempt(),
            None => self.bare_attempt,
        }
    }

    /// `SHUT` passed on the return path with `value`.
    pub fn handle_shut(&mut self, value: u32) {
        self.shut = Some(value);
    }

    /// Begins `attempt`, or goes on with it.
    ///
    /// # Errors
    ///
    /// A text for the source's operator: why it cannot.
    pub async fn begin(&mut self, attempt: Uuid, resume: bool) -> Result<Message, String> {
        if let Some(current) = self.attempt()
            && current != attempt
            && !matches!(self.state().await, DestinationState::Loading)
        {
            return Err("this destination's QEMU holds the guest of another attempt".to_owned());
        }
        if resume && self.attempt() != Some(attempt) {
            return Err("this destination knows nothing of that attempt".to_owned());
        }
        match &mut self.control {
            Some(control) if !resume => control
                .journal_new(attempt, self.reach.clone())
                .map_err(|error| error.to_string())?,
            Some(_) => {}
            None => self.bare_attempt = Some(attempt),
        }
        Ok(Message::Ready {
            attempt,
            qemu_version: self.qemu_version(),
            handover: self.handover,
            // On a later connection the guest may be on its way already.
            facts: if resume { None } else { self.facts().await },
        })
    }

    /// What its QEMU's machine is, where QMP says.
    async fn facts(&self) -> Option<Box<Facts>> {
        let control = self.control.as_ref()?;
        let facts = preflight::ask::facts(&control.qmp, Some(control.qemu)).await;
        Some(Box::new(facts))
    }

    /// Where the destination stands.
    pub async fn state(&self) -> DestinationState {
        let Some(control) = &self.control else {
            return match self.shut {
                None => DestinationState::Loading,
                Some(0) if self.handover == Handover::Qemu => DestinationState::Running,
                Some(0) => DestinationState::Loaded,
                Some(value) => DestinationState::Failed {
                    reason: format!("QEMU said {value} at the end of its return path"),
                },
            };
        };
        control.state().await
    }

    /// Continues the guest (P5), or says why not. Asked twice, it does it once.
    pub async fn commit(&mut self, attempt: Uuid, continue_guest: bool) -> Message {
        if self.attempt() != Some(attempt) {
            return Message::State {
                attempt,
                state: DestinationState::Failed {
                    reason: "this destination knows nothing of that attempt".to_owned(),
                },
            };
        }
        match (&mut self.control, self.handover) {
            (Some(control), Handover::Pacer) => control.commit(attempt, continue_guest).await,
            _ => Message::Running { attempt },
        }
    }

    /// Takes back nothing that was committed; else ends the destination's QEMU.
    /// True if the guest will not run here.
    pub async fn abort(&mut self) -> bool {
        let Some(control) = &mut self.control else {
            return true;
        };
        control.abort().await
    }

    /// Makes the guest known to the network and puts QEMU's settings back.
    pub async fn settle(&mut self) {
        if let Some(control) = &mut self.control {
            control.settle().await;
        }
    }

    /// The guest is seen running here.
    pub fn mark_running(&mut self) {
        if let Some(control) = &mut self.control {
            control.journal_running();
        }
    }

    /// A person says that the source is certainly gone: the guest is ours.
    ///
    /// # Errors
    ///
    /// If it cannot be continued.
    pub async fn seize(&mut self) -> Result<(), String> {
        let Some(attempt) = self.attempt() else {
            return Err("there is no attempt to finish".to_owned());
        };
        let entry = self
            .control
            .as_ref()
            .and_then(|control| control.entry.as_ref());
        let continue_guest = entry.is_none_or(|entry| entry.continue_guest);
        match self.commit(attempt, continue_guest).await {
            Message::Running { .. } => {
                self.settle().await;
                Ok(())
            }
            Message::NeverRan { reason, .. } => Err(reason),
            other => Err(format!("the guest cannot be continued here: {other:?}")),
        }
    }
}

impl Control {
    async fn open(path: &Path) -> Result<Self, Failure> {
        let patience = match supervisor::is_recovering() {
            true => TAKE_OVER,
            false => Duration::ZERO,
        };
        let qmp = reconnect(path, None, patience)
            .await
            .map_err(anyhow::Error::new)?;
        let pid = crate::qmp::owner(path).map_err(anyhow::Error::new)?;
        let qemu = ProcessId::of(pid).map_err(anyhow::Error::new)?;
        sweep(&directory());
        let journal = Journal::of(&directory(), qemu).map_err(anyhow::Error::new)?;
        let entry = journal.read().map_err(anyhow::Error::new)?;
        let saved = entry
            .as_ref()
            .map_or(Value::Null, |entry| entry.saved.clone());
        Ok(Self {
            qmp,
            qemu,
            journal,
            entry,
            saved,
        })
    }

    fn attempt(&self) -> Option<Uuid> {
        let attempt = self.entry.as_ref()?.attempt;
        // Prepared, and no source has come yet.
        (!attempt.is_nil()).then_some(attempt)
    }

    /// QEMU's settings before Pacer changed them: an earlier agent may have.
    async fn before(&self) -> Result<Value, QmpError> {
        match &self.entry {
            Some(entry) if entry.step == Step::Ready && !self.saved.is_null() => {
                Ok(self.saved.clone())
            }
            _ => {
                let parameters = self.qmp.parameters().await?;
                Ok(json!({ ANNOUNCE_ROUNDS: parameters.get(ANNOUNCE_ROUNDS) }))
            }
        }
    }

    /// An earlier agent had this QEMU in hand and had not given it up.
    fn taken_over(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| match entry.step {
            Step::Committed | Step::Running => true,
            Step::Ready => !entry.attempt.is_nil(),
            _ => false,
        })
    }

    /// An earlier agent died between COMMITTED and `cont`, or after that.
    async fn finish_committed(&mut self) -> Result<(), Failure> {
        let Some(entry) = self.entry.clone() else {
            return Ok(());
        };
        match entry.step {
            Step::Committed => {}
            Step::Running => {
                self.settle().await;
                return Ok(());
            }
            _ => return Ok(()),
        }
        let (attempt, continue_guest) = (entry.attempt, entry.continue_guest);
        match self.commit(attempt, continue_guest).await {
            Message::Running { .. } => {
                self.settle().await;
                Ok(())
            }
            other => Err(Failure::not_started(format!(
                "the guest was handed over to this side and cannot be continued: {other:?}"
            ))),
        }
    }

    async fn set_up(&mut self, handover: Handover, forward: &Address) -> Result<(), Failure> {
        let status = self.qmp.status().await.map_err(anyhow::Error::new)?;
        if status.status != "inmigrate" {
            return Err(Failure::not_started(format!(
                "the destination's QEMU does not wait for a migration (its state is `{}`); \
                 start it with -incoming defer",
                status.status
            )));
        }
        if handover == Handover::Pacer {
            self.hold().await.map_err(anyhow::Error::new)?;
        }
        self.listen(forward).await.map_err(anyhow::Error::new)?;
        Ok(())
    }

    /// Makes QEMU keep the guest paused once it has loaded.
    async fn hold(&mut self) -> Result<(), QmpError> {
        let wanted = ["events", "late-block-activate"].map(|name| (name.to_owned(), true));
        self.qmp.set_capabilities(&wanted).await?;
        self.qmp
            .set_parameters(json!({ ANNOUNCE_ROUNDS: 0 }))
            .await?;
        self.qmp.run("stop", Value::Null).await
    }

    /// Starts listening where QEMU was started with `-incoming defer`.
    async fn listen(&self, forward: &Address) -> Result<(), QmpError> {
        let uri = match forward {
            Address::Tcp(address) => format!("tcp:{address}"),
            Address::Unix(path) => format!("unix:{}", path.display()),
        };
        let mut arguments = json!({ "uri": uri });
        if self.qmp.version_numbers() >= (9, 1, 0) {
            arguments["exit-on-error"] = json!(false);
        }
        match self.qmp.run("migrate-incoming", arguments).await {
            Err(QmpError::Refused { reason, .. }) if reason.contains("already") => {
                tracing::debug!(reason, "QEMU listens already");
                Ok(())
            }
            other => other,
        }
    }

    fn journal_new(&mut self, attempt: Uuid, reach: Reach) -> Result<(), JournalError> {
        let entry = Entry {
            attempt,
            step: Step::Ready,
            qemu: self.qemu,
            reach,
            handover: Handover::Pacer,
            continue_guest: true,
            saved: self.saved.clone(),
            recovery: Recovery::own(clock::now()),
        };
        self.journal.write(&entry)?;
        self.entry = Some(entry);
        Ok(())
    }

    fn journal_step(&mut self, step: Step) -> Result<(), JournalError> {
        let Some(entry) = &mut self.entry else {
            return Ok(());
        };
        let next = Entry {
            step,
            ..entry.clone()
        };
        self.journal.write(&next)?;
        *entry = next;
        Ok(())
    }

    async fn state(&self) -> DestinationState {
        let step = self.entry.as_ref().map(|entry| entry.step);
        if step == Some(Step::Aborted) {
            return failed("it was given up");
        }
        let status = match self.qmp.status().await {
            Ok(status) => status,
            Err(error) => return failed(error),
        };
        if status.running || step == Some(Step::Running) {
            return DestinationState::Running;
        }
        match self.qmp.migration().await {
            Ok(info) if info.is("completed") => DestinationState::Loaded,
            Ok(info) if info.is("failed") => failed(
                info.error_desc
                    .as_deref()
                    .unwrap_or("QEMU could not load it"),
            ),
            Ok(_) => DestinationState::Loading,
            Err(error) => failed(error),
        }
    }

    async fn commit(&mut self, attempt: Uuid, continue_wanted: bool) -> Message {
        fault::point("destination-commit");
        let step = self.entry.as_ref().map(|entry| entry.step);
        if step == Some(Step::Ready) && !self.qemu.is_alive() {
            return self.give_up(attempt, "its QEMU ended before").await;
        }
        match self.state().await {
            DestinationState::Running => {
                if step == Some(Step::Committed) {
                    self.journal_running();
                }
                return Message::Running { attempt };
            }
            DestinationState::Loaded => {}
            state => return Message::State { attempt, state },
        }
        if let Some(entry) = &mut self.entry {
            entry.continue_guest = continue_wanted;
        }
        if let Err(error) = self.journal_step(Step::Committed) {
            return self.give_up(attempt, &error.to_string()).await;
        }
        fault::point("destination-committed");
        if continue_wanted {
            match continue_guest(&self.qmp).await {
                Ok(()) => {}
                Err(error @ ContinueError::Refused(_)) => {
                    return self.give_up(attempt, &error.to_string()).await;
                }
                // It may have run: the source must never run it again.
                Err(error) => {
                    let state = failed(error);
                    return Message::State { attempt, state };
                }
            }
        }
        fault::point("destination-continued");
        self.journal_running();
        Message::Running { attempt }
    }

    fn journal_running(&mut self) {
        if let Err(error) = self.journal_step(Step::Running) {
            // COMMITTED and a running guest say the same.
            tracing::warn!(%error, "the journal does not know yet that the guest runs");
        }
    }

    /// The guest cannot be continued: only once this QEMU is certainly gone may
    /// the source run it again.
    async fn give_up(&mut self, attempt: Uuid, reason: &str) -> Message {
        tracing::error!(reason, "the guest cannot be continued here");
        if !end_qemu(Some(&self.qmp), self.qemu).await {
            return Message::State {
                attempt,
                state: failed(format!("{reason}; and this QEMU does not end")),
            };
        }
        self.mark_aborted();
        Message::NeverRan {
            attempt,
            reason: reason.to_owned(),
        }
    }

    async fn abort(&mut self) -> bool {
        let step = self.entry.as_ref().map(|entry| entry.step);
        if matches!(step, Some(Step::Committed | Step::Running)) {
            return false;
        }
        self.mark_aborted();
        end_qemu(Some(&self.qmp), self.qemu).await
    }

    fn mark_aborted(&mut self) {
        if let Err(error) = self.journal_step(Step::Aborted) {
            // Without the file nothing is COMMITTED either.
            tracing::warn!(%error, "the journal does not know of the abort");
        }
    }

    async fn settle(&mut self) {
        let announce = json!({ "initial": 50, "max": 550, "rounds": 5, "step": 100 });
        if let Err(error) = self.qmp.run("announce-self", announce).await {
            tracing::warn!(%error, "the guest could not be announced to the network");
        }
        if let Some(rounds) = self.saved.get(ANNOUNCE_ROUNDS).filter(|v| !v.is_null()) {
            let restored = json!({ ANNOUNCE_ROUNDS: rounds });
            if let Err(error) = self.qmp.set_parameters(restored).await {
                tracing::warn!(%error, "a parameter of QEMU's was not put back");
            }
        }
    }
}

fn failed(reason: impl ToString) -> DestinationState {
    DestinationState::Failed {
        reason: reason.to_string(),
    }
}
