//! What eBPF sees of a stock QEMU from outside: its memory slots, the dirty logs
//! KVM hands it, its writes to files, and a few marks of a migration's progress.
//!
//! [`Probe`] is the edge: it loads the programs of `pacer-ebpf`, attaches them
//! to one process and drains their events. [`windows`] is pure and turns events
//! into samples for [`crate::pacing`]. Only stable interfaces are needed (system
//! call tracepoints); the uprobes are extras whose absence is a warning.

pub mod activity;
mod attach;
mod backend_names;
pub mod block_devices;
mod btf;
mod build_id;
mod chunk_table;
mod cost;
mod counters;
mod devices;
mod error;
mod event;
mod file_hooks;
mod hooks;
mod kernel;
mod large_slots;
mod object;
pub mod open_files;
mod options;
mod process;
mod rest;
mod room;
mod sockets;
mod stores;
mod totals;
mod tracepoint_format;
mod tracepoints;
pub mod windows;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya::programs::uprobe::UProbeLink;
use aya_log::EbpfLogger;
use log::Log;
use pacer_common::event::{self as raw, RawEvent};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::pacing::time::Time;
use activity::DeviceId;
use file_hooks::FileHooks;
use kernel::Kernel;
use large_slots::{Handled, LargeSlots};
use open_files::Image;
use room::Room;
use tracepoints::Tracepoints;

pub use activity::Activity;
pub use cost::{ProbeCost, ProgramCost};
pub use counters::ProbeCounters;
pub use error::ProbeError;
pub use event::{Event, EventKind};
pub use options::ProbeOptions;

/// Events kept of all processes while it is not known which one matters.
const MOST_PENDING: usize = 4096;

/// The programs that watch one process. Dropping it detaches and unloads them,
/// which blocks for about a second: the kernel waits for every CPU to leave each
/// hook. Not on a thread that has a guest waiting, then.
pub struct Probe {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    /// The programs' own messages. `None` where they have none.
    logger: Option<EbpfLogger<&'static dyn Log>>,
    /// The observed process; `None` while it is not known.
    tgid: Option<u32>,
    /// What of this kernel can be read.
    kernel: Kernel,
    tracepoints: Tracepoints,
    /// What is attached once the process has opened what it is for. `None`
    /// while the process is not known.
    file_hooks: Option<FileHooks>,
    /// Whether the programs that watch block devices are attached.
    block_attached: bool,
    /// Taken from the ring, not drained yet, with the process each is of.
    pending: VecDeque<(u32, Event)>,
    /// The ring's descriptor with the runtime; made at the first wait, so that
    /// a probe can be attached and drained without a runtime.
    waiter: Option<AsyncFd<OwnedFd>>,
    /// Keeps the kernel's accounting of run times on. `None` without the right.
    stats: Option<OwnedFd>,
    warnings: Vec<String>,
    /// Whether it was tried to watch what devices copy into guest memory. Not
    /// before a dirty log is kept: until then it would cost and tell nothing.
    copies_tried: bool,
    state_uprobe: bool,
    /// What watches the stores of a guest under TCG; empty while nothing does.
    stores: Vec<UProbeLink>,
    /// How often that was begun.
    stores_begun: u32,
    large: LargeSlots,
    room: Room,
    /// The process registered slots before the attach.
    late: bool,
}

impl Probe {
    /// Loads the programs and attaches them to the process that `pid` belongs
    /// to (any of its threads will do).
    ///
    /// Hooks that are not essential and fail are in [`Probe::warnings`].
    ///
    /// # Errors
    ///
    /// There is no such process; the rights, tracefs or the tracepoints are
    /// missing; this binary has no eBPF programs. The message has the remedy.
    pub fn attach(pid: u32) -> Result<Self, ProbeError> {
        Self::attach_with(pid, &ProbeOptions::default())
    }

    /// As [`Probe::attach`], with options.
    ///
    /// # Errors
    ///
    /// As [`Probe::attach`].
    pub fn attach_with(pid: u32, options: &ProbeOptions) -> Result<Self, ProbeError> {
        // Named before anything else is found wrong.
        process::thread_group(pid)?;
        let mut probe = Self::load(Some(pid), options)?;
        probe.observe(pid)?;
        Ok(probe)
    }

    /// Loads the programs before it is known which process is to be observed,
    /// so that what it does meanwhile about its dirty logs is not missed: QEMU
    /// registers its slots within a moment of connecting. Nothing is drained
    /// before [`Probe::observe`].
    ///
    /// # Errors
    ///
    /// As [`Probe::attach`], but for the process.
    pub fn wait() -> Result<Self, ProbeError> {
        Self::load(None, &ProbeOptions::default())
    }

    fn load(pid: Option<u32>, options: &ProbeOptions) -> Result<Self, ProbeError> {
        let object = object::EMBEDDED.ok_or(ProbeError::NotBuilt)?;
        attach::check_tracefs()?;
        // On before the programs run, so that no run goes uncounted.
        let stats = counters::enable_stats();
        let kernel = kernel::read()?;
        let tracepoints = tracepoints::read();
        let mut ebpf = attach::load(object, &kernel, &tracepoints, pid, options)?;
        let ring = attach::take_ring(&mut ebpf)?;
        let logger = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::debug!(%error, "the programs' messages are not read"))
            .ok();
        attach::attach_required(&mut ebpf)?;
        give_back_memory();
        Ok(Self {
            ebpf,
            ring,
            logger,
            tgid: None,
            kernel,
            tracepoints,
            file_hooks: None,
            block_attached: false,
            pending: VecDeque::new(),
            waiter: None,
            stats,
            warnings: Vec::new(),
            copies_tried: false,
            state_uprobe: false,
            stores: Vec::new(),
            stores_begun: 0,
            large: LargeSlots::new(options),
            room: Room::default(),
            late: false,
        })
    }

    /// Observes the process that `pid` belongs to from now on; what it did
    /// about its dirty logs since [`Probe::wait`] is drained too.
    ///
    /// # Errors
    ///
    /// There is no such process, or the programs cannot be told.
    pub fn observe(&mut self, pid: u32) -> Result<(), ProbeError> {
        let tgid = process::thread_group(pid)?;
        let attached = attach::observe(&mut self.ebpf, tgid, &self.kernel, &self.tracepoints)?;
        self.tgid = Some(tgid);
        self.warnings = attached.warnings;
        self.state_uprobe = attached.state_uprobe;
        self.large.observe(&mut self.ebpf, tgid);
        self.warnings.extend(self.large.take_warning());
        self.file_hooks = Some(FileHooks::of(tgid)?);
        if let Err(error) = self.look_at_files() {
            // What is not attached for it is a warning by now.
            tracing::debug!(%error, "the open files are not known");
        }
        Ok(())
    }

    /// The files that are open now and may be images. What is worth attaching
    /// only for a file of some kind is attached when one is seen here for the
    /// first time. Reads `/proc`: for a tick.
    ///
    /// # Errors
    ///
    /// No process is observed yet; its files may not be looked at (a warning,
    /// too), or it has ended.
    pub fn look_at_files(&mut self) -> io::Result<Vec<Image>> {
        let Some(file_hooks) = &mut self.file_hooks else {
            return Err(io::Error::other(ProbeError::NotObserving));
        };
        file_hooks.look(&mut self.ebpf, &mut self.warnings)
    }

    /// Everything that happened since the last call, oldest first. Never blocks.
    pub fn drain(&mut self) -> Vec<Event> {
        self.fill();
        let Some(observed) = self.tgid else {
            return Vec::new();
        };
        let events: Vec<Event> = self
            .pending
            .drain(..)
            .filter_map(|(tgid, event)| (tgid == observed).then_some(event))
            .collect();
        if !self.copies_tried && events.iter().any(is_logging) {
            self.copies_tried = true;
            self.warnings
                .extend(attach::attach_copies(&mut self.ebpf, observed).err());
        }
        events
    }

    /// Waits until [`Probe::drain`] would return something to act on at once: a
    /// slot registered, the guest being stopped, the migration's state, stores
    /// counted. Of dirty logs nobody is told before the ring is a quarter full:
    /// drain on a tick, too. May be cancelled and called again: no event is lost.
    ///
    /// # Errors
    ///
    /// The ring cannot be waited for.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O enabled.
    pub async fn readable(&mut self) -> io::Result<()> {
        loop {
            // What came before the wait wakes nobody.
            self.fill();
            if !self.pending.is_empty() {
                return Ok(());
            }
            let waiter = match self.waiter.take() {
                Some(waiter) => waiter,
                None => watch(self.ring.as_fd().try_clone_to_owned()?)?,
            };
            self.waiter.insert(waiter).readable().await?.clear_ready();
        }
    }

    /// How many events there were, how many were lost, and what the programs
    /// cost, all since the attach.
    pub fn counters(&mut self) -> ProbeCounters {
        let counters = ProbeCounters {
            overtaken_logs: self.large.overtaken_logs(),
            ..counters::read(&self.ebpf, self.stats.is_some())
        };
        let told = self.room.check(&self.ebpf, self.tgid, counters.map_full);
        self.warnings.extend(told);
        counters
    }

    /// What each program cost since the attach, and the memory that is held.
    /// Asks the kernel about every program and map: for a tick, too.
    #[must_use]
    pub fn cost(&self) -> ProbeCost {
        cost::read(&self.ebpf, self.stats.is_some())
    }

    /// What was counted since the attach. Reads the kernel's maps: for a tick,
    /// not for every event.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let names = self.file_hooks.as_ref().map(FileHooks::backend_names);
        totals::read(&self.ebpf, names)
    }

    /// Watches exactly these block devices of this host from now on, whoever uses
    /// them; see [`block_devices`] for those that lie under an image. What was
    /// watched before goes on counting from where it is; none is watched at
    /// first. Devices that the kernel makes of others (device mapper, md) mostly
    /// get no requests of their own.
    ///
    /// # Errors
    ///
    /// This kernel does not tell of its block devices, or there are more than
    /// there is room for.
    pub fn watch_devices(&mut self, devices: &[DeviceId]) -> Result<(), ProbeError> {
        if !devices.is_empty() && !self.block_attached {
            attach::attach_block(&mut self.ebpf, &self.kernel)?;
            self.block_attached = true;
        }
        devices::watch(&mut self.ebpf, devices)
    }

    /// The observed process: the thread group's number. `None` while it is not
    /// known.
    #[must_use]
    pub const fn process(&self) -> Option<u32> {
        self.tgid
    }

    /// The hooks that did not attach, each with the reason, and what else cannot
    /// be seen, once that is noticed.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether [`EventKind::MigrationState`] will be seen.
    #[must_use]
    pub const fn has_state_uprobe(&self) -> bool {
        self.state_uprobe
    }

    /// Begins or ends to count the pages that a guest under TCG stores to, told
    /// as [`EventKind::StoresCounted`] at each sync of the dirty bitmap. Each
    /// first store to a page then costs the guest 1 to 10 µs: only while
    /// measuring. The ending is waited for elsewhere, as it takes a second.
    ///
    /// # Errors
    ///
    /// No process is observed yet; this QEMU has no such functions, as it does
    /// without TCG; the programs cannot be attached. Then nothing is counted.
    pub fn watch_stores(&mut self, on: bool) -> Result<(), ProbeError> {
        if on != self.stores.is_empty() {
            return Ok(());
        }
        if on {
            let tgid = self.tgid.ok_or(ProbeError::NotObserving)?;
            stores::clear(&mut self.ebpf)?;
            self.stores = attach::attach_stores(&mut self.ebpf, tgid)?;
            self.stores_begun += 1;
            return attach::set_stores_watched(&mut self.ebpf, self.stores_begun);
        }
        let links = std::mem::take(&mut self.stores);
        let told = attach::set_stores_watched(&mut self.ebpf, 0);
        detach_elsewhere(links);
        told
    }

    /// Takes one event of the ring.
    fn take(&mut self, event: &RawEvent) {
        if Some(event.tgid) == self.tgid {
            let is_unknown = event.kind == raw::LOG_UNREAD && event.a == 0;
            let is_late = is_unknown || event.flags & raw::INFERRED != 0;
            if is_late && !self.late {
                self.late = true;
                self.warnings.push(LATE.to_owned());
            }
        }
        let handled = self.large.handle(&mut self.ebpf, event);
        self.warnings.extend(self.large.take_warning());
        match handled {
            Handled::Kept => {}
            Handled::Not => self.pending.extend(Event::from_raw(event)),
            Handled::Counted { parts, log } => {
                let at = Time::from_nanos(event.ktime_ns);
                let parts = parts
                    .into_iter()
                    .map(|kind| (event.tgid, Event { at, kind }));
                self.pending.extend(parts);
                self.pending.extend(Event::from_raw(&log));
            }
        }
    }

    fn next_event(&mut self) -> Option<Option<RawEvent>> {
        self.ring.next().map(|record| RawEvent::from_bytes(&record))
    }

    fn fill(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        while let Some(event) = self.next_event() {
            // None if the record is none of ours.
            if let Some(event) = event {
                self.take(&event);
            }
        }
        if self.tgid.is_none() {
            let excess = self.pending.len().saturating_sub(MOST_PENDING);
            self.pending.drain(..excess);
        }
    }
}

/// A remark for a probe that came after QEMU's slots.
const LATE: &str = "QEMU registered its memory before Pacer came: its dirty logs are counted only as \
     far as QEMU is seen to clear them, and not before. A migration, or `calc-dirty-rate` in mode \
     dirty-bitmap (Pacer asks for it with --qmp), registers all memory anew";

/// The kernel's description of its types takes 10 MiB to read, which the
/// allocator would keep.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// The kernel waits for every CPU to leave each hook; the caller does not.
fn detach_elsewhere(links: Vec<UProbeLink>) {
    let spawned = std::thread::Builder::new()
        .name("detach".to_owned())
        .spawn(move || drop(links));
    if let Err(error) = spawned {
        // Then they were detached here.
        tracing::debug!(%error, "no thread to detach the store helpers in");
    }
}

/// Whether a slot's dirty pages begin to be logged.
const fn is_logging(event: &Event) -> bool {
    matches!(event.kind, EventKind::SlotRegistered { logging: true, .. })
}

/// `descriptor` with the runtime, to wait until it is readable.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives,
    // and the `AsyncFd` owns it.
    let waiter = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
    Ok(waiter?)
}
