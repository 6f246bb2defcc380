//! Agents killed with -9 at every step of the handover: exactly one side runs,
//! or `pacer resolve` continues the right one; and the guest's memory is whole.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pacer_tests::agent::{Agent, pacer_binary};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::pair::{Pair, PairOptions, SideOptions};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};

const TIMEOUT: Duration = Duration::from_secs(60);
/// How long both sides are left alone before anything is resolved: longer than
/// a dead link takes to be noticed.
const SETTLE: Duration = Duration::from_secs(6);
const BARE: BareGuest = BareGuest {
    ram_mib: 64,
    fill_mib: 24,
    working_set_pages: 500,
    pages_per_second: 1000,
    ..BareGuest::PLAIN
};
const VARIABLE: &str = "PACER_STOP_AT";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// Kills the agent of `side` at `point` and sees to it that exactly one guest
/// comes out of it. `resolves`: whether it may take `pacer resolve`.
fn check(side: Side, point: &str) -> Result<()> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let mut options = PairOptions::new(VmOptions::new(Guest::Bare(BARE), qemu, Accel::detect()?));
    options.incoming_defer = true;
    let stop_at: SideOptions = SideOptions {
        environment: vec![(VARIABLE.into(), point.into())],
        ..SideOptions::default()
    };
    match side {
        Side::Source => options.source = stop_at,
        Side::Destination => options.destination = stop_at,
    }
    let pair = Pair::start(&options)?;
    let victim = match side {
        Side::Source => &pair.source_agent,
        Side::Destination => &pair.destination_agent,
    };
    wait_until(&format!("the agent stops at {point}"), TIMEOUT, || {
        if let Some(code) = victim.try_wait()? {
            bail!("it ended with {code}");
        }
        Ok(is_stopped(victim).then_some(()))
    })
    .with_context(|| logs(&pair))?;
    victim.kill9();
    resolve(&pair, side).with_context(|| format!("killed at {point}\n{}", logs(&pair)))?;
    let survivor = running(&pair)?.context("nobody runs")?;
    survivor.verify_bare(&BARE)?;
    Ok(())
}

/// Until exactly one side runs for good, by itself or by `pacer resolve`.
fn resolve(pair: &Pair, killed: Side) -> Result<()> {
    if wait_running(pair, SETTLE)? {
        return Ok(());
    }
    let sides = match killed {
        Side::Source => [&pair.source, &pair.destination],
        Side::Destination => [&pair.destination, &pair.source],
    };
    for vm in sides {
        if vm.is_alive() {
            let output = Command::new(pacer_binary()?)
                .arg("resolve")
                .arg("--qmp")
                .arg(vm.pacer_qmp())
                .output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let failed = String::from_utf8_lossy(&output.stderr).into_owned();
            eprintln!("resolve: {} {said}{failed}", output.status);
        }
        if wait_running(pair, Duration::from_secs(3))? {
            return Ok(());
        }
    }
    bail!("both sides are stopped")
}

/// Whether one side runs within `timeout`; looks on for a moment then.
fn wait_running(pair: &Pair, timeout: Duration) -> Result<bool> {
    let start = Instant::now();
    let mut since: Option<Instant> = None;
    while start.elapsed() < timeout + Duration::from_secs(2) {
        match running(pair)? {
            Some(_) if since.is_some_and(|at| at.elapsed() > Duration::from_secs(2)) => {
                return Ok(true);
            }
            Some(_) => since = since.or_else(|| Some(Instant::now())),
            None if start.elapsed() > timeout => return Ok(false),
            None => since = None,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    // It began to run at the very end.
    Ok(since.is_some())
}

/// The side that runs.
///
/// # Errors
/// Both do.
fn running(pair: &Pair) -> Result<Option<&Vm>> {
    let runs = |vm: &Vm| vm.is_alive() && vm.status().is_ok_and(|status| status == "running");
    match (runs(&pair.source), runs(&pair.destination)) {
        (true, true) => bail!("THE GUEST RUNS TWICE"),
        (true, false) => Ok(Some(&pair.source)),
        (false, true) => Ok(Some(&pair.destination)),
        (false, false) => Ok(None),
    }
}

fn is_stopped(agent: &Agent) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| rest.starts_with(" T"))
}

fn logs(pair: &Pair) -> String {
    format!(
        "--- source's agent\n{}\n--- destination's agent\n{}",
        pair.source_agent.log(),
        pair.destination_agent.log()
    )
}

/// Every point in turn, so that a failure names them all. The agents are the same
/// on an older QEMU: one point shows that it answers them as they expect.
fn check_all(side: Side, points: &[&str]) -> Result<()> {
    let points = match QemuVersion::from_env()? {
        QemuVersion::System => points,
        QemuVersion::V7_2 => &points[points.len() / 2..][..1],
    };
    let mut failures = Vec::new();
    for point in points {
        let start = Instant::now();
        match check(side, point) {
            Ok(()) => eprintln!("{point}: ok after {:.1?}", start.elapsed()),
            Err(error) => failures.push(format!("{point}: {error:#}")),
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n\n"));
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn the_sources_agent_may_die_before_the_switchover() -> Result<()> {
    check_all(
        Side::Source,
        &["source-ready", "source-start", "source-stop"],
    )
}

#[test]
#[ignore = "needs QEMU"]
fn the_sources_agent_may_die_in_the_handover() -> Result<()> {
    let points = [
        "source-completed",
        "source-status",
        "source-committing",
        "source-commit-sent",
        "source-done",
    ];
    check_all(Side::Source, &points)
}

#[test]
#[ignore = "needs QEMU"]
fn the_destinations_agent_may_die_before_the_switchover() -> Result<()> {
    let points = [
        "destination-ready",
        "destination-channel",
        "destination-shut",
    ];
    check_all(Side::Destination, &points)
}

#[test]
#[ignore = "needs QEMU"]
fn the_destinations_agent_may_die_in_the_handover() -> Result<()> {
    let points = [
        "destination-status",
        "destination-commit",
        "destination-committed",
        "destination-continued",
        "destination-running",
    ];
    check_all(Side::Destination, &points)
}
