//! `pacer simulate`: a recorded migration under another rate or deadline.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use crate::cli::SimulateArgs;
use crate::exit::{Exit, Failure};
use crate::pacing::objective::{Limits, Objective};
use crate::pacing::replay::{Ending, Recording};
use crate::pacing::session::SessionConfig;
use crate::pacing::simulation::Run;
use crate::report::limited;
use crate::trace::{Entry, Trace};
use crate::units::{from_f64, show_bytes, show_seconds};

/// The format's version.
const SCHEMA: u32 = 1;

/// What is told of a simulation. Seconds count from t0.
#[derive(Debug, Serialize)]
struct Told {
    schema: u32,
    /// Null: it does not end.
    finish_seconds: Option<f64>,
    downtime_seconds: Option<f64>,
    bytes_on_wire: u64,
    passes: u64,
    deadline_seconds: Option<f64>,
    verdict: &'static str,
    rates: Vec<Rate>,
    forecasts: Vec<Forecast>,
    /// The migration that was recorded.
    recorded: Recorded,
    /// Simulated seconds per second.
    speed: f64,
}

#[derive(Debug, Serialize)]
struct Rate {
    at_seconds: f64,
    /// Null is no limit.
    bytes_per_second: Option<u64>,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Forecast {
    at_seconds: f64,
    finish_p05_seconds: Option<f64>,
    finish_p50_seconds: Option<f64>,
    finish_p95_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Recorded {
    /// The report's word; null if the trace was cut.
    outcome: Option<String>,
    finish_seconds: Option<f64>,
    downtime_seconds: Option<f64>,
}

/// Runs the simulation and prints what came of it.
///
/// # Errors
///
/// If the trace cannot be read, or has no migration in it.
pub fn run(args: &SimulateArgs) -> Result<Exit, Failure> {
    let path = args.trace.display();
    let bytes = fs::read(&args.trace).with_context(|| path.to_string())?;
    let trace = Trace::parse(&bytes).with_context(|| path.to_string())?;
    if trace.is_cut {
        tracing::warn!("{path} ends within a record: whoever wrote it was ended");
    }
    let told = simulate(&trace, args)
        .ok_or_else(|| anyhow!("{path}: no migration began, or its memory's size is not known"))?;
    if args.json {
        let line = serde_json::to_string(&told).map_err(anyhow::Error::new)?;
        println!("{line}");
    } else {
        print!("{}", text(&told));
    }
    Ok(Exit::Success)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the edge: how fast it went is told"
)]
fn simulate(trace: &Trace, args: &SimulateArgs) -> Option<Told> {
    let samples = trace.samples();
    let recording = Recording {
        samples: &samples,
        t0: trace.t0,
        config: SessionConfig {
            objective: trace.header.objective,
            limits: limits(trace, args),
            switchover_overhead: trace.header.switchover_overhead,
            not_before: trace.header.not_before,
        },
    };
    let objective = objective(trace, args);
    let mut scenario = recording.scenario(objective)?;
    scenario.give_up = args.give_up.as_secs_f64();
    let began = Instant::now();
    let run = scenario.run();
    let took = began.elapsed();
    let simulated = if run.finish.is_finite() {
        run.finish
    } else {
        scenario.give_up
    };
    let told = Told {
        deadline_seconds: objective.deadline().map(|deadline| deadline.as_secs_f64()),
        recorded: recorded(trace, recording.ending()),
        speed: simulated / took.max(Duration::from_micros(1)).as_secs_f64(),
        ..tell(&run)
    };
    Some(told)
}

fn limits(trace: &Trace, args: &SimulateArgs) -> Limits {
    let then = trace.header.limits;
    Limits {
        max_rate: args
            .max_rate
            .map(|rate| rate.bytes_per_second())
            .or(then.max_rate),
        downtime_limit: args.downtime_limit.unwrap_or(then.downtime_limit),
        ..then
    }
}

/// What was asked for then, unless something else is now.
fn objective(trace: &Trace, args: &SimulateArgs) -> Objective {
    match (args.rate, args.deadline) {
        (Some(rate), _) => Objective::Fixed(rate.bytes_per_second()),
        (None, Some(deadline)) => Objective::At(deadline),
        (None, None) => trace.header.objective,
    }
}

fn recorded(trace: &Trace, ending: Ending) -> Recorded {
    let outcome = trace.entries.iter().find_map(|(_, entry)| match entry {
        Entry::Ended { outcome } => Some(outcome.clone()),
        _ => None,
    });
    Recorded {
        outcome,
        finish_seconds: ending.running,
        downtime_seconds: ending
            .running
            .zip(ending.stopped)
            .map(|(running, stopped)| running - stopped),
    }
}

fn tell(run: &Run) -> Told {
    let known = |seconds: f64| seconds.is_finite().then_some(seconds);
    Told {
        schema: SCHEMA,
        finish_seconds: known(run.finish),
        downtime_seconds: known(run.downtime),
        bytes_on_wire: from_f64(run.bytes),
        passes: run.passes,
        deadline_seconds: None,
        verdict: run
            .verdicts
            .last()
            .map_or("unknown", |(_, verdict, _)| verdict.word()),
        rates: run
            .rates
            .iter()
            .map(|&(at_seconds, rate, reason)| Rate {
                at_seconds,
                bytes_per_second: limited(rate),
                reason: reason.to_string(),
            })
            .collect(),
        forecasts: run
            .forecasts
            .iter()
            .map(|forecast| Forecast {
                at_seconds: forecast.at_seconds,
                finish_p05_seconds: forecast.finish_seconds.p05,
                finish_p50_seconds: forecast.finish_seconds.p50,
                finish_p95_seconds: forecast.finish_seconds.p95,
            })
            .collect(),
        recorded: Recorded {
            outcome: None,
            finish_seconds: None,
            downtime_seconds: None,
        },
        speed: 0.0,
    }
}

fn text(told: &Told) -> String {
    let seconds = |seconds: Option<f64>| seconds.map_or_else(|| "never".to_owned(), show_seconds);
    let mut text = format!(
        "arrives    {}\ndowntime   {}\nbytes      {}\npasses     {}\n",
        seconds(told.finish_seconds),
        seconds(told.downtime_seconds),
        show_bytes(told.bytes_on_wire),
        told.passes,
    );
    if let Some(deadline) = told.deadline_seconds {
        text += &format!("deadline   {} ({})\n", show_seconds(deadline), told.verdict);
    }
    let recorded = &told.recorded;
    text += &format!(
        "recorded   {}, {}\nspeed      {:.0} times real\n",
        recorded.outcome.as_deref().unwrap_or("not ended"),
        seconds(recorded.finish_seconds),
        told.speed,
    );
    text
}
