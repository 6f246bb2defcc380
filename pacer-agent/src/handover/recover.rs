//! `pacer source` that is started by its supervisor after an agent that died:
//! reads the journal and takes the migration to its end.

mod account;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use account::Account;

use super::source::{Completed, Ended, OnStep, quit_source};
use super::{continue_guest, has_completed, is_broken, is_left_by_migration, reconnect};
use crate::cli::{SourceAfter, SourceArgs};
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::journal::{Entry, Journal, Step, directory, of_supervisor, sweep};
use crate::pacing::time::Time;
use crate::qmp::{MigrationInfo, Qmp, QmpError, RunStatus};
use crate::report::Outcome;
use crate::settings;
use crate::shutdown::Signals;
use crate::supervisor;

/// QEMU's monitor is not answered while the guest's last memory is sent.
const MONITOR: Duration = Duration::from_secs(60);
/// A migration whose relay is gone fails by itself; QEMU needs a moment.
const SETTLE: Duration = Duration::from_secs(5);
/// And one more to run the guest again.
const RESUME: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);
/// How long the destination is looked for that is to give up the guest.
const ABORT: Duration = Duration::from_secs(5);

/// How it came out.
struct Concluded {
    outcome: Outcome,
    reason: Option<String>,
    /// Since when the guest runs at the destination.
    arrived_at: Option<Time>,
}

impl Concluded {
    fn new(outcome: Outcome, reason: impl Into<String>) -> Self {
        Self {
            outcome,
            reason: Some(reason.into()),
            arrived_at: None,
        }
    }
}

/// Goes on for the agent of this supervisor that died.
///
/// # Errors
///
/// If nothing had begun and nothing was to begin by itself.
pub async fn run(args: SourceArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    sweep_others();
    let found = supervisor::process()
        .map(|supervisor| of_supervisor(&directory(), supervisor))
        .and_then(|mut found| found.pop());
    let asked_to_end = Arc::new(AtomicBool::new(supervisor::asked().is_some()));
    let Some((journal, entry)) = found else {
        let reason = "the agent died before the migration began; the guest runs at the source";
        if args.qmp.is_none() {
            return Err(Failure::not_started(reason));
        }
        let mut account = Account::of(&args, None);
        let outcome = returned_outcome(&asked_to_end);
        account.end(outcome, Some(reason.to_owned()), None);
        return Ok(account.conclude(&args));
    };
    tracing::warn!(
        attempt = %entry.attempt,
        step = ?entry.step,
        "going on for an agent that died"
    );
    let account = Account::of(&args, Some((&journal, &entry)));
    let recovery = Recovery {
        args,
        journal,
        entry,
        asked_to_end: Arc::clone(&asked_to_end),
        account,
    };
    let going_on = recovery.run();
    tokio::pin!(going_on);
    loop {
        tokio::select! {
            exit = &mut going_on => return Ok(exit),
            name = signals.next() => {
                tracing::warn!("{name}: ending once the guest is on one side");
                asked_to_end.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// What belongs to this supervisor is needed, also if its QEMU has ended.
fn sweep_others() {
    let own = supervisor::process().map(|own| of_supervisor(&directory(), own));
    if own.is_none_or(|own| own.is_empty()) {
        sweep(&directory());
    }
}

fn returned_outcome(asked_to_end: &AtomicBool) -> Outcome {
    match asked_to_end.load(Ordering::Relaxed) {
        true => Outcome::Cancelled,
        false => Outcome::Returned,
    }
}

struct Recovery {
    args: SourceArgs,
    journal: Journal,
    entry: Entry,
    asked_to_end: Arc<AtomicBool>,
    account: Account,
}

impl Recovery {
    async fn run(mut self) -> Exit {
        let now = clock::now();
        self.entry.recovery.step("agent died", now);
        self.account.step("agent died", now);
        let qmp = self.connect().await;
        let Concluded {
            outcome,
            reason,
            arrived_at,
        } = self.go_on(qmp.as_ref()).await;
        self.account.end(outcome, reason, arrived_at);
        let exit = self.account.conclude(&self.args);
        if outcome == Outcome::Completed
            && self.args.source_after == SourceAfter::Quit
            && let Some(qmp) = &qmp
        {
            quit_source(qmp, self.entry.qemu, self.entry.attempt).await;
        }
        exit
    }

    async fn connect(&self) -> Option<Qmp> {
        let path = self.args.qmp.as_deref()?;
        if !self.entry.qemu.is_alive() {
            return None;
        }
        match reconnect(path, Some(self.entry.qemu), MONITOR).await {
            Ok(qmp) => Some(qmp),
            Err(error) => {
                tracing::warn!("{error}");
                None
            }
        }
    }

    async fn go_on(&mut self, qmp: Option<&Qmp>) -> Concluded {
        match (self.entry.step, qmp) {
            (Step::Done, _) => {
                let at = self.account.last_step();
                self.completed(None, Completed::done).await;
                self.arrived(at)
            }
            (Step::Committing, _) => self.hand_over(qmp).await,
            (_, Some(qmp)) => self.settle(qmp).await,
            (Step::Returned, None) => Concluded::new(
                Outcome::Returned,
                "the migration did not complete, and the agent died after that",
            ),
            (_, None) if !self.entry.qemu.is_alive() => self.hand_over(None).await,
            (_, None) => self.guess().await,
        }
    }

    /// START or RETURNED: what did QEMU make of it?
    async fn settle(&mut self, qmp: &Qmp) -> Concluded {
        let (info, status) = match settled(qmp).await {
            Ok(settled) => settled,
            Err(_) if !self.entry.qemu.is_alive() => return self.hand_over(None).await,
            Err(error) => return self.unclear(&error.to_string()),
        };
        if info.is_under_way() {
            return self.unclear("the migration does not end");
        }
        if self.entry.step == Step::Start && has_completed(&info, &status) {
            return self.hand_over(Some(qmp)).await;
        }
        let reason = "the agent died before the migration completed";
        let mut stopped = is_broken(&status).then(|| format!("its state is `{}`", status.status));
        if !status.running && is_left_by_migration(&status) && self.entry.continue_guest {
            stopped = continue_guest(qmp)
                .await
                .err()
                .map(|error| error.to_string());
        }
        self.entry.step = Step::Returned;
        if let Err(error) = self.journal.write(&self.entry) {
            // START and a guest that is here say the same.
            tracing::warn!(%error, "the journal does not know that the guest is back");
        }
        self.step("guest at the source");
        settings::restore(qmp, &self.entry.saved).await;
        self.step("settings restored");
        self.completed(Some(qmp), |completed| completed.abort(reason, ABORT))
            .await;
        match stopped {
            Some(why) => Concluded::new(
                Outcome::Stopped,
                format!(
                    "{reason}; the guest is whole at the source and does not go on there ({why}): \
                     mend that, then type `cont` in the monitor of process {}",
                    self.entry.qemu.pid
                ),
            ),
            None => Concluded::new(returned_outcome(&self.asked_to_end), reason),
        }
    }

    /// From P3, or from where the journal says, to the end.
    async fn hand_over(&mut self, qmp: Option<&Qmp>) -> Concluded {
        let qemu = self.entry.qemu;
        let is_gone = !qemu.is_alive() && qemu.is_gone_within(SETTLE).await;
        let ended = match is_gone {
            true => self.completed(qmp, Completed::inherit).await,
            false => self.completed(qmp, Completed::finish).await,
        };
        match ended {
            Ended::Arrived { at } => self.arrived(Some(at)),
            Ended::Returned { reason } => {
                if let Some(qmp) = qmp {
                    settings::restore(qmp, &self.entry.saved).await;
                    self.step("settings restored");
                }
                Concluded::new(returned_outcome(&self.asked_to_end), reason)
            }
            Ended::Lost { reason } => Concluded::new(Outcome::Lost, reason),
            Ended::Stopped { message } => Concluded::new(Outcome::Stopped, message),
        }
    }

    /// Without QMP the source is not seen; a destination that has not loaded the
    /// guest proves that it runs here.
    async fn guess(&mut self) -> Concluded {
        let never = self
            .completed(None, |completed| completed.never_had_it(ABORT))
            .await;
        match never {
            Some(reason) => Concluded::new(returned_outcome(&self.asked_to_end), reason),
            None => self.unclear("its monitor cannot be asked"),
        }
    }

    fn unclear(&self, reason: &str) -> Concluded {
        Concluded::new(
            Outcome::Stopped,
            format!(
                "the agent died, and it cannot be told how QEMU (process {}) ended the migration \
                 ({reason}). The guest is whole on one side: on the source's host, pacer resolve \
                 --qmp PATH",
                self.entry.qemu.pid
            ),
        )
    }

    fn arrived(&self, at: Option<Time>) -> Concluded {
        Concluded {
            outcome: Outcome::Completed,
            reason: None,
            arrived_at: at,
        }
    }

    fn step(&mut self, name: &str) {
        self.account.step(name, clock::now());
    }

    /// What the handover's end needs, handed to `act`.
    async fn completed<'a, F, T>(
        &'a mut self,
        qmp: Option<&'a Qmp>,
        act: impl FnOnce(Completed<'a>) -> F,
    ) -> T
    where
        F: Future<Output = T>,
    {
        let account = &mut self.account;
        let on_step: OnStep<'a> = Box::new(move |name, at| account.step(name, at));
        act(Completed {
            link: None,
            qmp,
            qemu: self.entry.qemu,
            journal: &self.journal,
            entry: self.entry.clone(),
            status_timeout: self.args.switchover_timeout,
            commit_timeout: self.args.agent.outage_budget,
            asked_to_end: &self.asked_to_end,
            on_step,
        })
        .await
    }
}

/// Waits until QEMU has noticed that the relay is gone, and has had a moment to
/// run its guest again.
///
/// # Errors
///
/// If QEMU does not answer.
pub(super) async fn settled(qmp: &Qmp) -> Result<(MigrationInfo, RunStatus), QmpError> {
    let until = clock::now() + SETTLE;
    let mut ended_at = None;
    loop {
        let answer = match qmp.migration().await {
            Ok(info) => qmp.status().await.map(|status| (info, status)),
            Err(error) => Err(error),
        };
        let now = clock::now();
        let (info, status) = match answer {
            Ok(answer) => answer,
            Err(QmpError::Silent { .. }) if now < until + MONITOR => continue,
            Err(error) => return Err(error),
        };
        if !info.is_under_way() {
            let ended_at = *ended_at.get_or_insert(now);
            let resumes = is_left_by_migration(&status) && !info.is("completed");
            if !resumes || now >= ended_at + RESUME {
                return Ok((info, status));
            }
        } else if info.is("pre-switchover") || now >= until {
            // Refused only if it has ended meanwhile.
            let _ = qmp.run("migrate_cancel", serde_json::Value::Null).await;
        }
        if now >= until + SETTLE {
            return Ok((info, status));
        }
        tokio::time::sleep(POLL).await;
    }
}
