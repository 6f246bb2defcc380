//! How much slower a guest is with the probe attached than without, and with
//! bpftrace on the same tracepoints, counting as much of what happens there as it
//! can.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::bpftrace::Bpftrace;
use pacer_tests::observe::{ObserveOptions, Observed, Observer};
use pacer_tests::qemu::{Accel, QemuVersion};
use serde_json::{Value, json};

use super::busy::{BusyGuest, Done, Load, SYNCS, WINDOW};
use super::{Bencher, against, errors, measuring};
use crate::bench::statistics::quantile;
use crate::bench::target::{Limit, Part};

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
    for load in [Load::Disk, Load::LoggedMemory, Load::Memory] {
        let runs = pairs(bencher, load)?;
        let what = format!("with pacer attached, {}", load.name());
        parts.push(part(&runs, what, Watcher::Pacer).limit(Limit::AtMost(LIMIT_PERCENT)));
        parts.push(speed(&runs, load));
        parts.push(spread(&runs, load));
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
    let what = format!(
        "slowdown by pacer less that by bpftrace, which counts {}, {}",
        counted(load),
        load.name()
    );
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    let less: Vec<f64> = Bencher::figures(runs, Watcher::Pacer.key())
        .iter()
        .zip(Bencher::figures(runs, Watcher::Bpftrace.key()))
        .map(|(pacer, bpftrace)| pacer - bpftrace)
        .collect();
    Part::median(what, &less, "% of the guest's speed").limit(Limit::Below(0.0))
}

/// How fast the guest is by itself.
fn speed(runs: &[Value], load: Load) -> Part {
    let what = format!("stated: the guest by itself, {}", load.name());
    Part::median(what, &alone(runs), load.unit())
}

/// How steady it is by itself.
fn spread(runs: &[Value], load: Load) -> Part {
    let speeds = alone(runs);
    let quartiles = [0.25, 0.5, 0.75].map(|q| quantile(&speeds, q));
    let spread = match quartiles {
        [Some(low), Some(middle), Some(high)] => vec![(high - low) / middle * 100.0],
        _ => Vec::new(),
    };
    let what = format!(
        "stated: interquartile range of its speed by itself, of its median, {}",
        load.name()
    );
    Part::largest(what, &spread, "%")
}

/// The windows without anybody.
fn alone(runs: &[Value]) -> Vec<f64> {
    Bencher::figures(runs, "alone")
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
    let repeats = bencher.plan.repeats(16, 1);
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
            compare(guest, load, &pacer, watchers)
        })?);
    }
    Ok(runs)
}

/// A window without, one with the first watcher, one without, one with the
/// second, one without: each with is held against those beside it.
fn compare(guest: &BusyGuest, load: Load, pacer: &Path, watchers: [Watcher; 2]) -> Result<Value> {
    let mut figures = json!({});
    let mut before = guest.window()?.per_second();
    figures["alone"] = json!(before);
    for watcher in watchers {
        let (with, seen) = match watcher {
            Watcher::Pacer => observed(guest, load, pacer)?,
            Watcher::Bpftrace => traced(guest, load)?,
        };
        let after = guest.window()?.per_second();
        let without = f64::midpoint(before, after);
        figures[watcher.key()] = json!((without / with - 1.0) * 100.0);
        figures[watcher.name()] =
            json!({"before": before, "with": with, "after": after, "seen": seen});
        before = after;
    }
    Ok(figures)
}

/// The guest's speed under the probe, and what the probe saw.
fn observed(guest: &BusyGuest, load: Load, pacer: &Path) -> Result<(f64, Value)> {
    let options = ObserveOptions {
        interval: Duration::from_secs(1),
        ..ObserveOptions::new(pacer, guest.vm().pid())
    };
    let observer = Observer::start(&options)?;
    let done = guest.window()?;
    let observed = observer.stop()?;
    let seen = check_seen(guest, load, done, &observed)?;
    Ok((done.per_second(), seen))
}

/// A probe that saw nothing would cost nothing.
fn check_seen(guest: &BusyGuest, load: Load, done: Done, observed: &Observed) -> Result<Value> {
    let last = observed.last();
    let (what, seen, least) = match load {
        Load::Disk => {
            let image = guest.image().context("a disk has an image")?;
            let disk = last.disk(image).context("the image was not seen")?;
            // QEMU may make one write of two.
            let made = u64::from(done.count) * guest.request_bytes();
            ("bytes", disk.written_bytes, made)
        }
        // Where the guest is not logged there is nothing to see.
        Load::Memory => ("syncs", 0, 0),
        Load::LoggedMemory => {
            let syncs = observed.syncs().filter(|sync| sync.pages > 0);
            ("syncs", u64::try_from(syncs.count())?, u64::from(SYNCS))
        }
    };
    ensure!(
        seen >= least && last.probe.missed() == 0,
        "the probe saw {seen} {what} of {least}, and missed {}: {:?}",
        last.probe.missed(),
        last.warnings
    );
    Ok(json!({"what": what, "seen": seen, "made": least, "warnings": last.warnings}))
}

/// What bpftrace counts.
const fn counted(load: Load) -> &'static str {
    match load {
        Load::Disk => "writes and bytes by inode",
        Load::Memory | Load::LoggedMemory => "hits",
    }
}

fn traced(guest: &BusyGuest, load: Load) -> Result<(f64, Value)> {
    let pid = guest.vm().pid();
    let script = match load {
        Load::Disk => against::writes(pid),
        // It cannot count the bits of a dirty log.
        Load::Memory | Load::LoggedMemory => against::hits(pid),
    };
    let bpftrace = Bpftrace::start(&script.text, script.probes)?;
    let done = guest.window()?;
    let printed = bpftrace.stop()?;
    Ok((done.per_second(), json!(printed)))
}
