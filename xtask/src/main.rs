//! `cargo xtask`: set up, build, run, test. One file a subcommand.

mod bench;
mod build;
mod ci;
mod demo;
mod ebpf;
mod run;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What developing and trying Pacer needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check what is needed here and install what is missing
    Setup {
        /// Install without asking
        #[arg(long)]
        yes: bool,
    },
    /// Build `pacer` with its eBPF programs
    Build,
    /// Run a demo, or one side of a migration
    #[command(subcommand)]
    Run(run::Run),
    /// Run every test, those on real QEMU too
    Test,
    /// Format, lints, documentation, tests: what a change must pass
    Ci,
    /// Measure, and compare with what is wanted
    Bench(bench::Bench),
    /// Package (not built yet)
    Dist(Later),
}

/// Arguments of what comes later: any.
#[derive(clap::Args)]
struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _any: Vec<String>,
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup { yes } => setup::setup(setup::Scope::All, yes)?,
        Task::Build => {
            setup::setup(setup::Scope::Build, false)?;
            println!("{}", build::build()?.pacer.display());
        }
        Task::Run(run) => return run::run(run),
        Task::Test => return test::test(),
        Task::Ci => return ci::ci(),
        Task::Bench(arguments) => return bench::bench(&arguments),
        Task::Dist(_) => {
            eprintln!("error: not built yet");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}
