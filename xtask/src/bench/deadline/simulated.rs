//! What the simulation of a recorded migration says of it, apart from what its
//! controller said: the earliest finish, and the lowest rate that would have done.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Halvings of the interval of rates: to a thousandth.
const HALVINGS: u32 = 11;

/// When `pacer simulate` says that the same guest arrives at a constant rate; `None` if
/// never.
pub(super) fn finish(pacer: &Path, trace: &Path, bytes_per_second: f64) -> Result<Option<f64>> {
    let mut command = Command::new(pacer);
    command.arg("simulate").arg(trace);
    command.args(["--rate", &format!("{bytes_per_second:.0}B/s"), "--json"]);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    let said: Value = serde_json::from_slice(&output.stdout)?;
    Ok(said["finish_seconds"].as_f64())
}

/// The lowest rate between `low` and `high` that finishes by `deadline`; `None` if
/// `high` does not.
pub(super) fn lowest_rate(
    (mut low, mut high): (f64, f64),
    deadline: f64,
    mut finish: impl FnMut(f64) -> Result<Option<f64>>,
) -> Result<Option<f64>> {
    let mut meets = |rate| Ok::<_, anyhow::Error>(finish(rate)?.is_some_and(|at| at <= deadline));
    if !meets(high)? {
        return Ok(None);
    }
    for _ in 0..HALVINGS {
        let middle = (low * high).sqrt();
        if meets(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(Some(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_rate_that_does_is_found() {
        // 1 GB, and below 8 MB/s it never ends.
        let finish = |rate: f64| Ok((rate > 8e6).then_some(1e9 / rate));
        let lowest = |deadline| lowest_rate((1e6, 1e8), deadline, finish).unwrap();
        assert!((lowest(50.0).unwrap() / 2e7 - 1.0).abs() < 0.01);
        assert!((lowest(500.0).unwrap() / 8e6 - 1.0).abs() < 0.01);
        assert_eq!(lowest(5.0), None);
    }
}
