//! From t0 to the first byte: the probe, the measurements, the first forecast,
//! P1.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::inbox::{Event, accept};
use super::{Driver, End, TICK};
use crate::address::Listener;
use crate::clock;
use crate::exit::Failure;
use crate::fault;
use crate::journal::{Entry, Journal, Step, directory};
use crate::link::{Link, Ready};
use crate::measure::{self, Accelerator};
use crate::pacing::sample::{Ram, Sample};
use crate::pacing::session::{Session, SessionConfig};
use crate::pacing::time::Time;
use crate::probe::windows::BURST_GAP;
use crate::probe::{Probe, ProbeError};
use crate::process::{ProcessId, owner_of_connection};
use crate::relay::channel::Inspected;
use crate::settings;
use crate::shutdown::Signals;

/// A management daemon may hold the connection for a moment before it passes it
/// on to QEMU.
const OWNER_TRIES: u32 = 20;
const OWNER_RETRY: Duration = Duration::from_millis(25);
/// How often the probe is emptied while nothing that it sees matters.
const TIDY: Duration = Duration::from_secs(1);
const RELINK: Duration = Duration::from_secs(2);
/// `migrate` answers when the connection is made; a name that must be looked up
/// takes longer.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(30);

impl Driver {
    /// Begins the migration, or waits until a person does. `Some` if it ended
    /// at once.
    ///
    /// # Errors
    ///
    /// If nothing was started.
    pub(super) async fn begin(&mut self, signals: &mut Signals) -> Result<Option<End>, Failure> {
        self.tasks
            .spawn(accept(self.prepared.listener.clone(), self.events.clone()));
        if self.prepared.monitored.is_some() {
            self.begin_monitored(signals).await
        } else {
            self.wait_for_person(signals).await
        }
    }

    /// With `--qmp`: t0 is now.
    async fn begin_monitored(&mut self, signals: &mut Signals) -> Result<Option<End>, Failure> {
        if let Some(qemu) = self.prepared.qemu {
            self.attach(qemu).await;
        }
        self.start_clock();
        self.listen_to_qemu();
        let cancelled = tokio::select! {
            measured = self.measure() => {
                measured.map_err(anyhow::Error::new)?;
                None
            }
            name = signals.next() => Some(End::Cancelled(name.to_owned())),
        };
        if cancelled.is_some() {
            return Ok(cancelled);
        }
        let now = clock::now();
        self.session.handle_timeout(now);
        if let Some(end) = self.act(now).await {
            return Ok(Some(end));
        }
        self.watch_stores();
        self.start_migration().await?;
        Ok(None)
    }

    /// The clock starts: everything counts from here.
    fn start_clock(&mut self) {
        let t0 = clock::now();
        let objective = self.prepared.wish.objective(clock::wall());
        let config = SessionConfig {
            objective,
            limits: crate::config::limits(&self.prepared.args),
            switchover_overhead: crate::config::SWITCHOVER_OVERHEAD,
        };
        self.session = Session::new(config, t0);
        self.record.start(t0, objective);
        self.wall_offset = super::wall_offset();
        self.next_progress = t0;
    }

    fn listen_to_qemu(&mut self) {
        if let Some(monitored) = &self.prepared.monitored {
            // It ends with the monitor.
            drop(
                monitored
                    .qmp
                    .forward_events(self.events.clone(), Event::Qmp),
            );
        }
        self.watch_process();
    }

    fn watch_process(&mut self) {
        if let Some(qemu) = self.prepared.qemu {
            let events = self.events.clone();
            self.tasks.spawn(async move {
                qemu.ended().await;
                let _ = events.send(Event::QemuEnded);
            });
        }
    }

    /// Attaches the probe; without it the migration goes on from QMP and the
    /// stream alone.
    async fn attach(&mut self, qemu: ProcessId) {
        let attached = attached(self.probe.take(), qemu).await;
        self.take_probe(attached, qemu);
    }

    /// The same while a migration is waiting to be relayed: forecasts go on.
    async fn attach_meanwhile(&mut self, qemu: ProcessId) {
        let attaching = attached(self.probe.take(), qemu);
        tokio::pin!(attaching);
        let attached = loop {
            tokio::select! {
                attached = &mut attaching => break attached,
                () = tokio::time::sleep(TICK) => {
                    let now = clock::now();
                    self.session.handle_timeout(now);
                    if self.act(now).await.is_some() {
                        tracing::debug!("no verdict is possible yet");
                    }
                }
            }
        };
        self.take_probe(attached, qemu);
    }

    fn take_probe(&mut self, attached: Result<Probe, ProbeError>, qemu: ProcessId) {
        match attached {
            Ok(probe) => {
                for warning in self.record.new_warnings(&probe) {
                    tracing::info!("probe: {warning}");
                }
                tracing::info!(pid = qemu.pid, "eBPF probe attached");
                self.probe = Some(probe);
                let now = clock::now();
                self.record.attached(qemu.pid, now);
                // Now, and not in the loop: block devices are attached to.
                self.record.show_probe(&mut self.probe, now);
            }
            Err(error) => self.go_on_without_probe(error),
        }
    }

    fn go_on_without_probe(&self, error: ProbeError) {
        let source = match self.prepared.monitored {
            Some(_) => "QMP and the stream",
            None => "the stream",
        };
        tracing::warn!(
            "going on without eBPF, from {source} alone: {:#}",
            anyhow::Error::new(error)
        );
    }

    /// Loads the probe before the process is known: QEMU registers its memory
    /// within a moment of connecting.
    fn await_process(&mut self) {
        match Probe::wait() {
            Ok(probe) => self.probe = Some(probe),
            Err(error) => self.go_on_without_probe(error),
        }
    }

    /// Under TCG only the stores themselves show which pages are written.
    fn watch_stores(&mut self) {
        let is_tcg = self
            .prepared
            .monitored
            .as_ref()
            .is_some_and(|monitored| monitored.accelerator == Accelerator::Tcg);
        if let Some(probe) = &mut self.probe
            && is_tcg
        {
            match probe.watch_stores(true) {
                Ok(()) => self.syncs_watched = 0,
                Err(error) => tracing::warn!(
                    "the guest's stores are not counted: {:#}",
                    anyhow::Error::new(error)
                ),
            }
        }
    }

    /// Sizes up the guest and how it dirties its memory.
    async fn measure(&mut self) -> Result<(), crate::qmp::QmpError> {
        let Some(monitored) = &self.prepared.monitored else {
            return Ok(());
        };
        let (qmp, accelerator) = (monitored.qmp.clone(), monitored.accelerator);
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "kebab-case")]
        struct Size {
            base_memory: u64,
        }
        let size: Size = qmp
            .execute("query-memory-size-summary", serde_json::Value::Null)
            .await?;
        self.on_ram(size.base_memory, size.base_memory);
        for (arguments, window) in measure::plan(accelerator, qmp.version_numbers()) {
            match measure::measure(&qmp, accelerator, arguments, window).await {
                Ok(measured) => {
                    let now = clock::now() + BURST_GAP;
                    if !self.take_dirty_logs(now) {
                        tracing::debug!(?measured, "QEMU measured");
                        self.session.handle_sample(Sample::Dirty(measured), now);
                    }
                }
                // Another measurement may be under way, or the guest be paused.
                Err(error) => tracing::warn!("the dirty rate was not measured: {error}"),
            }
        }
        Ok(())
    }

    /// The guest's memory is this large; all but its largest block (ROMs and
    /// the like) is taken as resident.
    pub(super) fn on_ram(&mut self, total_bytes: u64, largest_block_bytes: u64) {
        let resident_bytes = self
            .prepared
            .qemu
            .and_then(|qemu| qemu.resident_bytes(largest_block_bytes))
            .map(|bytes| bytes + (total_bytes - largest_block_bytes));
        tracing::info!(total_bytes, resident_bytes, "the guest's memory");
        self.windows.expect_ram(total_bytes);
        let ram = Ram {
            total_bytes,
            resident_bytes,
        };
        self.session.handle_sample(Sample::Ram(ram), clock::now());
    }

    /// P1: settings, the journal, `migrate`.
    async fn start_migration(&mut self) -> Result<(), Failure> {
        let Some(monitored) = &self.prepared.monitored else {
            return Ok(());
        };
        let (qmp, qemu) = (monitored.qmp.clone(), monitored.qemu);
        let running = monitored.was_running;
        let uri = self
            .prepared
            .listener
            .migrate_uri()
            .map_err(anyhow::Error::new)?;
        let saved = settings::set(&qmp, self.prepared.args.downtime_limit)
            .await
            .map_err(anyhow::Error::new)?;
        if let Err(error) = self.open_journal(qemu, running, saved.clone()) {
            settings::restore(&qmp, &saved).await;
            return Err(error);
        }
        self.record.step("P1 START", clock::now());
        fault::point("source-start");
        let events = self.events.clone();
        self.tasks.spawn(async move {
            let reply: Result<serde_json::Value, _> = qmp
                .execute_within("migrate", json!({ "uri": uri }), MIGRATE_TIMEOUT)
                .await;
            if let Err(error) = reply {
                let _ = events.send(Event::MigrateRefused(error));
            }
        });
        Ok(())
    }

    fn open_journal(
        &mut self,
        qemu: ProcessId,
        continue_guest: bool,
        saved: serde_json::Value,
    ) -> Result<(), Failure> {
        let journal = Journal::of(&directory(), qemu).map_err(anyhow::Error::new)?;
        let entry = Entry {
            attempt: self.prepared.attempt,
            step: Step::Start,
            qemu,
            reach: self.prepared.reach.clone(),
            handover: self.prepared.ready.handover,
            continue_guest,
            saved,
        };
        journal.write(&entry).map_err(anyhow::Error::new)?;
        self.journal = Some((journal, entry));
        Ok(())
    }

    /// Without `--qmp`: a person types `migrate`, or libvirt connects.
    async fn wait_for_person(&mut self, signals: &mut Signals) -> Result<Option<End>, Failure> {
        match self.prepared.qemu {
            Some(qemu) => self.attach(qemu).await,
            None => self.await_process(),
        }
        let mut tidy = tokio::time::interval(TIDY);
        let uri = self
            .prepared
            .listener
            .migrate_uri()
            .map_err(anyhow::Error::new)?;
        tracing::info!(
            "waiting for QEMU; type in its monitor: migrate_set_capability return-path on, \
             then: migrate -d {uri}"
        );
        loop {
            tokio::select! {
                name = signals.next() => {
                    return Err(Failure::not_started(format!("{name} before a migration began")));
                }
                message = super::inbox::next_message(&mut self.link) => match message {
                    Ok(message) => tracing::warn!(?message, "a message that does not belong here"),
                    Err(error) => {
                        tracing::warn!("{error}; connecting again");
                        self.link = None;
                    }
                },
                (link, ready) = relink(&self.prepared.reach, self.prepared.attempt), if self.link.is_none() => {
                    tracing::info!("the destination's agent is ready again");
                    self.link = Some(link);
                    self.prepared.ready = ready;
                }
                _ = tidy.tick() => {
                    if let Some(probe) = &mut self.probe {
                        // Nothing of it matters before the migration.
                        drop(probe.drain());
                    }
                }
                Some(event) = self.inbox.recv() => match event {
                    Event::Inspected(inspected, peer) if self.link.is_some() => {
                        return Ok(self.begin_inspected(*inspected, peer).await);
                    }
                    Event::Inspected(inspected, _) => {
                        tracing::warn!("refused QEMU: the destination's agent is not there");
                        inspected.reset();
                    }
                    Event::Deaf(error) => {
                        return Err(anyhow::Error::new(error).context("no longer listening for QEMU").into());
                    }
                    Event::Stranger(rejected, peer) => log_stranger(&rejected, peer),
                    _ => {}
                },
            }
        }
    }

    /// A migration that somebody else began: t0 is now.
    async fn begin_inspected(
        &mut self,
        inspected: Inspected,
        peer: Option<SocketAddr>,
    ) -> Option<End> {
        self.start_clock();
        let now = clock::now();
        self.session.handle_timeout(now);
        if self.act(now).await.is_some() {
            tracing::debug!("no verdict is possible yet");
        }
        let qemu = match self.prepared.qemu {
            Some(qemu) => Some(qemu),
            None => find_qemu(&inspected, peer, &self.prepared.listener).await,
        };
        match qemu {
            Some(qemu) => {
                if self.prepared.qemu.is_none() && self.probe.is_some() {
                    self.attach_meanwhile(qemu).await;
                }
                self.prepared.qemu = Some(qemu);
                self.watch_process();
                if let Err(error) = self.open_journal(qemu, true, serde_json::Value::Null) {
                    inspected.reset();
                    return Some(End::Refused(error.to_string()));
                }
            }
            None => tracing::warn!(
                "the process that migrates was not found (give --pid): no eBPF, and Pacer cannot \
                 continue the guest at the destination"
            ),
        }
        self.record.step("P1 START", now);
        self.admit(inspected).await
    }

    /// Relays a migration stream, if it may be.
    pub(super) async fn admit(&mut self, inspected: Inspected) -> Option<End> {
        let return_path = inspected.return_path;
        self.record.report.qemu.return_path = Some(return_path);
        if !return_path && !self.prepared.args.allow_no_return_path {
            inspected.reset();
            return Some(End::Refused(
                "this migration has no return path: QEMU would say `completed` before the \
                 destination has the guest. Type in the monitor: migrate_set_capability \
                 return-path on, and migrate again (the guest runs on at the source)"
                    .to_owned(),
            ));
        }
        if !return_path {
            tracing::warn!(
                "no return path: if anything fails at the end, THE GUEST MAY BE LOST \
                 (--allow-no-return-path)"
            );
        }
        if let Err(error) = self.relay(inspected).await {
            return Some(End::Failed(error.to_string()));
        }
        let now = clock::now();
        self.session.handle_sample(Sample::StreamStarted, now);
        None
    }

    /// Takes in what the probe has seen. True if that was a point of the curve.
    pub(super) fn take_dirty_logs(&mut self, now: Time) -> bool {
        self.take_probe_events();
        match self.windows.flush(now) {
            Some(sample) => {
                tracing::debug!(?sample, "dirty log");
                self.record.sample(sample, now);
                self.session.handle_sample(sample, now);
                true
            }
            None => false,
        }
    }
}

pub(super) fn log_stranger(rejected: &crate::relay::channel::Rejected, peer: Option<SocketAddr>) {
    let peer = peer.map_or_else(|| "a local process".to_owned(), |peer| peer.to_string());
    tracing::warn!(%peer, "a connection was closed: {rejected}; still waiting for QEMU");
}

/// The probe, attached to this process. On a thread of its own: the kernel takes a
/// second or two for it.
async fn attached(probe: Option<Probe>, qemu: ProcessId) -> Result<Probe, ProbeError> {
    let attach = move || match probe {
        Some(mut probe) => probe.observe(qemu.pid).map(|()| probe),
        None => Probe::attach(qemu.pid),
    };
    match tokio::task::spawn_blocking(attach).await {
        Ok(attached) => attached,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

async fn relink(reach: &crate::journal::Reach, attempt: uuid::Uuid) -> (Link, Ready) {
    loop {
        match Link::connect(reach, attempt, false).await {
            Ok(linked) => return linked,
            Err(error) => tracing::debug!(%error, "the destination's agent is not there yet"),
        }
        tokio::time::sleep(RELINK).await;
    }
}

/// The process at the other end of a connection on this host.
async fn find_qemu(
    inspected: &Inspected,
    peer: Option<SocketAddr>,
    listener: &Listener,
) -> Option<ProcessId> {
    let port = match listener {
        Listener::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
        Listener::Unix(..) => None,
    };
    for _ in 0..OWNER_TRIES {
        let pid = inspected
            .peer_pid()
            .or_else(|| owner_of_connection(peer?, port?));
        if let Some(qemu) = pid.and_then(|pid| ProcessId::of(pid).ok())
            && is_qemu(qemu)
        {
            return Some(qemu);
        }
        tokio::time::sleep(OWNER_RETRY).await;
    }
    None
}

/// A daemon that opened the connection is not QEMU yet.
fn is_qemu(process: ProcessId) -> bool {
    process.executable().is_ok_and(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().contains("qemu"))
    })
}
