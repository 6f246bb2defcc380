//! What others would have said, on the same runs.

use std::collections::BTreeSet;

use super::journey::{Baseline, Journey};
use super::{Collected, by_accelerator};
use crate::bench::statistics::median;
use crate::bench::target::{Limit, Part};

/// How many times ours their median error is to be.
const AT_LEAST: f64 = 2.0;

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let arrived = collected.arrived();
    let baselines = arrived.iter().flat_map(|journey| baselines_of(journey));
    let names: BTreeSet<&str> = baselines.map(|baseline| baseline.name.as_str()).collect();
    if names.is_empty() {
        return vec![Part::missing("baselines", "no report has `baselines`")];
    }
    by_accelerator(&arrived, |accelerator, journeys| {
        let names = names.iter();
        names
            .flat_map(|name| compare(name, accelerator, journeys))
            .collect()
    })
}

/// How many times worse one of them was, and its error.
fn compare(name: &str, accelerator: &str, journeys: &[&Journey]) -> Vec<Part> {
    let both = journeys.iter().filter_map(|journey| {
        let mut baselines = baselines_of(journey).iter();
        let baseline = baselines.find(|baseline| baseline.name == name)?;
        Some((
            journey.error(journey.first())?,
            journey.error_of(baseline.finish)?,
        ))
    });
    let (ours, theirs): (Vec<f64>, Vec<f64>) = both.unzip();
    let times = median(&theirs)
        .zip(median(&ours))
        .map(|(theirs, ours)| theirs / ours.max(f64::MIN_POSITIVE));
    let never = theirs.iter().filter(|&&error| error >= 100.0).count();
    vec![
        Part::figure(
            format!("{name}{accelerator}"),
            times,
            ours.len(),
            "times our median error",
        )
        .limit(Limit::AtLeast(AT_LEAST)),
        Part::median(format!("{name}{accelerator}, median error"), &theirs, "%"),
        Part::share(
            format!("{name}{accelerator}, off by 100 % or says never"),
            never,
            theirs.len(),
            "of the runs",
        ),
    ]
}

fn baselines_of(journey: &Journey) -> &[Baseline] {
    journey.baselines.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::arrived;
    use super::*;

    #[test]
    fn a_baseline_is_compared_on_its_own_runs() {
        let with = |finish| {
            let mut journey = arrived(&[(1.0, 41.0)]);
            journey.baselines = Some(vec![Baseline {
                name: "geometric".to_owned(),
                finish,
            }]);
            journey
        };
        let collected = Collected {
            journeys: vec![
                with(Some(44.0)),
                with(Some(44.0)),
                with(None),
                arrived(&[(1.0, 80.0)]),
            ],
            failed: 0,
        };
        let parts = judge(&collected);
        let times = parts[0].value.unwrap();
        assert!((times - 4.0).abs() < 1e-9, "10 % to 2.5 %: {times}");
        assert_eq!(parts[0].n, 3);
        assert!((parts[2].value.unwrap() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn without_baselines_the_row_does_not_hold() {
        let collected = Collected {
            journeys: vec![arrived(&[(1.0, 41.0)])],
            failed: 0,
        };
        assert_eq!(judge(&collected)[0].value, None);
    }
}
