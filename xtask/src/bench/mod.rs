//! `cargo xtask bench`: figures, the runs behind them, and whether the targets
//! hold.

mod machine;
mod probe;
mod record;
mod statistics;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use pacer_tests::process::{check_interrupt, interrupt_flag};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::shell::workspace_root;
use crate::{build, setup};
use machine::Machine;
use record::{Identity, Records};
use target::Target;

/// Ended by a signal, as a shell has it.
const INTERRUPTED: u8 = 130;

/// How to measure.
#[derive(Args)]
pub(crate) struct Bench {
    /// What to measure; everything that is built if absent
    name: Option<Name>,
    /// Draws the scenarios' parameters
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each measurement is repeated
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// Only rows of the table whose text contains this
    #[arg(long, value_name = "TEXT")]
    row: Vec<String>,
    /// A small draw that ends within 5 minutes and proves little
    #[arg(long)]
    quick: bool,
    /// Print one JSON object, and nothing else, to standard output
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// What the eBPF probe sees, and what it costs
    Probe,
    /// Forecasts against what came (not built yet)
    Forecast,
    /// Arrivals at the deadline (not built yet)
    Deadline,
    /// Faults at every step (not built yet)
    Faults,
    /// The relay's speed (not built yet)
    Relay,
    /// Disks that move (not built yet)
    Disk,
    /// Many guests (not built yet)
    Group,
    /// What an operator sees (not built yet)
    Operator,
    /// Malformed input (not built yet)
    Fuzz,
}

/// One benchmark, as it is to be run.
struct Plan {
    seed: u64,
    quick: bool,
    /// How often each measurement is repeated, if it was said.
    runs: Option<u32>,
    /// Parts of the texts of the rows to measure; none is all.
    rows: Vec<String>,
    pacer: PathBuf,
    synthetic: PathBuf,
}

impl Plan {
    /// Repetitions: what was asked for, else one of these.
    fn repeats(&self, full: u32, quick: u32) -> u32 {
        self.runs.unwrap_or(if self.quick { quick } else { full })
    }
}

/// Runs what is asked for. The exit code says whether it ran, not what it
/// found.
pub(crate) fn bench(arguments: &Bench) -> Result<ExitCode> {
    let name = arguments.name.unwrap_or(Name::Probe);
    if name != Name::Probe {
        let name = name.to_possible_value().context("every name has one")?;
        eprintln!("error: bench {}: not built yet", name.get_name());
        return Ok(ExitCode::from(2));
    }
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupt_flag())?;
    }
    let result = probe_bench(arguments);
    if check_interrupt().is_err() {
        eprintln!("interrupted: what was measured is kept, the same command goes on from there");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    result.map(|()| ExitCode::SUCCESS)
}

fn probe_bench(arguments: &Bench) -> Result<()> {
    setup::setup(setup::Scope::All, false)?;
    let pacer = build::build()?.pacer;
    build::build_guest()?;
    let synthetic = build::build_synthetic()?;
    let machine = Machine::read()?;
    let plan = Plan {
        seed: arguments.seed,
        quick: arguments.quick,
        runs: arguments.runs,
        rows: arguments.row.clone(),
        pacer,
        synthetic,
    };
    let mut records = records("probe", &plan)?;
    let targets = probe::run(&plan, &mut records)?;
    records.finish()?;
    let result = Outcome {
        name: "probe",
        plan: &plan,
        machine: &machine,
        targets: &targets,
        records: &records,
    };
    if arguments.json {
        println!("{}", result.to_json());
    } else {
        result.print();
    }
    Ok(())
}

fn records(name: &str, plan: &Plan) -> Result<Records> {
    let quick = if plan.quick { "-quick" } else { "" };
    let file = format!("{name}-{}{quick}.jsonl", plan.seed);
    let path = workspace_root().join("target/bench").join(file);
    let records = Records::open(&path, Identity::of_this_build(&plan.pacer)?)?;
    if records.kept() > 0 {
        let path = records.path().display();
        eprintln!(
            "going on from {path}: {} runs are there already",
            records.kept()
        );
    }
    Ok(records)
}

/// What a benchmark found.
struct Outcome<'a> {
    name: &'static str,
    plan: &'a Plan,
    machine: &'a Machine,
    targets: &'a [Target],
    records: &'a Records,
}

impl Outcome<'_> {
    fn to_json(&self) -> Value {
        json!({
            "bench": self.name,
            "seed": self.plan.seed,
            "quick": self.plan.quick,
            "machine": self.machine.to_json(),
            "targets": self.targets.iter().map(Target::to_json).collect::<Vec<_>>(),
            "runs": self.records.runs(),
        })
    }

    fn print(&self) {
        println!("{}", self.machine);
        print!("{}", target::table(self.targets));
        let path = self.records.path().display();
        println!("{} runs in {path}", self.records.runs().len());
    }
}
