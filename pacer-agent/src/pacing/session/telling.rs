//! What a session says: verdicts and forecasts.

use super::super::baseline::{Baselines, Known};
use super::super::controller::Decision;
use super::super::forecast::Percentiles;
use super::super::number::to_f64;
use super::super::objective::{Objective, Reason, Verdict};
use super::super::passes::{Plan, State};
use super::super::time::Time;
use super::{Action, ForecastRecord, Session};

/// A change of the earliest finish by this share is worth telling.
const WORTH_TELLING: f64 = 0.05;

impl Session {
    pub(super) fn tell_verdict(&mut self, decision: &Decision) {
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

    pub(super) fn tell_forecast(&mut self, state: Option<State>, now: Time) {
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

    pub(super) fn baselines(&self, state: State, rate: f64) -> Baselines {
        Baselines::of(&Known {
            state,
            rate,
            downtime_limit: self.config.limits.downtime_limit.as_secs_f64(),
            windows: self.curve.windows(),
        })
    }

    pub(super) fn fill(
        &mut self,
        record: &mut ForecastRecord,
        state: State,
        plan: &Decision,
        since: f64,
    ) {
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
                // Not before it may.
                let opens_at = self.config.not_before.map_or(0.0, |at| at.as_secs_f64());
                planned
                    .finish_seconds
                    .map(|left| (since + left).max(opens_at))
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
