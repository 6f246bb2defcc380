//! QEMU's settings at the source: what Pacer sets for a migration, and putting
//! back what was there before.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::qmp::{Qmp, QmpError};

/// QEMU's own limiter stays out of the way: the bucket is the limit. (QEMU's
/// default is 128 MiB/s.)
const MAX_BANDWIDTH_BYTES_PER_SECOND: u64 = 1 << 40;
/// QEMU 8.2 and later can be told what bandwidth to count on at the switchover.
pub const SWITCHOVER_BANDWIDTH: &str = "avail-switchover-bandwidth";

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
const AUTO_CONVERGE: &str = "auto-converge";

/// What a migration needs of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How long the guest may stand.
    pub downtime_limit: Duration,
    /// Pacer may have QEMU slow the guest. Capabilities cannot be set once a
    /// migration runs, so it is on from the start and slows by next to nothing.
    pub throttle: bool,
}

/// Sets QEMU for a migration through the relay. Returns what was there before,
/// for [`restore`].
///
/// # Errors
///
/// If QEMU refuses; then nothing may be begun.
pub async fn set(qmp: &Qmp, wanted: Wanted) -> Result<Value, QmpError> {
    let changes = capability_changes(&qmp.capabilities().await?, wanted);
    let parameters = qmp.parameters().await?;
    let values = parameter_values(&parameters, wanted);
    let saved = json!({
        "capabilities": changes.iter().map(|(name, state)| (name.clone(), !state))
            .collect::<Vec<_>>(),
        "parameters": before(&parameters, &values),
    });
    if !changes.is_empty() {
        tracing::info!(?changes, "QEMU's capabilities are set for the migration");
        qmp.set_capabilities(&changes).await?;
    }
    if let Err(error) = qmp.set_parameters(Value::Object(values)).await {
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

/// Whether QEMU can be told the bandwidth of the switchover, by what [`set`] saved.
#[must_use]
pub fn knows_switchover_bandwidth(saved: &Value) -> bool {
    saved
        .get("parameters")
        .is_some_and(|parameters| parameters.get(SWITCHOVER_BANDWIDTH).is_some())
}

/// The capabilities that are not as they must be, of those that this QEMU knows.
fn capability_changes(present: &[(String, bool)], wanted: Wanted) -> Vec<(String, bool)> {
    present
        .iter()
        .filter_map(|(name, state)| {
            let on = match name.as_str() {
                name if ON.contains(&name) => true,
                name if OFF.contains(&name) => false,
                AUTO_CONVERGE if wanted.throttle => true,
                _ => return None,
            };
            (*state != on).then(|| (name.clone(), on))
        })
        .collect()
}

/// The parameters to set, of those this QEMU has.
fn parameter_values(present: &Map<String, Value>, wanted: Wanted) -> Map<String, Value> {
    let limit = u64::try_from(wanted.downtime_limit.as_millis()).unwrap_or(u64::MAX);
    let mut values = vec![
        ("downtime-limit", json!(limit.max(1))),
        ("max-bandwidth", json!(MAX_BANDWIDTH_BYTES_PER_SECOND)),
        // QEMU measures by itself until it is told.
        (SWITCHOVER_BANDWIDTH, json!(0)),
    ];
    if wanted.throttle {
        // From the least on, at the first sync that finds much, and in one step to
        // whatever the highest is set to then: how far is for Pacer to say.
        values.extend([
            ("cpu-throttle-initial", json!(1)),
            ("max-cpu-throttle", json!(1)),
            ("cpu-throttle-increment", json!(99)),
            ("cpu-throttle-tailslow", json!(false)),
            ("throttle-trigger-threshold", json!(1)),
        ]);
    }
    values
        .into_iter()
        .filter(|(name, _)| present.contains_key(*name))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// What the parameters of these names were.
fn before(present: &Map<String, Value>, values: &Map<String, Value>) -> Map<String, Value> {
    values
        .keys()
        .filter_map(|name| Some((name.clone(), present.get(name)?.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        downtime_limit: Duration::from_millis(300),
        throttle: false,
    };

    /// As QEMU 7.2 answers, as far as it matters here.
    fn old() -> Map<String, Value> {
        let parameters = json!({
            "cpu-throttle-tailslow": false, "throttle-trigger-threshold": 50,
            "announce-rounds": 5, "downtime-limit": 300, "cpu-throttle-increment": 10,
            "cpu-throttle-initial": 20, "max-cpu-throttle": 99,
            "max-bandwidth": 134_217_728, "tls-creds": "",
        });
        parameters.as_object().unwrap().clone()
    }

    fn new() -> Map<String, Value> {
        let mut parameters = old();
        parameters.insert(SWITCHOVER_BANDWIDTH.to_owned(), json!(0));
        parameters
    }

    #[test]
    fn only_what_qemu_has_is_set_and_all_of_it_is_saved() {
        for (parameters, count) in [(old(), 2), (new(), 3)] {
            let values = parameter_values(&parameters, WANTED);
            assert_eq!(values.len(), count);
            let saved = before(&parameters, &values);
            assert!(saved.keys().eq(values.keys()));
            assert_eq!(saved["max-bandwidth"], 134_217_728);
        }
        let saved = json!({ "parameters": before(&new(), &parameter_values(&new(), WANTED)) });
        // 0 was there, and is put back like any other value.
        assert_eq!(saved["parameters"][SWITCHOVER_BANDWIDTH], 0);
        assert!(knows_switchover_bandwidth(&saved));
        assert!(!knows_switchover_bandwidth(
            &json!({ "parameters": before(&old(), &parameter_values(&old(), WANTED)) })
        ));
    }

    #[test]
    fn a_guest_is_slowed_by_next_to_nothing_at_first() {
        let wanted = Wanted {
            throttle: true,
            ..WANTED
        };
        let values = parameter_values(&new(), wanted);
        // QEMU refuses a highest below the first.
        assert_eq!(values["cpu-throttle-initial"], 1);
        assert_eq!(values["max-cpu-throttle"], 1);
        let saved = before(&new(), &values);
        assert_eq!(saved["max-cpu-throttle"], 99);
        assert_eq!(saved["cpu-throttle-tailslow"], false);
    }

    #[test]
    fn capabilities_that_are_right_are_left_alone() {
        let present = [
            ("return-path", false),
            ("events", true),
            ("multifd", true),
            ("auto-converge", false),
            ("xbzrle", true),
        ]
        .map(|(name, state)| (name.to_owned(), state));
        let changes = |wanted| capability_changes(&present, wanted);
        let expected = vec![
            ("return-path".to_owned(), true),
            ("multifd".to_owned(), false),
        ];
        assert_eq!(changes(WANTED), expected);
        let throttled = changes(Wanted {
            throttle: true,
            ..WANTED
        });
        assert_eq!(throttled[2], (AUTO_CONVERGE.to_owned(), true));
    }
}
