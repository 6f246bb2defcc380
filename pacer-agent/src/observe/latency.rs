//! Quantiles of latencies that are known by powers of two. Pure.

use crate::units::to_f64;

/// The latency, in seconds, that a `share` (0 to 1) of the requests did not
/// exceed, where `by_latency[k]` requests took 2^k up to 2^(k+1) ns. Within a
/// bucket requests are taken to lie evenly in proportion, so that it is right to
/// a factor of two at worst. `None` without requests.
pub(super) fn quantile(by_latency: &[u64], share: f64) -> Option<f64> {
    let total: u64 = by_latency.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = to_f64(total) * share;
    let mut below = 0.0;
    for (bucket, &count) in (0..).zip(by_latency) {
        let count = to_f64(count);
        if count > 0.0 && below + count >= rank {
            let within = ((rank - below) / count).clamp(0.0, 1.0);
            return Some(2f64.powf(f64::from(bucket) + within) * 1e-9);
        }
        below += count;
    }
    None
}

/// What was added to each bucket since `before`.
pub(super) fn grown(now: &[u64], before: &[u64]) -> Vec<u64> {
    now.iter()
        .enumerate()
        .map(|(bucket, &count)| {
            let earlier = before.get(bucket).copied().unwrap_or(0);
            count.saturating_sub(earlier)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(by_latency: &[u64], share: f64, nanos: f64) {
        let found = quantile(by_latency, share).unwrap() * 1e9;
        assert!((found / nanos - 1.0).abs() < 1e-9, "{share}: {found}");
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        // 50 requests of 8 to 16 ns, 50 of 64 to 128 ns.
        let by_latency = [0, 0, 0, 50, 0, 0, 50];
        check(&by_latency, 0.5, 16.0);
        check(&by_latency, 0.25, 8.0 * 2f64.sqrt());
        check(&by_latency, 1.0, 128.0);
        assert_eq!(quantile(&[0, 0], 0.5), None);
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn what_is_new_is_the_difference() {
        assert_eq!(grown(&[5, 7, 1], &[5, 2]), [0, 5, 1]);
    }
}
