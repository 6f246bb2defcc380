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

/// Continues the guest and waits until it runs.
///
/// # Errors
///
/// If QEMU refuses, or the guest does not run within 5 s.
pub async fn continue_guest(qmp: &Qmp) -> Result<(), QmpError> {
    qmp.run("cont", serde_json::Value::Null).await?;
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
