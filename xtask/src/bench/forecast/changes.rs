//! Guests whose behaviour changes after the start cannot be known before it:
//! they are judged from two syncs after the change.

use super::accuracy::{AT_HALF, AT_START, AT_THREE_QUARTERS, bad_part, error_parts};
use super::journey::Journey;
use super::{Collected, by_accelerator};
use crate::bench::target::{Limit, Part};

/// Syncs within which a change is to be noticed.
const SYNCS: usize = 2;
/// Who always says that a guest has changed notices every change.
const FALSE_ALARMS: f64 = 0.05;

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let changing = collected.journeys.iter().filter(|journey| journey.changes);
    let changing: Vec<&Journey> = changing.collect();
    let judged: Vec<&Journey> = changing
        .iter()
        .copied()
        .filter(|journey| noticed_by(journey).is_some())
        .collect();
    let mut parts = by_accelerator(&judged, |name, journeys| {
        let moments = [
            (0.0, "", AT_START),
            (0.5, ", at half of what is left", AT_HALF),
            (0.75, ", at three quarters of it", AT_THREE_QUARTERS),
        ];
        let mut parts = Vec::new();
        for (share, moment, limits) in moments {
            let errors: Vec<f64> = journeys
                .iter()
                .filter_map(|journey| error_at(journey, share))
                .collect();
            parts.extend(error_parts(&format!("{moment}{name}"), &errors, limits));
        }
        let bad = journeys
            .iter()
            .filter_map(|journey| journey.is_bad(journey.from(noticed_by(journey)?)));
        parts.push(bad_part(name, bad));
        parts
    });
    parts.push(Part::share(
        "runs with two syncs and a forecast after the change, judged here",
        judged.len(),
        changing.len(),
        "of the runs that change",
    ));
    parts.extend(noticed(&judged));
    let unchanging = collected.unchanging();
    let alarmed = unchanging.iter().filter(|journey| {
        let mut forecasts = journey.forecasts.iter();
        forecasts.any(|forecast| forecast.change == Some(true))
    });
    parts.push(
        Part::share(
            "guests that do not change and of which it is said",
            alarmed.count(),
            unchanging.len(),
            "of the runs",
        )
        .limit(Limit::AtMost(FALSE_ALARMS)),
    );
    parts
}

/// The time of the second sync after the change; `None` if there is no forecast
/// after it.
fn noticed_by(journey: &Journey) -> Option<f64> {
    let change_at = journey.change_at?;
    let mut syncs = journey.syncs.iter().filter(|&&at| at > change_at);
    let second = *syncs.nth(SYNCS - 1)?;
    journey.from(second).map(|_| second)
}

/// How far off the forecast was when this share of the time from the second
/// sync on had passed.
fn error_at(journey: &Journey, share: f64) -> Option<f64> {
    let total = journey.total?;
    let from = noticed_by(journey)?;
    let forecast = if share > 0.0 {
        let at = from + (total - from) * share;
        journey
            .before(at)
            .filter(|forecast| forecast.at >= from)
            .or_else(|| journey.from(from))
    } else {
        journey.from(from)
    };
    journey.error(forecast)
}

/// How many of the changes the forecasts mention in time.
fn noticed(judged: &[&Journey]) -> Vec<Part> {
    let mut forecasts = judged.iter().flat_map(|journey| &journey.forecasts);
    if !forecasts.any(|forecast| forecast.change.is_some()) {
        return vec![Part::missing(
            "changes noticed within two syncs",
            "no forecast has `change`",
        )];
    }
    let in_time = judged.iter().filter(|journey| {
        let (Some(change_at), Some(by)) = (journey.change_at, noticed_by(journey)) else {
            return false;
        };
        // The forecast that follows the sync is the one that can say so.
        let last = journey.from(by).map_or(by, |forecast| forecast.at);
        journey.forecasts.iter().any(|forecast| {
            forecast.change == Some(true) && (change_at..=last).contains(&forecast.at)
        })
    });
    vec![Part::all(
        "changes noticed within two syncs",
        in_time.count(),
        judged.len(),
        "of the runs",
    )]
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::arrived;
    use super::*;

    fn changing(syncs: &[f64]) -> Journey {
        Journey {
            changes: true,
            change_at: Some(5.0),
            syncs: syncs.to_vec(),
            ..arrived(&[
                (1.0, 20.0),
                (16.0, 30.0),
                (21.0, 38.0),
                (30.0, 39.0),
                (34.0, 41.0),
            ])
        }
    }

    #[test]
    fn two_syncs_after_the_change_count() {
        let journey = changing(&[4.0, 12.0, 20.0, 30.0]);
        assert_eq!(noticed_by(&journey), Some(20.0));
        assert_eq!(noticed_by(&changing(&[4.0, 12.0])), None);
        assert_eq!(noticed_by(&changing(&[12.0, 35.0])), None, "no forecast");
        let error = |share| (error_at(&journey, share).unwrap() * 10.0).round() / 10.0;
        assert_eq!([error(0.0), error(0.5), error(0.75)], [5.0, 2.5, 2.5]);
    }

    #[test]
    fn what_is_not_judged_is_stated() {
        let collected = Collected {
            journeys: vec![changing(&[12.0, 20.0]), changing(&[12.0])],
            failed: 0,
        };
        let parts = judge(&collected);
        let judged = parts
            .iter()
            .find(|part| part.what.contains("judged here"))
            .unwrap();
        assert_eq!((judged.value, judged.n), (Some(0.5), 2));
        assert!(parts.iter().any(|part| part.what.contains("`change`")));
    }

    #[test]
    fn a_change_is_noticed_in_time_or_not() {
        let with = |at: f64| {
            let mut journey = changing(&[12.0, 20.0]);
            for forecast in &mut journey.forecasts {
                forecast.change = Some((forecast.at - at).abs() < 0.1);
            }
            journey
        };
        let share = |at: f64| noticed(&[&with(at)])[0].value;
        assert_eq!(share(21.0), Some(1.0));
        assert_eq!(share(30.0), Some(0.0), "too late");
        assert_eq!(share(1.0), Some(0.0), "before it");
    }
}
