//! QEMU's settings at the source: what Pacer sets for a migration, and putting
//! back what was there before.

use std::time::Duration;

use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};

/// QEMU's own limiter stays out of the way: the bucket is the limit. (QEMU's
/// default is 128 MiB/s.)
const MAX_BANDWIDTH_BYTES_PER_SECOND: u64 = 1 << 40;

/// What must be on: without the return path `completed` proves nothing, and
/// without events the switchover would have to be polled for, which QEMU does
/// not answer just then.
const ON: [&str; 2] = ["events", "return-path"];
/// What must be off: more connections, or another end, than this version knows.
const OFF: [&str; 5] = [
    "multifd",
    "postcopy-ram",
    "postcopy-preempt",
    "pause-before-switchover",
    "background-snapshot",
];

/// Sets QEMU for a migration through the relay. Returns what was there before,
/// for [`restore`].
///
/// # Errors
///
/// If QEMU refuses; then nothing may be begun.
pub async fn set(qmp: &Qmp, downtime_limit: Duration) -> Result<Value, QmpError> {
    let capabilities = qmp.capabilities().await?;
    let changes: Vec<(String, bool)> = capabilities
        .iter()
        .filter_map(|(name, state)| {
            let wanted = if ON.contains(&name.as_str()) {
                true
            } else if OFF.contains(&name.as_str()) {
                false
            } else {
                return None;
            };
            (*state != wanted).then(|| (name.clone(), wanted))
        })
        .collect();
    let parameters = qmp.parameters().await?;
    let wanted = json!({
        "downtime-limit": u64::try_from(downtime_limit.as_millis()).unwrap_or(u64::MAX).max(1),
        "max-bandwidth": MAX_BANDWIDTH_BYTES_PER_SECOND,
    });
    let before: serde_json::Map<String, Value> = wanted
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .filter_map(|name| Some((name.clone(), parameters.get(name)?.clone())))
        .collect();
    let saved = json!({
        "capabilities": changes.iter().map(|(name, state)| (name.clone(), !state))
            .collect::<Vec<_>>(),
        "parameters": before,
    });
    if !changes.is_empty() {
        tracing::info!(?changes, "QEMU's capabilities are set for the migration");
        qmp.set_capabilities(&changes).await?;
    }
    if let Err(error) = qmp.set_parameters(wanted).await {
        restore(qmp, &saved).await;
        return Err(error);
    }
    Ok(saved)
}

/// Puts back what [`set`] found. What QEMU refuses is said in the log.
pub async fn restore(qmp: &Qmp, saved: &Value) {
    if let Some(parameters) = saved.get("parameters").filter(|value| value.is_object())
        && let Err(error) = qmp.set_parameters(parameters.clone()).await
    {
        tracing::warn!(%error, "QEMU's parameters were not put back");
    }
    let capabilities: Vec<(String, bool)> = saved
        .get("capabilities")
        .and_then(|value| serde_json::from_value(value.clone()).ok())
        .unwrap_or_default();
    if !capabilities.is_empty()
        && let Err(error) = qmp.set_capabilities(&capabilities).await
    {
        tracing::warn!(%error, "QEMU's capabilities were not put back");
    }
}
