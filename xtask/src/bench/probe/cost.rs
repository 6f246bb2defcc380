//! What the kernel accounts to the programs: per disk write, and per GiB of
//! guest memory and sync.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::disk::DiskAio;
use pacer_tests::observe::{ObserveOptions, Observer, ProbeFigures, Sync};
use pacer_tests::synthetic::Synthetic;
use serde_json::{Value, json};

use super::image::{self, Image, Place};
use super::{Bencher, aio_name, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "cost";
/// Alone, where nothing is shared between writes, and many at a time.
const DEPTHS: [u32; 2] = [1, 64];
const WRITE_LIMIT_US: f64 = 2.0;
const SYNC_LIMIT_US_PER_GIB: f64 = 10.0;
const RAM_GIB: [u32; 4] = [4, 8, 16, 1024];
const QUICK_RAM_GIB: [u32; 1] = [16];
/// What the programs count of a log at most.
const RUN_GIB: u32 = 64;
/// A guest that stands still, one that writes here and there, the first log.
const DIRTY_PERCENTS: [u64; 3] = [0, 10, 100];
const SYNCS: u64 = 40;
/// By how much the share of pages seen may be off that which was drawn.
const MOST_OFF_PERCENT: f64 = 0.5;
const PAGES_PER_GIB: f64 = 262_144.0;
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let mut parts = writes(bencher)?;
    let sizes: &[u32] = if bencher.plan.quick {
        &QUICK_RAM_GIB
    } else {
        &RAM_GIB
    };
    for &ram_gib in sizes {
        for dirty_percent in DIRTY_PERCENTS {
            parts.push(syncs(bencher, ram_gib, dirty_percent)?);
        }
    }
    Ok(parts)
}

fn writes(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let repeats = bencher.plan.repeats(8, 1);
    let mut parts = Vec::new();
    for aio in DiskAio::ALL {
        for depth in DEPTHS {
            let writes = 20_000;
            let parameters = json!({"aio": aio.name(), "depth": depth, "writes": writes});
            let pacer = bencher.plan.pacer.clone();
            let runs = (0..repeats)
                .map(|index| {
                    bencher.records.run(ROW, index, &parameters, || {
                        image::cost(&pacer, &Image::create(Place::Memory)?, (aio, depth, writes))
                    })
                })
                .collect::<Result<Vec<Value>>>()?;
            parts.push(write_part(&runs, aio, depth));
        }
    }
    Ok(parts)
}

fn write_part(runs: &[Value], aio: DiskAio, depth: u32) -> Part {
    let what = format!("per disk write, {}, {depth} at a time", aio_name(aio));
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    let costs = Bencher::figures(runs, "ns_per_write");
    let costs: Vec<f64> = costs.iter().map(|ns| ns / 1000.0).collect();
    Part::median(what, &costs, "µs").limit(Limit::AtMost(WRITE_LIMIT_US))
}

fn syncs(bencher: &mut Bencher<'_>, ram_gib: u32, dirty_percent: u64) -> Result<Part> {
    let what = format!(
        "per GiB of guest RAM and sync, {ram_gib} GiB under KVM, {dirty_percent} % of its pages \
         dirty"
    );
    let repeats = bencher.plan.repeats(5, 1);
    let (pacer, program) = (&bencher.plan.pacer, &bencher.plan.synthetic);
    let mut runs = Vec::new();
    for index in 0..repeats {
        let synthetic = Synthetic {
            disk_bytes: 1 << 20,
            writes: 0,
            ram_bytes: u64::from(ram_gib) << 30,
            syncs: SYNCS,
            dirty_percent,
            seed: bencher.rng("cost-sync", index).u64(..),
        };
        let parameters = json!({
            "ram_gib": ram_gib, "dirty_percent": dirty_percent, "syncs": SYNCS,
            "seed": synthetic.seed,
        });
        runs.push(bencher.records.run("cost-sync", index, &parameters, || {
            cost_of_syncs(pacer, program, synthetic)
        })?);
    }
    if let Some(part) = errors(&runs, &what) {
        return Ok(part);
    }
    let costs = Bencher::figures(&runs, "us_per_gib");
    Ok(if ram_gib > RUN_GIB {
        let what = format!(
            "stated: {what}, of which the programs count {RUN_GIB} GiB and the agent the rest"
        );
        Part::median(what, &costs, "µs")
    } else {
        Part::median(what, &costs, "µs").limit(Limit::AtMost(SYNC_LIMIT_US_PER_GIB))
    })
}

/// Logs whose content is known, of a process that makes no other calls.
fn cost_of_syncs(pacer: &Path, program: &Path, synthetic: Synthetic) -> Result<Value> {
    let mut process = synthetic.ready(program)?;
    let mut observer = Observer::start(&ObserveOptions::new(pacer, process.pid()))?;
    let before = observer.fresh()?.probe;
    let done = process.run(TIMEOUT)?;
    let after = observer.fresh()?.probe;
    let observed = observer.stop()?;
    let scanned = Scanned::of(observed.syncs());
    ensure!(
        scanned.syncs >= done.syncs && after.missed() == 0,
        "the probe saw {} of {} syncs: {:?}",
        scanned.syncs,
        done.syncs,
        observed.last().warnings
    );
    let share = 100.0 * scanned.dirty_pages / scanned.pages;
    let made = f64::from(u32::try_from(synthetic.dirty_percent)?);
    ensure!(
        (share - made).abs() < MOST_OFF_PERCENT,
        "{share} % of the pages were seen dirty, not {made} %"
    );
    let run_ns = ioctl_ns(&before, &after).context("the kernel keeps no BPF statistics")?;
    Ok(json!({
        "run_ns": run_ns,
        "syncs": scanned.syncs,
        "scanned_gib": scanned.pages / PAGES_PER_GIB,
        "dirty_percent": share,
        "us_per_gib": run_ns / 1000.0 / (scanned.pages / PAGES_PER_GIB),
    }))
}

/// What the probe says it has gone through.
#[derive(Default)]
struct Scanned {
    syncs: u64,
    pages: f64,
    dirty_pages: f64,
}

impl Scanned {
    fn of<'a>(syncs: impl Iterator<Item = &'a Sync>) -> Self {
        syncs.fold(Self::default(), |sum, sync| Self {
            syncs: sum.syncs + 1,
            pages: sum.pages + pages(sync.total_pages.unwrap_or(0)),
            dirty_pages: sum.dirty_pages + pages(sync.pages),
        })
    }
}

/// Pages of one log: 2^32 are 16 TiB.
fn pages(pages: u64) -> f64 {
    u32::try_from(pages).map_or(f64::NAN, f64::from)
}

/// Time in the programs that see system calls about logs.
fn ioctl_ns(before: &ProbeFigures, after: &ProbeFigures) -> Option<f64> {
    after.run_ns?;
    let costs = after.cost_since(before);
    let of_logs = costs
        .iter()
        .filter(|(name, _)| name.contains("ioctl") || name.contains("dirty"));
    let ns: u64 = of_logs.map(|(_, (ns, _))| ns).sum();
    u32::try_from(ns).ok().map(f64::from)
}
