//! The runs: those that are in the file, and as many new ones as are asked for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::scenario::run::GIVE_UP;
use pacer_tests::scenario::{KINDS, Scenario, run};
use serde_json::{Value, json};

use super::{Collected, Journey};
use crate::bench::Plan;
use crate::bench::record::Records;
use crate::bench::seed::rng;

const ROW: &str = "forecast";
/// Every kind four times: more than 100 of guests that arrive and do not
/// change.
const FULL: usize = 4 * KINDS;
const QUICK: usize = 6;

pub(super) fn collect(plan: &Plan, records: &mut Records) -> Result<Collected> {
    let traces = records.path().with_extension("traces");
    fs::create_dir_all(&traces).with_context(|| traces.display().to_string())?;
    let mut left = plan.runs.unwrap_or(u32::MAX);
    let mut collected = Collected {
        journeys: Vec::new(),
        failed: 0,
    };
    for index in 0..if plan.quick { QUICK } else { FULL } {
        let scenario = Scenario::draw(index, &mut rng(plan.seed, index));
        let parameters = scenario.to_json();
        let number = u32::try_from(index)?;
        if !records.has(ROW, number, &parameters) {
            // Later ones may be there: the rest is looked through too.
            if left == 0 {
                continue;
            }
            left -= 1;
            eprintln!("{index}: {} …", scenario.kind);
        }
        let trace = traces.join(format!("{index:03}-{}.trace", scenario.kind));
        let run = records.run(ROW, number, &parameters, || {
            measure(&scenario, &plan.pacer, &trace)
        })?;
        collected.journeys.extend(Journey::read(&run));
    }
    collected.failed = records.failed(ROW);
    Ok(collected)
}

fn measure(scenario: &Scenario, pacer: &Path, trace: &PathBuf) -> Result<Value> {
    if trace.exists() {
        fs::remove_file(trace).with_context(|| trace.display().to_string())?;
    }
    let came = run::run(scenario, pacer, trace)?;
    let (simulated, missing) = match simulate(scenario, pacer, trace) {
        Ok(finish_seconds) => (finish_seconds, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Ok(json!({
        "report": came.report,
        "gave_up": came.gave_up,
        "gave_up_after_seconds": GIVE_UP.as_secs_f64(),
        "change_at_seconds": came.change_at_seconds,
        "trace": trace.exists().then_some(trace),
        "simulated_finish_seconds": simulated,
        "simulation_missing": missing,
    }))
}

/// When `pacer simulate` says the same guest arrives at the same rate.
fn simulate(scenario: &Scenario, pacer: &Path, trace: &Path) -> Result<Option<f64>> {
    ensure!(trace.exists(), "this pacer records no trace");
    let mut command = Command::new(pacer);
    command.arg("simulate").arg(trace);
    let rate = format!("{}B/s", scenario.bytes_per_second);
    command.args(["--rate", &rate, "--json"]);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {error}");
    let said: Value = serde_json::from_slice(&output.stdout)?;
    Ok(said["finish_seconds"].as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_drawn_by_seed_and_index_alone() {
        let draw = |seed, index| Scenario::draw(index, &mut rng(seed, index));
        assert_eq!(draw(1, 7), draw(1, 7));
        assert_ne!(draw(1, 7), draw(2, 7));
        let again = 7 + KINDS;
        assert_eq!(draw(1, 7).kind, draw(1, again).kind);
        assert_ne!(draw(1, 7), draw(1, again));
    }

    #[test]
    fn a_full_bench_has_a_hundred_that_count() {
        let scenarios = (0..FULL).map(|index| Scenario::draw(index, &mut rng(1, index)));
        let counting = scenarios
            .filter(|scenario| !scenario.changes() && !scenario.kind.contains("beyond-knee"));
        assert!(counting.count() >= 100);
    }
}
