//! One scenario, for real: two QEMUs, two agents, and the report.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Scenario, ScenarioGuest};
use crate::guest::program::rounds;
use crate::pair::{Pair, PairOptions};
use crate::process::wait_until;
use crate::qemu::{Accel, QemuInstall, QemuVersion};
use crate::vm::VmOptions;

/// How long the guest has been at its work before its migration is asked for.
pub const SETTLE: Duration = Duration::from_secs(3);
/// A migration that has not ended by then is cancelled: it does not converge.
pub const GIVE_UP: Duration = Duration::from_secs(60);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(20);
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// What came of a scenario.
#[derive(Clone, Debug)]
pub struct ScenarioRun {
    /// `pacer source`'s.
    pub report: Value,
    /// It was cancelled after [`GIVE_UP`].
    pub gave_up: bool,
    /// When the guest began to behave differently, in seconds from t0.
    pub change_at_seconds: Option<f64>,
}

/// Moves the guest, its whole way recorded in `trace` where this `pacer` can.
///
/// # Errors
/// It did not arrive for another reason than time, did not arrive whole, or
/// something did not start; with logs.
pub fn run(scenario: &Scenario, pacer: &Path, trace: &Path) -> Result<ScenarioRun> {
    let qemu = QemuInstall::find(QemuVersion::System)?;
    let mut vm = VmOptions::new(scenario.guest()?, qemu, Accel::detect()?);
    // Ctrl-C goes to us alone, and we end the rest in order.
    vm.own_group = true;
    let mut options = PairOptions::new(vm).source_flags([
        "--rate".to_owned(),
        format!("{}B/s", scenario.bytes_per_second),
        "--downtime-limit".to_owned(),
        format!("{}ms", scenario.downtime_limit.as_millis()),
    ]);
    if can_trace(pacer)? {
        let flags = &mut options.source.flags;
        flags.extend(["--trace".into(), trace.into()]);
    }
    options.pacer = Some(pacer.to_owned());
    options.settle = SETTLE;
    // The guest may stand for longer than it should, and still is to arrive:
    // how wrong Pacer was is what is measured.
    options
        .source
        .flags
        .extend(["--switchover-timeout".into(), "20s".into()]);
    let pair = Pair::start(&options)?;
    let gave_up = wait(&pair)?;
    let report = pair.report()?;
    if !gave_up {
        ensure!(
            report["outcome"] == "completed",
            "{}: {}\n{}",
            report["outcome"],
            report["reason"],
            pair.source_agent.log_tail()
        );
        check_arrival(scenario, &pair)?;
    }
    Ok(ScenarioRun {
        change_at_seconds: change_at(scenario, &pair, &report)?,
        report,
        gave_up,
    })
}

/// Whether this `pacer` records traces.
fn can_trace(pacer: &Path) -> Result<bool> {
    let output = Command::new(pacer).args(["source", "--help"]).output();
    let output = output.with_context(|| pacer.display().to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("--trace"))
}

/// Waits for the end, or cancels; says whether it did.
fn wait(pair: &Pair) -> Result<bool> {
    let begun = Instant::now();
    let ended = wait_until("pacer source ends", Duration::MAX, || {
        let ended = pair.source_agent.try_wait()?.is_some();
        let over = begun.elapsed() > GIVE_UP;
        Ok((ended || over).then_some(ended))
    })?;
    if ended {
        return Ok(false);
    }
    pair.source_agent.sigint()?;
    pair.source_agent.wait(CANCEL_TIMEOUT)?;
    // It may have arrived in the last moment.
    Ok(pair.report()?["outcome"] != "completed")
}

/// The guest is whole at the destination and goes on with its work.
fn check_arrival(scenario: &Scenario, pair: &Pair) -> Result<()> {
    match scenario.guest {
        ScenarioGuest::Bare(_) => {
            pair.verify_destination()?;
        }
        ScenarioGuest::Program { .. } => {
            wait_until("the program ends a round", ROUND_TIMEOUT, || {
                let ended = rounds(&pair.destination.serial())?;
                Ok((ended > 0).then_some(()))
            })
            .with_context(|| pair.destination.logs())?;
        }
    }
    Ok(())
}

/// By the wall clock, on which both the guest's first word and t0 are known.
fn change_at(scenario: &Scenario, pair: &Pair, report: &Value) -> Result<Option<f64>> {
    let Some(after) = scenario.change_after else {
        return Ok(None);
    };
    let started_at = report["started_at"].as_str().context("started_at")?;
    let started_at: jiff::Timestamp = started_at.parse()?;
    let began = jiff::Timestamp::try_from(pair.source.serial_written_at()?)?;
    let change = began.duration_since(started_at).as_secs_f64() + after.as_secs_f64();
    Ok(Some(change))
}
