//! Medians, quantiles, and the intervals around them. Pure.

use fastrand::Rng;

/// How often a sample is drawn again for an interval.
const RESAMPLES: usize = 2000;
/// The two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_964;

/// The `q`-quantile (0 to 1) by linear interpolation; `None` of nothing.
pub(super) fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = q.clamp(0.0, 1.0) * count(last);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to the last index"
    )]
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let share = at - count(below);
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

/// The median; `None` of nothing.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The largest; `None` of nothing.
pub(super) fn largest(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

/// Where the median lies with 95 % confidence, by the percentile bootstrap;
/// `None` of fewer than 3 values. The same seed gives the same interval.
pub(super) fn median_interval95(values: &[f64], seed: u64) -> Option<[f64; 2]> {
    quantile_interval95(values, 0.5, seed)
}

/// The same of the `q`-quantile (0 to 1).
pub(super) fn quantile_interval95(values: &[f64], q: f64, seed: u64) -> Option<[f64; 2]> {
    if values.len() < 3 {
        return None;
    }
    let mut rng = Rng::with_seed(seed);
    let mut resample = vec![0.0; values.len()];
    let quantiles: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            resample.fill_with(|| values[rng.usize(..values.len())]);
            quantile(&resample, q)
        })
        .collect();
    Some([quantile(&quantiles, 0.025)?, quantile(&quantiles, 0.975)?])
}

/// Where a share lies with 95 % confidence of which `hits` of `n` were seen
/// (Wilson's score interval); `None` of nothing.
pub(super) fn share_interval95(hits: usize, n: usize) -> Option<[f64; 2]> {
    if n == 0 {
        return None;
    }
    let (hits, n) = (count(hits), count(n));
    let share = hits / n;
    let scale = 1.0 + Z * Z / n;
    let middle = (share + Z * Z / (2.0 * n)) / scale;
    let half = Z / scale * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    Some([(middle - half).max(0.0), (middle + half).min(1.0)])
}

/// A count as a float; exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
pub(super) const fn count(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), Some(2.5));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&values, 1.0 / 3.0), Some(2.0));
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_n() {
        let spread =
            |n: u32| -> Vec<f64> { (0..n).map(f64::from).map(|x| x / f64::from(n)).collect() };
        let width = |n| {
            let [low, high] = median_interval95(&spread(n), 7).unwrap();
            assert!(low <= 0.5 && 0.5 <= high, "{low} {high}");
            high - low
        };
        assert!(width(400) < width(25) / 2.0);
        assert_eq!(median_interval95(&[1.0, 2.0], 7), None);
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values = [1.0, 5.0, 2.0, 8.0, 3.0];
        assert_eq!(median_interval95(&values, 3), median_interval95(&values, 3));
    }

    #[test]
    fn a_share_is_between_0_and_1() {
        let [low, high] = share_interval95(100, 100).unwrap();
        assert!(low > 0.95 && (high - 1.0).abs() < 1e-12, "{low} {high}");
        let [low, high] = share_interval95(0, 10).unwrap();
        assert!(
            low.abs() < 1e-12 && high > 0.2 && high < 0.35,
            "{low} {high}"
        );
        // Wilson's for 5 of 10, as in textbooks.
        let [low, high] = share_interval95(5, 10).unwrap();
        assert!((low - 0.2366).abs() < 1e-3 && (high - 0.7634).abs() < 1e-3);
        assert_eq!(share_interval95(0, 0), None);
    }
}
