//! What the agent needs for a guest far larger than this machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pacer_tests::observe::{Line, ObserveOptions, Observer};
use pacer_tests::synthetic::Synthetic;
use serde_json::{Value, json};

use super::{Bencher, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "memory";
const LIMIT_MIB: f64 = 64.0;
const DISK_BYTES: u64 = 16 << 40;
const RAM_BYTES: u64 = 1 << 40;
const TIMEOUT: Duration = Duration::from_secs(300);
const MIB: f64 = 1_048_576.0;

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let quick = bencher.plan.quick;
    let (writes, syncs) = if quick {
        (300_000, 10)
    } else {
        (2_000_000, 40)
    };
    let repeats = bencher.plan.repeats(2, 1);
    let (pacer, program) = (&bencher.plan.pacer, &bencher.plan.synthetic);
    let mut runs = Vec::new();
    for index in 0..repeats {
        let seed = bencher.rng(ROW, index).u64(..);
        let synthetic = Synthetic {
            disk_bytes: DISK_BYTES,
            writes,
            ram_bytes: RAM_BYTES,
            syncs,
            seed,
        };
        let parameters = json!({"writes": writes, "syncs": syncs, "seed": seed});
        runs.push(bencher.records.run(ROW, index, &parameters, || {
            observe(pacer, program, synthetic)
        })?);
    }
    Ok(parts(&runs))
}

fn observe(pacer: &Path, program: &Path, synthetic: Synthetic) -> Result<Value> {
    let mut process = synthetic.ready(program)?;
    let options = ObserveOptions {
        interval: Duration::from_secs(1),
        ..ObserveOptions::new(pacer, process.pid())
    };
    let mut observer = Observer::start(&options)?;
    let done = process.run(TIMEOUT)?;
    let line = observer.fresh()?;
    let lines = observer.stop()?;
    let most = lines
        .lines()
        .iter()
        .map(|line| line.probe.memory_bytes)
        .max();
    let disk = line.disk(&process.disk());
    let disk = disk.context("the disk is not among those observed")?;
    Ok(json!({
        "memory_bytes": line.probe.memory_bytes,
        "most_memory_bytes": most,
        "writes": done.writes,
        "observed_writes": disk.writes,
        "chunk_bytes": disk.chunks.chunk_bytes,
        "chunks_evicted": disk.chunks.evicted,
        "syncs": done.syncs,
        "observed_syncs": lines.syncs().count(),
        "slots": done.slots,
        "missed": line.probe.missed(),
        "us_per_gib": us_per_gib(&line, done.syncs),
    }))
}

/// What each GiB of the logs cost to look at; `None` without BPF statistics.
fn us_per_gib(line: &Line, syncs: u64) -> Option<f64> {
    let of_logs = line.probe.programs.iter();
    let of_logs = of_logs.filter(|program| program.name.contains("ioctl"));
    let ns: u64 = of_logs.map(|program| program.run_ns).sum::<Option<u64>>()?;
    let gib = u32::try_from(syncs * (RAM_BYTES >> 30))
        .ok()
        .filter(|&gib| gib > 0)?;
    Some(u32::try_from(ns / 1000).map(f64::from).ok()? / f64::from(gib))
}

fn parts(runs: &[Value]) -> Vec<Part> {
    if let Some(part) = errors(runs, "every run") {
        return vec![part];
    }
    let mib: Vec<f64> = Bencher::figures(runs, "most_memory_bytes")
        .iter()
        .map(|bytes| bytes / MIB)
        .collect();
    let what = "resident memory of pacer and of its maps, at its most";
    let missed = Bencher::figures(runs, "missed");
    vec![
        Part::largest(what, &mib, "MiB").limit(Limit::AtMost(LIMIT_MIB)),
        Part::median(
            "cost per GiB and sync of these logs",
            &Bencher::figures(runs, "us_per_gib"),
            "µs",
        ),
        Part::largest("events lost or not readable meanwhile", &missed, "events"),
    ]
}
