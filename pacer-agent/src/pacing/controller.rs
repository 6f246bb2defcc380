//! Forecast and objective into a rate and its reason.
//!
//! For a deadline: slow early passes and a sure last sprint. Near the knee a
//! small error about the guest is a large error in time, so the plan keeps the
//! last seconds (the guard) for a sprint well above it; and because passes are
//! discrete, QEMU is held back at a trickle where the sprint would be early.
//! All of it is solved anew each tick, so that errors shrink with the time left.

use std::time::Duration;

use super::forecast::{Outlook, lowest_rate};
use super::hold::Brink;
use super::number::{to_duration, to_f64, to_u64};
pub use super::objective::{Limits, Objective, Reason, Verdict};
use super::passes::{PAGE_BYTES, Plan};

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// Bytes a second; `u64::MAX` is no limit.
    pub rate: u64,
    /// Why.
    pub reason: Reason,
    /// Whether the objective can be reached.
    pub verdict: Verdict,
    /// The earliest finish, from t0, at the highest rate; `None` where it is
    /// unknown or never.
    pub earliest_feasible: Option<Duration>,
    /// What the controller means to do from now on.
    pub plan: Plan,
}

/// What link and operator allow, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// The most there may be.
    pub possible: f64,
    /// The most that can be relied on: not more than a link nobody measured has
    /// shown it takes, and a little.
    pub sure: f64,
    /// What the operator allows; `None` is as much as the link takes.
    pub limited: Option<u64>,
}

/// Whether the migration may complete.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gate {
    /// It must not, until somebody releases it or a time has come.
    pub is_held: bool,
    /// It will not before so many seconds from now.
    pub opens_in: f64,
}

/// Chooses the rate.
#[derive(Clone, Debug)]
pub struct Controller {
    objective: Objective,
    verdict: Verdict,
    /// The last rate that was not a trickle, bytes a second.
    steady_rate: f64,
    is_best_effort: bool,
}

/// The part of the time to the deadline that is kept for the sprint.
const GUARD_SHARE: f64 = 0.1;
/// Shorter ones are lost to a tick and QEMU's measuring, longer ones are idle.
const GUARD_SECONDS: (f64, f64) = (1.5, 10.0);
/// How sure the sprint is: so far above the knee that passes shrink fast.
const SPRINT_OVER_KNEE: f64 = 1.5;
const SPRINT_OVER_STEADY: f64 = 1.25;
/// The lowest rate of the last seconds over the knee, for the same reason.
const FLOOR_OVER_KNEE: f64 = 1.3;
/// Without a deadline a plan is given up as never ending only if it would not end
/// for a guest that is so many deviations calmer than expected either.
const CALMER: f64 = 1.0;
/// A deadline is called out of reach only if a guest that is so many deviations calmer
/// than expected would be late as well, and within reach again only if one that is as
/// much busier would not.
const SURE: f64 = 0.5;
/// Best effort is left only where so much of the time that is left would be to spare, so
/// as not to go back and forth.
const SPARE: f64 = 0.01;
/// How much busier than expected, in deviations, the guest is planned for while
/// there is time to correct it downwards.
const PESSIMISM: f64 = 0.7;
/// How much calmer than expected, in deviations, the guest may be without the
/// migration ending early.
const OPTIMISM: f64 = 1.0;
/// So much too early is early.
const EARLY_SECONDS: f64 = 0.3;
/// The threshold at a sync that must not complete, over what it will find.
pub(super) const SYNC_SHARE: f64 = 0.4;
/// How far from QEMU's threshold a pass is kept that must not end yet: a tick,
/// a sample and QEMU's measuring.
pub(super) const FADE_SECONDS: f64 = 0.35;
/// A wait shorter than two ticks is not worth a change of rate.
const LEAST_WAIT_SECONDS: f64 = 0.2;
/// How far above a sure sprint a rate may be that is waited for.
const RELEASE_OVER_SURE: f64 = 1.25;
/// Bytes a second that hold QEMU back, at most.
const TRICKLE: f64 = 64.0 * 1024.0;
/// Rates this much above the lowest are kept, so as not to fidget.
const HYSTERESIS: f64 = 1.03;
/// The share of the time that is kept while the guest is unknown.
const RESERVE: f64 = 0.3;
/// How its first pass fades out: what is left is sent within so much of the
/// time, or so many seconds, over and over.
const FADING: f64 = 0.02;
const FADING_SECONDS: f64 = 1.0;
/// And at least this many downtime limits.
const FADING_LIMITS: f64 = 3.0;
/// An unknown guest's first pass is drawn to its end at this rate, at least: so
/// low that QEMU's threshold is a few pages and any running guest exceeds it.
const RESERVE_FLOOR: f64 = 500e3;
/// The share of memory taken as left where nothing is known of it.
const ASSUMED_DIRTY: f64 = 0.1;
/// `--by` aims earlier by this share of the time, or by so many seconds.
const BY_MARGIN: (f64, f64) = (0.05, 2.0);

impl Controller {
    /// A controller that has decided nothing yet.
    #[must_use]
    pub const fn new(objective: Objective) -> Self {
        Self {
            objective,
            verdict: Verdict::Unknown,
            steady_rate: 0.0,
            is_best_effort: false,
        }
    }

    /// What is aimed at.
    #[must_use]
    pub const fn objective(&self) -> Objective {
        self.objective
    }

    /// Aims at something else from now on.
    pub const fn set_objective(&mut self, objective: Objective) {
        self.objective = objective;
        self.judge_anew();
    }

    /// What was said before counts no more.
    pub const fn judge_anew(&mut self) {
        self.verdict = Verdict::Unknown;
    }

    /// The last rate that was not a trickle, in bytes a second.
    #[must_use]
    pub const fn steady_rate(&self) -> f64 {
        self.steady_rate
    }

    /// The decision for this tick. `now` is the time since t0, `caps` what the
    /// link and the operator allow.
    pub fn decide(
        &mut self,
        outlook: &Outlook<'_>,
        now: Duration,
        caps: Caps,
        gate: Gate,
    ) -> Decision {
        let now = now.as_secs_f64();
        let cap = caps.possible.max(1.0);
        let soonest = outlook.outcome(&Plan::constant(cap)).finish;
        let (plan, reason) = self.pursue(outlook, now, caps);
        self.is_best_effort = reason == Reason::BestEffort;
        if !matches!(reason, Reason::Waiting) {
            self.steady_rate = plan.rate_now();
        }
        self.judge(outlook, &plan, now, soonest, cap, gate.opens_in);
        let most = caps.limited.unwrap_or(u64::MAX);
        let rate = match (self.objective, reason) {
            // Also where the link takes less: that may change.
            (Objective::Fixed(rate), _) => rate.min(most),
            // What goes then is what the link takes.
            (Objective::Fastest, _) | (_, Reason::BestEffort) => most,
            _ => to_u64(plan.rate_now().ceil()),
        };
        let (rate, reason) = match gate.is_held {
            true => self.hold(outlook, &plan, rate, reason, cap),
            false => (rate.max(1), reason),
        };
        Decision {
            rate,
            reason,
            verdict: self.verdict,
            earliest_feasible: (self.verdict != Verdict::Unknown && soonest.is_finite())
                .then(|| to_duration(now + soonest.max(gate.opens_in))),
            plan,
        }
    }

    /// What leads to the objective.
    fn pursue(&self, outlook: &Outlook<'_>, now: f64, caps: Caps) -> (Plan, Reason) {
        let cap = caps.possible.max(1.0);
        match self.objective {
            Objective::Fixed(rate) => {
                let rate = caps.limited.map_or(rate, |limit| rate.min(limit));
                (Plan::constant(to_f64(rate).min(cap)), Reason::Fixed)
            }
            Objective::Fastest => (Plan::constant(cap), Reason::Fastest),
            Objective::At(deadline) => {
                let deadline = deadline.as_secs_f64();
                self.meet(outlook, deadline, deadline - now, caps, true)
            }
            Objective::By(deadline) => {
                let deadline = deadline.as_secs_f64();
                let left = deadline - now;
                let margin = (deadline * BY_MARGIN.0).max(BY_MARGIN.1).min(left / 2.0);
                self.meet(outlook, deadline, left - margin, caps, false)
            }
        }
    }

    /// As the objective has it up to the brink, and there no more than holds it. What
    /// has a deadline is at the brink in time for its sprint.
    fn hold(
        &self,
        outlook: &Outlook<'_>,
        plan: &Plan,
        rate: u64,
        reason: Reason,
        cap: f64,
    ) -> (u64, Reason) {
        let brink = Brink::of(outlook, plan.rate_now().max(1.0), cap);
        let is_early = matches!(reason, Reason::Steady | Reason::Reserve | Reason::Waiting);
        let wanted = match brink.keeps() {
            Some(keeps) if !is_early => to_u64(keeps.ceil()).min(rate),
            _ => rate,
        };
        let most = to_u64(brink.most());
        let rate = wanted.min(most).max(1);
        if rate < wanted || brink.keeps().is_some() && !is_early {
            (rate, Reason::Held)
        } else {
            (rate, reason)
        }
    }

    /// Feasible and infeasible are left only when the other is sure, so that
    /// the verdict does not flicker where the deadline is just within reach.
    /// Without a deadline it is whether the plan ever ends.
    fn judge(
        &mut self,
        outlook: &Outlook<'_>,
        plan: &Plan,
        now: f64,
        soonest: f64,
        cap: f64,
        opens_in: f64,
    ) {
        let is_known = outlook.dirtying.curve.is_some();
        let is_infeasible = match self.objective.deadline() {
            Some(deadline) => {
                let deadline = deadline.as_secs_f64();
                let tolerance = (deadline * 0.005).max(0.5);
                let late = |seconds: f64| now + seconds.max(opens_in) - deadline;
                let fastest = Plan::constant(cap);
                if self.verdict == Verdict::Infeasible {
                    late(soonest) > -tolerance
                        || late(outlook.finish_if_worse(&fastest, SURE)) > 0.0
                } else {
                    // What is late by less than it is early or late anyway is not sure.
                    late(soonest) > 2.0 * tolerance
                        && late(outlook.finish_if_worse(&fastest, -SURE)) > tolerance
                }
            }
            None => {
                let never = |deviations| !outlook.outcome_at(plan, deviations).converges();
                never(0.0) && (self.verdict == Verdict::Infeasible || never(-CALMER))
            }
        };
        // Of a guest that is not known what is late if it writes nothing at all is late.
        self.verdict = match (is_infeasible, is_known) {
            (true, _) => Verdict::Infeasible,
            (false, true) => Verdict::Feasible,
            (false, false) => Verdict::Unknown,
        };
    }

    /// The plan that ends in `left` seconds, or as soon as can be.
    fn meet(
        &self,
        outlook: &Outlook<'_>,
        deadline: f64,
        left: f64,
        caps: Caps,
        hold: bool,
    ) -> (Plan, Reason) {
        let cap = caps.possible.max(1.0);
        let spare = if self.is_best_effort {
            SPARE * left
        } else {
            0.0
        };
        if outlook.outcome(&Plan::constant(cap)).finish >= left - spare {
            return (Plan::constant(cap), Reason::BestEffort);
        }
        if outlook.dirtying.curve.is_none() {
            return reserve(outlook, deadline, left, cap);
        }
        let guard = (deadline * GUARD_SHARE).clamp(GUARD_SECONDS.0, GUARD_SECONDS.1);
        let knee = |deviations| outlook.knee_at(cap, deviations).unwrap_or(cap);
        let search = Search {
            outlook,
            left,
            cap,
            sure_cap: caps.sure.clamp(1.0, cap),
            knee: knee(0.0),
            sure_knee: knee(PESSIMISM),
            trickle: trickle(outlook, left),
        };
        let (plan, reason) = if left > guard {
            search.steady(self.steady_rate, left - guard)
        } else {
            search.sprint(self.steady_rate, hold)
        };
        if hold {
            search.fade(plan, reason)
        } else {
            (plan, reason)
        }
    }
}

impl Plan {
    const fn rate_now(&self) -> f64 {
        if self.sprint_at > 0.0 {
            self.rate
        } else {
            self.sprint
        }
    }
}

struct Search<'a> {
    outlook: &'a Outlook<'a>,
    left: f64,
    cap: f64,
    sure_cap: f64,
    knee: f64,
    /// The knee of the guest at its busier.
    sure_knee: f64,
    trickle: f64,
}

impl Search<'_> {
    /// The lowest rate now that a sprint from `sprint_at` on makes good.
    fn steady(&self, before: f64, sprint_at: f64) -> (Plan, Reason) {
        let plan = |rate: f64| Plan {
            rate,
            sprint_at,
            sprint: (self.knee * SPRINT_OVER_KNEE)
                .max(self.sure_knee * FLOOR_OVER_KNEE)
                .max(rate * SPRINT_OVER_STEADY)
                .min(self.cap),
        };
        for (deviations, cap) in self.suppositions() {
            let meets = |rate| self.outlook.outcome_at(&plan(rate), deviations).finish <= self.left;
            if let Some(lowest) = lowest_rate(self.trickle, cap, meets) {
                let rate = self.keep(before, lowest);
                let reason = if rate > self.trickle {
                    Reason::Steady
                } else {
                    Reason::Waiting
                };
                return (plan(rate), reason);
            }
        }
        (Plan::constant(self.cap), Reason::Sprint)
    }

    /// The lowest constant rate that is in time, or none yet where even that is
    /// early enough to wait.
    fn sprint(&self, before: f64, hold: bool) -> (Plan, Reason) {
        let floor = (self.knee * FLOOR_OVER_KNEE).max(self.trickle);
        for (deviations, cap) in self.suppositions() {
            let finish = |plan: &Plan| self.outlook.outcome_at(plan, deviations).finish;
            let meets = |rate| finish(&Plan::constant(rate)) <= self.left;
            let Some(lowest) = lowest_rate(floor, cap, meets) else {
                continue;
            };
            let wait = Plan {
                rate: self.trickle,
                sprint_at: LEAST_WAIT_SECONDS,
                sprint: lowest,
            };
            // A jump of many times over what is sure is no reason to wait: each
            // wait would ask for more still, in the end for more than there is.
            let release = (self.knee * SPRINT_OVER_KNEE)
                .max(self.sure_knee * FLOOR_OVER_KNEE)
                .max(before);
            let sure = lowest <= release.max(self.trickle) * RELEASE_OVER_SURE;
            if hold && sure && finish(&wait) <= self.left {
                return (wait, Reason::Waiting);
            }
            return (Plan::constant(self.keep(before, lowest)), Reason::Sprint);
        }
        (Plan::constant(self.cap), Reason::Sprint)
    }

    /// Draws the end of a pass out where the sync after it might complete too
    /// early. QEMU's threshold follows the rate, so a sync at a low one tells
    /// what is dirty without ending the migration.
    fn fade(&self, plan: Plan, reason: Reason) -> (Plan, Reason) {
        let Outlook { state, terms, .. } = self.outlook;
        let at_best = self.outlook.outcome_at(&plan, -OPTIMISM).finish;
        if at_best >= self.left - EARLY_SECONDS {
            return (plan, reason);
        }
        let calm = self.outlook.dirtying_at(-OPTIMISM);
        let found = calm.pages_after(state.pass_seconds, state.total_pages);
        let harmless = SYNC_SHARE * found * PAGE_BYTES / terms.downtime_limit.max(1e-3);
        let fading = (state.normal_pages + state.zero_pages) * PAGE_BYTES
            / (terms.downtime_limit + FADE_SECONDS);
        let most = harmless.max(fading).max(self.trickle);
        if plan.rate_now() <= most {
            return (plan, reason);
        }
        (
            Plan {
                rate: most,
                sprint_at: LEAST_WAIT_SECONDS,
                ..plan
            },
            Reason::Waiting,
        )
    }

    /// What to suppose of guest (in deviations) and link, the safest first.
    fn suppositions(&self) -> [(f64, f64); 4] {
        [
            (PESSIMISM, self.sure_cap),
            (0.0, self.sure_cap),
            (PESSIMISM, self.cap),
            (0.0, self.cap),
        ]
    }

    fn keep(&self, before: f64, lowest: f64) -> f64 {
        if before >= lowest && before <= (lowest * HYSTERESIS).min(self.cap) {
            before
        } else {
            // Within the band, so that the next is not at once beyond it either way.
            (lowest * HYSTERESIS.sqrt()).min(self.cap)
        }
    }
}

/// A rate so low that the present pass does not end while there is time left.
fn trickle(outlook: &Outlook<'_>, left: f64) -> f64 {
    let slow = outlook.state.pending_bytes() / (4.0 * left.max(1.0));
    slow.clamp(1.0, TRICKLE)
}

/// While nothing is known of the guest: the first pass ends with time left, and
/// slowly, since QEMU completes at its end if little enough is dirty by then.
fn reserve(outlook: &Outlook<'_>, deadline: f64, left: f64, cap: f64) -> (Plan, Reason) {
    let pending = outlook.state.pending_bytes();
    if left <= 0.0 {
        return (Plan::constant(cap), Reason::BestEffort);
    }
    if pending < PAGE_BYTES {
        // A later pass of which only the stream tells: what is left of it is
        // not known, and standing still would teach nothing.
        let assumed = outlook.state.total_pages * PAGE_BYTES * ASSUMED_DIRTY;
        let rate = (assumed / left).max(RESERVE_FLOOR).clamp(1.0, cap);
        return (Plan::constant(rate), Reason::Reserve);
    }
    let even = pending / (left - deadline * RESERVE).max(0.1);
    // QEMU completes once what is left is sent within the downtime limit, so
    // that it must never look as if it were.
    let seconds = (deadline * FADING)
        .min(FADING_SECONDS)
        .max(FADING_LIMITS * outlook.terms.downtime_limit);
    let fading = pending / seconds;
    let rate = even.min(fading.max(RESERVE_FLOOR)).clamp(1.0, cap);
    (Plan::constant(rate), Reason::Reserve)
}
