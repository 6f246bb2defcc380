//! The handover: how a guest is never lost and never runs twice.
//!
//! Steps P0 to P6 are named in ARCHITECTURE.md. The point of no return is P4:
//! what the journal says there decides who may ever run the guest again.

pub mod completion;
pub mod destination;
pub mod resolve;
pub mod source;

use std::time::Duration;

use crate::process::ProcessId;
use crate::qmp::{Qmp, QmpError};

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
