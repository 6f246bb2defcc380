//! One migration, from t0 to arrival.
//!
//! Samples and timeouts go in, actions come out. After each call of a `handle_`
//! function or of [`Session::set_objective`] ask [`Session::poll_action`] until
//! it is `None`, then [`Session::poll_timeout`].

use std::collections::VecDeque;
use std::time::Duration;

pub use super::action::{Action, ForecastRecord, Phase, SessionConfig};
use super::baseline::{Baselines, Known};
use super::controller::{Caps, Controller, Decision};
use super::dirty_curve::DirtyCurve;
use super::forecast::{Outlook, Percentiles};
use super::ledger::{Ledger, Sync};
use super::link_cap::LinkCap;
use super::number::to_f64;
use super::objective::{Objective, Reason, Verdict};
use super::passes::{Dirtying, Plan, State, Terms};
use super::sample::{DirtyWindow, Origin, Sample, StreamCounters};
use super::surprise::Surprises;
use super::time::Time;

/// One migration.
#[derive(Clone, Debug)]
pub struct Session {
    config: SessionConfig,
    t0: Time,
    controller: Controller,
    curve: DirtyCurve,
    /// As it was when the stream began; `None` once the guest is another.
    first_curve: Option<DirtyCurve>,
    last_sample: Option<DirtyWindow>,
    ledger: Ledger,
    link: LinkCap,
    /// Whether bytes ever waited for the bucket or the link.
    backlog_seen: bool,
    /// What the link is known to take, bytes a second.
    link_rate: Option<f64>,
    phase: Phase,
    decision: Option<Decision>,
    commanded: Option<u64>,
    /// When the commanded rate changed, and what it was before.
    changed_at: Time,
    before_change: f64,
    /// The last errors of the curve about syncs.
    surprises: Surprises,
    /// One of them was no noise; not told yet.
    changed: bool,
    /// When a sync was last counted by the probe.
    logged_at: Option<Time>,
    told: (Verdict, Option<Duration>),
    forecast: Option<ForecastRecord>,
    percent: f64,
    next_tick: Time,
    next_forecast: Time,
    actions: VecDeque<Action>,
}

const TICK: Duration = Duration::from_millis(100);
const FORECAST_EVERY: Duration = Duration::from_secs(1);
/// What a link is taken for that nobody has measured: 10 Gbit/s.
const UNKNOWN_LINK: f64 = 1.25e9;
/// What QEMU and two agents send at the switchover, from a standing start, over a link
/// that nobody measured, in bytes a second: what was seen over loopback with 2 cores.
const UNMEASURED_OPEN: f64 = 3e8;
/// A link that nobody measured is relied on for this many times what it took.
const UNTRIED: f64 = 3.0;
/// The rate while the size of memory is unknown: enough for the stream's head.
const SIZING_RATE: u64 = 1 << 20;
/// How unsure it is how many pages those are that are written so seldom that no window
/// has shown it: the standard deviation of the logarithm where the longest window was as
/// long as a pass, what is added for a pass that is e times as long, and at most.
const EXTENT_UNCERTAINTY: (f64, f64, f64) = (0.15, 0.32, 1.5);
/// An error beyond this (a third more or less), and twice what is expected, is a
/// change, not noise.
const SURPRISE: f64 = 0.3;
/// What is new in a sample in the first pass must be half as much again, what is in all
/// of it twice as much, and so many deviations off.
const NEW_SURPRISE: (f64, f64) = (0.4, 2.0);
const LONG_SURPRISE: (f64, f64) = (0.7, 3.0);
/// QEMU notices a change of rate after this.
const MEASURING: Duration = Duration::from_millis(150);
/// A change of the earliest finish by this share is worth telling.
const WORTH_TELLING: f64 = 0.05;

impl Session {
    /// A session that begins at `t0`, the zero of all its times.
    #[must_use]
    pub fn new(config: SessionConfig, t0: Time) -> Self {
        Self {
            config,
            t0,
            controller: Controller::new(config.objective),
            curve: DirtyCurve::new(0),
            first_curve: None,
            last_sample: None,
            ledger: Ledger::default(),
            link: LinkCap::default(),
            backlog_seen: false,
            link_rate: None,
            phase: Phase::Waiting,
            decision: None,
            commanded: None,
            changed_at: t0,
            before_change: 0.0,
            surprises: Surprises::default(),
            changed: false,
            logged_at: None,
            told: (Verdict::Unknown, None),
            forecast: None,
            percent: 0.0,
            next_tick: t0,
            next_forecast: t0,
            actions: VecDeque::new(),
        }
    }

    /// Takes in one observation, made at `at`.
    pub fn handle_sample(&mut self, sample: Sample, at: Time) {
        match sample {
            Sample::Ram(ram) => {
                self.ledger.on_ram(ram);
                self.curve.set_total_pages(self.ledger.total_pages());
                self.next_tick = self.next_tick.min(at);
            }
            Sample::Dirty(window) => self.on_dirty(window, at),
            Sample::Stream(counters) => {
                let sync = self.ledger.on_stream(counters, at);
                self.on_sync(sync, at);
                self.observe_link(counters, at);
            }
            Sample::Qemu(progress) => {
                let sync = self.ledger.on_qemu(progress, at);
                self.curve.set_total_pages(self.ledger.total_pages());
                self.on_sync(sync, at);
            }
            Sample::StreamStarted => {
                self.ledger.on_started(at);
                self.first_curve = self.curve.is_known().then(|| self.curve.clone());
                if self.phase == Phase::Waiting {
                    self.phase = Phase::Copying { pass: 1 };
                }
                self.next_tick = self.next_tick.min(at);
            }
            Sample::Stopped => self.on_stopped(at),
            Sample::Running => self.on_running(),
            Sample::LinkRate { bytes_per_second } => {
                self.link_rate = Some(to_f64(bytes_per_second).max(1.0));
            }
        }
    }

    /// Does what is due at `now`; nothing if called early.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_tick || self.phase == Phase::Arrived {
            return;
        }
        self.next_tick = now + TICK;
        let state = self.state(now);
        if self.phase != Phase::Switchover {
            self.decide(state, now);
        }
        if now >= self.next_forecast {
            self.next_forecast = now + FORECAST_EVERY;
            self.tell_forecast(state, now);
        }
    }

    /// The next thing to do, oldest first.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next; `None` when all is done.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        (self.phase != Phase::Arrived).then_some(self.next_tick)
    }

    /// Aims at something else from `now` on. Deadlines still count from t0.
    pub fn set_objective(&mut self, objective: Objective, now: Time) {
        self.controller.set_objective(objective);
        self.told = (Verdict::Unknown, None);
        self.next_tick = self.next_tick.min(now);
        self.next_forecast = self.next_forecast.min(now);
    }

    /// What is aimed at.
    #[must_use]
    pub const fn objective(&self) -> Objective {
        self.controller.objective()
    }

    /// How far the migration is.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// Percent of the forecast work that is done; never falls. 100 only when
    /// the guest has arrived.
    #[must_use]
    pub const fn percent(&self) -> f64 {
        self.percent
    }

    /// The expected finish in seconds from t0, with its interval; empty while
    /// unknown.
    #[must_use]
    pub fn eta(&self) -> Percentiles {
        self.forecast
            .map_or_else(Percentiles::default, |forecast| forecast.finish_seconds)
    }

    /// The commanded rate in bytes a second; `u64::MAX` is no limit, `None`
    /// before the first decision.
    #[must_use]
    pub const fn rate(&self) -> Option<u64> {
        self.commanded
    }

    /// Bytes a second put on the wire over the last seconds; `None` while too
    /// little was seen.
    #[must_use]
    pub fn achieved_rate(&self) -> Option<f64> {
        self.link.achieved()
    }

    /// Whether the objective can be reached.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.told.0
    }

    /// What is known of how the guest dirties its memory.
    #[must_use]
    pub const fn dirty_curve(&self) -> &DirtyCurve {
        &self.curve
    }

    /// What there is to expect at `now` if `rate` bytes a second are sent from
    /// then on; `None` while the size of memory is unknown.
    #[must_use]
    pub fn outlook_at(&self, rate: f64, now: Time) -> Option<Outlook<'_>> {
        let state = self.state(now)?;
        Some(self.outlook_over(state, state.pending_bytes() / rate.max(1.0)))
    }

    fn on_dirty(&mut self, window: DirtyWindow, at: Time) {
        if window.origin.marks_sync() {
            self.logged_at = Some(at);
            if matches!(self.phase, Phase::Copying { .. }) {
                self.learn(window, at);
                let sync = self.ledger.on_dirty_log(window.all_pages(), at);
                self.on_sync(sync, at);
                return;
            }
        }
        if window.origin == Origin::ContentSampling {
            self.compare(window);
        }
        self.curve.observe(window, at);
    }

    /// In the first pass each sample tells of all the time since before the start, and
    /// little that the one before it did not: whether the guest is another is told by
    /// what was known at the start. One that is calmer shows it only at a sync.
    fn compare(&mut self, window: DirtyWindow) {
        let before = self.last_sample.replace(window);
        let Some(known) = &self.first_curve else {
            return;
        };
        // Pages that are new since the sample before are no more than are written in
        // so short a time, which was looked at.
        let new = before.map(|before| DirtyWindow {
            window: window.window.saturating_sub(before.window),
            pages: window.pages.saturating_sub(before.pages),
            ..window
        });
        let is_more = |window: DirtyWindow, (surprise, deviations): (f64, f64)| {
            let spread = known.relative_uncertainty(window.window);
            known
                .error_about(window)
                .is_some_and(|error| error > surprise.max(deviations * spread))
        };
        if is_more(window, LONG_SURPRISE) || new.is_some_and(|new| is_more(new, NEW_SURPRISE)) {
            self.changed = true;
            self.first_curve = None;
        }
    }

    fn on_sync(&mut self, sync: Option<Sync>, at: Time) {
        let Some(sync) = sync else { return };
        // Around a sync QEMU may have had nothing to send; only within a pass
        // is it the link that falls short.
        self.link.forget();
        if matches!(self.phase, Phase::Copying { .. }) {
            let pass = self.ledger.pass();
            self.phase = Phase::Copying { pass };
        }
        // The log's own figure is the better one, and was learned already.
        let logged = self
            .logged_at
            .is_some_and(|logged| at.since(logged) < sync.window.min(FORECAST_EVERY));
        if let Some(pages) = sync.found
            && !logged
        {
            let window = DirtyWindow {
                window: self.mean_window(sync.window),
                pages,
                device_pages: 0,
                origin: Origin::Qemu,
            };
            self.learn(window, at);
        }
        let mut record = sync.pass;
        record.at_seconds = at.since(self.t0).as_secs_f64();
        self.actions.push_back(Action::PassEnded(record));
        self.next_tick = self.next_tick.min(at);
    }

    /// The mean window of a pass: QEMU clears its log chunk by chunk of 1 GiB
    /// as the sweep gets there.
    fn mean_window(&self, pass: Duration) -> Duration {
        let chunks = u32::try_from(self.ledger.total_pages().div_ceil(1 << 18)).unwrap_or(1);
        let chunks = f64::from(chunks.max(1));
        pass.mul_f64(0.5 + 0.5 / chunks)
    }

    /// Learns a point found by a sync, and how wrong the curve was about it.
    fn learn(&mut self, window: DirtyWindow, at: Time) {
        if let Some(error) = self.curve.error_about(window) {
            let spread = self.curve.relative_uncertainty(window.window);
            if error.abs() > SURPRISE.max(2.0 * spread) {
                self.changed |= self.curve.has_counted(window.window);
                // Beyond what was observed it is the guess that was wrong.
                if self.curve.has_observed(window.window) {
                    self.curve.shift(window.window, error.exp());
                }
            }
            if self.curve.has_observed(window.window) {
                self.surprises.push(window.window, error);
            }
        }
        self.curve.observe(window, at);
    }

    fn observe_link(&mut self, counters: StreamCounters, at: Time) {
        let backlog = counters.bytes_from_qemu > counters.bytes_on_wire;
        self.backlog_seen |= backlog;
        // A relay that is behind shows it; if this one ever was and is not now,
        // then QEMU had nothing to send.
        let idle = self.backlog_seen && !backlog;
        let held = self
            .decision
            .is_none_or(|decision| decision.reason == Reason::Waiting);
        // Past STOP, and where QEMU is looking for pages that are not zero, it
        // is not the link that sets the pace.
        if held || idle || !matches!(self.phase, Phase::Copying { .. }) || self.is_among_zeroes() {
            self.link.forget();
            return;
        }
        self.link.observe(counters.bytes_on_wire, at);
    }

    fn is_among_zeroes(&self) -> bool {
        let stream = self.ledger.stream();
        self.ledger.pass() <= 1 && stream.zero_pages > 0 && {
            let mean = stream.bytes_on_wire / (stream.zero_pages + stream.normal_pages).max(1);
            mean < 64
        }
    }

    fn on_stopped(&mut self, at: Time) {
        if matches!(self.phase, Phase::Switchover | Phase::Arrived) {
            return;
        }
        self.phase = Phase::Switchover;
        self.actions.push_back(Action::OpenBucket {
            reason: Reason::Switchover,
        });
        self.commanded = Some(u64::MAX);
        self.next_tick = self.next_tick.min(at);
    }

    fn on_running(&mut self) {
        self.phase = Phase::Arrived;
        self.percent = 100.0;
    }

    fn state(&self, now: Time) -> Option<State> {
        let rate = self.rate_in_force();
        let window = now.since(self.t0).min(Duration::from_secs(5));
        let expected = self.curve.pages(window).unwrap_or(0.0);
        let mut state = self.ledger.state(now, rate, expected)?;
        state.stopped = self.phase == Phase::Switchover;
        state.measured_rate = if self.phase == Phase::Waiting {
            // Nothing was measured yet, and will be when it matters.
            self.cap()
        } else if now.since(self.changed_at) < MEASURING {
            self.before_change
        } else {
            rate
        };
        Some(state)
    }

    fn rate_in_force(&self) -> f64 {
        let commanded = self.commanded.map_or(0.0, to_f64);
        commanded.min(self.link())
    }

    /// What the link is taken to carry, in bytes a second.
    #[must_use]
    pub fn link(&self) -> f64 {
        let seen = self.link.bytes_per_second().unwrap_or(f64::INFINITY);
        let told = self.link_rate.unwrap_or(UNKNOWN_LINK);
        seen.min(told)
    }

    /// What is sent once the bucket is open.
    fn open_rate(&self) -> f64 {
        let link = self.link();
        match self.link_rate {
            Some(_) => link,
            None => link.min(UNMEASURED_OPEN.max(self.rate_in_force())),
        }
    }

    fn cap(&self) -> f64 {
        let limit = self.config.limits.max_rate.map_or(f64::INFINITY, to_f64);
        self.link().min(limit).max(1.0)
    }

    fn caps(&self) -> Caps {
        let possible = self.cap();
        let measured = self.link_rate.is_some() || self.link.bytes_per_second().is_some();
        let best = self.link.best();
        Caps {
            possible,
            sure: if measured || best <= 0.0 {
                possible
            } else {
                possible.min(best * UNTRIED)
            },
        }
    }

    fn outlook(&self, state: State) -> Outlook<'_> {
        self.outlook_over(state, state.pending_bytes() / self.rate_in_force().max(1e6))
    }

    /// The outlook where the pass in progress goes on for `left` seconds.
    fn outlook_over(&self, state: State, left: f64) -> Outlook<'_> {
        // The pass in progress, as long as it will have been.
        let pass = state.pass_seconds + left;
        let pass = Duration::from_secs_f64(pass.clamp(0.5, 1e6));
        let limit = self.config.limits.downtime_limit.as_secs_f64();
        Outlook {
            state,
            mix_uncertainty: self.ledger.mix_uncertainty(),
            dirtying: Dirtying::expected(self.curve.is_known().then_some(&self.curve)),
            dirty_uncertainty: self
                .surprises
                .spread(pass, self.curve.level_uncertainty(pass)),
            extent_uncertainty: self.extent_uncertainty(pass),
            terms: Terms {
                downtime_limit: limit,
                link_rate: self.open_rate(),
                overhead: self.config.switchover_overhead.as_secs_f64(),
            },
        }
    }

    fn extent_uncertainty(&self, pass: Duration) -> f64 {
        let (least, per_e, most) = EXTENT_UNCERTAINTY;
        let longest = self.curve.longest_window();
        if longest <= 0.0 {
            return most;
        }
        let beyond = (pass.as_secs_f64() / longest).max(1.0).ln();
        (least + per_e * beyond).min(most)
    }

    fn decide(&mut self, state: Option<State>, now: Time) {
        let Some(state) = state else {
            let (rate, reason) = self.unsized_rate();
            self.command(rate, reason, now);
            return;
        };
        let caps = self.caps();
        let limit = self.config.limits.max_rate;
        let mut controller = self.controller.clone();
        let since = now.since(self.t0);
        let decision = controller.decide(&self.outlook(state), since, caps, limit);
        self.controller = controller;
        self.decision = Some(decision);
        self.command(decision.rate, decision.reason, now);
        self.tell_verdict(&decision);
    }

    /// The rate while not even the size of memory is known.
    fn unsized_rate(&self) -> (u64, Reason) {
        let limit = self.config.limits.max_rate.unwrap_or(u64::MAX);
        match self.controller.objective() {
            Objective::Fixed(rate) => (rate.min(limit), Reason::Fixed),
            Objective::Fastest => (limit, Reason::Fastest),
            Objective::At(_) | Objective::By(_) => (SIZING_RATE.min(limit), Reason::Sizing),
        }
    }

    fn command(&mut self, rate: u64, reason: Reason, now: Time) {
        self.link
            .command((rate != u64::MAX).then(|| to_f64(rate)), now);
        if self.commanded == Some(rate) {
            return;
        }
        self.before_change = self.rate_in_force();
        self.changed_at = now;
        self.commanded = Some(rate);
        self.actions.push_back(Action::SetRate {
            bytes_per_second: rate,
            reason,
        });
    }

    fn tell_verdict(&mut self, decision: &Decision) {
        let earliest = decision.earliest_feasible;
        let moved = match (decision.verdict, self.told.1, earliest) {
            (Verdict::Infeasible, Some(told), Some(earliest)) => {
                let share = earliest.as_secs_f64() / told.as_secs_f64().max(1e-3) - 1.0;
                share.abs() > WORTH_TELLING
            }
            (Verdict::Infeasible, told, earliest) => told.is_some() != earliest.is_some(),
            _ => false,
        };
        if decision.verdict == self.told.0 && !moved {
            return;
        }
        self.told = (decision.verdict, earliest);
        self.actions.push_back(Action::Verdict {
            verdict: decision.verdict,
            earliest_feasible: earliest,
            reason: decision.reason,
        });
    }

    fn tell_forecast(&mut self, state: Option<State>, now: Time) {
        let since = now.since(self.t0).as_secs_f64();
        let mut record = ForecastRecord {
            at_seconds: since,
            rate_bytes_per_second: self.commanded.unwrap_or(0),
            verdict: self.told.0,
            earliest_feasible_seconds: None,
            finish_seconds: Percentiles::default(),
            at_constant_rate_seconds: Percentiles::default(),
            downtime_seconds: Percentiles::default(),
            bytes: Percentiles::default(),
            percent: 0.0,
            change: std::mem::take(&mut self.changed),
            baselines: Baselines::default(),
        };
        if let (Some(state), Some(decision), true) = (state, self.decision, self.curve.is_known()) {
            record.earliest_feasible_seconds =
                decision.earliest_feasible.map(|time| time.as_secs_f64());
            self.fill(&mut record, state, &decision, since);
        }
        record.percent = self.percent;
        self.forecast = Some(record);
        self.actions.push_back(Action::Forecast(record));
    }

    fn baselines(&self, state: State, rate: f64) -> Baselines {
        Baselines::of(&Known {
            state,
            rate,
            downtime_limit: self.config.limits.downtime_limit.as_secs_f64(),
            windows: self.curve.windows(),
        })
    }

    fn fill(&mut self, record: &mut ForecastRecord, state: State, plan: &Decision, since: f64) {
        let outlook = self.outlook(state);
        let steady = self.controller.steady_rate().max(1.0);
        let constant = outlook.forecast(&Plan::constant(steady));
        let planned = outlook.forecast(&plan.plan);
        let fastest = outlook.forecast(&Plan::constant(self.cap())).finish_seconds;
        record.at_constant_rate_seconds = constant.finish_seconds.map(|left| since + left);
        record.downtime_seconds = planned.downtime_seconds;
        record.baselines = self.baselines(state, steady).map(|left| since + left);
        record.finish_seconds = match self.controller.objective() {
            // The plan is solved anew each tick: in whichever world, the finish
            // is the deadline unless even the highest rate is too slow for it.
            Objective::At(deadline) => {
                let (deadline, spread) = (deadline.as_secs_f64(), control_error(plan));
                let at = |left: Option<f64>, spread: f64| {
                    left.map_or(f64::INFINITY, |left| (since + left).max(deadline + spread))
                };
                Percentiles::new(
                    at(fastest.p05, -spread),
                    at(fastest.p50, 0.0),
                    at(fastest.p95, spread),
                )
            }
            Objective::By(_) | Objective::Fixed(_) | Objective::Fastest => {
                planned.finish_seconds.map(|left| since + left)
            }
        };
        let done = to_f64(self.ledger.stream().bytes_on_wire);
        record.bytes = planned.bytes.map(|left| done + left);
        if let Some(left) = planned.bytes.p50 {
            let percent = 100.0 * done / (done + left).max(1.0);
            self.percent = self.percent.max(percent.min(99.9));
        }
    }
}

/// How far from a deadline the controller usually is, in seconds: a tick and
/// QEMU's own measuring at the end, and on the way there also a sync.
fn control_error(decision: &Decision) -> f64 {
    match decision.reason {
        Reason::Sprint | Reason::Waiting => 0.2,
        _ => 0.3,
    }
}
