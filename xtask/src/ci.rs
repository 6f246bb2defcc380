//! `cargo xtask ci`: what a change must pass.

use std::process::ExitCode;

use anyhow::Result;

use crate::shell::{cargo, run};
use crate::{setup, test};

/// Format, lints, documentation, then the tests.
pub(crate) fn ci() -> Result<ExitCode> {
    setup::setup(setup::Scope::All, false)?;
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    run(&mut cargo([
        "clippy",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo(["doc", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    test::test()
}
