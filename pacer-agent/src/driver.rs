//! The source's event loop: the one place that reads the clock and acts.
//!
//! I/O becomes an event, the session decides, the loop acts. It ends when
//! the source's QEMU says `completed`, from where [`crate::handover`] takes
//! over, or when the migration cannot complete.

mod begin;
mod control;
mod disks;
mod draft;
mod end;
mod guest;
mod inbox;
mod record;
mod switchover_bandwidth;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::ctl::server::{Asked, Control};
use crate::exit::{Exit, Failure};
use crate::handover::completion::CompletionWatch;
use crate::journal::{Entry, Journal, directory};
use crate::link::Link;
use crate::pacing::sample::Sample;
use crate::pacing::session::{ForecastRecord, Session, SessionConfig};
use crate::pacing::time::Time;
use crate::pacing::token_bucket::Rate;
use crate::probe::Probe;
use crate::probe::windows::DirtyWindows;
use crate::relay::channel::{self, Counters, Inspected, Shared};
use crate::relay::control::ControlError;
use crate::relay::frame::Message;
use crate::relay::gate::Gate;
use crate::shutdown::Signals;
use crate::source::Prepared;
use crate::supervisor;
use inbox::Event;
use record::Record;
use switchover_bandwidth::SwitchoverBandwidth;

/// The rate before the session has decided on one: enough for the head of the
/// stream, nothing to speak of in RAM.
const FIRST_RATE: u64 = 1 << 20;
/// At least this often the counters are looked at.
const TICK: Duration = Duration::from_millis(50);

/// How the loop ended.
#[derive(Debug)]
enum End {
    /// The source's QEMU completed: the handover goes on from P3.
    Completed,
    /// It failed: the guest runs at the source, or will in a moment.
    Failed(String),
    /// The operator or a rule of theirs ended it: the guest runs at the source.
    Cancelled(String),
    /// Pacer refuses this migration: the guest runs at the source.
    Refused(String),
    /// The guest stands still at the source for a reason of its own.
    Stopped(String),
    /// The guest ended by itself.
    GuestEnded,
    /// QEMU ended, and the guest with it.
    Lost,
    /// It cannot be told whether the source completed.
    Unclear(String),
}

/// Something the loop must act on.
enum Wake {
    Event(Event),
    Peer(Result<Message, ControlError>),
    Probe,
    Signal(&'static str),
    Asked(Asked),
    Tick,
}

/// What is going on at the switchover.
#[derive(Debug, Default)]
struct Switchover {
    /// The guest was stopped.
    stopped_at: Option<Time>,
    /// When it must be over.
    due: Option<Time>,
}

/// One migration at the source.
pub struct Driver {
    prepared: Prepared,
    link: Option<Link>,
    session: Session,
    shared: Shared,
    record: Record,
    journal: Option<(Journal, Entry)>,
    probe: Option<Probe>,
    windows: DirtyWindows,
    watch: CompletionWatch,
    bandwidth: Option<SwitchoverBandwidth>,
    /// The task that compares the guest's memory with what it was.
    following: Option<AbortHandle>,
    switchover: Switchover,
    /// A channel is relayed.
    under_way: bool,
    /// Why it is being cancelled, and when to stop waiting for QEMU's word.
    ending: Option<(End, Time)>,
    /// The guest was told to be shut down from inside.
    guest_ended: bool,
    /// The last error of a disk of the guest's.
    io_error: Option<String>,
    /// Somebody paused the guest while it migrated.
    paused: bool,
    progress_asked: bool,
    next_progress: Time,
    /// Both directions of the channel ended in order.
    finished_at: Option<Time>,
    /// The wall's clock less the monotonic one, in ns, at t0.
    wall_offset: i128,
    /// A signal came while the guest was handed over.
    asked_to_end: Arc<AtomicBool>,
    events: UnboundedSender<Event>,
    inbox: UnboundedReceiver<Event>,
    tasks: JoinSet<()>,
    draft: draft::Draft,
    disks: disks::Disks,
    control: Control,
    /// A person holds it.
    is_held: bool,
    /// The last forecast.
    forecast: Option<ForecastRecord>,
}

impl Driver {
    /// A driver for what was prepared. Its clock starts when it runs.
    #[must_use]
    pub fn new(mut prepared: Prepared) -> Self {
        let (events, inbox) = unbounded_channel();
        let (channel_events, channel_inbox) = unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(inbox::forward_channel(channel_inbox, events.clone()));
        let now = clock::now();
        let link = prepared.link.take();
        let config = SessionConfig {
            objective: prepared.wish.objective(clock::wall()),
            limits: crate::config::limits(&prepared.args),
            switchover_overhead: crate::config::SWITCHOVER_OVERHEAD,
            not_before: crate::config::not_before(&prepared.args, clock::wall()),
        };
        Self {
            session: Session::new(config, now),
            shared: Shared {
                gate: Arc::new(Gate::new(Rate::BytesPerSecond(FIRST_RATE))),
                counters: Arc::new(Counters::default()),
                abort: CancellationToken::new(),
                events: channel_events,
            },
            record: Record::new(&mut prepared, config.objective, now),
            link,
            journal: None,
            probe: None,
            windows: DirtyWindows::new(),
            watch: CompletionWatch::default(),
            bandwidth: None,
            following: None,
            switchover: Switchover::default(),
            under_way: false,
            ending: None,
            guest_ended: false,
            io_error: None,
            paused: false,
            progress_asked: false,
            next_progress: now,
            finished_at: None,
            wall_offset: wall_offset(),
            asked_to_end: Arc::new(AtomicBool::new(false)),
            prepared,
            events,
            inbox,
            tasks,
            draft: draft::Draft::default(),
            disks: disks::Disks::default(),
            control: Control::start(&directory(), supervisor::own_pid()),
            is_held: false,
            forecast: None,
        }
    }

    /// Runs the migration to its end, however it ends.
    ///
    /// # Errors
    ///
    /// If nothing was started.
    pub async fn run(mut self, signals: &mut Signals) -> Result<Exit, Failure> {
        let end = match self.begin(signals).await? {
            Some(end) => end,
            None => self.run_until_end(signals).await,
        };
        // Before QEMU's settings are put back.
        self.bandwidth = None;
        self.control.end();
        let asked_to_end = Arc::clone(&self.asked_to_end);
        let finishing = self.finish(end);
        tokio::pin!(finishing);
        loop {
            tokio::select! {
                exit = &mut finishing => return Ok(exit),
                name = signals.next() => {
                    tracing::warn!("{name}: the guest is being handed over; ending after that");
                    asked_to_end.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    async fn run_until_end(&mut self, signals: &mut Signals) -> End {
        loop {
            let wake = self.wait(signals).await;
            let now = clock::now();
            let end = match wake {
                Wake::Event(event) => self.handle_event(event, now).await,
                Wake::Peer(Ok(message)) => self.handle_message(message, now).await,
                Wake::Peer(Err(error)) => self.handle_link_lost(&error, now),
                Wake::Probe => {
                    self.take_probe_events();
                    None
                }
                Wake::Signal(name) => self.handle_signal(name, now).await,
                Wake::Asked(asked) => {
                    self.handle_asked(asked, now);
                    None
                }
                Wake::Tick => None,
            };
            let end = match end {
                Some(end) => Some(end),
                None => self.tick(now).await,
            };
            if let Some(end) = end {
                return end;
            }
        }
    }

    async fn wait(&mut self, signals: &mut Signals) -> Wake {
        let now = clock::now();
        let tick = self
            .session
            .poll_timeout()
            .map_or(now + TICK, |due| due.min(now + TICK));
        // Once asked for it stays so, and is asked of the loop until it begins.
        let may_cancel = self.ending.is_none() && self.switchover.stopped_at.is_none();
        tokio::select! {
            biased;
            name = signals.next() => Wake::Signal(name),
            () = self.control.cancel.cancelled(), if may_cancel => Wake::Signal(control::CANCEL),
            Some(asked) = self.control.asked.recv() => Wake::Asked(asked),
            Some(event) = self.inbox.recv() => Wake::Event(event),
            message = inbox::next_message(&mut self.link) => Wake::Peer(message),
            () = inbox::probe_readable(&mut self.probe) => Wake::Probe,
            () = clock::sleep_until(tick) => Wake::Tick,
        }
    }

    /// Hands the session an observation.
    fn tell(&mut self, sample: Sample, at: Time) {
        self.record.told(sample, at);
        self.session.handle_sample(sample, at);
    }

    /// Everything that is due by time alone.
    async fn tick(&mut self, now: Time) -> Option<End> {
        self.check_wall_clock(now);
        self.observe(now);
        self.ask_progress(now);
        self.ask_disks(now);
        self.session.handle_timeout(now);
        if let Some(end) = self.act(now).await {
            return Some(end);
        }
        self.record.show(&self.session, now);
        self.publish(now);
        self.keep_draft(now);
        self.check_due(now).await
    }

    /// Relays QEMU's main channel: one a migration.
    async fn relay(&mut self, inspected: Inspected) -> Result<(), ControlError> {
        let link = self.link.as_ref().ok_or(ControlError::Closed)?;
        let quic = link.open_channel(0).await?;
        self.under_way = true;
        self.tasks
            .spawn(channel::run_source(inspected, quic, self.shared.clone()));
        Ok(())
    }
}

/// The wall's clock less the monotonic one, in nanoseconds: constant but for
/// steps of the wall's clock.
fn wall_offset() -> i128 {
    clock::wall().as_nanosecond() - i128::from(clock::now().as_nanos())
}
