//! Between counters and the floating point the forecasts are made in, with the
//! rounding argued once.

/// A counter as a float. Exact below 2^53; above it the error is 1 in 10^16,
/// far below that of any forecast.
#[expect(clippy::cast_precision_loss, reason = "argued in the documentation")]
pub(super) const fn to_f64(value: u64) -> f64 {
    value as f64
}

/// A float as a counter, saturating: negative and NaN are 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, which is what is wanted"
)]
pub(super) const fn to_u64(value: f64) -> u64 {
    value as u64
}

/// Seconds as a duration, saturating at both ends. NaN is zero.
pub(super) fn to_duration(seconds: f64) -> std::time::Duration {
    std::time::Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(std::time::Duration::MAX)
}
