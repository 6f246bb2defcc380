//! The same migration by QEMU alone, over plain TCP: what the relay is held
//! against.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::Scenario;
use super::run::{GIVE_UP, SETTLE};
use super::sides::is_whole;
use crate::delay::Delay;
use crate::events::Events;
use crate::process::{check_interrupt, free_port, pause, wait_until};
use crate::qemu::{Accel, QemuInstall, QemuVersion};
use crate::vm::{Incoming, Vm, VmOptions};

const TIMEOUT: Duration = Duration::from_secs(120);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PlainRun {
    /// From the event STOP at the source to RESUME at the destination.
    pub downtime_seconds: f64,
    /// What QEMU itself takes it for.
    pub qemu_downtime_seconds: Option<f64>,
}

/// Moves the guest at the scenario's rate and downtime limit, over a path that takes so
/// long one way.
///
/// # Errors
/// It did not arrive within [`GIVE_UP`], did not arrive whole, or something did
/// not start.
pub fn run(scenario: &Scenario, delay: Option<Duration>) -> Result<PlainRun> {
    let qemu = QemuInstall::find(QemuVersion::System)?;
    let mut options = VmOptions::new(scenario.guest()?, qemu, Accel::detect()?);
    options.own_group = true;
    let port = free_port()?;
    let source = Vm::start(&options)?;
    let destination = Vm::start(&options.destination(Incoming::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    }))?;
    let events = [&source, &destination].map(|vm| Events::follow(&vm.events_qmp(), TIMEOUT));
    let [at_source, at_destination] = events;
    let (at_source, at_destination) = (at_source?, at_destination?);
    source.wait_started(TIMEOUT)?;
    pause(SETTLE)?;
    source.qmp(
        "migrate-set-parameters",
        json!({
            "max-bandwidth": scenario.bytes_per_second,
            "downtime-limit": u64::try_from(scenario.downtime_limit.as_millis())?,
        }),
    )?;
    let path = match delay {
        Some(one_way) => Some(Delay::tcp(port, one_way)?),
        None => None,
    };
    let port = path.as_ref().map_or(port, Delay::port);
    source.qmp("migrate", json!({"uri": format!("tcp:127.0.0.1:{port}")}))?;
    // By its events: a monitor that is asked is busy with that at the worst moment.
    let arrived = wait_until("the guest runs at the destination", GIVE_UP, || {
        Ok(at_destination.last("RESUME"))
    });
    check_interrupt()?;
    let Ok(arrived) = arrived else {
        let answer = source.qmp("query-migrate", json!({}))?;
        bail!("QEMU alone did not arrive in {GIVE_UP:?}: {answer}");
    };
    let stopped = at_source.last("STOP").context("no event STOP")?;
    ensure!(stopped < arrived, "it ran before it was stopped");
    is_whole(scenario, &destination)?;
    let answer = source.qmp("query-migrate", json!({}))?;
    Ok(PlainRun {
        downtime_seconds: arrived - stopped,
        qemu_downtime_seconds: answer["downtime"].as_f64().map(|ms| ms / 1000.0),
    })
}
