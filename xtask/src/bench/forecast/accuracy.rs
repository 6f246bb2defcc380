//! How far off the forecast finish was, and how often badly so.

use super::journey::{Forecast, Journey};
use super::{Collected, by_accelerator};
use crate::bench::target::{Limit, Part};

/// What the errors of forecasts must be, in percent.
#[derive(Clone, Copy)]
pub(super) struct ErrorLimits {
    pub(super) median: f64,
    pub(super) p90: f64,
}

pub(super) const AT_START: ErrorLimits = ErrorLimits {
    median: 3.0,
    p90: 8.0,
};
pub(super) const AT_HALF: ErrorLimits = ErrorLimits {
    median: 2.0,
    p90: 4.0,
};
pub(super) const AT_THREE_QUARTERS: ErrorLimits = ErrorLimits {
    median: 1.0,
    p90: 3.0,
};
const BAD_SHARE: f64 = 0.01;

pub(super) fn at_start(collected: &Collected) -> Vec<Part> {
    let mut parts = judge(collected, AT_START, Journey::first);
    let arrived = collected.arrived();
    let figures = |figure: fn(&Journey) -> Option<f64>| -> Vec<f64> {
        arrived
            .iter()
            .filter_map(|journey| figure(journey))
            .collect()
    };
    let of_rest = figures(|journey| journey.error_of_rest(journey.first()));
    let lead = figures(|journey| Some(journey.first()?.at / journey.total? * 100.0));
    let signed = figures(|journey| {
        let total = journey.total?;
        Some((journey.first()?.p50? / total - 1.0) * 100.0)
    });
    parts.extend([
        Part::median("median error, of what was left then", &of_rest, "%"),
        Part::quantile("90th percentile, of what was left then", &of_rest, 0.9, "%"),
        Part::median("time before it, of the whole", &lead, "%"),
        Part::median("bias: forecast later than it came, median", &signed, "%"),
    ]);
    parts
}

pub(super) fn at_half(collected: &Collected) -> Vec<Part> {
    judge(collected, AT_HALF, |journey| {
        journey.before(journey.total? * 0.5)
    })
}

pub(super) fn at_three_quarters(collected: &Collected) -> Vec<Part> {
    judge(collected, AT_THREE_QUARTERS, |journey| {
        journey.before(journey.total? * 0.75)
    })
}

fn judge(
    collected: &Collected,
    limits: ErrorLimits,
    forecast: fn(&Journey) -> Option<&Forecast>,
) -> Vec<Part> {
    by_accelerator(&collected.arrived(), |name, journeys| {
        let errors: Vec<f64> = journeys
            .iter()
            .filter_map(|journey| journey.error(forecast(journey)))
            .collect();
        error_parts(name, &errors, limits)
    })
}

/// Median and 90th percentile of errors in percent.
pub(super) fn error_parts(name: &str, errors: &[f64], limits: ErrorLimits) -> Vec<Part> {
    vec![
        Part::median(format!("median error{name}"), errors, "%")
            .limit(Limit::AtMost(limits.median)),
        Part::quantile(format!("90th percentile{name}"), errors, 0.9, "%")
            .limit(Limit::AtMost(limits.p90)),
    ]
}

pub(super) fn bad_share(collected: &Collected) -> Vec<Part> {
    let unchanging = collected.unchanging();
    let mut parts = by_accelerator(&unchanging, |name, journeys| {
        let judged = journeys
            .iter()
            .filter_map(|journey| journey.is_bad(journey.first()));
        vec![bad_part(name, judged)]
    });
    let all = unchanging.len();
    let arrived = collected.arrived().len();
    parts.push(Part::share(
        "runs that arrived",
        arrived,
        all,
        "of the runs",
    ));
    let undecided = unchanging
        .iter()
        .filter(|journey| journey.is_bad(journey.first()).is_none())
        .count();
    parts.push(Part::share(
        "runs given up that may or may not have arrived later, not judged",
        undecided,
        all,
        "of the runs",
    ));
    parts.push(Part::share(
        "starts that failed otherwise and are in no row",
        collected.failed,
        collected.journeys.len() + collected.failed,
        "of the starts",
    ));
    parts
}

/// The share of forecasts that were bad.
pub(super) fn bad_part(name: &str, judged: impl Iterator<Item = bool>) -> Part {
    let judged: Vec<bool> = judged.collect();
    let bad = judged.iter().filter(|&&bad| bad).count();
    Part::share(format!("bad{name}"), bad, judged.len(), "of the runs")
        .limit(Limit::AtMost(BAD_SHARE))
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::arrived;
    use super::*;

    fn values(parts: &[Part]) -> Vec<f64> {
        let values = parts.iter().filter_map(|part| part.value);
        values
            .map(|value| (value * 1000.0).round() / 1000.0)
            .collect()
    }

    #[test]
    fn errors_are_those_of_the_moment() {
        let collected = Collected {
            journeys: vec![arrived(&[
                (1.0, 44.0),
                (19.0, 42.0),
                (29.0, 41.0),
                (39.0, 70.0),
            ])],
            failed: 0,
        };
        // All of them, then those under KVM; none was under TCG.
        assert_eq!(values(&at_start(&collected))[..4], [10.0; 4]);
        // 4 of the 39 seconds that were left.
        assert_eq!(values(&at_start(&collected))[4..6], [10.256; 2]);
        assert_eq!(values(&at_half(&collected)), [5.0; 4]);
        assert_eq!(values(&at_three_quarters(&collected)), [2.5; 4]);
        let parts = at_start(&collected);
        assert!(parts[0].limit.is_some() && parts[2].limit.is_none());
    }

    #[test]
    fn guests_that_change_are_not_among_them() {
        let mut journey = arrived(&[(1.0, 80.0)]);
        journey.changes = true;
        let collected = Collected {
            journeys: vec![journey, arrived(&[(1.0, 40.0)])],
            failed: 1,
        };
        assert_eq!(values(&at_start(&collected))[..4], [0.0; 4]);
        let bad = bad_share(&collected);
        assert_eq!((bad[0].value, bad[0].n), (Some(0.0), 1));
        assert_eq!(values(&bad[bad.len() - 1..]), [0.333]);
    }
}
