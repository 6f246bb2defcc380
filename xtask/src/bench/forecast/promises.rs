//! What else a forecast promises: its interval, the downtime, progress that
//! only grows, and that a simulation is like reality.

use super::journey::Journey;
use super::{Collected, by_accelerator};
use crate::bench::target::{Limit, Part};

const INSIDE: Limit = Limit::Between(0.85, 0.95);
/// Fewer runs than this prove nothing about an interval.
const ENOUGH: usize = 100;
const DOWNTIME_PERCENT: f64 = 20.0;
const DOWNTIME_SECONDS: f64 = 0.020;
const SIMULATED_PERCENT: f64 = 3.0;

pub(super) fn inside(collected: &Collected) -> Vec<Part> {
    let arrived = collected.arrived();
    let mut parts = by_accelerator(&arrived, |name, journeys| {
        let hits = journeys.iter().filter(|journey| is_inside(journey)).count();
        vec![
            Part::share(format!("inside{name}"), hits, journeys.len(), "of the runs").limit(INSIDE),
        ]
    });
    let width = |journey: &&Journey| {
        let first = journey.first()?;
        Some((first.p95? - first.p05?) / journey.total? * 100.0)
    };
    let widths: Vec<f64> = arrived.iter().filter_map(width).collect();
    parts.push(Part::median("width, of the whole, median", &widths, "%"));
    let open = arrived.len() - widths.len();
    parts.push(Part::share(
        "without an end",
        open,
        arrived.len(),
        "of the runs",
    ));
    if arrived.len() < ENOUGH {
        let why = format!("{} of {ENOUGH} runs so far", arrived.len());
        parts = parts.into_iter().map(Part::stated).collect();
        parts.push(Part::missing("the share inside", &why));
    }
    parts
}

/// An interval without an upper end has everything above its lower one, but one whose
/// middle is "never" does not hold a run that arrived.
fn is_inside(journey: &Journey) -> bool {
    let (Some(total), Some(first)) = (journey.total, journey.first()) else {
        return false;
    };
    let is_told = first.p05.is_some_and(|p05| p05 <= total) && first.p50.is_some();
    is_told && first.p95.is_none_or(|p95| total <= p95)
}

pub(super) fn downtime(collected: &Collected) -> Vec<Part> {
    by_accelerator(&collected.arrived(), |name, journeys| {
        let errors = journeys
            .iter()
            .filter_map(|journey| downtime_error(journey))
            .collect::<Vec<_>>();
        let is_close = |&&(seconds, percent): &&(f64, f64)| {
            seconds <= DOWNTIME_SECONDS || percent <= DOWNTIME_PERCENT
        };
        let hits = errors.iter().filter(is_close).count();
        let (seconds, percent): (Vec<f64>, Vec<f64>) = errors.into_iter().unzip();
        let milliseconds: Vec<f64> = seconds.iter().map(|seconds| seconds * 1000.0).collect();
        vec![
            Part::all(
                format!("error ≤ {DOWNTIME_PERCENT} % or 20 ms{name}"),
                hits,
                percent.len(),
                "of the runs",
            ),
            Part::median(format!("median error{name}"), &percent, "%"),
            Part::median(format!("median error{name}"), &milliseconds, "ms"),
        ]
    })
}

/// In seconds and in percent of the real one; off by all of it where nothing
/// was forecast.
fn downtime_error(journey: &Journey) -> Option<(f64, f64)> {
    let real = journey.downtime?;
    let forecast = journey.before(journey.stopped_at()?);
    let forecast = forecast.and_then(|forecast| forecast.downtime);
    let error = forecast.map_or(real, |forecast| (forecast - real).abs());
    Some((error, error / real.max(f64::MIN_POSITIVE) * 100.0))
}

pub(super) fn progress(collected: &Collected) -> Vec<Part> {
    let shown: Vec<Vec<f64>> = collected
        .journeys
        .iter()
        .map(|journey| {
            let percents = journey.forecasts.iter();
            percents.filter_map(|forecast| forecast.percent).collect()
        })
        .filter(|percents: &Vec<f64>| !percents.is_empty())
        .collect();
    if shown.is_empty() {
        let why = "no forecast in a report has `percent`";
        return vec![Part::missing("progress", why)];
    }
    let backwards = shown
        .iter()
        .filter(|percents| percents.windows(2).any(|pair| pair[1] < pair[0]))
        .count();
    vec![Part::share("backwards", backwards, shown.len(), "of the runs").limit(Limit::Exactly(0.0))]
}

pub(super) fn simulated(collected: &Collected) -> Vec<Part> {
    let arrived = collected.arrived();
    let has = |journey: &&Journey| journey.simulated.is_some();
    if !arrived.iter().any(has) {
        let mut reasons = arrived.iter();
        let why = reasons.find_map(|journey| journey.simulation_missing.as_deref());
        let why = why.unwrap_or("no run was simulated to its end");
        return vec![Part::missing("simulated finish", why)];
    }
    let mut parts = by_accelerator(&arrived, |name, journeys| {
        // One that never ends, or fails, is off by 100 %.
        let errors: Vec<f64> = journeys
            .iter()
            .filter_map(|journey| {
                let total = journey.total?;
                let lead = journey
                    .first()
                    .map_or(0.0, |first| first.at)
                    .min(total * 0.99);
                Some(journey.error_of(journey.simulated)? * total / (total - lead))
            })
            .collect();
        vec![
            Part::median(format!("median error{name}"), &errors, "%")
                .limit(Limit::AtMost(SIMULATED_PERCENT)),
            Part::quantile(format!("90th percentile{name}"), &errors, 0.9, "%"),
        ]
    });
    let hits = arrived.iter().filter(|journey| has(journey)).count();
    let what = "runs whose simulation arrives";
    parts.push(Part::share(what, hits, arrived.len(), "of the runs"));
    parts
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::arrived;
    use super::*;

    fn collected(journeys: Vec<Journey>) -> Collected {
        Collected {
            journeys,
            failed: 0,
        }
    }

    #[test]
    fn a_share_needs_enough_runs() {
        let runs = |n: usize, p50: f64| vec![arrived(&[(1.0, p50)]); n];
        let few = inside(&collected(runs(99, 41.0)));
        assert_eq!(few[0].value, Some(1.0));
        assert!(few.last().unwrap().what.contains("99 of 100"));
        let mut enough = runs(90, 41.0);
        enough.extend(runs(10, 60.0));
        let enough = inside(&collected(enough));
        assert_eq!(
            (enough[0].value, enough[0].limit),
            (Some(0.9), Some(INSIDE))
        );
    }

    #[test]
    fn an_interval_may_be_open_above() {
        let mut journey = arrived(&[(1.0, 44.0)]);
        assert!(is_inside(&journey));
        journey.forecasts[0].p95 = Some(39.0);
        assert!(!is_inside(&journey));
        journey.forecasts[0].p95 = None;
        assert!(is_inside(&journey));
        journey.forecasts[0].p05 = None;
        assert!(!is_inside(&journey), "says nothing");
        journey.forecasts[0].p05 = Some(39.0);
        journey.forecasts[0].p50 = None;
        assert!(!is_inside(&journey), "never, it said, and it arrived");
    }

    #[test]
    fn a_downtime_is_judged_by_the_last_forecast_before_it() {
        let mut journey = arrived(&[(1.0, 40.0), (39.0, 40.0), (39.9, 40.0)]);
        journey.forecasts[0].downtime = Some(9.0);
        journey.forecasts[2].downtime = Some(9.0);
        let (seconds, percent) = downtime_error(&journey).unwrap();
        assert!((seconds - 0.05).abs() < 1e-9 && (percent - 20.0).abs() < 1e-6);
        let parts = downtime(&collected(vec![journey]));
        assert_eq!(parts.len(), 6, "all and KVM");
    }

    #[test]
    fn progress_that_falls_is_found() {
        let with = |percents: [f64; 3]| {
            let mut journey = arrived(&[(1.0, 40.0), (2.0, 40.0), (3.0, 40.0)]);
            for (forecast, percent) in journey.forecasts.iter_mut().zip(percents) {
                forecast.percent = Some(percent);
            }
            journey
        };
        let share = |journeys| progress(&collected(journeys))[0].value;
        assert_eq!(share(vec![with([1.0, 1.0, 5.0])]), Some(0.0));
        let falls = vec![with([1.0, 5.0, 4.0]), with([1.0, 2.0, 3.0])];
        assert_eq!(share(falls), Some(0.5));
        assert_eq!(share(vec![arrived(&[(1.0, 40.0)])]), None);
    }

    #[test]
    fn a_simulation_is_compared_with_reality() {
        let mut journey = arrived(&[(1.0, 40.0)]);
        journey.simulation_missing = Some("no trace".to_owned());
        let missing = simulated(&collected(vec![journey.clone()]));
        assert!(missing[0].what.contains("no trace"));
        journey.simulated = Some(42.0);
        journey.simulation_missing = None;
        let parts = simulated(&collected(vec![journey]));
        // 2 of the 39 seconds that were left when it was made.
        assert!((parts[0].value.unwrap() - 200.0 / 39.0).abs() < 1e-9);
    }
}
