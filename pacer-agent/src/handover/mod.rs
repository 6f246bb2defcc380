//! The handover: how a guest is never lost and never runs twice.
//!
//! Steps P0 to P6 are named in ARCHITECTURE.md. The point of no return is P4:
//! what the journal says there decides who may ever run the guest again.

pub mod completion;
pub mod destination;
pub mod earlier;
pub mod recover;
pub mod resolve;
pub mod source;

use std::path::Path;
use std::time::Duration;

use crate::clock;
use crate::process::ProcessId;
use crate::qmp::{MigrationInfo, Qmp, QmpError, RunStatus};

/// How long a guest takes to go on after `cont`, at most.
const CONTINUE_TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Why a guest was not seen to go on.
#[derive(Debug, thiserror::Error)]
pub enum ContinueError {
    /// QEMU refused `cont`: the guest did not run.
    #[error("QEMU does not continue it ({0})")]
    Refused(QmpError),
    /// It was told to go on and not seen running: it may have run.
    #[error("it was told to go on and is not seen running ({0})")]
    Unseen(QmpError),
}

/// Continues the guest and waits until it runs.
///
/// # Errors
///
/// If QEMU refuses, or the guest is not seen running within 5 s.
pub async fn continue_guest(qmp: &Qmp) -> Result<(), ContinueError> {
    match qmp.run("cont", serde_json::Value::Null).await {
        Ok(()) => {}
        Err(error @ QmpError::Refused { .. }) => return Err(ContinueError::Refused(error)),
        Err(error) => return Err(ContinueError::Unseen(error)),
    }
    let running = async {
        while !qmp.status().await?.running {
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    };
    tokio::time::timeout(CONTINUE_TIMEOUT, running)
        .await
        .unwrap_or(Err(QmpError::Silent {
            command: "cont".to_owned(),
            timeout: CONTINUE_TIMEOUT,
        }))
        .map_err(ContinueError::Unseen)
}

/// Whether the source has completed this migration. A QEMU that was itself
/// migrated in says `completed` of that until the next one begins; then its
/// guest is not in the state that a migration leaves behind.
#[must_use]
pub fn has_completed(info: &MigrationInfo, status: &RunStatus) -> bool {
    info.is("completed") && is_left_by_migration(status)
}

/// Whether it was a migration that stopped the guest, and not a person.
#[must_use]
pub fn is_left_by_migration(status: &RunStatus) -> bool {
    matches!(status.status.as_str(), "postmigrate" | "finish-migrate")
}

/// Whether the guest stands still for a reason of its own, which `cont` alone
/// does not mend.
#[must_use]
pub fn is_broken(status: &RunStatus) -> bool {
    matches!(
        status.status.as_str(),
        "io-error" | "internal-error" | "guest-panicked" | "shutdown" | "watchdog"
    )
}

/// Connects to the monitor at `path`, which an agent that has just died may
/// still seem to hold, and which answers nothing while the guest's last memory
/// is sent.
///
/// # Errors
///
/// If `qemu` has ended, or does not answer within `patience`.
pub async fn reconnect(
    path: &Path,
    qemu: Option<ProcessId>,
    patience: Duration,
) -> Result<Qmp, QmpError> {
    let until = clock::now() + patience;
    loop {
        match Qmp::connect(path).await {
            Ok(qmp) => return Ok(qmp),
            Err(error) if clock::now() >= until || qemu.is_some_and(|qemu| !qemu.is_alive()) => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Ends a QEMU whose guest must not run here, and waits until it is gone.
/// True if it is.
pub async fn end_qemu(qmp: Option<&Qmp>, qemu: ProcessId) -> bool {
    if let Some(qmp) = qmp {
        // It may be gone already, or go before it answers.
        let _ = qmp.run("quit", serde_json::Value::Null).await;
    }
    tokio::time::timeout(CONTINUE_TIMEOUT, qemu.ended())
        .await
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(migration: Option<&str>, state: &str, expected: bool) {
        let info = MigrationInfo {
            status: migration.map(str::to_owned),
            ..MigrationInfo::default()
        };
        let status = RunStatus {
            running: state == "running",
            status: state.to_owned(),
        };
        assert_eq!(
            has_completed(&info, &status),
            expected,
            "{migration:?} {state}"
        );
    }

    #[test]
    fn completed_counts_only_of_a_guest_that_a_migration_has_stopped() {
        check(Some("completed"), "postmigrate", true);
        check(Some("completed"), "finish-migrate", true);
        // It was migrated in, and nothing has begun since.
        check(Some("completed"), "running", false);
        check(Some("completed"), "paused", false);
        check(Some("failed"), "postmigrate", false);
        check(None, "paused", false);
    }
}
