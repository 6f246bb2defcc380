//! `bench probe`: what the probe sees against what is known to have happened,
//! and what it costs. One file a row of the table.

mod against;
mod busy;
mod cost;
mod dirty;
mod disks;
mod events;
mod image;
mod measuring;
mod memory;
mod slowdown;

use std::time::Instant;

use anyhow::Result;
use fastrand::Rng;
use pacer_tests::disk::DiskAio;
use serde_json::Value;

use super::Plan;
use super::record::Records;
use super::target::{Part, Target};

/// One row.
struct Row {
    what: &'static str,
    target: &'static str,
    measure: fn(&mut Bencher<'_>) -> Result<Vec<Part>>,
}

const ROWS: [Row; 7] = [
    Row {
        what: "dirty pages per sync under KVM",
        target: "bare guest: equal, every sync; with disk reads and network traffic: within 3 % \
                 of QEMU's own count",
        measure: dirty::measure,
    },
    Row {
        what: "guest disk writes per image, against QMP query-blockstats wr_bytes",
        target: "raw: exact; qcow2: exact in guest bytes where guest offsets are known, else \
                 within its metadata, stated",
        measure: disks::measure,
    },
    Row {
        what: "lost events at 50,000 writes/s or the most this machine makes",
        target: "0, or counted and reported",
        measure: events::measure,
    },
    Row {
        what: "cost per event (run_ns / run count from kernel BPF statistics)",
        target: "≤ 2 µs per disk write, enter and exit together (aim 1); \
                 ≤ 10 µs per GiB of guest RAM per sync",
        measure: cost::measure,
    },
    Row {
        what: "guest slowdown with the probe attached against not attached",
        target: "≤ 1 % median",
        measure: slowdown::measure,
    },
    Row {
        what: "the same against bpftrace counting the same tracepoints",
        target: "cheaper",
        measure: against::measure,
    },
    Row {
        what: "agent memory with a 16 TiB disk and 1 TiB of guest RAM (synthetic events)",
        target: "≤ 64 MiB",
        measure: memory::measure,
    },
];

/// Measures every row.
///
/// # Errors
/// A signal asked us to end, or the file of runs cannot be written. What cannot
/// be measured is said in its row.
#[expect(
    clippy::disallowed_methods,
    reason = "the edge: says how long a row took"
)]
pub(super) fn run(plan: &Plan, records: &mut Records) -> Result<Vec<Target>> {
    let mut bencher = Bencher {
        plan,
        records,
        against_bpftrace: Vec::new(),
    };
    ROWS.iter()
        .filter(|row| plan.rows.is_empty() || plan.rows.iter().any(|part| row.what.contains(part)))
        .map(|row| {
            eprintln!("{} …", row.what);
            let start = Instant::now();
            let parts = (row.measure)(&mut bencher)?;
            eprintln!("  took {:.0} s", start.elapsed().as_secs_f64());
            Ok(Target::new(row.what, row.target, parts))
        })
        .collect()
}

/// What a row measures with.
struct Bencher<'a> {
    plan: &'a Plan,
    records: &'a mut Records,
    /// Figures for the comparison that were measured with the slowdown.
    against_bpftrace: Vec<Part>,
}

impl Bencher<'_> {
    /// Draws the parameters of run `index` of `row`: the same for the same
    /// seed, whatever else was measured.
    fn rng(&self, row: &str, index: u32) -> Rng {
        let row = row.bytes().fold(u64::from(index), |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(byte.into())
        });
        Rng::with_seed(self.plan.seed ^ row.rotate_left(17))
    }

    /// A figure of each of these runs that has it.
    fn figures(runs: &[Value], name: &str) -> Vec<f64> {
        let figure = |run: &Value| run["figures"][name].as_f64();
        runs.iter().filter_map(figure).collect()
    }
}

/// The part to give in place of a figure if one of its runs failed.
fn errors(runs: &[Value], what: &str) -> Option<Part> {
    let error = runs.iter().find_map(|run| run["error"].as_str());
    error.map(|error| Part::missing(what, error))
}

/// The entries of the list `name` in the figures of these runs.
fn rows<'a>(runs: &'a [Value], name: &str) -> impl Iterator<Item = &'a Value> {
    let lists = runs
        .iter()
        .filter_map(move |run| run["figures"][name].as_array());
    lists.flatten()
}

/// For figures of each mode.
const fn aio_name(aio: DiskAio) -> &'static str {
    match aio {
        DiskAio::Threads => "aio=threads",
        DiskAio::Native => "aio=native",
        DiskAio::IoUring => "aio=io_uring",
    }
}
