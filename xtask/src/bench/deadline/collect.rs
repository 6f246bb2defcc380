//! The runs: those that are in the file, and as many new ones as are asked for.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use pacer_tests::process::check_interrupt;
use pacer_tests::scenario::timed::TimedRun;
use pacer_tests::scenario::{plain, timed};
use serde_json::{Value, json};

use super::draw::{Class, Drawn, FULL, QUICK, draw};
use super::{Collected, Paired, Voyage, simulated};
use crate::bench::Plan;
use crate::bench::record::Records;

const ROW: &str = "deadline";

/// Those of the classes that are needed.
pub(super) fn collect(
    plan: &Plan,
    records: &mut Records,
    is_needed: impl Fn(Class) -> bool,
) -> Result<Collected> {
    let traces = records.path().with_extension("traces");
    fs::create_dir_all(&traces).with_context(|| traces.display().to_string())?;
    let mut left = plan.runs.unwrap_or(u32::MAX);
    let mut collected = Collected::default();
    for index in 0..if plan.quick { QUICK } else { FULL } {
        let drawn = draw(plan.seed, index, plan.quick);
        if !is_needed(drawn.class) {
            continue;
        }
        let parameters = drawn.to_json();
        let (class, kind) = (drawn.class.word(), drawn.timed.scenario.kind);
        let number = u32::try_from(index)?;
        if !records.has(ROW, number, &parameters) {
            // Later ones may be there: the rest is looked through too.
            if left == 0 {
                continue;
            }
            left -= 1;
            let asked = drawn.deadline().map(|asked| format!(", {asked:.0} s"));
            eprintln!("{index}: {class}, {kind}{} …", asked.unwrap_or_default());
        }
        let trace = traces.join(format!("{index:03}-{class}-{kind}.trace"));
        let run = records.run(ROW, number, &parameters, || {
            let measured = measure(&drawn, &plan.pacer, &trace);
            check_interrupt()?;
            // A run that fails is a miss, and is not made again: one that fails now
            // and then would else be as good as one that never does.
            Ok(measured.unwrap_or_else(|error| {
                eprintln!("{index}: {error:#}");
                json!({"failed": format!("{error:#}")})
            }))
        })?;
        collected.voyages.extend(Voyage::read(&run));
        collected.pairs.extend(Paired::read(&run));
    }
    Ok(collected)
}

fn measure(drawn: &Drawn, pacer: &Path, trace: &Path) -> Result<Value> {
    if trace.exists() {
        fs::remove_file(trace).with_context(|| trace.display().to_string())?;
    }
    if drawn.class == Class::Downtime {
        return pair(drawn, pacer, trace);
    }
    let came = timed::run(&drawn.timed, pacer, trace)?;
    let mut figures = figures(&came, trace);
    // What was simulated is no reason to lose what was measured.
    match simulate(drawn, &came, pacer, trace) {
        Ok(simulated) => {
            figures["earliest_seconds"] = simulated.earliest.into();
            figures["lowest_rate_bytes_per_second"] = simulated.lowest_rate.into();
        }
        Err(error) => figures["simulation_missing"] = format!("{error:#}").into(),
    }
    Ok(figures)
}

fn pair(drawn: &Drawn, pacer: &Path, trace: &Path) -> Result<Value> {
    let relay = || anyhow::Ok(figures(&timed::run(&drawn.timed, pacer, trace)?, trace));
    let plain = || {
        let came = plain::run(&drawn.timed.scenario, drawn.timed.delay)?;
        anyhow::Ok(json!({
            "downtime_seconds": came.downtime_seconds,
            "qemu_downtime_seconds": came.qemu_downtime_seconds,
        }))
    };
    let (relay, plain) = if drawn.relay_first {
        let relay = relay();
        (relay, plain())
    } else {
        let plain = plain();
        (relay(), plain)
    };
    check_interrupt()?;
    let mut failed = None;
    let mut part = |came: Result<Value>| {
        came.unwrap_or_else(|error| {
            failed = Some(format!("{error:#}"));
            Value::Null
        })
    };
    let (relay, plain) = (part(relay), part(plain));
    let outcome = &relay["report"]["outcome"];
    if failed.is_none() && outcome != "completed" {
        failed = Some(format!("{outcome}: {}", relay["report"]["reason"]));
    }
    Ok(json!({"relay": relay, "plain": plain, "failed": failed}))
}

fn figures(came: &TimedRun, trace: &Path) -> Value {
    json!({
        "report": came.report,
        "exit_code": came.exit_code,
        "gave_up": came.gave_up,
        "runs_at": came.guest.as_ref().ok().map(|side| format!("{side:?}").to_lowercase()),
        "harm": came.guest.as_ref().err().map(ToString::to_string),
        "asked_seconds": came.asked_seconds,
        "seen_total_seconds": came.seen_total_seconds,
        "seen_downtime_seconds": came.seen_downtime_seconds,
        "disturbed_at_seconds": came.disturbed_at_seconds,
        "log": came.log,
        "trace": trace.exists().then_some(trace),
    })
}

#[derive(Default)]
struct Simulated {
    earliest: Option<f64>,
    lowest_rate: Option<f64>,
}

/// A disturbance is in the trace as well, but not at the time at which another rate
/// would have met it: only undisturbed runs are simulated.
fn simulate(drawn: &Drawn, came: &TimedRun, pacer: &Path, trace: &Path) -> Result<Simulated> {
    if !matches!(drawn.class, Class::Undisturbed | Class::Infeasible) {
        return Ok(Simulated::default());
    }
    let finish = |rate| {
        check_interrupt()?;
        simulated::finish(pacer, trace, rate)
    };
    let highest = drawn.highest_rate();
    let earliest = finish(highest)?;
    let report = &came.report;
    let used = report["bytes_on_wire"]
        .as_f64()
        .zip(report["total_seconds"].as_f64());
    let lowest_rate = match (came.asked_seconds, used) {
        (Some(asked), Some((bytes, seconds))) if drawn.class == Class::Undisturbed => {
            let least = (bytes / seconds / 4.0).min(highest / 2.0);
            simulated::lowest_rate((least, highest), asked, finish)?
        }
        _ => None,
    };
    Ok(Simulated {
        earliest,
        lowest_rate,
    })
}
