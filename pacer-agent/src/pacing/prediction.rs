//! What a migration would be, before any: rate against time, downtime and
//! bytes, the knee, and the rate that a deadline needs.

use super::forecast::{Forecast, Outlook, Percentiles, TAIL, lowest_rate};
use super::measuring::Lead;
use super::objective::Verdict;
use super::passes::{NORMAL_PAGE_BYTES, Plan, ROUND_SECONDS, Terms};

/// What is asked. Rates in bytes a second, times in seconds from t0.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The rates to predict; empty asks for a dozen between well below the knee
    /// and the highest.
    pub rates: Vec<f64>,
    /// The highest rate there may be; at least 1.
    pub highest_rate: f64,
    /// How the guest is looked at from t0 to the first byte.
    pub lead: Lead,
    /// When the guest is to run at the destination, if that matters.
    pub deadline_seconds: Option<f64>,
}

/// Whether a migration ends at some rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convergence {
    /// It does, also if the guest is as busy as one in twenty.
    Yes,
    /// It does if the guest is as busy as expected, but not if busier.
    Unsure,
    /// It does not.
    No,
}

/// What one rate leads to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Bytes a second, from the first byte to the switchover.
    pub rate: f64,
    /// From t0 to the first byte.
    pub lead_seconds: f64,
    /// Finish from t0; what never ends is `None`. The longest downtime supposes
    /// that the link takes no more than `rate`, which nobody has measured yet.
    pub forecast: Forecast,
}

/// The rates that meet a deadline, in bytes a second; `None` where not even the
/// highest does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeadlineRates {
    /// The deadline, in seconds from t0.
    pub deadline_seconds: f64,
    /// The lowest constant rate that meets it one time in two.
    pub even_rate: Option<f64>,
    /// The lowest that meets it 19 times in 20.
    pub safe_rate: Option<f64>,
}

/// What the guest writes in a pass just below the knee, which is why that does
/// not converge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SettledPass {
    /// How long such a pass takes.
    pub seconds: f64,
    /// Bytes on the wire of the distinct pages written in it, a second.
    pub bytes_per_second: f64,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// One for each rate, lowest first.
    pub rows: Vec<Row>,
    /// The highest rate: nothing arrives earlier.
    pub highest: Row,
    /// The lowest rate that converges, in bytes a second; it may be above the
    /// highest rate.
    pub knee: Percentiles,
    /// Just below the knee.
    pub settled: SettledPass,
    /// Rate and finish (p50), for a plot: from well below the knee to the
    /// highest rate, the rates that converge alone.
    pub line: Vec<(f64, f64)>,
    /// The lowest rate of that range.
    pub lowest_rate: f64,
    /// The deadline's rates, if there is one.
    pub deadline: Option<DeadlineRates>,
}

/// Rates of a table that nobody asked for.
const ROWS: u32 = 12;
/// Points of a plot's line: one a column.
const POINTS: u32 = 72;
/// The lowest rate shown is so far below the knee,
const BELOW_KNEE: f64 = 3.0;
/// or sends the memory once in this time: slower is of no use to anyone.
const SLOWEST_SECONDS: f64 = 3600.0;
/// The range of rates shown is no narrower than this.
const LEAST_RANGE: f64 = 8.0;
/// Where the knee is looked for, in bytes a second: beyond any link.
const KNEE_BELOW: f64 = 1e12;
/// How much longer a migration seems after the usual windows than after all of them.
const EARLY_SUPPOSITION: f64 = 1.1;
/// Passes followed until they settle.
const PASSES: u32 = 200;

impl Row {
    /// Whether the migration ends.
    #[must_use]
    pub const fn convergence(&self) -> Convergence {
        let finish = self.forecast.finish_seconds;
        match (finish.p50, finish.p95) {
            (None, _) => Convergence::No,
            (Some(_), None) => Convergence::Unsure,
            (Some(_), Some(_)) => Convergence::Yes,
        }
    }
}

impl DeadlineRates {
    /// Feasible if some rate meets it one time in two.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self.even_rate {
            Some(_) => Verdict::Feasible,
            None => Verdict::Infeasible,
        }
    }
}

/// Answers `question` of a guest that looks like `outlook_at` a rate.
#[must_use]
pub fn predict<'a>(outlook_at: impl Fn(f64) -> Outlook<'a>, question: &Question) -> Prediction {
    let asked = question.rates.iter().copied();
    let highest_rate = asked.fold(question.highest_rate.max(1.0), f64::max);
    let row = |rate| row(&outlook_at(rate), rate, &question.lead);
    let knee = knee(&outlook_at, highest_rate);
    let lowest = lowest_shown(&outlook_at(highest_rate), knee.p50, highest_rate);
    let rates = if question.rates.is_empty() {
        grid(lowest, highest_rate)
    } else {
        sorted(&question.rates)
    };
    let lowest_rate = rates.first().map_or(lowest, |&first| first.min(lowest));
    let line = spread(lowest_rate, highest_rate, POINTS)
        .chain(knee.p50.filter(|&knee| knee <= highest_rate))
        .filter_map(|rate| Some((rate, row(rate).forecast.finish_seconds.p50?)));
    let mut line: Vec<_> = line.collect();
    line.sort_by(|one, other| one.0.total_cmp(&other.0));
    Prediction {
        rows: rates.into_iter().map(row).collect(),
        highest: row(highest_rate),
        knee,
        settled: settled(&outlook_at(highest_rate), knee.p50.unwrap_or(KNEE_BELOW)),
        line,
        lowest_rate,
        deadline: question
            .deadline_seconds
            .map(|deadline| meet(deadline, highest_rate, row)),
    }
}

fn row(outlook: &Outlook<'_>, rate: f64, lead: &Lead) -> Row {
    let plan = Plan::constant(rate);
    // After the usual windows, when it is decided, a little more is supposed.
    let expected = outlook.expected(rate).mul_f64(EARLY_SUPPOSITION);
    let lead_seconds = lead.before(expected).as_secs_f64();
    // Who asks for a rate supposes a link that carries it.
    let wide = over_link(outlook, outlook.terms.link_rate.max(rate));
    let mut forecast = wide.forecast(&plan);
    forecast.finish_seconds = forecast.finish_seconds.map(|left| lead_seconds + left);
    let longest = over_link(outlook, rate).outcome(&plan).downtime;
    let downtime = &mut forecast.downtime_seconds;
    downtime.p95 = downtime.p95.map(|p95| p95.max(longest));
    Row {
        rate,
        lead_seconds,
        forecast,
    }
}

fn over_link<'a>(outlook: &Outlook<'a>, link_rate: f64) -> Outlook<'a> {
    Outlook {
        terms: Terms {
            link_rate,
            ..outlook.terms
        },
        ..*outlook
    }
}

/// The knee where the guest is as expected, calmer, and busier.
fn knee<'a>(outlook_at: impl Fn(f64) -> Outlook<'a>, highest_rate: f64) -> Percentiles {
    let at = |outlook: &Outlook<'_>, deviations| outlook.knee_at(KNEE_BELOW, deviations);
    let Some(expected) = at(&outlook_at(highest_rate), 0.0) else {
        return Percentiles::default();
    };
    let near = outlook_at(expected);
    let known = |knee: Option<f64>| knee.unwrap_or(f64::INFINITY);
    Percentiles::new(known(at(&near, -TAIL)), expected, known(at(&near, TAIL)))
}

/// What passes at a rate just below `knee` settle to: each is as long as what
/// the one before it left takes to send.
fn settled(outlook: &Outlook<'_>, knee: f64) -> SettledPass {
    let written = |seconds: f64| {
        let pages = outlook
            .dirtying
            .pages_after(seconds, outlook.state.total_pages);
        pages * NORMAL_PAGE_BYTES
    };
    let mut seconds = outlook.state.pending_bytes() / knee;
    for _ in 0..PASSES {
        seconds = (written(seconds) / knee).max(ROUND_SECONDS);
    }
    SettledPass {
        seconds,
        bytes_per_second: written(seconds) / seconds,
    }
}

fn lowest_shown(outlook: &Outlook<'_>, knee: Option<f64>, highest_rate: f64) -> f64 {
    let slowest = outlook.state.pending_bytes() / SLOWEST_SECONDS;
    (knee.unwrap_or(KNEE_BELOW) / BELOW_KNEE)
        .max(slowest)
        .min(highest_rate / LEAST_RANGE)
}

fn meet(deadline: f64, highest_rate: f64, row: impl Fn(f64) -> Row) -> DeadlineRates {
    let lowest = |finish: fn(&Percentiles) -> Option<f64>| {
        lowest_rate(1.0, highest_rate, |rate| {
            finish(&row(rate).forecast.finish_seconds).is_some_and(|finish| finish <= deadline)
        })
    };
    DeadlineRates {
        deadline_seconds: deadline,
        even_rate: lowest(|finish| finish.p50),
        safe_rate: lowest(|finish| finish.p95),
    }
}

/// Rates with two digits, so that they can be typed; the highest as it is.
fn grid(lowest: f64, highest: f64) -> Vec<f64> {
    let mut rates: Vec<f64> = spread(lowest, highest, ROWS)
        .map(|rate| {
            let digits = 10_f64.powf(rate.log10().floor() - 1.0);
            ((rate / digits).round() * digits).min(highest)
        })
        .collect();
    rates.pop();
    rates.push(highest);
    sorted(&rates)
}

fn sorted(rates: &[f64]) -> Vec<f64> {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    rates
}

/// `count` rates from `lowest` to `highest`, each the same times the one before.
fn spread(lowest: f64, highest: f64, count: u32) -> impl Iterator<Item = f64> {
    let (low, high) = (lowest.max(1.0).ln(), highest.max(1.0).ln());
    (0..count).map(move |step| {
        let share = f64::from(step) / f64::from(count - 1);
        (low + (high - low) * share).exp()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::pacing::dirty_curve::DirtyCurve;
    use crate::pacing::passes::Dirtying;
    use crate::pacing::passes::tests::{TERMS, fresh, working_set};

    const PAGES: u64 = 131_072;
    const LEAD: Lead = Lead {
        is_one: false,
        usual: Duration::from_secs(1),
        longest: Duration::from_millis(500),
        settled: Some(Duration::ZERO),
    };

    fn question() -> Question {
        Question {
            rates: Vec::new(),
            highest_rate: 400e6,
            lead: LEAD,
            deadline_seconds: None,
        }
    }

    fn ask(curve: &DirtyCurve, question: &Question) -> Prediction {
        let outlook_at = |_| Outlook {
            state: fresh(131_072.0),
            mix_uncertainty: 0.05,
            dirtying: Dirtying::expected(Some(curve)),
            dirty_uncertainty: 0.2,
            extent_uncertainty: 0.5,
            terms: TERMS,
        };
        predict(outlook_at, question)
    }

    #[test]
    fn the_knee_divides_what_converges_from_what_does_not() {
        let prediction = ask(&working_set(PAGES, 20_000, 5000), &question());
        let knee = prediction.knee.p50.unwrap();
        assert!(prediction.knee.p05 < Some(knee) && prediction.knee.p95 > Some(knee));
        for row in &prediction.rows {
            let convergence = row.convergence();
            if row.rate < knee * 0.98 {
                assert_eq!(convergence, Convergence::No, "{row:?}");
            } else if row.rate > prediction.knee.p95.unwrap() * 1.02 {
                assert_eq!(convergence, Convergence::Yes, "{row:?}");
            }
        }
        assert_eq!(prediction.rows[0].convergence(), Convergence::No);
        assert_eq!(prediction.rows.last(), Some(&prediction.highest));
        let written = prediction.settled.bytes_per_second;
        assert!((0.8..=1.1).contains(&(written / knee)), "{written} {knee}");
    }

    #[test]
    fn a_grid_is_a_dozen_rates_that_can_be_typed() {
        let rates = grid(3_141_592.0, 1.25e9);
        assert_eq!(rates.len(), 12);
        assert!((rates[0] - 3.1e6).abs() < 1.0, "{rates:?}");
        assert!((rates[11] - 1.25e9).abs() < 1.0, "{rates:?}");
        assert!(rates.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn rates_that_are_asked_for_are_those_predicted() {
        let mut question = question();
        question.rates = vec![50e6, 2e6];
        question.highest_rate = 20e6;
        let prediction = ask(&working_set(PAGES, 20_000, 5000), &question);
        let rates: Vec<f64> = prediction.rows.iter().map(|row| row.rate).collect();
        assert_eq!(rates, [2e6, 50e6]);
        assert!((prediction.highest.rate - 50e6).abs() < 1.0);
        assert!(prediction.lowest_rate <= 2e6);
    }

    #[test]
    fn a_knee_above_the_highest_rate_is_known_all_the_same() {
        let mut question = question();
        question.highest_rate = 10e6;
        question.deadline_seconds = Some(1e6);
        let prediction = ask(&working_set(PAGES, 20_000, 5000), &question);
        assert!(prediction.knee.p50 > Some(10e6));
        assert_eq!(prediction.highest.convergence(), Convergence::No);
        assert_eq!(prediction.line, []);
        let deadline = prediction.deadline.unwrap();
        assert_eq!(deadline.verdict(), Verdict::Infeasible);
    }

    #[test]
    fn a_deadline_has_a_rate_and_a_safer_one() {
        let curve = working_set(PAGES, 2000, 1000);
        let mut question = question();
        question.deadline_seconds = Some(20.0);
        let deadline = ask(&curve, &question).deadline.unwrap();
        let (even, safe) = (deadline.even_rate.unwrap(), deadline.safe_rate.unwrap());
        assert!(even < safe, "{deadline:?}");
        question.rates = vec![even, safe];
        let rows = ask(&curve, &question).rows;
        let close = |seconds: Option<f64>| (seconds.unwrap() - 20.0).abs() < 0.1;
        assert!(close(rows[0].forecast.finish_seconds.p50), "{rows:?}");
        assert!(close(rows[1].forecast.finish_seconds.p95), "{rows:?}");
        question.deadline_seconds = Some(1.0);
        let deadline = ask(&curve, &question).deadline.unwrap();
        assert_eq!((deadline.even_rate, deadline.safe_rate), (None, None));
    }

    #[test]
    fn the_longest_downtime_is_that_of_a_narrow_link() {
        let prediction = ask(&working_set(PAGES, 2000, 1000), &question());
        for row in prediction
            .rows
            .iter()
            .filter(|row| row.rate < TERMS.link_rate)
        {
            let Some(p95) = row.forecast.downtime_seconds.p95 else {
                continue;
            };
            assert!(p95 > TERMS.downtime_limit * 0.5, "{row:?}");
            assert!(p95 < TERMS.downtime_limit * 2.5, "{row:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn more_rate_is_never_later(
            set in 1_u64..60_000, per_second in 1_u64..20_000, highest in 1e6_f64..1e9,
        ) {
            let mut question = question();
            question.highest_rate = highest;
            let prediction = ask(&working_set(PAGES, set, per_second), &question);
            // As in the forecast's test: a pass more or less.
            let slack = TERMS.downtime_limit + TERMS.overhead;
            let finishes = prediction.rows.iter().map(|row| {
                row.forecast.finish_seconds.p50.unwrap_or(f64::INFINITY)
            });
            let mut last = f64::INFINITY;
            for finish in finishes {
                prop_assert!(finish <= last + slack, "{finish} after {last}");
                last = finish;
            }
            let knee = prediction.knee;
            prop_assert!(knee.p05 <= knee.p50 && knee.p50.is_some());
            for row in prediction.rows {
                let clear = (row.rate / knee.p50.unwrap_or(1.0)).ln().abs() > 0.05;
                let converges = row.convergence() != Convergence::No;
                prop_assert!(!clear || converges == (Some(row.rate) > knee.p50), "{row:?}");
            }
        }
    }
}
