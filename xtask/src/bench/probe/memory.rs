//! What the agent needs for a guest far larger than this machine.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pacer_tests::observe::{ObserveOptions, Observer};
use pacer_tests::synthetic::Synthetic;
use serde_json::{Value, json};

use super::{Bencher, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "memory";
const LIMIT_MIB: f64 = 64.0;
const DISK_BYTES: u64 = 16 << 40;
const RAM_BYTES: u64 = 1 << 40;
/// Many, so that a log is no shortcut.
const DIRTY_PERCENT: u64 = 10;
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
            dirty_percent: DIRTY_PERCENT,
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
    let observed_syncs = u64::try_from(lines.syncs().count())?;
    Ok(json!({
        "memory_bytes": line.probe.memory_bytes,
        "most_memory_bytes": most,
        "writes": done.writes,
        "observed_writes": disk.writes,
        "writes_not_seen": done.writes.abs_diff(disk.writes),
        "chunk_bytes": disk.chunks.chunk_bytes,
        "chunks_evicted": disk.chunks.evicted,
        "syncs": done.syncs,
        "observed_syncs": observed_syncs,
        "syncs_not_seen": done.syncs.saturating_sub(observed_syncs),
        "slots": done.slots,
        "missed": line.probe.missed(),
        "warnings": line.warnings,
    }))
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
    let none = |what: &str, name, unit| {
        Part::largest(what, &Bencher::figures(runs, name), unit).limit(Limit::Exactly(0.0))
    };
    vec![
        Part::largest(what, &mib, "MiB").limit(Limit::AtMost(LIMIT_MIB)),
        none(
            "writes not seen meanwhile, or seen twice",
            "writes_not_seen",
            "writes",
        ),
        none("syncs not seen meanwhile", "syncs_not_seen", "syncs"),
        none("events lost or not readable meanwhile", "missed", "events"),
    ]
}
