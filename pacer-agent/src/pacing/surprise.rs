//! How wrong the curve was about what syncs then found.

use std::collections::VecDeque;
use std::time::Duration;

/// Syncs whose errors are kept, and what the curve's own estimate counts for
/// beside them.
const KEPT: usize = 8;
const PRIOR: f64 = 2.0;
/// More than this, e times as many pages, is no spread but another guest.
const MOST: f64 = 1.0;

/// The last errors, as logarithms of found over expected.
#[derive(Clone, Debug, Default)]
pub(super) struct Surprises {
    /// With the logarithm of the window in seconds.
    errors: VecDeque<(f64, f64)>,
}

impl Surprises {
    /// A sync after `window` was off by `error`.
    pub(super) fn push(&mut self, window: Duration, error: f64) {
        if self.errors.len() >= KEPT {
            self.errors.pop_front();
        }
        let window = window.as_secs_f64().max(1e-4);
        self.errors.push_back((window.ln(), error));
    }

    /// The standard deviation for `window` of a curve that itself supposes `own`:
    /// errors about windows like it count most.
    pub(super) fn spread(&self, window: Duration, own: f64) -> f64 {
        let window = window.as_secs_f64().max(1e-4).ln();
        let mut squares = PRIOR * own * own;
        let mut weights = PRIOR;
        for (other, error) in &self.errors {
            let weight = nearness(window - other);
            squares += weight * error * error;
            weights += weight;
        }
        (squares / weights).sqrt().min(MOST)
    }
}

/// What is known of one window counts so much for another, by the logarithm of their
/// ratio: half for one that is three times as long.
pub(super) fn nearness(distance: f64) -> f64 {
    (-0.5 * distance * distance).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::number::to_f64;

    #[test]
    fn errors_about_other_windows_hardly_count() {
        let mut surprises = Surprises::default();
        let second = Duration::from_secs(1);
        assert!((surprises.spread(second, 0.05) - 0.05).abs() < 1e-9);
        for _ in 0..KEPT + 1 {
            surprises.push(Duration::from_millis(50), 2.0);
        }
        assert!(surprises.spread(Duration::from_secs(20), 0.05) < 0.06);
        assert!(surprises.spread(Duration::from_millis(50), 0.05) >= MOST);
        assert_eq!(surprises.errors.len(), KEPT);
        assert!(surprises.spread(Duration::ZERO, 0.05).is_finite());
        let share = to_f64(KEPT as u64) / (PRIOR + to_f64(KEPT as u64));
        surprises.errors.iter_mut().for_each(|one| one.1 = 0.5);
        let spread = surprises.spread(Duration::from_millis(50), 0.0);
        assert!((spread - 0.5 * share.sqrt()).abs() < 1e-9, "{spread}");
    }
}
