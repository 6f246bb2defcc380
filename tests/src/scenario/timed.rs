//! One scenario moved to a deadline, over a link that may be modelled and may
//! change on the way: two QEMUs, two agents, the report, and what was seen from
//! outside.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::Scenario;
use super::run::SETTLE;
use super::sides::{self, Side};
use crate::delay::Delay;
use crate::events::Events;
use crate::pair::{Pair, PairOptions};
use crate::process::{check_interrupt, free_udp_port, wait_until};
use crate::qemu::{Accel, QemuInstall, QemuVersion};
use crate::vm::VmOptions;

/// From the start of `pacer source` to t0, about: the connection to its peer, the
/// link's measuring, QMP, the probe.
pub const TO_T0: Duration = Duration::from_millis(1500);
const TIMEOUT: Duration = Duration::from_secs(20);

/// A migration to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// The guest, and its downtime limit.
    pub scenario: Scenario,
    /// What is asked for.
    pub aim: Aim,
    /// `--max-rate`, in bytes a second.
    pub max_rate: Option<u64>,
    /// What the modelled link takes, in bytes a second; `None` is no model.
    pub link: Option<u64>,
    /// What becomes of it.
    pub link_change: Option<LinkChange>,
    /// What the path between the agents takes besides, one way.
    pub delay: Option<Duration>,
    /// It is cancelled if it has not ended so long after t0.
    pub give_up: Duration,
}

/// What is asked of `pacer source`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aim {
    /// `--deadline`.
    Deadline(Duration),
    /// `--finish-at`, about so long after t0.
    FinishAt(Duration),
    /// `--rate`, the scenario's own.
    Rate,
}

/// The modelled link becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkChange {
    /// About so long after t0.
    pub after: Duration,
    /// As `PACER_LINK_MODEL` has it, from then on.
    pub model: String,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct TimedRun {
    /// `pacer source`'s; null if it wrote none.
    pub report: Value,
    /// The exit code of `pacer source`.
    pub exit_code: i32,
    /// It was cancelled for its time.
    pub gave_up: bool,
    /// Where the guest runs, or what is wrong with it.
    pub guest: std::result::Result<Side, sides::Harm>,
    /// From the event STOP at the source to RESUME at the destination.
    pub seen_downtime_seconds: Option<f64>,
    /// From t0 to RESUME at the destination, by the wall's clock.
    pub seen_total_seconds: Option<f64>,
    /// What was asked for, from t0.
    pub asked_seconds: Option<f64>,
    /// When guest or link changed, from t0.
    pub disturbed_at_seconds: Option<f64>,
    /// What the agents said last, where the guest did not arrive.
    pub log: Option<String>,
}

/// Moves the guest, its whole way recorded in `trace`.
///
/// # Errors
/// Something did not start, or a signal asked us to end.
pub fn run(timed: &Timed, pacer: &Path, trace: &Path) -> Result<TimedRun> {
    let folder = tempfile::Builder::new().prefix("pacer-timed-").tempdir()?;
    let link = folder.path().join("link");
    let mut options = options(timed, pacer, trace, &link)?;
    let path = match timed.delay {
        Some(one_way) => {
            let port = free_udp_port()?;
            let path = Delay::udp(port, one_way)?;
            (options.quic_port, options.connect_port) = (Some(port), Some(path.port()));
            Some(path)
        }
        None => None,
    };
    let pair = Pair::start(&options)?;
    let spawned = Instant::now();
    let at_source = Events::follow(&pair.source.events_qmp(), TIMEOUT)?;
    let at_destination = Events::follow(&pair.destination.events_qmp(), TIMEOUT)?;
    let mut pending = timed.link_change.clone();
    let mut link_changed_at = None;
    let ended = wait_until("pacer source ends", Duration::MAX, || {
        let since_t0 = spawned.elapsed().saturating_sub(TO_T0);
        if let Some(change) = pending.take_if(|change| since_t0 >= change.after) {
            replace(&link, &change.model)?;
            link_changed_at = Some(jiff::Timestamp::now());
        }
        let ended = pair.source_agent.try_wait()?;
        Ok(match ended {
            Some(code) => Some(Some(code)),
            None => (since_t0 > timed.give_up).then_some(None),
        })
    })?;
    let (exit_code, gave_up) = match ended {
        Some(code) => (code, false),
        None => {
            pair.source_agent.sigint()?;
            (pair.source_agent.wait(TIMEOUT)?, true)
        }
    };
    let report = pair.report().unwrap_or(Value::Null);
    let outcome = report["outcome"].as_str().unwrap_or("unknown");
    let arrived_at = at_destination.last("RESUME");
    let stopped_at = at_source.last("STOP");
    let guest = sides::look(&timed.scenario, &pair, outcome)?;
    check_interrupt()?;
    drop(path);
    let t0 = started_at(&report);
    let arrived_at = arrived_at.filter(|_| outcome == "completed");
    let changed_at = link_changed_at
        .map(seconds)
        .or_else(|| guest_change(timed, &pair));
    let log = (outcome != "completed").then(|| {
        let agents = [&pair.source_agent, &pair.destination_agent];
        agents.map(|agent| agent.log_tail()).concat()
    });
    Ok(TimedRun {
        asked_seconds: asked(timed, &pair, t0),
        seen_total_seconds: arrived_at.zip(t0).map(|(at, t0)| at - t0),
        seen_downtime_seconds: arrived_at.zip(stopped_at).map(|(at, stopped)| at - stopped),
        disturbed_at_seconds: changed_at.zip(t0).map(|(at, t0)| at - t0),
        report,
        exit_code,
        gave_up,
        guest,
        log,
    })
}

fn options(timed: &Timed, pacer: &Path, trace: &Path, link: &PathBuf) -> Result<PairOptions> {
    let qemu = QemuInstall::find(QemuVersion::System)?;
    let mut vm = VmOptions::new(timed.scenario.guest()?, qemu, Accel::detect()?);
    // Ctrl-C goes to us alone, and we end the rest in order.
    vm.own_group = true;
    let limit = timed.scenario.downtime_limit.as_millis();
    let mut flags = vec!["--downtime-limit".to_owned(), format!("{limit}ms")];
    match timed.aim {
        Aim::Deadline(deadline) => {
            flags.extend([
                "--deadline".to_owned(),
                format!("{}ms", deadline.as_millis()),
            ]);
        }
        Aim::Rate => {
            let rate = timed.scenario.bytes_per_second;
            flags.extend(["--rate".to_owned(), format!("{rate}B/s")]);
        }
        Aim::FinishAt(_) => {}
    }
    if let Some(rate) = timed.max_rate {
        flags.extend(["--max-rate".to_owned(), format!("{rate}B/s")]);
    }
    let mut options = PairOptions::new(vm).source_flags(flags);
    options
        .source
        .flags
        .extend(["--trace".into(), trace.into()]);
    if let Aim::FinishAt(after) = timed.aim {
        options.finish_in = Some(TO_T0 + after);
    }
    if let Some(rate) = timed.link {
        replace(link, &format!("0:{rate}B/s"))?;
        let mut model = std::ffi::OsString::from("@");
        model.push(link);
        options.source.environment = vec![("PACER_LINK_MODEL".into(), model)];
    }
    options.pacer = Some(pacer.to_owned());
    options.settle = SETTLE;
    Ok(options)
}

/// Wholly or not at all: it is read at any moment.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text)?;
    Ok(std::fs::rename(&draft, path)?)
}

fn started_at(report: &Value) -> Option<f64> {
    let started_at: jiff::Timestamp = report["started_at"].as_str()?.parse().ok()?;
    Some(seconds(started_at))
}

fn seconds(at: jiff::Timestamp) -> f64 {
    at.duration_since(jiff::Timestamp::UNIX_EPOCH).as_secs_f64()
}

/// In seconds from t0.
fn asked(timed: &Timed, pair: &Pair, t0: Option<f64>) -> Option<f64> {
    match timed.aim {
        Aim::Deadline(deadline) => Some(deadline.as_secs_f64()),
        Aim::FinishAt(_) => Some(seconds(pair.finish_at?) - t0?),
        Aim::Rate => None,
    }
}

/// By the wall's clock, on which the guest's first word is known.
fn guest_change(timed: &Timed, pair: &Pair) -> Option<f64> {
    let after = timed.scenario.change_after?;
    let began = pair.source.serial_written_at().ok()?;
    let began = jiff::Timestamp::try_from(began).ok()?;
    Some(seconds(began) + after.as_secs_f64())
}
