//! How long the guest stands: against the limit it was given, and against the same
//! migration by QEMU alone.

use super::voyage::Paired;
use super::{Collected, NONE_YET};
use crate::bench::target::{Limit, Part};

const MORE_MS: f64 = 10.0;
const MORE_ROUND_TRIPS: f64 = 1.5;
const OVER_LIMIT_SECONDS: f64 = 0.05;
const SHARE: f64 = 0.95;

pub(super) fn against_plain(collected: &Collected) -> Vec<Part> {
    let pairs = &collected.pairs;
    let ms = |seconds: f64| seconds * 1000.0;
    let more = |pair: &Paired| Some(pair.relay? - pair.plain?);
    let near = pairs.iter().filter(|pair| pair.round_trip.is_none());
    let near: Vec<f64> = near.filter_map(more).map(ms).collect();
    let in_round_trips = |pair: &Paired| Some(more(pair)? / pair.round_trip?);
    let far: Vec<f64> = pairs.iter().filter_map(in_round_trips).collect();
    let judged = |what: &str, values: &[f64], unit, most| match values {
        [] => Part::missing(what, NONE_YET),
        _ => Part::median(what, values, unit).limit(Limit::AtMost(most)),
    };
    let relay: Vec<f64> = pairs.iter().filter_map(|pair| pair.relay.map(ms)).collect();
    let plain: Vec<f64> = pairs.iter().filter_map(|pair| pair.plain.map(ms)).collect();
    vec![
        judged(
            "loopback, longer through the relay, median of the pairs",
            &near,
            "ms",
            MORE_MS,
        ),
        judged(
            "a path with a round trip, longer through the relay, median of the pairs",
            &far,
            "round trips",
            MORE_ROUND_TRIPS,
        ),
        Part::median("through the relay, median", &relay, "ms"),
        Part::median("by QEMU alone, median", &plain, "ms"),
        Part::share(
            "pairs without both",
            pairs.len() - near.len() - far.len(),
            pairs.len(),
            "of the pairs",
        ),
    ]
}

pub(super) fn within_limit(collected: &Collected) -> Vec<Part> {
    let voyages = collected.voyages.iter();
    let of_voyages = voyages.filter_map(|voyage| {
        voyage.total?;
        Some((voyage.downtime?, voyage.downtime_limit?))
    });
    let pairs = collected.pairs.iter();
    let of_pairs = pairs.filter_map(|pair| Some((pair.relay?, pair.downtime_limit?)));
    let over: Vec<f64> = of_voyages
        .chain(of_pairs)
        .map(|(downtime, limit)| (downtime - limit) * 1000.0)
        .collect();
    let hits = over
        .iter()
        .filter(|&&over| over <= OVER_LIMIT_SECONDS * 1000.0)
        .count();
    vec![
        Part::share(
            "at most 50 ms over the limit",
            hits,
            over.len(),
            "of the arrivals",
        )
        .limit(Limit::AtLeast(SHARE)),
        Part::largest("over the limit, the most", &over, "ms"),
        Part::median("over the limit, median (negative: below it)", &over, "ms"),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::{arrived, missed};
    use super::*;

    fn pair(plain: f64, relay: f64) -> Paired {
        Paired {
            plain: Some(plain),
            relay: Some(relay),
            downtime_limit: Some(0.3),
            ..Paired::default()
        }
    }

    #[test]
    fn pairs_are_compared_with_themselves() {
        let far = Paired {
            round_trip: Some(0.04),
            ..pair(0.1, 0.2)
        };
        let collected = Collected {
            pairs: vec![
                far,
                pair(0.1, 0.105),
                pair(0.9, 0.908),
                pair(0.2, 0.15),
                Paired::default(),
            ],
            ..Collected::default()
        };
        let parts = against_plain(&collected);
        assert!((parts[0].value.unwrap() - 5.0).abs() < 1e-6);
        assert_eq!(parts[0].n, 3);
        assert!((parts[1].value.unwrap() - 2.5).abs() < 1e-6, "round trips");
        assert_eq!(parts.last().unwrap().value, Some(0.2));
        assert_eq!(against_plain(&Collected::default())[0].value, None);
    }

    #[test]
    fn a_limit_is_that_of_the_run() {
        let mut long = arrived(0.0);
        long.downtime = Some(0.36);
        let collected = Collected {
            voyages: vec![long, arrived(0.0), missed()],
            pairs: vec![pair(0.1, 0.34), pair(0.1, 0.4)],
        };
        let parts = within_limit(&collected);
        assert_eq!((parts[0].value, parts[0].n), (Some(0.5), 4));
    }
}
