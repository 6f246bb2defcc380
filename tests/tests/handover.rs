//! Agents killed with -9 at every step of the handover: exactly one side runs,
//! by the supervisors alone or, without them, by `pacer resolve`; and the
//! guest's memory is whole.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use pacer_tests::agent::{Agent, pacer_binary};
use pacer_tests::beside::run_beside;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::process::{free_port, wait_until};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

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
/// They wait, mostly.
const AT_ONCE: usize = 3;
const VARIABLE: &str = "PACER_STOP_AT";
/// What Pacer sets QEMU's own limiter to while it migrates.
const MAX_BANDWIDTH: u64 = 1 << 40;

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
    for side in [&mut options.source, &mut options.destination] {
        side.environment = vec![("PACER_SUPERVISOR".into(), "off".into())];
    }
    stop_at(&mut options, side, point);
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

fn stop_at(options: &mut PairOptions, side: Side, point: &str) {
    let side = match side {
        Side::Source => &mut options.source,
        Side::Destination => &mut options.destination,
    };
    side.environment.push((VARIABLE.into(), point.into()));
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
    state(agent.pid()).is_some_and(|(state, _)| state == 'T')
}

/// The state of a process, and its parent.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = stat.rsplit(')').next()?.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some((state, words.next()?.parse().ok()?))
}

/// The agent below a supervisor.
fn child(supervisor: &Agent) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .find(|pid| state(*pid).is_some_and(|(_, parent)| parent == supervisor.pid()))
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("a process")?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until the agent of `side` has stopped itself; returns its process.
fn wait_stopped(supervisor: &Agent, point: &str) -> Result<u32> {
    wait_until(&format!("the agent stops at {point}"), TIMEOUT, || {
        if let Some(code) = supervisor.try_wait()? {
            bail!("it ended with {code}");
        }
        let stopped =
            child(supervisor).filter(|pid| state(*pid).is_some_and(|(state, _)| state == 'T'));
        Ok(stopped)
    })
}

fn logs(pair: &Pair) -> String {
    format!(
        "--- source's agent\n{}\n--- destination's agent\n{}",
        pair.source_agent.log(),
        pair.destination_agent.log()
    )
}

/// Every point, so that a failure names them all. The agents are the same
/// on an older QEMU: one point shows that it answers them as they expect.
fn check_all(side: Side, points: &[&str]) -> Result<()> {
    check_each(points, |point| check(side, point))
}

fn check_each(points: &[&str], check: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let points = match QemuVersion::from_env()? {
        QemuVersion::System => points,
        QemuVersion::V7_2 => &points[points.len() / 2..][..1],
    };
    run_beside(points, AT_ONCE, |point| point, |point| check(point))
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

fn options() -> Result<PairOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let mut options = PairOptions::new(VmOptions::new(Guest::Bare(BARE), qemu, Accel::detect()?));
    options.incoming_defer = true;
    Ok(options)
}

/// Where a guest is once nobody does anything any more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// The migration may not even have begun.
    NotBegun,
    AtSource,
    AtDestination,
    AtEither,
}

/// Kills the agent of `side` at `point`; its supervisor sees to the rest.
fn check_supervised(side: Side, point: &str, expected: Expected) -> Result<()> {
    let mut options = options()?;
    // A source that has heard RUNNING does not come again.
    options.destination.flags = vec!["--outage-budget".into(), "8s".into()];
    stop_at(&mut options, side, point);
    let pair = Pair::start(&options)?;
    let victim = match side {
        Side::Source => &pair.source_agent,
        Side::Destination => &pair.destination_agent,
    };
    let stopped = wait_stopped(victim, point).with_context(|| logs(&pair))?;
    signal(stopped, Signal::KILL)?;
    let killed_at = Instant::now();
    finish_supervised(&pair, side, expected, killed_at)
        .with_context(|| format!("killed at {point}\n{}", logs(&pair)))
}

fn finish_supervised(
    pair: &Pair,
    killed: Side,
    expected: Expected,
    killed_at: Instant,
) -> Result<()> {
    wait_until("the guest runs on one side", TIMEOUT, || {
        Ok(running(pair)?.map(|_| ()))
    })?;
    let runs_after = killed_at.elapsed();
    let code = pair.source_agent.wait(TIMEOUT)?;
    let survivor = running(pair)?.context("nobody runs")?;
    eprintln!("the guest runs {runs_after:.1?} after, exit code {code}");
    ensure!(runs_after < Duration::from_secs(5), "it took too long");
    survivor.verify_bare(&BARE)?;
    let at_source = std::ptr::eq(survivor, &pair.source);
    ensure!(
        match expected {
            Expected::NotBegun | Expected::AtSource => at_source,
            Expected::AtDestination => !at_source,
            Expected::AtEither => true,
        },
        "it runs on the wrong side"
    );
    if expected == Expected::NotBegun && code == 1 {
        return Ok(());
    }
    let report = pair.report()?;
    ensure!(report["schema"] == 1, "{report:#}");
    let died = report["handover"]
        .as_array()
        .is_some_and(|steps| steps.iter().any(|step| step["step"] == "agent died"));
    ensure!(
        killed == Side::Destination || died || report["total_seconds"].is_null(),
        "{report:#}"
    );
    if at_source {
        ensure!(code == 4, "exit code {code}\n{report:#}");
        ensure!(report["outcome"] == "returned", "{report:#}");
        let parameters = pair.source.qmp("query-migrate-parameters", json!({}))?;
        ensure!(parameters["max-bandwidth"] != MAX_BANDWIDTH, "put back");
    } else {
        ensure!(code == 0, "exit code {code}\n{report:#}");
        ensure!(report["outcome"] == "completed", "{report:#}");
        ensure!(report["total_seconds"].is_f64(), "{report:#}");
        ensure!(!pair.source.is_alive(), "the source's QEMU has quit");
        ensure!(pair.destination_agent.wait(TIMEOUT)? == 0);
        let parameters = pair
            .destination
            .qmp("query-migrate-parameters", json!({}))?;
        ensure!(parameters["announce-rounds"] != 0, "put back");
    }
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_supervisor_goes_on_for_the_sources_agent() -> Result<()> {
    let points = [
        "source-ready",
        "source-start",
        "source-stop",
        "source-completed",
        "source-status",
        "source-committing",
        "source-commit-sent",
        "source-done",
    ];
    check_each(&points, |point| {
        let expected = match point {
            "source-ready" | "source-start" => Expected::AtSource,
            "source-stop" => Expected::AtEither,
            _ => Expected::AtDestination,
        };
        check_supervised(Side::Source, point, expected)
    })
}

#[test]
#[ignore = "needs QEMU"]
fn a_supervisor_goes_on_for_the_destinations_agent() -> Result<()> {
    let points = [
        "destination-ready",
        "destination-channel",
        "destination-shut",
        "destination-status",
        "destination-commit",
        "destination-committed",
        "destination-continued",
        "destination-running",
    ];
    check_each(&points, |point| {
        let expected = match point {
            "destination-ready" => Expected::NotBegun,
            "destination-channel" => Expected::AtSource,
            "destination-shut" => Expected::AtEither,
            _ => Expected::AtDestination,
        };
        check_supervised(Side::Destination, point, expected)
    })
}

/// The source's QEMU may die as soon as the destination has loaded the guest,
/// whether its agent sees that or died with it.
#[test]
#[ignore = "needs QEMU"]
fn a_source_that_dies_after_the_load_leaves_its_guest_to_the_destination() -> Result<()> {
    for (side, point) in [
        (Side::Destination, "destination-shut"),
        (Side::Source, "source-completed"),
    ] {
        let mut options = options()?.source_flags(["--switchover-timeout", "20s"]);
        stop_at(&mut options, side, point);
        let pair = Pair::start(&options)?;
        let victim = match side {
            Side::Source => &pair.source_agent,
            Side::Destination => &pair.destination_agent,
        };
        let stopped = wait_stopped(victim, point).with_context(|| logs(&pair))?;
        pair.source.kill9();
        match side {
            Side::Source => signal(stopped, Signal::KILL)?,
            Side::Destination => {
                // The source's agent sees it first.
                std::thread::sleep(Duration::from_millis(500));
                signal(stopped, Signal::CONT)?;
            }
        }
        let context = || format!("{point}\n{}", logs(&pair));
        let code = pair.source_agent.wait(TIMEOUT).with_context(context)?;
        ensure!(code == 0, "exit code {code}\n{}", context());
        ensure!(pair.report()?["outcome"] == "completed", "{}", context());
        pair.verify_destination().with_context(context)?;
    }
    Ok(())
}

/// `kill -9` of the supervisor: the agent cancels in order.
#[test]
#[ignore = "needs QEMU"]
fn an_agent_whose_supervisor_is_killed_cancels() -> Result<()> {
    let pair = Pair::start(&options()?.source_flags(["--rate", "2MB/s"]))?;
    wait_until("memory is sent", TIMEOUT, || {
        Ok((pair.source.migration_status()? == "active").then_some(()))
    })?;
    let agent = child(&pair.source_agent).context("an agent")?;
    pair.source_agent.kill9();
    wait_until("the agent has ended", TIMEOUT, || {
        Ok(state(agent)
            .is_none_or(|(state, _)| state == 'Z')
            .then_some(()))
    })
    .with_context(|| logs(&pair))?;
    ensure!(pair.report()?["outcome"] == "cancelled");
    ensure!(pair.source.status()? == "running");
    let parameters = pair.source.qmp("query-migrate-parameters", json!({}))?;
    ensure!(parameters["max-bandwidth"] != MAX_BANDWIDTH, "put back");
    pair.source.verify_bare(&BARE)?;
    ensure!(pair.destination_agent.wait(TIMEOUT)? == 4);
    Ok(())
}

/// Whoever paused the guest, and whenever, finds it paused; `--source-after leave`
/// leaves the source.
#[test]
#[ignore = "needs QEMU"]
fn a_guest_that_was_paused_is_never_continued() -> Result<()> {
    // The agent dies with the guest at the destination.
    let mut options = options()?.source_flags(["--source-after", "leave"]);
    stop_at(&mut options, Side::Source, "source-completed");
    let pair = Pair::start_after(&options, |vm| vm.qmp("stop", json!({})).map(drop))?;
    let stopped = wait_stopped(&pair.source_agent, "source-completed")?;
    signal(stopped, Signal::KILL)?;
    let code = pair
        .source_agent
        .wait(TIMEOUT)
        .with_context(|| logs(&pair))?;
    ensure!(code == 0, "exit code {code}\n{}", logs(&pair));
    ensure!(pair.destination.status()? == "paused");
    ensure!(pair.source.status()? == "postmigrate", "left");

    // It dies with the guest, paused meanwhile, at the source.
    let mut options = self::options()?.source_flags(["--rate", "2MB/s"]);
    options.source.environment.clear();
    let pair = Pair::start(&options)?;
    wait_until("memory is sent", TIMEOUT, || {
        Ok((pair.source.migration_status()? == "active").then_some(()))
    })?;
    pair.source.qmp("stop", json!({}))?;
    pair.source_agent.wait_log("was paused", TIMEOUT)?;
    signal(child(&pair.source_agent).context("an agent")?, Signal::KILL)?;
    let code = pair
        .source_agent
        .wait(TIMEOUT)
        .with_context(|| logs(&pair))?;
    ensure!(code == 4, "exit code {code}\n{}", logs(&pair));
    let status = pair.source.status()?;
    ensure!(status == "paused" || status == "postmigrate", "{status}");
    let output = resolve_output(&pair.source)?;
    ensure!(pair.source.status()? == status, "{output}");
    Ok(())
}

fn resolve_output(vm: &Vm) -> Result<String> {
    let mut command = Command::new(pacer_binary()?);
    command.arg("resolve").arg("--qmp").arg(vm.pacer_qmp());
    let output = command.output()?;
    Ok(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// A QEMU that was itself migrated in says `completed` of that for ever: a
/// migration that is cancelled before it begins has not completed.
#[test]
#[ignore = "needs QEMU"]
fn a_guest_that_has_just_arrived_may_be_cancelled_at_once() -> Result<()> {
    let pair = Pair::start(&options()?)?;
    ensure!(pair.source_agent.wait(TIMEOUT)? == 0, "{}", logs(&pair));
    ensure!(pair.destination_agent.wait(TIMEOUT)? == 0);
    let [own, peer] = pair.identities();
    let quic = format!("127.0.0.1:{}", free_port()?);
    let dest = Agent::start(
        [
            "dest",
            "--listen",
            &quic,
            "--forward",
            "127.0.0.1:1",
            "--handover",
            "external",
            "--peer",
            own.fingerprint(),
            "--identity",
        ]
        .map(std::ffi::OsString::from)
        .into_iter()
        .chain([peer.folder().into()]),
    )?;
    dest.wait_log("waiting for the source", TIMEOUT)?;
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report");
    let source = Agent::start(
        [
            "source",
            "--listen",
            "127.0.0.1:0",
            "--connect",
            &quic,
            "--deadline",
            "60s",
            "--measure-for",
            "20s",
            "--peer",
            peer.fingerprint(),
        ]
        .map(std::ffi::OsString::from)
        .into_iter()
        .chain(["--identity".into(), own.folder().into()])
        .chain(["--report".into(), report.clone().into()])
        .chain(["--qmp".into(), pair.destination.pacer_qmp().into()]),
    )?;
    source.wait_log("the guest's memory", TIMEOUT)?;
    source.sigint()?;
    let code = source.wait(TIMEOUT)?;
    ensure!(code == 4, "exit code {code}\n{}", source.log());
    let report: Value = serde_json::from_slice(&std::fs::read(report)?)?;
    ensure!(report["outcome"] == "cancelled", "{report:#}");
    ensure!(pair.destination.status()? == "running");
    pair.verify_destination()?;
    Ok(())
}

/// Without Pacer to continue it, the guest goes on by QEMU itself, or by whoever
/// holds it; each step is in the report all the same.
#[test]
#[ignore = "needs QEMU"]
fn others_may_continue_the_guest() -> Result<()> {
    for handover in ["qemu", "external"] {
        let mut options = options()?;
        options.incoming_defer = false;
        options.destination.qmp = false;
        options.destination.flags = vec!["--handover".into(), handover.into()];
        let pair = Pair::start(&options)?;
        let code = pair
            .source_agent
            .wait(TIMEOUT)
            .with_context(|| logs(&pair))?;
        ensure!(code == 0, "exit code {code}\n{}", logs(&pair));
        let report = pair.report()?;
        let steps: Vec<&str> = report["handover"]
            .as_array()
            .context("steps")?
            .iter()
            .filter_map(|step| step["step"].as_str())
            .collect();
        let expected = ["P1 START", "P2 STOP", "P3 source completed"];
        ensure!(steps.starts_with(&expected), "{steps:?}");
        ensure!(steps.last() == Some(&"P6 RUNNING"), "{steps:?}");
        let warned = pair.destination_agent.log().contains("run twice");
        ensure!(warned == (handover == "qemu"), "{}", logs(&pair));
        ensure!(!pair.source.is_alive(), "the source's QEMU has quit");
        pair.verify_destination()?;
    }
    Ok(())
}
