//! How the guest dirties its memory, asked before the first byte is sent.
//!
//! QEMU's own `calc-dirty-rate` makes it read KVM's dirty log, which the probe
//! counts exactly. Without the probe QEMU's figure is used, in steps of 1 MiB/s.
//! Under TCG there is no log: QEMU samples pages.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::clock;
use crate::pacing::sample::{DirtyWindow, Origin};
use crate::qmp::{Qmp, QmpError};

/// Window lengths where QEMU measures in milliseconds (8.2 and later).
const WINDOWS_MS: [u64; 4] = [50, 100, 200, 500];
/// The first version that measures in milliseconds.
pub const MILLISECONDS: (u64, u64, u64) = (8, 2, 0);
/// Before 8.2 QEMU measures in whole seconds.
const WINDOW_SECONDS: u64 = 1;
/// Samples per GiB: the most that every version takes.
const SAMPLE_PAGES: u64 = 4096;
const POLL: Duration = Duration::from_millis(10);
/// A measurement that is this much late is given up.
const LATE: Duration = Duration::from_secs(3);

/// How QEMU runs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM: dirty pages are in its log.
    Kvm,
    /// Anything else.
    Tcg,
}

impl Accelerator {
    /// Asks QEMU.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn of(qmp: &Qmp) -> Result<Self, QmpError> {
        #[derive(Deserialize)]
        struct Kvm {
            enabled: bool,
        }
        let kvm: Kvm = qmp.execute("query-kvm", Value::Null).await?;
        Ok(if kvm.enabled { Self::Kvm } else { Self::Tcg })
    }

    /// The word the report uses.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// The measurements that suit `accelerator` and this QEMU, as the arguments of
/// `calc-dirty-rate` and the length of each window.
#[must_use]
pub fn plan(accelerator: Accelerator, version: (u64, u64, u64)) -> Vec<(Value, Duration)> {
    let windows: Vec<Duration> = if version >= MILLISECONDS {
        WINDOWS_MS.into_iter().map(Duration::from_millis).collect()
    } else {
        vec![Duration::from_secs(WINDOW_SECONDS)]
    };
    windows
        .into_iter()
        .filter_map(|window| Some((arguments(accelerator, version, window)?, window)))
        .collect()
}

/// The arguments of `calc-dirty-rate` for a window of this length. `None` if
/// this QEMU measures no such length: before 8.2 whole seconds only.
#[must_use]
pub fn arguments(
    accelerator: Accelerator,
    version: (u64, u64, u64),
    window: Duration,
) -> Option<Value> {
    let mut arguments = match accelerator {
        Accelerator::Kvm => json!({ "mode": "dirty-bitmap" }),
        Accelerator::Tcg => json!({ "mode": "page-sampling", "sample-pages": SAMPLE_PAGES }),
    };
    if version >= MILLISECONDS {
        arguments["calc-time-unit"] = json!("millisecond");
        arguments["calc-time"] = json!(window.as_millis());
    } else if window.subsec_nanos() == 0 {
        arguments["calc-time"] = json!(window.as_secs());
    } else {
        return None;
    }
    Some(arguments)
}

/// Makes one measurement of [`plan`] and returns QEMU's own figure for it.
///
/// # Errors
///
/// If QEMU refuses or does not end.
pub async fn measure(
    qmp: &Qmp,
    accelerator: Accelerator,
    arguments: Value,
    window: Duration,
) -> Result<DirtyWindow, QmpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Reply {
        status: String,
        dirty_rate: Option<u64>,
    }
    qmp.run("calc-dirty-rate", arguments).await?;
    let late = clock::now() + window + LATE;
    loop {
        let reply: Reply = qmp.execute("query-dirty-rate", Value::Null).await?;
        if let ("measured", Some(rate)) = (reply.status.as_str(), reply.dirty_rate) {
            return Ok(DirtyWindow {
                window,
                pages: pages(rate, window),
                device_pages: 0,
                origin: match accelerator {
                    Accelerator::Kvm => Origin::Qemu,
                    Accelerator::Tcg => Origin::PageSampling,
                },
            });
        }
        if clock::now() > late {
            return Err(QmpError::Silent {
                command: "query-dirty-rate".to_owned(),
                timeout: window + LATE,
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Pages dirtied in `window` at `rate` MiB a second.
fn pages(rate: u64, window: Duration) -> u64 {
    const PAGES_PER_MIB: u64 = 256;
    let millis = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    rate.saturating_mul(PAGES_PER_MIB).saturating_mul(millis) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_measure_whole_seconds() {
        let old = plan(Accelerator::Kvm, (7, 2, 22));
        assert_eq!(old.len(), 1);
        assert_eq!(old[0].0, json!({ "mode": "dirty-bitmap", "calc-time": 1 }));
        let new = plan(Accelerator::Kvm, (10, 0, 2));
        assert_eq!(new.len(), WINDOWS_MS.len());
        assert_eq!(new[0].0["calc-time-unit"], "millisecond");
        let half = Duration::from_millis(500);
        assert_eq!(arguments(Accelerator::Kvm, (8, 1, 9), half), None);
    }

    #[test]
    fn qemus_figure_becomes_pages() {
        assert_eq!(pages(100, Duration::from_millis(500)), 12_800);
    }
}
