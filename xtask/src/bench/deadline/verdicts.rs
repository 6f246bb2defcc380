//! What is said of a deadline: that it cannot be met, soon and with what can, and
//! never of one that can.

use super::draw::Class;
use super::voyage::Voyage;
use super::{Collected, NONE_YET};
use crate::bench::target::{Limit, Part};

const SAID_WITHIN_SECONDS: f64 = 5.0;
const RIGHT_WITHIN: f64 = 0.1;
const SAID: f64 = 0.95;
const WRONGLY: f64 = 0.01;

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let infeasible: Vec<&Voyage> = collected
        .voyages
        .iter()
        .filter(|voyage| voyage.is_infeasible())
        .collect();
    let n = infeasible.len();
    let count =
        |holds: fn(&Voyage) -> bool| infeasible.iter().filter(|voyage| holds(voyage)).count();
    let mut parts = vec![if n == 0 {
        Part::missing("infeasible said", NONE_YET)
    } else {
        Part::share(
            "said within 5 s, with an earliest finish right within 10 %",
            count(is_right),
            n,
            "of the runs",
        )
        .limit(Limit::AtLeast(SAID))
    }];
    parts.push(Part::share(
        "said within 5 s",
        count(is_said),
        n,
        "of the runs",
    ));
    let errors: Vec<f64> = infeasible
        .iter()
        .filter_map(|voyage| error(voyage))
        .collect();
    parts.push(Part::median(
        "the earliest finish said then, off by, median",
        &errors,
        "%",
    ));
    let falls: Vec<&&Voyage> = infeasible
        .iter()
        .filter(|voyage| voyage.class == Class::LinkFalls)
        .collect();
    let hits = falls.iter().filter(|voyage| is_right(voyage)).count();
    parts.push(Part::share(
        "where the link falls on the way",
        hits,
        falls.len(),
        "of the runs",
    ));

    let feasible = collected.feasible();
    let wrongly = feasible
        .iter()
        .filter(|voyage| is_called_infeasible(voyage))
        .count();
    parts.push(
        Part::share(
            "feasible, and called infeasible at any time",
            wrongly,
            feasible.len(),
            "of the runs",
        )
        .limit(Limit::AtMost(WRONGLY)),
    );
    let disturbed = || {
        collected
            .voyages
            .iter()
            .filter(|voyage| voyage.class.is_disturbed())
    };
    let called = disturbed()
        .filter(|voyage| is_called_infeasible(voyage))
        .count();
    parts.push(Part::share(
        "disturbed, and called infeasible at any time",
        called,
        disturbed().count(),
        "of the runs",
    ));
    parts
}

/// From when it could be known.
fn since(voyage: &Voyage) -> f64 {
    match voyage.class {
        Class::LinkFalls => voyage.disturbed_at.unwrap_or(0.0),
        _ => 0.0,
    }
}

fn is_said(voyage: &Voyage) -> bool {
    let from = since(voyage);
    let said = voyage.last_between(from, from + SAID_WITHIN_SECONDS);
    said.is_some_and(|forecast| forecast.is_infeasible)
}

/// In percent of the real finish; `None` where none was said or it did not arrive.
fn error(voyage: &Voyage) -> Option<f64> {
    let from = since(voyage);
    let said = voyage.last_between(from, from + SAID_WITHIN_SECONDS)?;
    let total = voyage.total?;
    Some((said.earliest? / total - 1.0).abs() * 100.0)
}

fn is_right(voyage: &Voyage) -> bool {
    is_said(voyage) && error(voyage).is_some_and(|error| error <= RIGHT_WITHIN * 100.0)
}

fn is_called_infeasible(voyage: &Voyage) -> bool {
    voyage
        .forecasts
        .iter()
        .any(|forecast| forecast.is_infeasible)
}

#[cfg(test)]
mod tests {
    use super::super::voyage::Forecast;
    use super::super::voyage::tests::arrived;
    use super::*;

    /// Infeasible, 100 s asked for and 150 s taken, with forecasts `(at, infeasible,
    /// earliest)`.
    fn infeasible(class: Class, forecasts: &[(f64, bool, f64)]) -> Voyage {
        let forecast = |&(at, is_infeasible, earliest): &(f64, bool, f64)| Forecast {
            at,
            is_infeasible,
            earliest: Some(earliest),
            ..Forecast::default()
        };
        Voyage {
            class,
            earliest: Some(150.0),
            forecasts: forecasts.iter().map(forecast).collect(),
            ..arrived(50.0)
        }
    }

    #[test]
    fn it_is_said_soon_and_rightly_or_not() {
        let right = infeasible(Class::Infeasible, &[(0.0, false, 90.0), (4.9, true, 140.0)]);
        let late = infeasible(Class::Infeasible, &[(0.0, false, 90.0), (5.1, true, 150.0)]);
        let wrong = infeasible(Class::Infeasible, &[(1.0, true, 150.0), (4.0, true, 130.0)]);
        let taken_back = infeasible(
            Class::Infeasible,
            &[(1.0, true, 150.0), (4.0, false, 150.0)],
        );
        assert!(is_right(&right));
        assert!(!is_said(&late) && !is_right(&late));
        assert!(is_said(&wrong) && !is_right(&wrong));
        assert!(!is_said(&taken_back));
        let collected = Collected {
            voyages: vec![right, late, wrong, taken_back],
            ..Collected::default()
        };
        assert_eq!(
            (judge(&collected)[0].value, judge(&collected)[0].n),
            (Some(0.25), 4)
        );
    }

    #[test]
    fn a_link_that_falls_is_told_from_then_on() {
        let mut voyage = infeasible(Class::LinkFalls, &[(3.0, false, 60.0), (54.0, true, 149.0)]);
        voyage.disturbed_at = Some(50.0);
        assert!(is_right(&voyage));
        voyage.disturbed_at = Some(48.0);
        assert!(!is_right(&voyage));
    }

    #[test]
    fn a_feasible_one_is_never_called_infeasible() {
        let mut voyage = arrived(0.0);
        voyage.forecasts = vec![Forecast::default(); 90];
        let share = |voyage: &Voyage| {
            let collected = Collected {
                voyages: vec![voyage.clone()],
                ..Collected::default()
            };
            let parts = judge(&collected);
            let part = parts
                .iter()
                .find(|part| part.what.starts_with("feasible"))
                .unwrap();
            (part.value, part.limit.is_some())
        };
        assert_eq!(share(&voyage), (Some(0.0), true));
        voyage.forecasts[70].is_infeasible = true;
        assert_eq!(share(&voyage), (Some(1.0), true));
    }
}
