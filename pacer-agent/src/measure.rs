//! How the guest dirties its memory, asked before the first byte is sent.
//!
//! QEMU's own `calc-dirty-rate` makes it read KVM's dirty log, which the probe
//! counts exactly. Without the probe QEMU's figure is used, in steps of 1 MiB/s.
//! Under TCG there is no log: a sample of pages is compared with what it was, by
//! Pacer where it may read the guest's memory, else by QEMU.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::clock;
use crate::content::{self, Snapshot};
use crate::pacing::measuring::{self, Lead};
use crate::pacing::sample::{DirtyWindow, Origin, Ram};
use crate::pacing::time::Time;
use crate::process::ProcessId;
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

/// How large a guest's memory is, and how much of it is not zero: of its largest block,
/// where `qemu` is known; the rest, ROMs and the like, is taken for not zero.
pub async fn ram(qemu: Option<ProcessId>, total_bytes: u64, largest_block_bytes: u64) -> Ram {
    let look = move || content::content(qemu?, largest_block_bytes);
    // Some ten milliseconds, in which nobody is to wait.
    let content = spawn_blocking(look).await.ok().flatten();
    let rest = total_bytes.saturating_sub(largest_block_bytes);
    Ram {
        total_bytes,
        content_bytes: content.map(|content| content.bytes + rest),
        content_parts: content.and_then(|content| content.parts),
    }
}

/// Measures how a guest dirties its memory, window by window.
#[derive(Debug)]
pub struct Measurer {
    qmp: Qmp,
    accelerator: Accelerator,
    /// Where it may be read: the guest's memory as it was.
    before: Option<Before>,
}

/// A guest's memory as it was at some time, to be compared with what it is.
#[derive(Clone, Debug)]
pub struct Before {
    since: Time,
    snapshot: Arc<Snapshot>,
}

impl Measurer {
    /// For the guest of `qmp`, with RAM of `ram_bytes` in the process `qemu`,
    /// where that is known.
    pub async fn new(
        qmp: Qmp,
        accelerator: Accelerator,
        qemu: Option<ProcessId>,
        ram_bytes: u64,
    ) -> Self {
        let before = match qemu {
            Some(qemu) => Before::of(qemu, ram_bytes).await,
            None => None,
        };
        Self {
            qmp,
            accelerator,
            before,
        }
    }

    /// Measures the usual windows, then longer ones. `heard` is told of each, and says
    /// how long those may take in all; none if they would find no more.
    pub async fn look(
        &self,
        mut heard: impl FnMut(Result<DirtyWindow, QmpError>) -> Option<Duration>,
    ) -> Lead {
        let began = clock::now();
        let mut longest = Duration::ZERO;
        let mut most = None;
        for window in usual(self.qmp.version_numbers()) {
            most = self.next(window, &mut heard).await;
            longest = window;
        }
        let after = clock::now();
        let mut lead = Lead {
            usual: after.since(began),
            longest,
            settled: None,
            is_one: self.counts_nothing(),
        };
        let left = |most: Duration| most.saturating_sub(clock::now().since(after));
        while let Some(most_now) = most
            && let Some(window) = measuring::next_window(longest, left(most_now))
        {
            most = self.next(window, &mut heard).await;
            longest = window;
        }
        lead.settled = most.is_none().then_some(longest);
        lead
    }

    /// Whether the guest's memory is compared alone.
    fn counts_nothing(&self) -> bool {
        self.accelerator != Accelerator::Kvm && self.before.is_some()
    }

    /// What the guest's memory was when this began, where it may be read.
    #[must_use]
    pub fn before(&self) -> Option<&Before> {
        self.before.as_ref()
    }

    /// Has QEMU measure, and looks at the memory after it, which is a longer
    /// window at no cost to the guest. Under TCG it is all there is.
    async fn next(
        &self,
        window: Duration,
        heard: &mut impl FnMut(Result<DirtyWindow, QmpError>) -> Option<Duration>,
    ) -> Option<Duration> {
        let mut most = None;
        let version = self.qmp.version_numbers();
        if !self.counts_nothing()
            && let Some(arguments) = arguments(self.accelerator, version, window)
        {
            most = heard(measure(&self.qmp, self.accelerator, arguments, window).await);
        }
        let compared = match &self.before {
            Some(before) => before.compared(window).await,
            None => None,
        };
        match compared {
            Some(compared) => heard(Ok(compared)),
            None => most,
        }
    }
}

impl Before {
    async fn of(qemu: ProcessId, ram_bytes: u64) -> Option<Self> {
        let since = clock::now();
        match spawn_blocking(move || Snapshot::take(qemu, ram_bytes)).await {
            Ok(Ok(snapshot)) => Some(Self {
                since,
                snapshot: Arc::new(snapshot),
            }),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the guest's memory is not looked into");
                None
            }
            Err(_) => None,
        }
    }

    /// What is another `window` after it was looked at first, or now if that is
    /// past; `None` if the memory cannot be read any more.
    pub async fn compared(&self, window: Duration) -> Option<DirtyWindow> {
        let left = window.saturating_sub(clock::now().since(self.since));
        tokio::time::sleep(left).await;
        let window = clock::now().since(self.since);
        let snapshot = Arc::clone(&self.snapshot);
        let compared = spawn_blocking(move || snapshot.changed_pages()).await;
        Some(DirtyWindow {
            window,
            pages: compared.ok()?.ok()?,
            device_pages: 0,
            origin: Origin::ContentSampling,
        })
    }

    /// How long ago that was.
    #[must_use]
    pub fn age(&self) -> Duration {
        clock::now().since(self.since)
    }
}

/// The windows that every guest is measured over.
fn usual(version: (u64, u64, u64)) -> Vec<Duration> {
    if version >= MILLISECONDS {
        WINDOWS_MS.into_iter().map(Duration::from_millis).collect()
    } else {
        vec![Duration::from_secs(WINDOW_SECONDS)]
    }
}

/// The guest's RAM in bytes, without memory that was plugged in later.
///
/// # Errors
///
/// As [`Qmp::execute`].
pub async fn memory_bytes(qmp: &Qmp) -> Result<u64, QmpError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Size {
        base_memory: u64,
    }
    let size: Size = qmp
        .execute("query-memory-size-summary", Value::Null)
        .await?;
    Ok(size.base_memory)
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

/// Makes one measurement with these [`arguments`] and returns QEMU's own figure
/// for it.
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
        let old = (7, 2, 22);
        assert_eq!(usual(old), [Duration::from_secs(1)]);
        let arguments = |version, milliseconds| {
            arguments(
                Accelerator::Kvm,
                version,
                Duration::from_millis(milliseconds),
            )
        };
        let whole = json!({ "mode": "dirty-bitmap", "calc-time": 1 });
        assert_eq!(arguments(old, 1000), Some(whole));
        assert_eq!(arguments((8, 1, 9), 500), None);
        let new = (10, 0, 2);
        assert_eq!(usual(new).len(), WINDOWS_MS.len());
        let half = arguments(new, 500).expect("in milliseconds");
        assert_eq!(half["calc-time-unit"], "millisecond");
    }

    #[test]
    fn qemus_figure_becomes_pages() {
        assert_eq!(pages(100, Duration::from_millis(500)), 12_800);
    }
}
