//! Runs in which guest or link become others half-way.

use super::draw::Class;
use super::voyage::Voyage;
use super::{Collected, NONE_YET};
use crate::bench::target::{Limit, Part};

const TOLERANCE: (f64, f64) = (1.0, 0.01);
const SHARE: f64 = 0.9;
pub(super) const DISTURBANCES: [Class; 4] = [
    Class::DirtyRate,
    Class::SetMoves,
    Class::LinkHalved,
    Class::LinkDown,
];

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let of = |classes: &[Class]| -> Vec<&Voyage> {
        let voyages = collected.voyages.iter();
        voyages
            .filter(|voyage| classes.contains(&voyage.class))
            .collect()
    };
    let all = of(&DISTURBANCES);
    if all.is_empty() {
        return vec![Part::missing("on time", NONE_YET)];
    }
    let mut parts = vec![share("on time, whatever happened", &all).limit(Limit::AtLeast(SHARE))];
    for class in DISTURBANCES {
        parts.push(share(class.word(), &of(&[class])));
    }
    let sizes: Vec<f64> = all
        .iter()
        .filter_map(|voyage| Some(voyage.error()?.abs()))
        .collect();
    parts.push(Part::median("away from the deadline, median", &sizes, "s"));
    parts.push(Part::largest(
        "away from the deadline, the most",
        &sizes,
        "s",
    ));
    let unseen = all.iter().filter(|voyage| !was_disturbed(voyage)).count();
    parts.push(Part::share(
        "arrived, or failed, before anything happened",
        unseen,
        all.len(),
        "of the runs",
    ));
    parts
}

fn was_disturbed(voyage: &Voyage) -> bool {
    let at = voyage.disturbed_at;
    at.is_some_and(|at| voyage.total.is_none_or(|total| at < total))
}

fn share(what: &str, voyages: &[&Voyage]) -> Part {
    let hits = voyages
        .iter()
        .filter(|voyage| voyage.is_within(TOLERANCE.0, TOLERANCE.1));
    Part::share(what, hits.count(), voyages.len(), "of the runs")
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::{arrived, missed};
    use super::*;

    #[test]
    fn each_disturbance_is_told_and_all_are_judged() {
        let with = |class, voyage: Voyage| Voyage {
            class,
            disturbed_at: Some(50.0),
            ..voyage
        };
        let collected = Collected {
            voyages: vec![
                with(Class::DirtyRate, arrived(0.9)),
                with(Class::DirtyRate, arrived(-1.1)),
                with(Class::LinkDown, missed()),
                with(Class::LinkHalved, arrived(-0.9)),
                arrived(7.0),
            ],
            ..Collected::default()
        };
        let parts = judge(&collected);
        assert_eq!((parts[0].value, parts[0].n), (Some(0.5), 4));
        let of = |class: Class| {
            parts
                .iter()
                .find(|part| part.what == class.word())
                .unwrap()
                .value
        };
        assert_eq!(of(Class::DirtyRate), Some(0.5));
        assert_eq!(of(Class::LinkDown), Some(0.0));
        assert_eq!(of(Class::LinkHalved), Some(1.0));
        assert_eq!(of(Class::SetMoves), None);
    }

    #[test]
    fn what_came_too_early_to_be_disturbed_is_stated() {
        let mut voyage = arrived(-60.0);
        voyage.class = Class::SetMoves;
        voyage.disturbed_at = Some(50.0);
        assert!(!was_disturbed(&voyage));
        voyage.total = Some(100.0);
        assert!(was_disturbed(&voyage));
    }
}
