//! One migration, from t0 to arrival.
//!
//! Samples and timeouts go in, actions come out. After each call of a `handle_`
//! function or of a `set_` function ask [`Session::poll_action`] until
//! it is `None`, then [`Session::poll_timeout`].

mod learning;
mod link;
mod telling;

use std::collections::VecDeque;
use std::time::Duration;

pub use super::action::{Action, ForecastRecord, Phase, SessionConfig};
use super::controller::{Controller, Decision, Gate};
use super::dirty_curve::DirtyCurve;
use super::disk_guard::DiskGuard;
use super::forecast::{Outlook, Percentiles};
use super::ledger::Ledger;
use super::link_cap::LinkCap;
use super::number::to_f64;
use super::objective::{Limits, Objective, Reason, Verdict};
use super::passes::{Dirtying, Plan, State, Terms};
use super::sample::{DirtyWindow, Sample, StreamCounters};
use super::surprise::Surprises;
use super::throttle::Throttle;
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
    /// The stream's counters before the last.
    counted: StreamCounters,
    phase: Phase,
    decision: Option<Decision>,
    commanded: Option<u64>,
    /// The rate in force over the last seconds. How sure the guest is known depends on how
    /// long passes are: with the last tick's rate, each would be an answer to itself.
    usual_rate: f64,
    /// When the commanded rate changed, and what it was before.
    changed_at: Time,
    before_change: f64,
    /// The last errors of the curve about syncs.
    surprises: Surprises,
    /// One of them was no noise; not told yet.
    changed: bool,
    /// When a sync was last counted by the probe.
    logged_at: Option<Time>,
    /// Somebody wants it not to complete yet.
    is_held: bool,
    throttle: Throttle,
    disk_guard: DiskGuard,
    told: (Verdict, Option<Duration>),
    forecast: Option<ForecastRecord>,
    percent: f64,
    next_tick: Time,
    next_forecast: Time,
    actions: VecDeque<Action>,
}

const TICK: Duration = Duration::from_millis(100);
const FORECAST_EVERY: Duration = Duration::from_secs(1);
/// The rate while the size of memory is unknown: enough for the stream's head.
const SIZING_RATE: u64 = 1 << 20;
/// How unsure it is how many pages those are that are written so seldom that no window
/// has shown it: the standard deviation of the logarithm where the longest window was as
/// long as a pass, what is added for a pass that is e times as long, and at most.
const EXTENT_UNCERTAINTY: (f64, f64, f64) = (0.15, 0.32, 1.5);
/// A rate this near to a limit, as a share, is the limit's.
const AT_LIMIT: f64 = 0.99;
/// Bytes a second at which nothing gets anywhere.
const STILL: u64 = 64 * 1024;
/// What a tick counts for in the usual rate: 2 s.
const USUAL_SHARE: f64 = 0.05;
/// QEMU notices a change of rate after this.
const MEASURING: Duration = Duration::from_millis(150);

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
            counted: StreamCounters::default(),
            phase: Phase::Waiting,
            decision: None,
            commanded: None,
            usual_rate: 0.0,
            changed_at: t0,
            before_change: 0.0,
            surprises: Surprises::default(),
            changed: false,
            logged_at: None,
            is_held: false,
            throttle: Throttle::default(),
            disk_guard: DiskGuard::default(),
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
                self.link.tell(to_f64(bytes_per_second), at);
            }
            Sample::DiskLatency { mean } => self.on_disk_latency(mean, at),
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
        self.decide_anew(now);
    }

    /// Must not exceed something else from `now` on.
    pub fn set_limits(&mut self, limits: Limits, now: Time) {
        self.config.limits = limits;
        if limits.disk_latency_limit.is_none() {
            self.disk_guard = DiskGuard::default();
        }
        self.controller.judge_anew();
        self.decide_anew(now);
    }

    /// What must not be exceeded.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.config.limits
    }

    /// Held, from `now` on, the migration comes to the brink and does not complete;
    /// released, it goes on to its objective.
    pub fn set_held(&mut self, is_held: bool, now: Time) {
        if self.is_held != is_held {
            self.is_held = is_held;
            self.decide_anew(now);
        }
    }

    /// May not arrive before another time, from t0; `None` is any.
    pub fn set_not_before(&mut self, not_before: Option<Duration>, now: Time) {
        if self.config.not_before != not_before {
            self.config.not_before = not_before;
            self.decide_anew(now);
        }
    }

    /// Whether it is held: by somebody, or because it may not arrive yet.
    #[must_use]
    pub fn is_held(&self, now: Time) -> bool {
        self.gate(now).is_held
    }

    fn gate(&self, now: Time) -> Gate {
        let since = now.since(self.t0);
        let opens_in = self
            .config
            .not_before
            .map_or(Duration::ZERO, |at| at.saturating_sub(since));
        Gate {
            is_held: self.is_held || !opens_in.is_zero(),
            opens_in: opens_in.as_secs_f64(),
        }
    }

    /// What is asked for is another thing: the verdict is told again, if it is known.
    fn decide_anew(&mut self, now: Time) {
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

    fn outlook(&self, state: State) -> Outlook<'_> {
        self.outlook_over(state, state.pending_bytes() / self.usual_rate.max(1e6))
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
            dirtying: Dirtying {
                pace: self.throttle.pace(),
                ..Dirtying::expected(self.curve.is_known().then_some(&self.curve))
            },
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
        let rate = self.rate_in_force();
        self.usual_rate += (rate - self.usual_rate) * USUAL_SHARE;
        self.slow_guest(state, now);
        let caps = self.caps();
        let mut controller = self.controller.clone();
        let since = now.since(self.t0);
        let mut decision = controller.decide(&self.outlook(state), since, caps, self.gate(now));
        self.controller = controller;
        if decision.verdict == Verdict::Infeasible && self.may_slow_guest(state, now) {
            decision.verdict = Verdict::Feasible;
            decision.reason = Reason::Converge;
        }
        let guard = self.disk_guard.cap();
        if guard.is_some_and(|cap| to_f64(decision.rate) >= cap * AT_LIMIT) {
            decision.reason = Reason::DiskLatency;
        }
        self.decision = Some(decision);
        self.command(decision.rate, decision.reason, now);
        self.tell_verdict(&decision);
    }

    /// Slows the guest if that is allowed and nothing else meets the deadline.
    fn slow_guest(&mut self, state: State, now: Time) {
        let Phase::Copying { pass } = self.phase else {
            return;
        };
        let mut throttle = self.throttle;
        throttle.on_sync(pass, now);
        let raised = match self.meets_at(state, now) {
            Some(meets) => throttle.raise(pass, now, meets),
            None => None,
        };
        self.throttle = throttle;
        if let Some(percent) = raised {
            self.actions.push_back(Action::Throttle {
                percent,
                reason: Reason::Converge,
            });
        }
    }

    /// Whether slowing the guest could yet meet the deadline.
    fn may_slow_guest(&self, state: State, now: Time) -> bool {
        self.meets_at(state, now)
            .is_some_and(|meets| self.throttle.could(meets))
    }

    /// Whether the deadline is met at the highest rate where the guest works at such a
    /// pace; `None` where it may not be slowed, or it is not known.
    fn meets_at(&self, state: State, now: Time) -> Option<impl Fn(f64) -> bool> {
        let may = self.config.limits.converge && self.curve.is_known();
        let deadline = self.objective().deadline().filter(|_| may)?;
        let left = deadline.saturating_sub(now.since(self.t0)).as_secs_f64();
        let outlook = self.outlook(state);
        let plan = Plan::constant(self.cap());
        Some(move |pace| {
            let mut outlook = outlook;
            outlook.dirtying.pace = pace;
            outlook.outcome(&plan).finish <= left
        })
    }

    /// The rate while not even the size of memory is known.
    fn unsized_rate(&self) -> (u64, Reason) {
        let limit = self.limited().unwrap_or(u64::MAX);
        match self.controller.objective() {
            Objective::Fixed(rate) => (rate.min(limit), Reason::Fixed),
            Objective::Fastest => (limit, Reason::Fastest),
            Objective::At(_) | Objective::By(_) => (SIZING_RATE.min(limit), Reason::Sizing),
        }
    }

    fn command(&mut self, rate: u64, reason: Reason, now: Time) {
        // So as not to fidget: what is as good as the same stays.
        let rate = match self.commanded {
            Some(commanded) if is_alike(rate, commanded) => commanded,
            _ => rate,
        };
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
}

/// Two rates that differ in nothing that matters: both stand still, or nearly the same.
fn is_alike(rate: u64, other: u64) -> bool {
    let (low, high) = (rate.min(other), rate.max(other));
    high <= STILL || high - low <= high / 200
}
