//! `pacer observe`: what one QEMU's guest does to its memory and its disks, as
//! lines of JSON, a table, and metrics.
//!
//! This module is the loop: it attaches the probe, ticks, and ends with a signal
//! or with the process. What a line says is decided in [`state`] and [`ram`],
//! how it looks in [`mod@line`] and [`table`]; those are pure.

mod connections;
mod disks;
pub mod families;
mod family_table;
pub mod feed;
mod latency;
pub mod line;
mod qemu;
pub mod ram;
mod reading;
mod rights;
mod screen;
pub mod state;
pub mod table;
mod underlying;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use prometheus::Registry;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use crate::cli::ObserveArgs;
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::http;
use crate::measure::{self, Accelerator};
use crate::pacing::time::Time;
use crate::probe::windows::{BURST_GAP, DirtyWindows};
use crate::probe::{self, Probe, ProbeError};
use crate::process::{self, ProcessId};
use crate::qmp::Qmp;
use crate::shutdown::Signals;
use families::ProbeFamilies;
use feed::Feed;
use qemu::News;
use ram::Asking;
use screen::Screen;

/// How often the ring is emptied of what nobody is woken for.
const DRAIN_INTERVAL: Duration = Duration::from_millis(100);

/// Something the loop must act on.
enum Wake {
    Tick,
    Probe,
    Settled,
    News(News),
    Ended,
    Signal(&'static str),
}

/// One process observed.
struct Observer {
    probe: Probe,
    windows: DirtyWindows,
    feed: Feed,
    screen: Screen,
    families: ProbeFamilies,
    news: UnboundedReceiver<News>,
    /// The ring was read and is left alone until then: a burst of events is
    /// read at once.
    settles_at: Option<Time>,
    /// Asks QEMU; ends with this.
    asking: JoinSet<()>,
}

/// Observes a process until it ends or a signal comes.
///
/// # Errors
///
/// If there is no such process, or nothing of it can be observed.
pub async fn run(args: ObserveArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    // Named before anything else is found wrong.
    let process = ProcessId::of(args.pid).map_err(anyhow::Error::new)?;
    let qmp = match &args.qmp {
        Some(path) => Some(Qmp::connect(path).await.map_err(anyhow::Error::new)?),
        None => None,
    };
    let registry = registry(process.pid).map_err(anyhow::Error::new)?;
    let families = ProbeFamilies::register(&registry).map_err(anyhow::Error::new)?;
    let _server = http::serve(args.metrics.as_deref(), &registry).await?;
    let probe = Probe::attach(process.pid).map_err(explain)?;
    let started = clock::now();
    let pid = probe.process().unwrap_or(process.pid);
    let ended = process::descriptor(pid).map_err(|error| unwatchable(pid, &error))?;
    let ended = probe::watch(ended).map_err(anyhow::Error::new)?;
    // Only now is it sure whose descriptor that is.
    if !process.is_alive() {
        return Err(Failure::not_started(format!(
            "process {pid} has just ended"
        )));
    }
    let (sender, news) = unbounded_channel();
    let mut observer = Observer {
        probe,
        windows: DirtyWindows::new(),
        feed: Feed::new(pid, started),
        screen: Screen::new(args.json),
        families,
        news,
        settles_at: None,
        asking: JoinSet::new(),
    };
    if let Some(qmp) = qmp {
        let accelerator = observer.ask_qemu(&qmp).await?;
        observer
            .asking
            .spawn(qemu::measure_sets(qmp, accelerator, sender));
    }
    observer.run(args.interval, &ended, signals).await
}

/// What is scraped of one observed process.
fn registry(pid: u32) -> prometheus::Result<Registry> {
    let labels = [("pid".to_owned(), pid.to_string())].into();
    Registry::new_custom(Some("pacer".to_owned()), Some(labels))
}

fn unwatchable(pid: u32, error: &io::Error) -> Failure {
    Failure::not_started(format!("process {pid} cannot be watched ({error})"))
}

/// The failure with the rights that are lacking, if that is what it is.
fn explain(error: ProbeError) -> Failure {
    let missing = match &error {
        ProbeError::NotPermitted { .. } => rights::missing(),
        _ => Vec::new(),
    };
    let error = anyhow::Error::new(error);
    Failure::NotStarted(if missing.is_empty() {
        error
    } else {
        error.context(format!("missing: {}", missing.join(", ")))
    })
}

impl Observer {
    /// What QEMU is, before it is asked to measure.
    async fn ask_qemu(&mut self, qmp: &Qmp) -> Result<Accelerator, Failure> {
        let total_bytes = measure::memory_bytes(qmp)
            .await
            .map_err(anyhow::Error::new)?;
        let accelerator = Accelerator::of(qmp).await.map_err(anyhow::Error::new)?;
        self.feed.state.qemu.version = Some(qmp.version());
        self.feed.state.qemu.accelerator = Some(accelerator.word());
        self.feed.state.ram.set_total(total_bytes);
        self.feed.state.ram.asking = Asking::Measuring;
        self.windows.expect_ram(total_bytes);
        Ok(accelerator)
    }

    async fn run(
        mut self,
        interval: Duration,
        ended: &AsyncFd<OwnedFd>,
        signals: &mut Signals,
    ) -> Result<Exit, Failure> {
        let mut timer = tokio::time::interval(interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut drain = tokio::time::interval(DRAIN_INTERVAL);
        drain.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = tokio::select! {
                biased;
                name = signals.next() => Wake::Signal(name),
                Ok(_) = ended.readable() => Wake::Ended,
                _ = timer.tick() => Wake::Tick,
                Some(news) = self.news.recv() => Wake::News(news),
                () = settled(self.settles_at) => Wake::Settled,
                _ = drain.tick(), if self.settles_at.is_none() => Wake::Probe,
                Ok(()) = self.probe.readable(), if self.settles_at.is_none() => Wake::Probe,
            };
            let shown = match wake {
                Wake::Tick => self.tick(false),
                Wake::Probe | Wake::Settled => {
                    self.take_events(clock::now());
                    Ok(())
                }
                Wake::News(news) => {
                    self.handle_news(news);
                    Ok(())
                }
                Wake::Ended => {
                    self.tick(true).or_else(ignore_broken_pipe)?;
                    return Ok(Exit::Success);
                }
                Wake::Signal(name) => {
                    tracing::debug!("{name}");
                    self.tick(false).or_else(ignore_broken_pipe)?;
                    return Ok(Exit::Success);
                }
            };
            match shown {
                Ok(()) => {}
                // Nobody reads it any more.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Exit::Success);
                }
                Err(error) => return Err(unwritable(&error)),
            }
        }
    }

    /// Shows a line for now.
    fn tick(&mut self, ended: bool) -> io::Result<()> {
        self.take_events(clock::now());
        let line = self.feed.line(&mut self.probe, ended);
        let shown = self.screen.show(&line);
        self.families.set(line);
        shown
    }

    /// Takes in what the probe has seen.
    fn take_events(&mut self, now: Time) {
        let events = self.probe.drain();
        let more = !events.is_empty();
        for event in events {
            self.feed.handle_event(&event);
            let sample = self.windows.handle_event(&event);
            self.feed.handle_sample(sample, event.at);
        }
        let sample = self.windows.flush(now);
        self.feed.handle_sample(sample, now);
        self.settles_at = more.then(|| now + BURST_GAP);
    }

    fn handle_news(&mut self, news: News) {
        match news {
            News::Measured {
                window,
                began,
                ended,
            } => {
                // The log it was made from has been read: nothing more follows.
                self.take_events(clock::now() + BURST_GAP);
                self.feed.state.ram.handle_measured(window, began, ended);
                self.feed.reader.qemu_warning = None;
            }
            News::NotMeasured(reason) => {
                self.feed.reader.qemu_warning = Some(format!(
                    "how the guest writes its memory: QEMU has not measured it ({reason})"
                ));
            }
            News::Gone(reason) => {
                self.feed.state.ram.asking = Asking::Gone;
                self.feed.reader.qemu_warning = Some(format!(
                    "how the guest writes its memory: {reason}; start pacer observe again"
                ));
            }
        }
    }
}

/// Waits until `when`; for ever without it.
async fn settled(when: Option<Time>) {
    match when {
        Some(when) => clock::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn ignore_broken_pipe(error: io::Error) -> Result<(), Failure> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(unwritable(&error))
    }
}

fn unwritable(error: &io::Error) -> Failure {
    Failure::not_started(format!("standard output cannot be written ({error})"))
}
