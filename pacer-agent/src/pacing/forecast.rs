//! Curve, state and rate into a forecast with its interval.

use std::time::Duration;

use super::passes::{Dirtying, Outcome, Plan, State, Terms, simulate};

/// Three points of a distribution. `None` where it is unknown or never.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Percentiles {
    /// One in twenty is below.
    pub p05: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// One in twenty is above.
    pub p95: Option<f64>,
}

impl Percentiles {
    /// In order, whatever order they came in; what is not finite is `None`.
    #[must_use]
    pub fn new(p05: f64, p50: f64, p95: f64) -> Self {
        let known = |x: f64| x.is_finite().then_some(x);
        Self {
            p05: known(p05.min(p50)),
            p50: known(p50),
            p95: known(p95.max(p50)),
        }
    }

    /// Each point changed by `change`, which must be monotone.
    #[must_use]
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self {
            p05: self.p05.map(&change),
            p50: self.p50.map(&change),
            p95: self.p95.map(&change),
        }
    }
}

/// What a forecast supposes, and how sure that is.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    /// Where the migration is.
    pub state: State,
    /// Standard deviation of the logarithm of pages with content that are left.
    pub mix_uncertainty: f64,
    /// The guest, at its most likely.
    pub dirtying: Dirtying<'a>,
    /// Standard deviation of the logarithm of [`Dirtying::level`].
    pub dirty_uncertainty: f64,
    /// Standard deviation of the logarithm of [`Dirtying::extent`].
    pub extent_uncertainty: f64,
    /// The fixed part.
    pub terms: Terms,
}

/// A forecast of one plan, in seconds from now and bytes from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Until the guest runs at the destination.
    pub finish_seconds: Percentiles,
    /// From STOP until then.
    pub downtime_seconds: Percentiles,
    /// Bytes on the wire.
    pub bytes: Percentiles,
}

/// 5 % of a normal distribution are beyond this many deviations.
pub(super) const TAIL: f64 = 1.645;
/// The link and QEMU do not keep a rate exactly.
const RATE_UNCERTAINTY: f64 = 0.006;
/// A tick, QEMU's measuring and a switchover are not known better, in seconds.
const LEAST_SPREAD_SECONDS: f64 = 0.12;
/// Nothing is moved at less, in bytes a second.
const LEAST_RATE: f64 = 1.0;
/// Halvings of the search for a rate: 2^-20 of eight decades is under 0.01 %.
const HALVINGS: u32 = 20;

/// By how many deviations each thing that is unsure is worse.
#[derive(Clone, Copy)]
struct Worse {
    mix: f64,
    level: f64,
    extent: f64,
}

impl Worse {
    const NOT: Self = Self {
        mix: 0.0,
        level: 0.0,
        extent: 0.0,
    };

    const fn all(deviations: f64) -> Self {
        Self {
            mix: deviations,
            level: deviations,
            extent: deviations,
        }
    }

    /// One after the other, the others as expected.
    const fn each(deviations: f64) -> [Self; 3] {
        [
            Self {
                mix: deviations,
                ..Self::NOT
            },
            Self {
                level: deviations,
                ..Self::NOT
            },
            Self {
                extent: deviations,
                ..Self::NOT
            },
        ]
    }
}

impl Outlook<'_> {
    /// What `plan` leads to where the guest is as expected.
    #[must_use]
    pub fn outcome(&self, plan: &Plan) -> Outcome {
        simulate(&self.state, plan, &self.dirtying, &self.terms)
    }

    /// What `plan` leads to where everything unsure is `deviations` worse.
    #[must_use]
    pub fn outcome_at(&self, plan: &Plan, deviations: f64) -> Outcome {
        self.outcome_where(plan, Worse::all(deviations))
    }

    fn outcome_where(&self, plan: &Plan, worse: Worse) -> Outcome {
        let State {
            normal_pages,
            zero_pages,
            ..
        } = self.state;
        let mixed = normal_pages * (worse.mix * self.mix_uncertainty).exp();
        let mut state = self.state;
        state.normal_pages = mixed.min(normal_pages + zero_pages);
        state.zero_pages = normal_pages + zero_pages - state.normal_pages;
        simulate(&state, plan, &self.dirtying_where(worse), &self.terms)
    }

    /// How long a migration at `rate` is expected to take; one that does not end twice
    /// as long as its memory takes.
    #[must_use]
    pub fn expected(&self, rate: f64) -> Duration {
        let finish = self.outcome(&Plan::constant(rate)).finish;
        let seconds = if finish.is_finite() {
            finish
        } else {
            2.0 * self.state.pending_bytes() / rate.max(1.0)
        };
        Duration::from_secs_f64(seconds.clamp(0.0, 1e9))
    }

    /// The guest where it is so many deviations busier, and on more pages.
    #[must_use]
    pub fn dirtying_at(&self, deviations: f64) -> Dirtying<'_> {
        self.dirtying_where(Worse::all(deviations))
    }

    fn dirtying_where(&self, worse: Worse) -> Dirtying<'_> {
        Dirtying {
            level: self.dirtying.level * (worse.level * self.dirty_uncertainty).exp(),
            extent: self.dirtying.extent * (worse.extent * self.extent_uncertainty).exp(),
            ..self.dirtying
        }
    }

    /// The forecast of `plan`. What is unsure is so independently: each by itself at its
    /// worst, and together they are as far off as the root of the sum of squares.
    #[must_use]
    pub fn forecast(&self, plan: &Plan) -> Forecast {
        let mid = self.outcome(plan);
        let [low, high] = [-TAIL, TAIL]
            .map(|deviations| Worse::each(deviations).map(|worse| self.outcome_where(plan, worse)));
        let finish = mid.finish;
        let spread = (TAIL * RATE_UNCERTAINTY * finish).max(LEAST_SPREAD_SECONDS);
        let far = |outcomes: &[Outcome; 3], figure: fn(&Outcome) -> f64, least: f64| {
            let squares = outcomes
                .iter()
                .map(|outcome| (figure(outcome) - figure(&mid)).powi(2));
            (squares.sum::<f64>() + least.powi(2)).sqrt()
        };
        // Never less never is no number.
        let less = |from: f64, by: f64| match from.is_finite() {
            true => (from - by).max(0.0),
            false => from,
        };
        Forecast {
            finish_seconds: Percentiles::new(
                less(finish, far(&low, |one| one.finish, spread)),
                finish,
                finish + far(&high, |one| one.finish, spread),
            ),
            downtime_seconds: Percentiles::new(
                less(
                    mid.downtime,
                    far(&low, |one| one.downtime, 0.3 * mid.downtime),
                ),
                mid.downtime,
                mid.downtime + far(&high, |one| one.downtime, 0.5 * mid.downtime),
            ),
            bytes: Percentiles::new(
                less(mid.bytes, far(&low, |one| one.bytes, 0.0)),
                mid.bytes,
                mid.bytes + far(&high, |one| one.bytes, 0.0),
            ),
        }
    }

    /// When `plan` ends where each thing that is unsure is by itself `deviations` worse,
    /// or better where they are negative, and together they are as far off as the root of
    /// the sum of squares. Infinite where it may never end; one that is not expected to
    /// may still do so for a calmer guest.
    #[must_use]
    pub fn finish_if_worse(&self, plan: &Plan, deviations: f64) -> f64 {
        let expected = self.outcome(plan).finish;
        if expected.is_infinite() {
            return self.outcome_at(plan, deviations).finish;
        }
        let far = Worse::each(deviations)
            .map(|worse| (self.outcome_where(plan, worse).finish - expected).powi(2))
            .into_iter()
            .sum::<f64>()
            .sqrt();
        (expected + far * deviations.signum()).max(0.0)
    }

    /// The lowest constant rate at which the migration still converges, in
    /// bytes a second; `None` if not even `cap` does.
    #[must_use]
    pub fn knee(&self, cap: f64) -> Option<f64> {
        self.knee_at(cap, 0.0)
    }

    /// The knee where everything unsure is `deviations` worse.
    #[must_use]
    pub fn knee_at(&self, cap: f64, deviations: f64) -> Option<f64> {
        lowest_rate(LEAST_RATE, cap, |rate| {
            self.outcome_at(&Plan::constant(rate), deviations)
                .converges()
        })
    }
}

/// The lowest rate in `[low, high]` that is `enough`, by bisection of its
/// logarithm, or `None` if `high` is not. What is returned is always enough,
/// also where the discreteness of passes makes `enough` hold in several places.
#[must_use]
pub fn lowest_rate(low: f64, high: f64, mut enough: impl FnMut(f64) -> bool) -> Option<f64> {
    let low = low.max(1.0).min(high);
    if !enough(high) {
        return None;
    }
    if enough(low) {
        return Some(low);
    }
    let (mut below, mut above) = (low.ln(), high.ln());
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(below, above);
        if enough(middle.exp()) {
            above = middle;
        } else {
            below = middle;
        }
    }
    Some(above.exp().clamp(low, high))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pacing::passes::tests::{TERMS, fresh, working_set};

    fn outlook(dirtying: Dirtying<'_>, pages: f64) -> Outlook<'_> {
        Outlook {
            state: fresh(pages),
            mix_uncertainty: 0.05,
            dirtying,
            dirty_uncertainty: 0.2,
            extent_uncertainty: 0.5,
            terms: TERMS,
        }
    }

    #[test]
    fn the_knee_is_where_convergence_begins() {
        let curve = working_set(131_072, 20_000, 5000);
        let dirtying = Dirtying::expected(Some(&curve));
        let outlook = outlook(dirtying, 131_072.0);
        let knee = outlook.knee(1e9).expect("converges");
        assert!((10e6..60e6).contains(&knee), "{knee}");
        let converges = |rate| outlook.outcome(&Plan::constant(rate)).converges();
        assert!(converges(knee * 1.01) && !converges(knee * 0.98));
        assert_eq!(outlook.knee(knee / 2.0), None);
    }

    #[test]
    fn what_never_ends_even_at_best_has_no_earliest_end() {
        let curve = working_set(131_072, 60_000, 60_000);
        let outlook = outlook(Dirtying::expected(Some(&curve)), 131_072.0);
        let forecast = outlook.forecast(&Plan::constant(1e6));
        assert_eq!(forecast.finish_seconds, Percentiles::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn more_rate_is_not_later_and_less_dirt_neither(
            set in 1_u64..60_000, per_second in 1_u64..20_000, rate in 1e5_f64..8e7,
        ) {
            let curve = working_set(131_072, set, per_second);
            let dirtying = Dirtying::expected(Some(&curve));
            let base = outlook(dirtying, 131_072.0);
            let finish = |rate: f64, level: f64| {
                outlook(Dirtying { level, ..dirtying }, 131_072.0)
                    .outcome(&Plan::constant(rate)).finish
            };
            // One pass more or less shifts a finish by the time of its last,
            // small one; see the downtime limit.
            let slack = TERMS.downtime_limit + TERMS.overhead;
            prop_assert!(finish(rate * 1.2, 1.0) <= finish(rate, 1.0) + slack);
            prop_assert!(finish(rate, 0.8) <= finish(rate, 1.0) + slack);
            let forecast = base.forecast(&Plan::constant(rate)).finish_seconds;
            if let (Some(low), Some(mid)) = (forecast.p05, forecast.p50) {
                prop_assert!(low <= mid);
            }
        }
    }
}
