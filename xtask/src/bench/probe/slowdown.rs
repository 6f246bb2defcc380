//! How much slower a guest is with the probe attached than without, and with
//! bpftrace counting the same tracepoints.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use pacer_tests::bpftrace::Bpftrace;
use pacer_tests::observe::{ObserveOptions, Observer};
use pacer_tests::process::pause;
use pacer_tests::qemu::{Accel, QemuVersion};
use serde_json::{Value, json};

use super::busy::{BusyGuest, Load};
use super::{Bencher, against, errors, measuring};
use crate::bench::target::{Limit, Part};

/// How long one window counts.
const WINDOW: Duration = Duration::from_secs(1);
/// From an attach or a detach until the window begins.
const SETTLE: Duration = Duration::from_millis(200);
const LIMIT_PERCENT: f64 = 1.0;

/// Who looks on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Pacer,
    Bpftrace,
}

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    if Accel::detect()? != Accel::Kvm {
        return Ok(vec![Part::missing("a guest at full speed", "no KVM")]);
    }
    let mut parts = Vec::new();
    for load in [Load::Disk, Load::Memory] {
        let runs = pairs(bencher, load)?;
        let what = format!("with pacer attached, {}", load.name());
        parts.push(part(&runs, what, Watcher::Pacer).limit(Limit::AtMost(LIMIT_PERCENT)));
        bencher.against_bpftrace.push(difference(&runs, load));
    }
    parts.extend(measuring::measure(bencher)?);
    Ok(parts)
}

/// Percent by which a window with the watcher was slower than those beside it.
fn part(runs: &[Value], what: String, watcher: Watcher) -> Part {
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    Part::median(what, &Bencher::figures(runs, watcher.key()), "%")
}

/// Pacer's slowdown less bpftrace's, run by run.
fn difference(runs: &[Value], load: Load) -> Part {
    let what = format!("slowdown by pacer less that by bpftrace, {}", load.name());
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    let less: Vec<f64> = Bencher::figures(runs, Watcher::Pacer.key())
        .iter()
        .zip(Bencher::figures(runs, Watcher::Bpftrace.key()))
        .map(|(pacer, bpftrace)| pacer - bpftrace)
        .collect();
    Part::median(what, &less, "% of the guest's speed")
}

impl Watcher {
    const fn name(self) -> &'static str {
        match self {
            Self::Pacer => "pacer",
            Self::Bpftrace => "bpftrace",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Pacer => "pacer_percent",
            Self::Bpftrace => "bpftrace_percent",
        }
    }
}

fn pairs(bencher: &mut Bencher<'_>, load: Load) -> Result<Vec<Value>> {
    let repeats = bencher.plan.repeats(30, 4);
    let pacer = bencher.plan.pacer.clone();
    // One guest for all of them, started when the first is measured.
    let mut guest = None;
    let mut runs = Vec::new();
    for index in 0..repeats {
        let mut watchers = [Watcher::Pacer, Watcher::Bpftrace];
        bencher.rng(load.key(), index).shuffle(&mut watchers);
        let parameters = json!({
            "load": load.key(),
            "first": watchers[0].name(),
            "window_seconds": WINDOW.as_secs_f64(),
        });
        runs.push(bencher.records.run("slowdown", index, &parameters, || {
            let guest = match &mut guest {
                Some(guest) => guest,
                none => none.insert(BusyGuest::start(load, QemuVersion::System)?),
            };
            compare(guest, &pacer, watchers)
        })?);
    }
    Ok(runs)
}

/// A window without, one with the first watcher, one without, one with the
/// second, one without: each with is held against those beside it.
fn compare(guest: &BusyGuest, pacer: &Path, watchers: [Watcher; 2]) -> Result<Value> {
    let mut figures = json!({});
    let mut before = window(guest)?;
    for watcher in watchers {
        let with = watched(guest, pacer, watcher)?;
        let after = window(guest)?;
        let without = f64::midpoint(before, after);
        figures[watcher.key()] = json!((without / with - 1.0) * 100.0);
        figures[watcher.name()] = json!({"before": before, "with": with, "after": after});
        before = after;
    }
    Ok(figures)
}

fn watched(guest: &BusyGuest, pacer: &Path, watcher: Watcher) -> Result<f64> {
    match watcher {
        Watcher::Pacer => {
            let options = ObserveOptions {
                interval: Duration::from_secs(1),
                ..ObserveOptions::new(pacer, guest.vm().pid())
            };
            let observer = Observer::start(&options)?;
            let speed = window(guest)?;
            observer.stop()?;
            Ok(speed)
        }
        Watcher::Bpftrace => {
            let script = against::hits(guest.vm().pid());
            let bpftrace = Bpftrace::start(&script.text, script.probes)?;
            let speed = window(guest)?;
            bpftrace.stop()?;
            Ok(speed)
        }
    }
}

/// Pages or requests a second over one window.
fn window(guest: &BusyGuest) -> Result<f64> {
    pause(SETTLE)?;
    let (speed, _) = guest.speed(|| pause(WINDOW))?;
    Ok(speed)
}
