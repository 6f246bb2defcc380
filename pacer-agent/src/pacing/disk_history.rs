//! How often the chunks of a disk are written, and what copying it therefore takes.
//!
//! The idea of the paper that Pacer follows: a chunk's mean write interval says how
//! likely it is to be dirty again when the copy comes back to it. Chunks are counted
//! by class of interval, so that a forecast costs the number of classes, however
//! large the disk.

use std::time::Duration;

use super::number::to_f64;
use super::write_class::{Windows, WriteClass, WriteOrder};

/// Classes of intervals, as the probe counts them.
const CLASSES: usize = 24;
/// Rounds over what was written again; what takes more does not come to an end.
const ROUNDS: u32 = 200;
/// A copy is ready when what is written again takes no longer than this, in seconds:
/// from there on it is kept in step.
const READY_SECONDS: f64 = 0.1;

/// Chunks of one disk, or of several, by how often they are written.
#[derive(Clone, Copy, Debug)]
pub struct DiskHistory {
    classes: [WriteClass; CLASSES],
    chunk_bytes: f64,
}

/// How far the copy of a disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DiskState {
    /// Bytes that the first sweep has yet to copy; holes and zeroes are none.
    pub left_bytes: f64,
    /// Bytes behind it that have been written again.
    pub dirty_bytes: f64,
    /// Seconds since the sweep began.
    pub sweep_seconds: f64,
}

/// What a copy takes from now on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiskOutcome {
    /// Seconds until it is ready; infinite where it never is.
    pub seconds: f64,
    /// Bytes on the wire until then.
    pub bytes: f64,
    /// Rounds over what was written again.
    pub rounds: u32,
}

impl DiskOutcome {
    const NEVER: Self = Self {
        seconds: f64::INFINITY,
        bytes: f64::INFINITY,
        rounds: ROUNDS,
    };
}

impl DiskHistory {
    /// Of a disk in chunks of so many bytes, of which nothing was written.
    #[must_use]
    pub fn new(chunk_bytes: u64) -> Self {
        Self {
            classes: [WriteClass::NONE; CLASSES],
            chunk_bytes: to_f64(chunk_bytes),
        }
    }

    /// Sets how many chunks are written about every `interval`. Of `CLASSES`, 24;
    /// others are left out. A chunk written once while it was watched is best
    /// taken as written once in that time.
    pub fn set(&mut self, class: usize, interval: Duration, chunks: u64) {
        if let Some(slot) = self.classes.get_mut(class) {
            *slot = WriteClass {
                order: WriteOrder::Random,
                seconds: interval.as_secs_f64().max(1e-6),
                pages: to_f64(chunks),
            };
        }
    }

    /// Bytes that are written within `windows`: a chunk that is written in part
    /// is copied whole.
    fn written(&self, windows: Windows) -> f64 {
        let chunks: f64 = self.classes.iter().map(|class| class.found(windows)).sum();
        chunks * self.chunk_bytes
    }

    /// What it takes to copy what is left at `rate` bytes a second: the sweep, and
    /// rounds over what is written meanwhile until one takes a tenth of a second.
    #[must_use]
    pub fn copy(&self, state: &DiskState, rate: f64) -> DiskOutcome {
        if rate.is_nan() || rate <= 0.0 {
            return DiskOutcome::NEVER;
        }
        // A chunk counts as written again only from when the sweep has passed it.
        let sweep = state.left_bytes / rate;
        let whole = state.sweep_seconds + sweep;
        let swept = state.sweep_seconds / whole.max(f64::MIN_POSITIVE);
        let before = swept * self.written(Windows::up_to(state.sweep_seconds));
        let after = self.written(Windows::up_to(whole));
        let mut dirty = state.dirty_bytes + (after - before).max(0.0);
        let mut outcome = DiskOutcome {
            seconds: sweep,
            bytes: state.left_bytes,
            rounds: 0,
        };
        while dirty > rate * READY_SECONDS {
            let seconds = dirty / rate;
            outcome.seconds += seconds;
            outcome.bytes += dirty;
            outcome.rounds += 1;
            let again = self.written(Windows::all(seconds));
            // Never less again: what is written is a monotone function of the time.
            if again >= dirty * 0.9999 || outcome.rounds >= ROUNDS {
                return DiskOutcome::NEVER;
            }
            dirty = again;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn history(classes: &[(u64, u64)]) -> DiskHistory {
        let mut history = DiskHistory::new(MIB);
        for (class, &(millis, chunks)) in classes.iter().enumerate() {
            history.set(class, Duration::from_millis(millis), chunks);
        }
        history
    }

    fn fresh(mib: u64) -> DiskState {
        DiskState {
            left_bytes: to_f64(mib * MIB),
            ..DiskState::default()
        }
    }

    #[test]
    fn a_disk_at_rest_is_swept_once() {
        let outcome = history(&[]).copy(&fresh(100), 10.0 * to_f64(MIB));
        assert!((outcome.seconds - 10.0).abs() < 1e-9, "{outcome:?}");
        assert_eq!(outcome.rounds, 0);
    }

    #[test]
    fn what_is_written_behind_the_sweep_is_copied_again() {
        // Half of what is written all the time lies behind the sweep's middle; at its
        // end all of it is dirty, and 20 MiB take 2 s, in which it is written again.
        let often = history(&[(10, 20)]);
        assert_eq!(
            often.copy(&fresh(100), 10.0 * to_f64(MIB)),
            DiskOutcome::NEVER
        );
        // Ten times as fast a round takes 0.2 s, and never less.
        assert_eq!(
            often.copy(&fresh(100), 100.0 * to_f64(MIB)),
            DiskOutcome::NEVER
        );
        let fast = often.copy(&fresh(100), 250.0 * to_f64(MIB));
        assert!((fast.seconds - 0.4).abs() < 0.01, "{fast:?}");
        // A chunk of a hundred is written each second: the sweep of 10 s finds
        // 100 × (1 − the mean of e^(−t/100)), 4.8.
        let seldom = history(&[(100_000, 100)]).copy(&fresh(100), 10.0 * to_f64(MIB));
        assert!((seldom.seconds - 10.48).abs() < 0.1, "{seldom:?}");
        assert_eq!(seldom.rounds, 1);
    }

    #[test]
    fn half_way_it_goes_on_from_there() {
        let history = history(&[(100_000, 100)]);
        let rate = 10.0 * to_f64(MIB);
        let state = DiskState {
            left_bytes: to_f64(50 * MIB),
            dirty_bytes: history.written(Windows::up_to(5.0)) / 2.0,
            sweep_seconds: 5.0,
        };
        let whole = history.copy(&fresh(100), rate).seconds;
        let half = history.copy(&state, rate).seconds;
        assert!((whole - half - 5.0).abs() < 0.02, "{whole} {half}");
    }

    proptest! {
        #[test]
        fn more_rate_is_never_later_and_more_writes_never_sooner(
            intervals in prop::collection::vec((1_u64..1_000_000, 0_u64..5000), 0..30),
            mib in 0_u64..1 << 24,
            dirty in 0.0_f64..1e12,
            rate in any::<f64>(),
        ) {
            let state = DiskState { dirty_bytes: dirty, ..fresh(mib) };
            let seconds = |intervals: &[(u64, u64)], rate: f64| {
                history(intervals).copy(&state, rate).seconds
            };
            let base = seconds(&intervals, rate);
            prop_assert!(!base.is_nan() && base >= 0.0);
            if rate > 0.0 && rate < 1e300 {
                // One short round more or less is a tenth of a second.
                prop_assert!(seconds(&intervals, rate * 1.5) <= base + READY_SECONDS);
            }
            let calmer: Vec<_> = intervals.iter().map(|&(ms, n)| (ms, n / 2)).collect();
            prop_assert!(seconds(&calmer, rate) <= base + READY_SECONDS);
        }
    }
}
