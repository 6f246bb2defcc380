//! A link between the agents as tests and benchmarks want it: slower, or away for a
//! while. It stands under QUIC, at the UDP socket of the source's agent.
//!
//! It is a link and no policer: what it does not take at once waits in QUIC, and is
//! not lost. What is sent or comes in while it is down is lost, both ways. The rate
//! counts what UDP carries, about 3 % more than the stream.

use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::Sleep;

use crate::clock;
use crate::pacing::time::Time;
use crate::pacing::token_bucket::{Rate, TokenBucket};
use crate::units;

/// The environment variable that has the model: a list, or `@` and a file with one.
pub const VARIABLE: &str = "PACER_LINK_MODEL";
/// How often the file is looked at, and the longest that a sender waits before it asks
/// again, since a new file may let it go.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a text is no model of a link.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Not a list of times and states.
    #[error(
        "`{0}` in {VARIABLE} is no state of a link; write for instance \
         0:50MB/s,20:down,25:open, seconds from the start in rising order"
    )]
    Unreadable(String),
    /// The file with the list cannot be read.
    #[error("{VARIABLE} names the file {path}")]
    File {
        /// The file.
        path: PathBuf,
        #[source]
        /// What the system says.
        source: io::Error,
    },
}

/// What a link does at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Down,
    BytesPerSecond(u64),
}

/// What a link does when. Before the first entry it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<(Duration, State)>);

impl FromStr for Schedule {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let mut entries: Vec<(Duration, State)> = Vec::new();
        for entry in text.trim().split(',') {
            let unreadable = || ModelError::Unreadable(entry.to_owned());
            let (seconds, state) = entry.trim().split_once(':').ok_or_else(unreadable)?;
            let seconds: f64 = seconds.parse().map_err(|_| unreadable())?;
            let at = Duration::try_from_secs_f64(seconds).map_err(|_| unreadable())?;
            if entries.last().is_some_and(|&(before, _)| at <= before) {
                return Err(unreadable());
            }
            let state = match state {
                "open" => State::Open,
                "down" => State::Down,
                rate => {
                    let rate: units::Rate = rate.parse().map_err(|_| unreadable())?;
                    State::BytesPerSecond(rate.bytes_per_second())
                }
            };
            entries.push((at, state));
        }
        Ok(Self(entries))
    }
}

impl Schedule {
    /// What it does at `elapsed`, and when that changes.
    fn at(&self, elapsed: Duration) -> (State, Option<Duration>) {
        let next = self.0.partition_point(|&(at, _)| at <= elapsed);
        let state = match next.checked_sub(1) {
            Some(last) => self.0[last].1,
            None => State::Open,
        };
        (state, self.0.get(next).map(|&(at, _)| at))
    }
}

/// What becomes of something that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    /// It goes.
    Goes,
    /// It is lost.
    IsLost,
    /// It must wait; ask again then.
    Waits(Time),
}

/// A schedule under way.
#[derive(Debug)]
struct Model {
    schedule: Schedule,
    since: Time,
    bucket: TokenBucket,
    /// When to ask again, if what was sent last must wait.
    blocked_until: Option<Time>,
}

impl Model {
    fn new(schedule: Schedule, now: Time) -> Self {
        Self {
            schedule,
            since: now,
            bucket: TokenBucket::new(Rate::Open, now),
            blocked_until: None,
        }
    }

    /// Another schedule, whose times count from `now`.
    fn replace(&mut self, schedule: Schedule, now: Time) {
        self.schedule = schedule;
        self.since = now;
    }

    fn is_down(&self, now: Time) -> bool {
        self.schedule.at(now.since(self.since)).0 == State::Down
    }

    fn send(&mut self, bytes: u64, now: Time) -> Passage {
        self.blocked_until = None;
        let (state, change) = self.schedule.at(now.since(self.since));
        let rate = match state {
            State::Down => return Passage::IsLost,
            State::Open => Rate::Open,
            State::BytesPerSecond(rate) => Rate::BytesPerSecond(rate),
        };
        if self.bucket.rate() != rate {
            self.bucket.set_rate(rate, now);
        }
        let Err(blocked) = self.bucket.try_take(bytes, now) else {
            return Passage::Goes;
        };
        let latest = change.map_or(now + LOOK_EVERY, |change| self.since + change);
        let until = blocked.until.unwrap_or(latest).min(latest);
        self.blocked_until = Some(until);
        Passage::Waits(until)
    }
}

/// The model that this process' links share.
#[derive(Clone, Debug)]
pub struct LinkModel(Arc<Mutex<Model>>);

impl LinkModel {
    /// The model that the environment asks for, if it does. Its clock starts when it is
    /// asked for first.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn from_environment() -> Result<Option<Self>, ModelError> {
        static MODEL: OnceLock<LinkModel> = OnceLock::new();
        let Some(text) = std::env::var_os(VARIABLE) else {
            return Ok(None);
        };
        if let Some(model) = MODEL.get() {
            return Ok(Some(model.clone()));
        }
        let text = text.to_string_lossy();
        let model = match text.strip_prefix('@') {
            Some(path) => Self::from_file(Path::new(path))?,
            None => Self::new(text.parse()?),
        };
        tracing::warn!(model = %text, "THE LINK IS MODELLED ({VARIABLE})");
        Ok(Some(MODEL.get_or_init(|| model).clone()))
    }

    /// A model whose clock starts now.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self(Arc::new(Mutex::new(Model::new(schedule, clock::now()))))
    }

    /// Follows the file for as long as the model is used.
    fn from_file(path: &Path) -> Result<Self, ModelError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| ModelError::File {
                path: path.to_owned(),
                source,
            })
        };
        let mut text = read(path)?;
        let model = Self::new(text.parse()?);
        let (shared, path) = (Arc::downgrade(&model.0), path.to_owned());
        tokio::spawn(async move {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            loop {
                looks.tick().await;
                let Some(shared) = Weak::upgrade(&shared) else {
                    return;
                };
                // While it is being written it may be empty or cut off.
                let Ok(fresh) = read(&path) else { continue };
                if fresh == text {
                    continue;
                }
                match fresh.parse() {
                    Ok(schedule) => {
                        tracing::info!(model = fresh.trim(), "the link is modelled anew");
                        lock(&shared).replace(schedule, clock::now());
                        text = fresh;
                    }
                    Err(error) => tracing::debug!(%error, "the link's model is not readable yet"),
                }
            }
        });
        Ok(model)
    }

    /// `socket` behind this link.
    #[must_use]
    pub fn wrap(&self, socket: Arc<dyn AsyncUdpSocket>) -> Arc<dyn AsyncUdpSocket> {
        Arc::new(ModelledSocket {
            model: self.clone(),
            socket,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        lock(&self.0)
    }
}

fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    // Whole after every call.
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct ModelledSocket {
    model: LinkModel,
    socket: Arc<dyn AsyncUdpSocket>,
}

impl AsyncUdpSocket for ModelledSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller {
            socket: Arc::clone(&self.socket).create_io_poller(),
            model: self.model.clone(),
            timer: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let bytes = u64::try_from(transmit.contents.len()).unwrap_or(u64::MAX);
        match self.model.lock().send(bytes, clock::now()) {
            Passage::Goes => self.socket.try_send(transmit),
            Passage::IsLost => Ok(()),
            Passage::Waits(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = ready!(self.socket.poll_recv(context, buffers, meta));
            if received.is_err() || !self.model.lock().is_down(clock::now()) {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[derive(Debug)]
struct Poller {
    model: LinkModel,
    socket: Pin<Box<dyn UdpPoller>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.timer.is_none() {
            let now = clock::now();
            let until = self.model.lock().blocked_until;
            if let Some(until) = until.filter(|&until| until > now) {
                let wait = until.since(now).min(LOOK_EVERY);
                self.timer = Some(Box::pin(tokio::time::sleep(wait)));
            }
        }
        if let Some(timer) = &mut self.timer {
            ready!(timer.as_mut().poll(context));
            self.timer = None;
        }
        self.socket.as_mut().poll_writable(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: f64) -> Time {
        Time::from_nanos(1 << 40) + Duration::from_secs_f64(seconds)
    }

    fn model(text: &str) -> Model {
        Model::new(text.parse().unwrap(), at(0.0))
    }

    /// Bytes that go between two times if as much is sent as goes.
    fn passed(model: &mut Model, from: f64, to: f64) -> u64 {
        const BATCH: u64 = 14_520;
        let (mut now, mut bytes) = (at(from), 0);
        while now < at(to) {
            match model.send(BATCH, now) {
                Passage::Goes => bytes += BATCH,
                Passage::Waits(until) => {
                    assert!(until > now);
                    now = until;
                    continue;
                }
                Passage::IsLost => {}
            }
            now += Duration::from_nanos(100_000);
        }
        bytes
    }

    #[test]
    fn a_list_is_read_as_written() {
        let schedule: Schedule = "0:50MB/s, 20:down,25.5:open\n".parse().unwrap();
        let state = |seconds| schedule.at(Duration::from_secs_f64(seconds));
        assert_eq!(
            state(0.0),
            (State::BytesPerSecond(50_000_000), Some(20 * SECOND))
        );
        assert_eq!(state(20.0).0, State::Down);
        assert_eq!(state(26.0), (State::Open, None));
        let late: Schedule = "3:down".parse().unwrap();
        assert_eq!(late.at(SECOND), (State::Open, Some(3 * SECOND)));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "down", "0:slow", "-1:down", "5:down,5:open", "nan:open"] {
            assert!(text.parse::<Schedule>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_holds_back_and_loses_nothing() {
        let mut model = model("0:10MB/s,4:20MB/s");
        let slow = passed(&mut model, 0.0, 4.0);
        assert!((39_900_000..40_300_000).contains(&slow), "{slow}");
        let fast = passed(&mut model, 4.0, 6.0);
        assert!((39_900_000..40_500_000).contains(&fast), "{fast}");
    }

    #[test]
    fn nothing_waits_beyond_a_change() {
        let mut model = model("0:1B/s,1:open");
        while model.send(30_000, at(0.0)) == Passage::Goes {}
        assert_eq!(model.send(1000, at(0.5)), Passage::Waits(at(1.0)));
        assert_eq!(model.send(1000, at(1.0)), Passage::Goes);
    }

    #[test]
    fn what_is_sent_while_it_is_down_is_lost() {
        let mut model = model("1:down,2:open");
        assert!(!model.is_down(at(0.9)) && model.is_down(at(1.5)));
        assert_eq!(model.send(1, at(1.5)), Passage::IsLost);
        assert_eq!(model.send(1, at(2.0)), Passage::Goes);
    }

    #[test]
    fn a_new_list_counts_from_when_it_came() {
        let mut model = model("0:down");
        model.replace("1:down".parse().unwrap(), at(10.0));
        assert!(!model.is_down(at(10.5)) && model.is_down(at(11.0)));
    }
}
