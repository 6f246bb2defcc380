//! From t0 to the first byte: the probe, the measurements, the first forecast,
//! P1.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::control::CANCEL;
use super::inbox::{Event, accept, follow};
use super::switchover_bandwidth::SwitchoverBandwidth;
use super::{Driver, End, TICK};
use crate::address::Listener;
use crate::cli::OnInfeasible;
use crate::clock;
use crate::exit::Failure;
use crate::fault;
use crate::journal::{Entry, Journal, Recovery, Step, directory};
use crate::link::{Link, Ready};
use crate::measure::{self, Measurer};
use crate::pacing::measuring;
use crate::pacing::objective::Objective;
use crate::pacing::sample::{DirtyWindow, Origin, Ram, Sample};
use crate::pacing::session::{Session, SessionConfig};
use crate::pacing::time::Time;
use crate::probe::windows::BURST_GAP;
use crate::probe::{Probe, ProbeError};
use crate::process::{ProcessId, owner_of_connection};
use crate::qmp::QmpError;
use crate::relay::channel::Inspected;
use crate::relay::padding::LinkRate;
use crate::settings;
use crate::shutdown::Signals;
use crate::units::{from_f64, to_f64};

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
        self.publish(clock::now());
        let cancel = self.control.cancel.clone();
        let cancelled = tokio::select! {
            measured = self.measure() => {
                measured.map_err(anyhow::Error::new)?;
                None
            }
            name = signals.next() => Some(End::Cancelled(name.to_owned())),
            () = cancel.cancelled() => Some(End::Cancelled(CANCEL.to_owned())),
        };
        if cancelled.is_some() {
            return Ok(cancelled);
        }
        let now = clock::now();
        self.handle_all_asked(now);
        self.session.handle_timeout(now);
        if let Some(end) = self.act(now).await {
            return Ok(Some(end));
        }
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
            not_before: crate::config::not_before(&self.prepared.args, clock::wall()),
        };
        self.session = Session::new(config, t0);
        self.session.set_held(self.is_held, t0);
        self.record.start(t0, &config);
        if let Some(LinkRate::About(bytes_per_second)) = self.prepared.link_rate {
            self.tell(Sample::LinkRate { bytes_per_second }, t0);
        }
        self.wall_offset = super::wall_offset();
        self.next_progress = t0;
    }

    fn listen_to_qemu(&mut self) {
        if let Some(monitored) = &self.prepared.monitored {
            let qmp = monitored.qmp.clone();
            self.tasks
                .spawn(qmp.follow(self.events.clone(), Event::Qmp));
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

    /// Sizes up the guest and how it dirties its memory.
    async fn measure(&mut self) -> Result<(), QmpError> {
        let Some(monitored) = &self.prepared.monitored else {
            return Ok(());
        };
        let (qmp, accelerator) = (monitored.qmp.clone(), monitored.accelerator);
        let total_bytes = measure::memory_bytes(&qmp).await?;
        let ram = measure::ram(self.prepared.qemu, total_bytes, total_bytes).await;
        let content_bytes = ram.content_bytes.unwrap_or(total_bytes);
        self.on_ram(ram);
        let measurer = Measurer::new(qmp, accelerator, self.prepared.qemu, total_bytes).await;
        measurer
            .look(|measured| self.on_measured(measured, content_bytes))
            .await;
        if let Some(before) = measurer.before() {
            let following = follow(before.clone(), self.events.clone());
            self.following = Some(self.tasks.spawn(following));
        }
        Ok(())
    }

    /// For how long longer windows may be measured; `None` if they would find no more.
    fn on_measured(
        &mut self,
        measured: Result<DirtyWindow, QmpError>,
        content_bytes: u64,
    ) -> Option<Duration> {
        match measured {
            Ok(measured) if measured.origin == Origin::ContentSampling => {
                self.tell(Sample::Dirty(measured), clock::now());
            }
            Ok(measured) => {
                let now = clock::now() + BURST_GAP;
                if !self.take_dirty_logs(now) {
                    self.tell(Sample::Dirty(measured), now);
                }
            }
            // Another measurement may be under way, or the guest be paused.
            Err(error) => tracing::warn!("the dirty rate was not measured: {error}"),
        }
        let is_growing = self.session.dirty_curve().is_growing();
        is_growing.then(|| self.measuring_budget(content_bytes))
    }

    /// For how long windows may be measured that are longer than the usual ones. As
    /// fast as possible is not to be held up.
    fn measuring_budget(&self, content_bytes: u64) -> Duration {
        if let Some(asked) = self.prepared.args.measure_for {
            return asked;
        }
        let once = |rate: u64| Duration::from_secs(content_bytes / rate.max(1));
        match self.session.objective() {
            Objective::At(deadline) | Objective::By(deadline) => {
                let highest = self.prepared.args.max_rate;
                let least = highest.map(|rate| once(rate.bytes_per_second()));
                measuring::budget_before(deadline, least)
            }
            Objective::Fixed(rate) => {
                let outlook = self.session.outlook_at(to_f64(rate), clock::now());
                let expected = outlook.map(|outlook| outlook.expected(to_f64(rate)));
                measuring::budget(expected.unwrap_or_else(|| once(rate)))
            }
            Objective::Fastest => Duration::ZERO,
        }
    }

    pub(super) fn on_ram(&mut self, ram: Ram) {
        let (total_bytes, content_bytes) = (ram.total_bytes, ram.content_bytes);
        tracing::info!(total_bytes, content_bytes, "the guest's memory");
        self.windows.expect_ram(total_bytes);
        self.tell(Sample::Ram(ram), clock::now());
    }

    /// P1: settings, the journal, `migrate`.
    async fn start_migration(&mut self) -> Result<(), Failure> {
        let Some(monitored) = &self.prepared.monitored else {
            return Ok(());
        };
        let (qmp, qemu) = (monitored.qmp.clone(), monitored.qemu);
        // Not as it was before the measurement: a person may have paused it since.
        let running = qmp.status().await.map_err(anyhow::Error::new)?.running;
        let uri = self
            .prepared
            .listener
            .migrate_uri()
            .map_err(anyhow::Error::new)?;
        let wanted = settings::Wanted {
            downtime_limit: self.prepared.args.downtime_limit,
            throttle: self.prepared.args.on_infeasible == OnInfeasible::Converge,
        };
        let saved = settings::set(&qmp, wanted)
            .await
            .map_err(anyhow::Error::new)?;
        if let Err(error) = self.open_journal(qemu, running, saved.clone()) {
            settings::restore(&qmp, &saved).await;
            return Err(error);
        }
        if settings::knows_switchover_bandwidth(&saved) {
            self.bandwidth = Some(SwitchoverBandwidth::start(qmp.clone()));
            self.tell_bandwidth();
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

    /// What is sent in a second is what QEMU is to count on. Past STOP it asks no more.
    pub(super) fn tell_bandwidth(&self) {
        if let (Some(bandwidth), Some(rate), None) = (
            &self.bandwidth,
            self.session.rate(),
            self.switchover.stopped_at,
        ) {
            bandwidth.set(rate.min(from_f64(self.session.link())));
        }
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
            recovery: Recovery::own(self.record.t0),
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
        self.publish(clock::now());
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
                () = self.control.cancel.cancelled() => {
                    return Err(Failure::not_started(format!("{CANCEL} before a migration began")));
                }
                Some(asked) = self.control.asked.recv() => self.handle_asked(asked, clock::now()),
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
        self.tell(Sample::StreamStarted, now);
        None
    }

    /// Takes in what the probe has seen. True if that was a point of the curve.
    pub(super) fn take_dirty_logs(&mut self, now: Time) -> bool {
        let is_point = self.take_probe_events();
        match self.windows.flush(now) {
            Some(sample) => {
                tracing::debug!(?sample, "dirty log");
                self.record.sample(sample, now);
                self.tell(sample, now);
                is_point || sample.is_point()
            }
            None => is_point,
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
