//! Recorded migrations of a dozen workloads, told anew to today's model: forecasts
//! against what came, and the same guest simulated at the rate it really had. The
//! traces are of `cargo xtask bench forecast`, real QEMU and real guests.

use std::fs;
use std::path::{Path, PathBuf};

use pacer_agent::pacing::replay::Recording;
use pacer_agent::pacing::sample::Sample;
use pacer_agent::pacing::session::SessionConfig;
use pacer_agent::pacing::time::Time;
use pacer_agent::trace::Trace;

/// Percent.
const START: Limits = Limits {
    median: 3.0,
    p90: 12.0,
};
const HALF: Limits = Limits {
    median: 2.0,
    p90: 5.0,
};
const SIMULATED: Limits = Limits {
    median: 3.0,
    p90: 15.0,
};

struct Limits {
    median: f64,
    /// The 90th percentile.
    p90: f64,
}

fn traces() -> Vec<(String, Trace)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let entries = fs::read_dir(&folder).expect("the folder is in the repository");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).expect("a file of ours");
        let name = path.file_stem().expect("a name").to_string_lossy();
        (name.into_owned(), Trace::parse(&bytes).expect("a trace"))
    };
    paths.iter().map(read).collect()
}

fn recording<'a>(trace: &Trace, samples: &'a [(Time, Sample)]) -> Recording<'a> {
    let header = &trace.header;
    Recording {
        samples,
        t0: trace.t0,
        config: SessionConfig {
            objective: header.objective,
            limits: header.limits,
            switchover_overhead: header.switchover_overhead,
            not_before: header.not_before,
        },
    }
}

/// What `look` makes of each migration that arrived, in percent of its time.
fn errors(look: impl Fn(&Recording<'_>, f64) -> Option<f64>) -> Vec<(String, f64)> {
    let mut errors = Vec::new();
    for (name, trace) in traces() {
        let samples = trace.samples();
        let recording = recording(&trace, &samples);
        let Some(real) = recording.ending().running else {
            continue;
        };
        let said = look(&recording, real).unwrap_or(f64::INFINITY);
        errors.push((name, (said / real - 1.0).abs() * 100.0));
    }
    assert!(errors.len() >= 12, "a dozen: {}", errors.len());
    errors
}

fn check(what: &str, mut errors: Vec<(String, f64)>, limits: &Limits) {
    errors.sort_by(|one, other| one.1.total_cmp(&other.1));
    let (median, p90) = (&errors[errors.len() / 2], &errors[errors.len() * 9 / 10]);
    println!("{what}: {errors:.1?}");
    assert!(median.1 <= limits.median, "{what}: median {median:?}");
    assert!(p90.1 <= limits.p90, "{what}: 90th percentile {p90:?}");
}

/// The forecast that held when `share` of the real time had passed.
fn finish_at(recording: &Recording<'_>, real: f64, share: f64) -> Option<f64> {
    let forecasts = recording.forecasts();
    let mut known = forecasts
        .iter()
        .filter(|forecast| forecast.finish_seconds.p50.is_some());
    let first = known.next()?;
    let before = known.take_while(|forecast| forecast.at_seconds <= real * share);
    before.last().unwrap_or(first).finish_seconds.p50
}

#[test]
fn at_the_start_and_half_way_the_finish_is_known() {
    let start = errors(|recording, real| finish_at(recording, real, 0.0));
    check("at the start", start, &START);
    let half = errors(|recording, real| finish_at(recording, real, 0.5));
    check("half way", half, &HALF);
}

#[test]
fn a_guest_at_the_rate_it_had_is_simulated_as_it_was() {
    let simulated = errors(|recording, _| {
        let scenario = recording.scenario(recording.config.objective)?;
        Some(scenario.run().finish)
    });
    check("simulated", simulated, &SIMULATED);
}

#[test]
fn a_guest_that_never_came_to_an_end_is_said_not_to() {
    for (name, trace) in traces() {
        let samples = trace.samples();
        let recording = recording(&trace, &samples);
        if recording.ending().running.is_none() {
            let forecasts = recording.forecasts();
            let first = forecasts.first().expect("one a second");
            assert_eq!(first.finish_seconds.p50, None, "{name}");
        }
    }
}
