//! What an earlier migration of the same QEMU has left on record, before the
//! next one begins.

use std::path::Path;

use super::is_left_by_migration;
use crate::exit::Failure;
use crate::journal::{Journal, Step, directory};
use crate::process::ProcessId;
use crate::qmp::Qmp;
use crate::settings;

/// What is to be done about the journal of a QEMU whose guest is here and is to
/// be migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// That migration has ended here: nothing of it matters any more.
    Forget,
    /// Its agent died, and the guest stayed: QEMU still has its settings.
    RestoreAndForget,
    /// The guest may belong to another side.
    Refuse(&'static str),
}

const fn verdict(step: Step) -> Verdict {
    match step {
        Step::Start => Verdict::RestoreAndForget,
        Step::Returned | Step::Running => Verdict::Forget,
        Step::Committing => {
            Verdict::Refuse("it was handed over to a destination that has not confirmed")
        }
        Step::Done => Verdict::Refuse("it runs at the destination of an earlier migration"),
        Step::Ready => Verdict::Refuse("it has not been handed over to this side"),
        Step::Committed => Verdict::Refuse("it was handed over to this side and not continued"),
        Step::Aborted => Verdict::Refuse("it was given back to the source it came from"),
    }
}

/// Settles what is on record of `qemu`, whose monitor at `path` is `qmp`.
///
/// # Errors
///
/// If the guest may belong to another side, or the journal cannot be read.
pub async fn settle(qmp: &Qmp, qemu: ProcessId, path: &Path) -> Result<(), Failure> {
    let journal = Journal::of(&directory(), qemu).map_err(anyhow::Error::new)?;
    let Some(entry) = journal.read().map_err(anyhow::Error::new)? else {
        return Ok(());
    };
    match verdict(entry.step) {
        Verdict::Forget => {}
        Verdict::RestoreAndForget => {
            let status = qmp.status().await.map_err(anyhow::Error::new)?;
            if is_left_by_migration(&status) {
                return Err(refusal("a migration stopped it and did not end", path));
            }
            tracing::info!(
                attempt = %entry.attempt,
                "an earlier agent died and the guest stayed here; QEMU's settings are put back"
            );
            settings::restore(qmp, &entry.saved).await;
        }
        Verdict::Refuse(why) => return Err(refusal(why, path)),
    }
    journal
        .remove()
        .map_err(|error| anyhow::Error::new(error).into())
}

fn refusal(why: &str, path: &Path) -> Failure {
    Failure::refused(format!(
        "this guest is on record with Pacer: {why}; first settle that: pacer resolve --qmp {}",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_that_is_here_is_migrated_again() {
        assert_eq!(verdict(Step::Start), Verdict::RestoreAndForget);
        assert_eq!(verdict(Step::Returned), Verdict::Forget);
        assert_eq!(verdict(Step::Running), Verdict::Forget);
        for step in [
            Step::Committing,
            Step::Done,
            Step::Ready,
            Step::Committed,
            Step::Aborted,
        ] {
            assert!(matches!(verdict(step), Verdict::Refuse(_)), "{step:?}");
        }
    }
}
