//! `cargo xtask run demo|source|dest`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Result, anyhow};
use clap::Subcommand;

use crate::demo::{self, Demo};
use crate::{build, setup};

/// What to run.
#[derive(Subcommand)]
pub(crate) enum Run {
    /// Move a guest between two QEMUs on this machine
    Demo(Demo),
    /// `pacer source ARGS`
    Source {
        /// Passed on
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// `pacer dest ARGS`
    Dest {
        /// Passed on
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
}

/// Sets up what is needed, builds, and runs it.
pub(crate) fn run(run: Run) -> Result<ExitCode> {
    match run {
        Run::Demo(demo) => demo::demo(&demo),
        Run::Source { arguments } => become_pacer("source", arguments),
        Run::Dest { arguments } => become_pacer("dest", arguments),
    }
}

fn become_pacer(side: &str, arguments: Vec<OsString>) -> Result<ExitCode> {
    setup::setup(setup::Scope::Build, false)?;
    let pacer = build::build()?.pacer;
    let mut command = Command::new(&pacer);
    // In our place: signals and the exit code are then its own.
    let error = command.arg(side).args(arguments).exec();
    Err(anyhow!(error).context(pacer.display().to_string()))
}
