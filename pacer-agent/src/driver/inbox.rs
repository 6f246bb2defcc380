//! What reaches the loop, and the small tasks that bring it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;

use super::disks::Disk;
use crate::address::Listener;
use crate::link::Link;
use crate::measure::Before;
use crate::pacing::sample::{DirtyWindow, Ram};
use crate::probe::Probe;
use crate::qmp::events::Heard;
use crate::qmp::{MigrationInfo, QmpError, RunStatus};
use crate::relay::channel::{self, Inspected, Rejected};
use crate::relay::control::ControlError;
use crate::relay::frame::Message;

/// The guest's memory is compared again when its window has grown by this, or at
/// least by so much.
const GROWTH: f64 = 1.2;
const LEAST_GROWTH: Duration = Duration::from_millis(500);
/// Connections looked at at once; strangers beyond that wait.
const MOST_INSPECTED: usize = 16;

/// Something that happened outside.
pub(super) enum Event {
    /// QEMU said so.
    Qmp(Heard),
    /// A migration stream began.
    Inspected(Box<Inspected>, Option<SocketAddr>),
    /// Somebody else connected.
    Stranger(Rejected, Option<SocketAddr>),
    /// The listener is of no more use.
    Deaf(std::io::Error),
    /// A channel did something.
    Channel(channel::Event),
    /// The answer to `query-migrate`.
    Progress(Result<MigrationInfo, QmpError>),
    /// The answer to `query-status`, asked at STOP or after events were missed.
    Status(Result<RunStatus, QmpError>),
    /// The answer to `query-blockstats`.
    Disks(Result<Vec<Disk>, QmpError>),
    /// The guest's memory was looked through.
    Sized(Ram),
    /// The guest's memory was compared with what it was.
    Compared(DirtyWindow),
    /// QEMU refused `migrate`.
    MigrateRefused(QmpError),
    /// `migrate_cancel` did not reach QEMU in time.
    CancelFailed(QmpError),
    /// The QEMU process ended.
    QemuEnded,
}

pub(super) async fn forward_channel(
    mut inbox: UnboundedReceiver<channel::Event>,
    events: UnboundedSender<Event>,
) {
    while let Some(event) = inbox.recv().await {
        if events.send(Event::Channel(event)).is_err() {
            return;
        }
    }
}

/// Compares the guest's memory with what it was, over ever longer windows.
pub(super) async fn follow(before: Before, events: UnboundedSender<Event>) {
    loop {
        let age = before.age();
        let window = age.mul_f64(GROWTH).max(age + LEAST_GROWTH);
        let Some(compared) = before.compared(window).await else {
            return;
        };
        if events.send(Event::Compared(compared)).is_err() {
            return;
        }
    }
}

/// Accepts connections and looks at each in a task of its own, so that a
/// stranger that says nothing keeps nobody waiting.
pub(super) async fn accept(listener: Arc<Listener>, events: UnboundedSender<Event>) {
    let mut inspections = JoinSet::new();
    loop {
        if inspections.len() >= MOST_INSPECTED {
            inspections.join_next().await;
        }
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                let _ = events.send(Event::Deaf(error));
                return;
            }
        };
        while inspections.try_join_next().is_some() {}
        let events = events.clone();
        inspections.spawn(async move {
            let event = match Inspected::read(stream).await {
                Ok(inspected) => Event::Inspected(Box::new(inspected), peer),
                Err(rejected) => Event::Stranger(rejected, peer),
            };
            let _ = events.send(event);
        });
    }
}

/// The peer's next message; pending while there is no link.
pub(super) async fn next_message(link: &mut Option<Link>) -> Result<Message, ControlError> {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

/// Until the probe has events; pending without one.
pub(super) async fn probe_readable(probe: &mut Option<Probe>) {
    if let Some(probe) = probe
        && probe.readable().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
