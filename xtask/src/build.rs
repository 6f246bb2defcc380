//! `cargo xtask build`.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::ebpf;
use crate::shell::{cargo, run, workspace_root};

/// What a build leaves.
pub(crate) struct Built {
    /// The program `pacer`.
    pub(crate) pacer: PathBuf,
    /// The eBPF programs that are in it.
    pub(crate) ebpf_object: PathBuf,
}

/// Builds the eBPF programs and then `pacer`, which holds them.
pub(crate) fn build() -> Result<Built> {
    let root = workspace_root();
    let toolchain = ebpf::find().map_err(|missing| anyhow!("{missing}"))?;
    let ebpf_object = ebpf::build(&toolchain, &root)?;
    let mut command = cargo(["build", "--release", "--package", "pacer-agent"]);
    run(command.env("PACER_EBPF_OBJECT", &ebpf_object))?;
    Ok(Built {
        pacer: target_folder().join("release/pacer"),
        ebpf_object,
    })
}

/// Builds the Linux guest's program, statically linked, where the tests look
/// for it.
pub(crate) fn build_guest() -> Result<PathBuf> {
    let mut command = cargo(["build", "--release", "--package", "pacer-tests"]);
    command.args([
        "--bin",
        "pacer-guest",
        "--target",
        "x86_64-unknown-linux-gnu",
    ]);
    // Apart: other flags than the rest, and nothing is built twice for it.
    let target = workspace_root().join("target/guest");
    command.arg("--target-dir").arg(&target);
    run(command.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    Ok(target.join("x86_64-unknown-linux-gnu/release/pacer-guest"))
}

/// Builds `pacer-synthetic`, which benchmarks watch.
pub(crate) fn build_synthetic() -> Result<PathBuf> {
    let mut command = cargo(["build", "--release", "--package", "pacer-tests"]);
    run(command.args(["--bin", "pacer-synthetic"]))?;
    Ok(target_folder().join("release/pacer-synthetic"))
}

/// Builds the example of `pacer-agent` that says what a forecast costs, around
/// the eBPF programs that `pacer` was built with: nothing is built twice.
pub(crate) fn build_forecast_cost(ebpf_object: &Path) -> Result<PathBuf> {
    let mut command = cargo(["build", "--release", "--package", "pacer-agent"]);
    command.args(["--example", "forecast-cost"]);
    run(command.env("PACER_EBPF_OBJECT", ebpf_object))?;
    Ok(target_folder().join("release/examples/forecast-cost"))
}

fn target_folder() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    workspace_root().join(folder.unwrap_or_else(|| "target".into()))
}
