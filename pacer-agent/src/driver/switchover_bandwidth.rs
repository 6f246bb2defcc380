//! What QEMU is told to count on at the switchover.
//!
//! QEMU completes when what is left can be sent within the downtime limit. How fast it
//! can be sent QEMU takes from what its socket took in the last 100 ms: the bucket's
//! pace, and noisy. From 8.2 on it can be told, and is told that same pace, without the
//! noise and as soon as it changes. The bucket opens at the stop, so that the guest
//! stands for less than the limit. A higher figure, such as the link's rate, would
//! complete earlier with more left, and a slow phase could not be held any more.

use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::qmp::Qmp;
use crate::settings::SWITCHOVER_BANDWIDTH;

/// A smaller change is not worth a command, in percent.
const NOTICEABLE_PERCENT: u64 = 2;
/// QEMU looks at it ten times a second.
const LEAST_SPACING: Duration = Duration::from_millis(50);

/// From here on it may be the machine and not the bucket that sets the pace: QEMU's own
/// measurement then knows better, and one that is too high would stop the guest for long.
const MOST: u64 = 250_000_000;

/// Keeps QEMU told until it is dropped.
#[derive(Debug)]
pub(super) struct SwitchoverBandwidth {
    rate: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl SwitchoverBandwidth {
    pub(super) fn start(qmp: Qmp) -> Self {
        let (rate, changes) = watch::channel(0);
        Self {
            rate,
            task: tokio::spawn(tell(qmp, changes)),
        }
    }

    /// Bytes of the stream may go at this rate from now on; `u64::MAX` is no limit.
    pub(super) fn set(&self, bytes_per_second: u64) {
        let told = figure(bytes_per_second);
        self.rate.send_if_modified(|last| {
            let changed = is_noticeable(*last, told);
            if changed {
                *last = told;
            }
            changed
        });
    }
}

impl Drop for SwitchoverBandwidth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tell(qmp: Qmp, mut changes: watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {
        let rate = *changes.borrow_and_update();
        let parameters = json!({ SWITCHOVER_BANDWIDTH: rate });
        if let Err(error) = qmp.set_parameters(parameters).await {
            // QEMU then goes on with the last, or with its own measurement.
            tracing::debug!(%error, rate, "QEMU was not told the bandwidth");
        }
        tokio::time::sleep(LEAST_SPACING).await;
    }
}

/// The parameter's value: 0 has QEMU measure by itself.
const fn figure(bytes_per_second: u64) -> u64 {
    match bytes_per_second {
        0 => 1,
        MOST.. => 0,
        rate => rate,
    }
}

const fn is_noticeable(last: u64, next: u64) -> bool {
    if last == 0 || next == 0 {
        return last != next;
    }
    last.abs_diff(next).saturating_mul(100) > last.saturating_mul(NOTICEABLE_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_not_told() {
        assert!(!is_noticeable(0, 0));
        assert!(is_noticeable(0, 1));
        assert!(is_noticeable(50_000_000, 0));
        assert!(!is_noticeable(50_000_000, 50_900_000));
        assert!(is_noticeable(50_000_000, 48_900_000));
        assert!(is_noticeable(1, 2));
    }

    #[test]
    fn no_limit_has_qemu_measure_and_a_closed_bucket_is_not_that() {
        assert_eq!(figure(u64::MAX), 0);
        assert_eq!(figure(100_000_000), 100_000_000);
        assert_eq!(figure(0), 1);
    }
}
