//! Feasible runs: how many arrive at the deadline, and how far off the worst is.

use super::voyage::Voyage;
use super::{Collected, NONE_YET};
use crate::bench::target::{Limit, Part};

const TOLERANCE: (f64, f64) = (0.5, 0.005);
const WORST: (f64, f64) = (2.0, 0.02);
const SHARE: f64 = 0.95;

pub(super) fn share(collected: &Collected) -> Vec<Part> {
    let feasible = collected.feasible();
    let is_on_time = |voyage: &&&Voyage| voyage.is_within(TOLERANCE.0, TOLERANCE.1);
    let share = |what: String, voyages: &[&Voyage]| {
        let hits = voyages.iter().filter(is_on_time).count();
        Part::share(what, hits, voyages.len(), "of the runs")
    };
    if feasible.is_empty() {
        return vec![Part::missing("on time", NONE_YET)];
    }
    let mut parts = vec![
        share(
            "on time, all that did not arrive among the misses".to_owned(),
            &feasible,
        )
        .limit(Limit::AtLeast(SHARE)),
    ];
    for limit in ["--max-rate", "link", "open"] {
        let those: Vec<&Voyage> = feasible
            .iter()
            .copied()
            .filter(|voyage| voyage.limit == limit)
            .collect();
        parts.push(share(format!("limited by: {limit}"), &those));
    }
    let errors: Vec<f64> = feasible
        .iter()
        .filter_map(|voyage| voyage.error())
        .collect();
    let sizes: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    parts.extend([
        Part::median("after the deadline, median", &errors, "s"),
        Part::median("away from it, median", &sizes, "s"),
        Part::quantile("away from it, 90th percentile", &sizes, 0.9, "s"),
        Part::share(
            "did not arrive",
            feasible.len() - errors.len(),
            feasible.len(),
            "of the runs",
        ),
        Part::share(
            "by the simulation of their traces not feasible beyond doubt, in no row",
            in_between(collected),
            feasible.len() + in_between(collected),
            "of the runs",
        ),
        Part::largest(
            "seen arrival against the report's, the most",
            &disagreement(collected),
            "s",
        ),
    ]);
    parts
}

fn in_between(collected: &Collected) -> usize {
    let undisturbed = collected
        .voyages
        .iter()
        .filter(|voyage| voyage.class == super::draw::Class::Undisturbed && !voyage.is_feasible());
    undisturbed.count()
}

fn disagreement(collected: &Collected) -> Vec<f64> {
    let voyages = collected.voyages.iter();
    let off = |voyage: &Voyage| Some((voyage.total? - voyage.reported_total?).abs());
    voyages.filter_map(off).collect()
}

pub(super) fn worst(collected: &Collected) -> Vec<Part> {
    let feasible = collected.feasible();
    let of_allowed = |voyage: &&Voyage| {
        let allowed = (voyage.asked * WORST.1).max(WORST.0);
        Some(voyage.error()?.abs() / allowed)
    };
    let shares: Vec<f64> = feasible.iter().filter_map(of_allowed).collect();
    if feasible.is_empty() {
        return vec![Part::missing("the worst", NONE_YET)];
    }
    let sizes: Vec<f64> = feasible
        .iter()
        .filter_map(|voyage| Some(voyage.error()?.abs()))
        .collect();
    vec![
        Part::largest("the worst", &shares, "of what is allowed").limit(Limit::AtMost(1.0)),
        Part::all(
            "arrived at all",
            shares.len(),
            feasible.len(),
            "of the runs",
        ),
        Part::largest("the worst", &sizes, "s"),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::{arrived, missed};
    use super::*;

    fn collected(voyages: Vec<Voyage>) -> Collected {
        Collected {
            voyages,
            ..Collected::default()
        }
    }

    #[test]
    fn early_and_late_and_lost_are_misses() {
        let mut voyages = vec![arrived(0.4); 19];
        voyages.push(arrived(-0.4));
        let share_of = |voyages: &[Voyage]| {
            let part = share(&collected(voyages.to_vec())).remove(0);
            (part.value.unwrap(), part.n)
        };
        assert_eq!(share_of(&voyages), (1.0, 20));
        voyages[0] = arrived(-0.6);
        voyages[1] = arrived(0.6);
        voyages[2] = missed();
        assert_eq!(share_of(&voyages), (0.85, 20));
        // 0.5 % of 100 s is as much as 0.5 s; of 300 s it is more.
        voyages[1].asked = 300.0;
        voyages[1].total = Some(301.4);
        voyages[1].earliest = Some(100.0);
        assert_eq!(share_of(&voyages), (0.9, 20));
    }

    #[test]
    fn the_worst_counts_and_so_does_one_that_never_came() {
        let row = |voyages| worst(&collected(voyages));
        assert_eq!(row(vec![arrived(-1.0), arrived(0.5)])[0].value, Some(0.5));
        assert_eq!(row(vec![arrived(-3.0), arrived(0.5)])[0].value, Some(1.5));
        let parts = row(vec![arrived(0.0), missed()]);
        assert_eq!((parts[0].value, parts[1].value), (Some(0.0), Some(0.5)));
        assert_eq!(row(Vec::new())[0].value, None);
    }

    #[test]
    fn what_may_not_be_feasible_is_stated() {
        let mut doubtful = arrived(9.0);
        doubtful.earliest = Some(95.0);
        let parts = share(&collected(vec![doubtful, arrived(0.0)]));
        assert_eq!((parts[0].value, parts[0].n), (Some(1.0), 1));
        let stated = parts
            .iter()
            .find(|part| part.what.contains("in no row"))
            .unwrap();
        assert_eq!(stated.value, Some(0.5));
    }
}
