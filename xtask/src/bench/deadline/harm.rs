//! The guest itself: over every run, whatever became of its deadline.

use super::{Collected, NONE_YET};
use crate::bench::statistics::count;
use crate::bench::target::{Limit, Part};

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let of_voyages = collected
        .voyages
        .iter()
        .map(|voyage| (&voyage.harm, &voyage.failed));
    let of_pairs = collected
        .pairs
        .iter()
        .map(|pair| (&pair.harm, &pair.failed));
    let runs: Vec<_> = of_voyages.chain(of_pairs).collect();
    if runs.is_empty() {
        return vec![Part::missing("harmed", NONE_YET)];
    }
    let harms: Vec<&String> = runs.iter().filter_map(|(harm, _)| harm.as_ref()).collect();
    let mut parts = vec![
        Part::figure("harmed", Some(count(harms.len())), runs.len(), "guests")
            .limit(Limit::Exactly(0.0)),
    ];
    for harm in harms {
        let first = harm.lines().next().unwrap_or_default();
        parts.push(Part::figure(
            format!("harmed: {first}"),
            Some(1.0),
            1,
            "guest",
        ));
    }
    let failed = runs.iter().filter(|(_, failed)| failed.is_some()).count();
    parts.push(Part::share(
        "runs that did not arrive, a miss in their rows",
        failed,
        runs.len(),
        "of the runs",
    ));
    parts
}

#[cfg(test)]
mod tests {
    use super::super::voyage::Paired;
    use super::super::voyage::tests::{arrived, missed};
    use super::*;

    #[test]
    fn one_guest_is_one_too_many() {
        let mut collected = Collected {
            voyages: vec![arrived(0.0), missed()],
            pairs: vec![Paired::default()],
        };
        let value = |collected: &Collected| (judge(collected)[0].value, judge(collected)[0].n);
        assert_eq!(value(&collected), (Some(0.0), 3));
        collected.pairs[0].harm = Some("doubled: it runs on both sides".to_owned());
        assert_eq!(value(&collected), (Some(1.0), 3));
        assert!(judge(&collected)[1].what.contains("doubled"));
        assert_eq!(value(&Collected::default()), (None, 0));
    }
}
