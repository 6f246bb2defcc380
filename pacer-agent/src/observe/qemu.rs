//! QEMU asked to measure how the guest writes its memory: the probe sees the
//! dirty logs that it reads for that.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::clock;
use crate::measure::{self, Accelerator};
use crate::pacing::sample::DirtyWindow;
use crate::pacing::time::Time;
use crate::qmp::{Qmp, QmpError};

/// A set of windows is measured this often.
const SET_EVERY: Duration = Duration::from_secs(10);
/// Every so many sets, the first too, longer windows are measured as well.
const LONG_EVERY: u32 = 6;
/// Lengths of a set's windows, in milliseconds: 0.85 s of 10 s.
const SHORT_MS: [u64; 4] = [50, 100, 200, 500];
const LONG_MS: [u64; 2] = [1000, 2000];
/// The same for versions that measure whole seconds only.
const SHORT_WHOLE_MS: [u64; 1] = [1000];
const LONG_WHOLE_MS: [u64; 1] = [2000];

/// What came of asking.
#[derive(Debug)]
pub(super) enum News {
    /// QEMU measured from `began` to `ended`, by its own figure this much.
    Measured {
        /// Its figure.
        window: DirtyWindow,
        /// When it was asked.
        began: Time,
        /// When it had ended.
        ended: Time,
    },
    /// It did not; the reason.
    NotMeasured(String),
    /// The monitor is gone, for this reason; nothing more comes.
    Gone(String),
}

/// Measures set after set until the monitor or the receiver is gone.
pub(super) async fn measure_sets(qmp: Qmp, accelerator: Accelerator, news: UnboundedSender<News>) {
    let mut timer = tokio::time::interval(SET_EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for set in 0u32.. {
        timer.tick().await;
        let told = match measure_set(&qmp, accelerator, set, &news).await {
            Ok(()) => Ok(()),
            Err(error @ QmpError::Gone { .. }) => {
                // Nobody may be left to hear it.
                let _ = news.send(News::Gone(error.to_string()));
                return;
            }
            Err(error) => news.send(News::NotMeasured(error.to_string())),
        };
        if told.is_err() {
            return;
        }
    }
}

async fn measure_set(
    qmp: &Qmp,
    accelerator: Accelerator,
    set: u32,
    news: &UnboundedSender<News>,
) -> Result<(), QmpError> {
    let version = qmp.version_numbers();
    for window in windows(version, set) {
        // Then QEMU reads its logs anyway, and must not be disturbed.
        if is_migrating(qmp.migration().await?.status.as_deref()) {
            return Ok(());
        }
        let Some(arguments) = measure::arguments(accelerator, version, window) else {
            continue;
        };
        let began = clock::now();
        let window = measure::measure(qmp, accelerator, arguments, window).await?;
        let ended = clock::now();
        // Nobody may be left to hear it; the next set ends the task.
        let _ = news.send(News::Measured {
            window,
            began,
            ended,
        });
    }
    Ok(())
}

fn windows(version: (u64, u64, u64), set: u32) -> Vec<Duration> {
    let (short, long): (&[u64], &[u64]) = if version >= measure::MILLISECONDS {
        (&SHORT_MS, &LONG_MS)
    } else {
        (&SHORT_WHOLE_MS, &LONG_WHOLE_MS)
    };
    let long = if set.is_multiple_of(LONG_EVERY) {
        long
    } else {
        &[]
    };
    short
        .iter()
        .chain(long)
        .copied()
        .map(Duration::from_millis)
        .collect()
}

/// Whether the state that `query-migrate` names is one of a migration that has
/// begun and not ended.
fn is_migrating(status: Option<&str>) -> bool {
    !matches!(
        status,
        None | Some("none" | "completed" | "failed" | "cancelled")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_takes_a_seventh_of_the_time_at_most() {
        for version in [(7, 2, 0), (10, 0, 2)] {
            let total: Duration = (0..LONG_EVERY).flat_map(|set| windows(version, set)).sum();
            assert!(total * 7 < SET_EVERY * LONG_EVERY, "{version:?}: {total:?}");
            let possible = |window| measure::arguments(Accelerator::Kvm, version, window).is_some();
            assert!(windows(version, 0).into_iter().all(possible));
        }
    }

    #[test]
    fn an_ended_migration_is_none() {
        assert!(!is_migrating(None));
        assert!(!is_migrating(Some("completed")));
        assert!(is_migrating(Some("postcopy-active")));
        assert!(is_migrating(Some("active")));
    }
}
