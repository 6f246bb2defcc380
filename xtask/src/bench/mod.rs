//! `cargo xtask bench`: figures, the runs behind them, and whether the targets
//! hold.

mod deadline;
mod forecast;
mod machine;
mod probe;
mod record;
mod seed;
mod statistics;
mod target;

use std::fmt::Write as _;
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
    /// What to measure; `probe` if absent
    name: Option<Name>,
    /// Draws the scenarios' parameters
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often each measurement is repeated; for `forecast` and `deadline`, whose
    /// runs add up over many starts, how many are made in this one
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
    /// Forecasts against what came
    Forecast,
    /// Arrivals at the deadline
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
    ebpf_object: PathBuf,
    synthetic: PathBuf,
}

impl Plan {
    /// Repetitions: what was asked for, else one of these.
    fn repeats(&self, full: u32, quick: u32) -> u32 {
        self.runs.unwrap_or(if self.quick { quick } else { full })
    }

    /// The file of its runs. Other parts or repetitions of the same benchmark
    /// have another: whichever ends first must not end the others. Where runs
    /// add up, there is one file for all of them.
    fn file_name(&self, name: &str, adds_up: bool) -> String {
        let mut text = format!("{name}-{}", self.seed);
        if self.quick {
            text += "-quick";
        }
        if adds_up {
            return text + ".jsonl";
        }
        if let Some(runs) = self.runs {
            let _ = write!(text, "-{runs}-runs");
        }
        for row in &self.rows {
            let plain = |letter: char| match letter.is_ascii_alphanumeric() {
                true => letter,
                false => '_',
            };
            let row: String = row.chars().map(plain).collect();
            let _ = write!(text, "-{row}");
        }
        text + ".jsonl"
    }
}

/// Runs what is asked for. The exit code says whether it ran, not what it
/// found.
pub(crate) fn bench(arguments: &Bench) -> Result<ExitCode> {
    let name = arguments.name.unwrap_or(Name::Probe);
    let Some(measured) = Measured::of(name) else {
        let name = name.to_possible_value().context("every name has one")?;
        eprintln!("error: bench {}: not built yet", name.get_name());
        return Ok(ExitCode::from(2));
    };
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupt_flag())?;
    }
    let result = measure(arguments, &measured);
    if check_interrupt().is_err() {
        eprintln!("interrupted: what was measured is kept, the same command goes on from there");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    result.map(|()| ExitCode::SUCCESS)
}

/// A benchmark that is built.
struct Measured {
    name: &'static str,
    run: fn(&Plan, &mut Records) -> Result<Vec<Target>>,
    /// Whether its runs are collected over many starts.
    adds_up: bool,
}

impl Measured {
    fn of(name: Name) -> Option<Self> {
        match name {
            Name::Probe => Some(Self {
                name: "probe",
                run: probe::run,
                adds_up: false,
            }),
            Name::Forecast => Some(Self {
                name: "forecast",
                run: forecast::run,
                adds_up: true,
            }),
            Name::Deadline => Some(Self {
                name: "deadline",
                run: deadline::run,
                adds_up: true,
            }),
            _ => None,
        }
    }
}

fn measure(arguments: &Bench, measured: &Measured) -> Result<()> {
    setup::setup(setup::Scope::All, false)?;
    let build::Built { pacer, ebpf_object } = build::build()?;
    let guest = build::build_guest()?;
    let synthetic = build::build_synthetic()?;
    let machine = Machine::read()?;
    let plan = Plan {
        seed: arguments.seed,
        quick: arguments.quick,
        runs: arguments.runs,
        rows: arguments.row.clone(),
        pacer,
        ebpf_object,
        synthetic,
    };
    let programs = [&plan.pacer, &guest, &plan.synthetic];
    let identity = Identity::of_this_build(&programs, machine.versions())?;
    let mut records = records(measured, &plan, identity)?;
    let targets = (measured.run)(&plan, &mut records)?;
    // What adds up is never complete: another start shows it again. A quick
    // one is.
    if !measured.adds_up || plan.quick {
        records.finish()?;
    }
    let result = Outcome {
        name: measured.name,
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

fn records(measured: &Measured, plan: &Plan, identity: Identity) -> Result<Records> {
    let path = workspace_root()
        .join("target/bench")
        .join(plan.file_name(measured.name, measured.adds_up));
    let records = Records::open(&path, identity)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file_name(quick: bool, runs: Option<u32>, rows: &[&str]) -> String {
        let plan = Plan {
            seed: 7,
            quick,
            runs,
            rows: rows.iter().copied().map(str::to_owned).collect(),
            pacer: PathBuf::new(),
            ebpf_object: PathBuf::new(),
            synthetic: PathBuf::new(),
        };
        assert!(!plan.file_name("forecast", true).contains("runs"));
        plan.file_name("probe", false)
    }

    #[test]
    fn a_part_of_a_benchmark_has_its_own_file() {
        assert_eq!(file_name(false, None, &[]), "probe-7.jsonl");
        assert_eq!(file_name(true, Some(2), &[]), "probe-7-quick-2-runs.jsonl");
        let rows = ["against", "≤ 2/x"];
        assert_eq!(file_name(false, None, &rows), "probe-7-against-__2_x.jsonl");
    }
}
