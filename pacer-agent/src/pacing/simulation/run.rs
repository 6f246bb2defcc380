//! One migration of the models: guest → QEMU → socket buffer → bucket → link.

use std::collections::VecDeque;
use std::time::Duration;

use super::guest::Guest;
use crate::pacing::number::{to_duration, to_u64};
use crate::pacing::objective::{Limits, Objective, Reason, Verdict};
use crate::pacing::sample::{DirtyWindow, Origin, QemuProgress, Sample, StreamCounters};
use crate::pacing::session::{Action, ForecastRecord, Session, SessionConfig};
use crate::pacing::time::Time;
use crate::pacing::token_bucket::{Rate, TokenBucket};

/// What the session gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Dirty log, QMP and stream.
    All,
    /// QMP and stream: one window of 1 s before the start.
    Qmp,
    /// Dirty log and stream.
    Log,
    /// The stream alone.
    Stream,
}

/// One migration to be simulated. Seconds count from t0.
#[derive(Clone, Debug)]
pub struct Scenario<G> {
    /// The guest.
    pub guest: G,
    /// What is asked for.
    pub objective: Objective,
    /// What must not be exceeded.
    pub limits: Limits,
    /// From t0: until then it is held.
    pub not_before: Option<Duration>,
    /// What the operator does meanwhile, in order.
    pub orders: Vec<(f64, Order)>,
    /// What the link takes at a time, of [`Self::link_rate`]: bytes a second.
    pub link: fn(f64, f64) -> f64,
    /// What the link takes in general, in bytes a second.
    pub link_rate: f64,
    /// From when until when it takes only such a share of it.
    pub outage: (f64, f64, f64),
    /// Its round trip, in seconds.
    pub rtt: f64,
    /// What the session gets to see of it.
    pub sight: Sight,
    /// What the session is told before the first byte, in order.
    pub before: Vec<(f64, Sample)>,
    /// When the first byte is sent.
    pub start: f64,
    /// What the switchover takes besides copying, in seconds,
    pub overhead: f64,
    /// and what the session takes that for.
    pub expected_overhead: Duration,
    /// When it is given up.
    pub give_up: f64,
}

/// What an operator may do while a migration runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Hold it.
    Hold,
    /// Release it.
    Release,
    /// Aim at something else.
    Aim(Objective),
    /// Exceed no more than this.
    Limit(Limits),
}

/// What came of it. Seconds count from t0.
#[derive(Debug)]
pub struct Run {
    /// When the guest runs at the destination; infinite where it never does.
    pub finish: f64,
    /// From STOP until then.
    pub downtime: f64,
    /// Bytes put on the wire.
    pub bytes: f64,
    /// Passes over RAM.
    pub passes: u64,
    /// Verdicts, each with its time and the earliest feasible finish.
    pub verdicts: Vec<(f64, Verdict, Option<f64>)>,
    /// Forecasts.
    pub forecasts: Vec<ForecastRecord>,
    /// What `max-cpu-throttle` was set to, each with its time.
    pub throttles: Vec<(f64, u8)>,
    /// Rates, each with its time and its reason.
    pub rates: Vec<(f64, u64, Reason)>,
}

/// The same everywhere.
#[must_use]
pub const fn steady(_: f64, rate: f64) -> f64 {
    rate
}

const STEP: f64 = 0.005;
const BUFFER: f64 = 2e6;
/// In so many seconds a guest writes all that it ever does.
const LONG: f64 = 1e4;
/// QEMU sends for so long before it looks at what is left.
const ROUND: f64 = 0.05;

struct Model<'a, G> {
    scenario: &'a Scenario<G>,
    session: Session,
    bucket: TokenBucket,
    now: f64,
    normal: f64,
    /// Those of them that the guest does not write; known after the first pass.
    cold: f64,
    zero: f64,
    pass_began: f64,
    syncs: u64,
    buffered: f64,
    counters: Counters,
    /// What QEMU wrote lately, for its bandwidth.
    window: VecDeque<(f64, f64)>,
    bandwidth: f64,
    measured_at: f64,
    stopped_at: Option<f64>,
    look_at: f64,
    /// Marks of passes in the buffer: bytes before them.
    marks: VecDeque<f64>,
    run: Run,
}

#[derive(Default)]
struct Counters {
    sent_normal: f64,
    sent_zero: f64,
    written: f64,
    wire: f64,
    wire_normal: f64,
    wire_zero: f64,
    passes: u64,
}

impl<G: Guest> Scenario<G> {
    /// Runs it to its end.
    #[must_use]
    pub fn run(&self) -> Run {
        let config = SessionConfig {
            objective: self.objective,
            limits: self.limits,
            switchover_overhead: self.expected_overhead,
            not_before: self.not_before,
        };
        let mut model = Model {
            scenario: self,
            session: Session::new(config, Time::ZERO),
            bucket: TokenBucket::new(Rate::BytesPerSecond(0), Time::ZERO),
            now: 0.0,
            normal: self.guest.normal_pages(),
            cold: 0.0,
            zero: self.guest.total_pages() - self.guest.normal_pages(),
            pass_began: self.start,
            syncs: 0,
            buffered: 0.0,
            counters: Counters::default(),
            window: VecDeque::new(),
            bandwidth: 0.0,
            measured_at: 0.0,
            stopped_at: None,
            look_at: 0.0,
            marks: VecDeque::new(),
            run: Run {
                finish: f64::INFINITY,
                downtime: f64::INFINITY,
                bytes: 0.0,
                passes: 0,
                verdicts: Vec::new(),
                forecasts: Vec::new(),
                rates: Vec::new(),
                throttles: Vec::new(),
            },
        };
        let mut before = self.before.iter().peekable();
        let mut orders = self.orders.iter().peekable();
        let mut next_sample = self.start;
        while model.now < self.give_up && !model.run.finish.is_finite() {
            while let Some((at, sample)) = before.next_if(|(at, _)| *at <= model.now) {
                model.session.handle_sample(*sample, time(*at));
            }
            while let Some((at, order)) = orders.next_if(|(at, _)| *at <= model.now) {
                model.obey(*order, time(*at));
            }
            model.act();
            if model.now >= self.start {
                model.step();
                if model.now >= next_sample {
                    next_sample += 0.1;
                    model.sample();
                }
            }
            model.now += STEP;
        }
        model.run.bytes = model.counters.wire;
        model.run.passes = model.syncs;
        model.run
    }
}

fn time(seconds: f64) -> Time {
    Time::ZERO + to_duration(seconds)
}

impl<G: Guest> Model<'_, G> {
    fn see_dirty(&mut self, window: f64, pages: f64, at: f64) {
        let window = DirtyWindow {
            window: to_duration(window),
            pages: to_u64(pages.round()),
            device_pages: 0,
            origin: if self.scenario.sight == Sight::Qmp {
                Origin::Qemu
            } else {
                Origin::DirtyLog
            },
        };
        self.session.handle_sample(Sample::Dirty(window), time(at));
    }

    fn obey(&mut self, order: Order, at: Time) {
        match order {
            Order::Hold => self.session.set_held(true, at),
            Order::Release => self.session.set_held(false, at),
            Order::Aim(objective) => self.session.set_objective(objective, at),
            Order::Limit(limits) => self.session.set_limits(limits, at),
        }
    }

    fn act(&mut self) {
        let now = time(self.now);
        if self.session.poll_timeout().is_some_and(|due| due <= now) {
            self.session.handle_timeout(now);
        }
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::SetRate {
                    bytes_per_second,
                    reason,
                } => {
                    let rate = Rate::from_bytes_per_second(bytes_per_second);
                    self.bucket.set_rate(rate, now);
                    self.run.rates.push((self.now, bytes_per_second, reason));
                }
                Action::OpenBucket { .. } => self.bucket.open(now),
                Action::Forecast(record) => self.run.forecasts.push(record),
                Action::Verdict {
                    verdict,
                    earliest_feasible,
                    ..
                } => self.run.verdicts.push((
                    self.now,
                    verdict,
                    earliest_feasible.map(|earliest| earliest.as_secs_f64()),
                )),
                Action::Throttle { percent, .. } => self.run.throttles.push((self.now, percent)),
                Action::PassEnded(_) => {}
            }
        }
    }

    fn step(&mut self) {
        if self.syncs == 0 {
            self.syncs = 1;
            self.counters.passes = 1;
            self.session
                .handle_sample(Sample::StreamStarted, time(self.now));
        }
        self.drain();
        self.write();
        self.measure();
        match self.stopped_at {
            None => self.look(),
            Some(stopped) => self.arrive(stopped),
        }
    }

    /// The bucket and the link take from the buffer, in writes of 4 KiB.
    fn drain(&mut self) {
        let mut link = (self.scenario.link)(self.now, self.scenario.link_rate);
        let (from, until, share) = self.scenario.outage;
        if (from..until).contains(&self.now) {
            link *= share;
        }
        let mut room = link * STEP;
        while self.buffered >= 1.0 && room >= 1.0 {
            let bytes = self.buffered.min(4096.0).min(room.max(1.0));
            if self.bucket.try_take(to_u64(bytes), time(self.now)).is_err() {
                break;
            }
            room -= bytes;
            self.buffered -= bytes;
            let share = bytes / (self.buffered + bytes);
            let normal = (self.counters.sent_normal - self.counters.wire_normal) * share;
            let zero = (self.counters.sent_zero - self.counters.wire_zero) * share;
            self.counters.wire_normal += normal;
            self.counters.wire_zero += zero;
            self.counters.wire += bytes;
            while self
                .marks
                .front()
                .is_some_and(|&mark| mark <= self.counters.wire)
            {
                self.marks.pop_front();
                self.counters.passes += 1;
            }
        }
    }

    /// QEMU fills the buffer, at 1.5 GB/s of memory scanned at most.
    fn write(&mut self) {
        let pages = self.normal + self.zero;
        if pages <= 0.0 {
            return;
        }
        let each = (self.normal * 4104.0 + self.zero * 9.0) / pages;
        let sent = ((BUFFER - self.buffered) / each)
            .min(1.5e9 / 4096.0 * STEP)
            .clamp(0.0, pages);
        let share = sent / pages;
        self.counters.sent_normal += self.normal * share;
        self.counters.sent_zero += self.zero * share;
        self.normal -= self.normal * share;
        self.cold -= self.cold * share;
        self.zero -= self.zero * share;
        self.buffered += sent * each;
        self.counters.written += sent * each;
    }

    /// QEMU's bandwidth: what it wrote in the last 100 ms.
    fn measure(&mut self) {
        self.window.push_back((self.now, self.counters.written));
        if self.now - self.measured_at < 0.1 {
            return;
        }
        while self.window.len() > 1 && self.window[0].0 < self.now - 0.1 - STEP / 2.0 {
            self.window.pop_front();
        }
        let first = self.window[0];
        let span = (self.now - first.0).max(STEP);
        self.bandwidth = (self.counters.written - first.1) / span;
        self.measured_at = self.now;
    }

    /// QEMU's look whether it may stop the guest.
    fn look(&mut self) {
        if self.now < self.look_at {
            return;
        }
        self.look_at = self.now + ROUND;
        let threshold = self.bandwidth * self.scenario.limits.downtime_limit.as_secs_f64() / 4096.0;
        if self.normal + self.zero > threshold + 0.5 {
            return;
        }
        let guest = &self.scenario.guest;
        let found = guest.dirtied_by_chunk(self.pass_began, self.now);
        let window = self.now - self.pass_began;
        // Only what is in the set that the guest writes is found again.
        let set = guest.dirtied(self.now - LONG, self.now).max(found).max(1.0);
        if self.syncs == 1 {
            self.cold = self.normal * (1.0 - set / guest.total_pages()).max(0.0);
        }
        let hot = (self.normal - self.cold).clamp(0.0, set);
        self.normal = self.cold + hot + found * (1.0 - hot / set);
        self.syncs += 1;
        self.pass_began = self.now;
        self.marks.push_back(self.counters.written);
        let logged = matches!(self.scenario.sight, Sight::All | Sight::Log);
        if logged && found >= 0.0 && window > 0.0 {
            self.see_dirty(window, found, self.now);
        }
        if self.normal + self.zero <= threshold + 1.0 {
            self.stopped_at = Some(self.now);
            self.session.handle_sample(Sample::Stopped, time(self.now));
        }
    }

    fn arrive(&mut self, stopped: f64) {
        if self.normal + self.zero >= 0.5 || self.buffered >= 1.0 {
            return;
        }
        self.run.finish = self.now + self.scenario.overhead + 1.5 * self.scenario.rtt;
        self.run.downtime = self.run.finish - stopped;
        self.session
            .handle_sample(Sample::Running, time(self.run.finish));
        self.act();
    }

    fn sample(&mut self) {
        let counters = StreamCounters {
            bytes_from_qemu: to_u64(self.counters.wire + self.buffered.min(65_536.0)),
            bytes_on_wire: to_u64(self.counters.wire),
            normal_pages: to_u64(self.counters.wire_normal),
            zero_pages: to_u64(self.counters.wire_zero),
            passes: self.counters.passes,
        };
        self.session
            .handle_sample(Sample::Stream(counters), time(self.now));
        let asked = matches!(self.scenario.sight, Sight::All | Sight::Qmp);
        if !asked || self.stopped_at.is_some() {
            return;
        }
        let progress = QemuProgress {
            remaining_bytes: to_u64((self.normal + self.zero) * 4096.0),
            total_bytes: to_u64(self.scenario.guest.total_pages() * 4096.0),
            dirty_sync_count: self.syncs,
            normal_pages: to_u64(self.counters.sent_normal),
            zero_pages: to_u64(self.counters.sent_zero),
        };
        self.session
            .handle_sample(Sample::Qemu(progress), time(self.now));
    }
}
