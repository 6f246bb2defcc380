//! What a forecast costs for a guest far larger than this machine.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::bench::Plan;
use crate::bench::record::Records;
use crate::bench::target::{Limit, Part};
use crate::build;

const ROW: &str = "forecast-cost";
/// GiB of RAM and of disk: what is to be told, and what it is compared with.
const LARGE: [u64; 2] = [1024, 16 * 1024];
const SMALL: [u64; 2] = [1, 16];
const LIMIT_MS: f64 = 1.0;

pub(super) fn measure(plan: &Plan, records: &mut Records) -> Result<Vec<Part>> {
    let mut figures = Vec::new();
    for [ram_gib, disk_gib] in [LARGE, SMALL] {
        let parameters = json!({"ram_gib": ram_gib, "disk_gib": disk_gib});
        let run = records.run(ROW, 0, &parameters, || {
            let program = build::build_forecast_cost(&plan.ebpf_object)?;
            let mut command = Command::new(program);
            let output = command
                .args([ram_gib, disk_gib].map(|gib| gib.to_string()))
                .output()?;
            let error = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{command:?}: {error}");
            serde_json::from_slice(&output.stdout).context("forecast-cost")
        })?;
        if let Some(error) = run["error"].as_str() {
            return Ok(vec![Part::missing("cost", error)]);
        }
        figures.push(run["figures"].clone());
    }
    Ok(parts(&figures[0], &figures[1]))
}

fn parts(large: &Value, small: &Value) -> Vec<Part> {
    let n = large["forecasts"].as_u64();
    let n = n.and_then(|n| n.try_into().ok()).unwrap_or(0);
    let milliseconds =
        |figures: &Value, name: &str| figures[name].as_f64().map(|seconds| seconds * 1000.0);
    let bytes = |figures: &Value| figures["largest_allocated_bytes"].as_f64();
    let growth = bytes(large)
        .zip(bytes(small))
        .map(|(large, small)| (large - small).max(0.0));
    vec![
        Part::figure(
            "1 TiB of RAM and 16 TiB of disk, learning and forecast, the 99th percentile",
            milliseconds(large, "p99_seconds"),
            n,
            "ms",
        )
        .limit(Limit::AtMost(LIMIT_MS)),
        Part::figure(
            "1 TiB and 16 TiB, the median",
            milliseconds(large, "median_seconds"),
            n,
            "ms",
        ),
        Part::figure(
            "1 GiB and 16 GiB, the median",
            milliseconds(small, "median_seconds"),
            n,
            "ms",
        ),
        Part::figure(
            "allocated more for the large guest than for the small, the most by a forecast",
            growth,
            n,
            "bytes",
        )
        .limit(Limit::Exactly(0.0)),
        Part::figure(
            "allocated for the large guest, the most by a forecast",
            bytes(large),
            n,
            "bytes",
        ),
        Part::figure(
            "with the search for a deadline's rate, 1 TiB and 16 TiB, the 99th percentile",
            milliseconds(large, "deadline_p99_seconds"),
            n,
            "ms",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_fails() {
        let figures = |bytes: u64| {
            json!({
                "forecasts": 100,
                "median_seconds": 0.0001,
                "p99_seconds": 0.0003,
                "largest_allocated_bytes": bytes,
            })
        };
        let value = |large, small| parts(&figures(large), &figures(small))[3].value;
        assert_eq!(value(400, 400), Some(0.0));
        assert_eq!(value(4000, 400), Some(3600.0));
        let time = parts(&figures(1), &figures(1))[0].value.unwrap();
        assert!((time - 0.3).abs() < 1e-9);
    }
}
