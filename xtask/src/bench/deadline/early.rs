//! Early is as wrong as late: here, and in what Pacer says of itself.

use super::voyage::Voyage;
use super::{Collected, NONE_YET};
use crate::bench::target::Part;

const TOLERANCE: (f64, f64) = (0.5, 0.005);
const MET: i64 = 0;
const MISSED: i64 = 3;

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let arrived: Vec<&Voyage> = collected
        .voyages
        .iter()
        .filter(|voyage| voyage.reported_error.is_some())
        .collect();
    if arrived.is_empty() {
        return vec![Part::missing("judged the same", NONE_YET)];
    }
    let told = arrived
        .iter()
        .filter(|voyage| tells_the_truth(voyage))
        .count();
    let mut parts = vec![Part::all(
        "deadline_met and exit code say the same of as much too early as of too late",
        told,
        arrived.len(),
        "of the arrivals",
    )];
    let feasible = collected.feasible();
    let beyond = |sign: f64| {
        let misses = feasible.iter().filter(|voyage| {
            let is_missed = !voyage.is_within(TOLERANCE.0, TOLERANCE.1);
            is_missed && voyage.error().is_some_and(|error| error * sign > 0.0)
        });
        misses.count()
    };
    let n = feasible.len();
    parts.push(Part::share(
        "too early, a miss",
        beyond(-1.0),
        n,
        "of the feasible runs",
    ));
    parts.push(Part::share(
        "too late, a miss",
        beyond(1.0),
        n,
        "of the feasible runs",
    ));
    for aim in ["--deadline", "--finish-at"] {
        let those = || feasible.iter().filter(|voyage| voyage.aim == aim);
        let hits = those().filter(|voyage| voyage.is_within(TOLERANCE.0, TOLERANCE.1));
        let what = format!("on time with {aim}");
        parts.push(Part::share(
            what,
            hits.count(),
            those().count(),
            "of the runs",
        ));
    }
    parts
}

fn tells_the_truth(voyage: &Voyage) -> bool {
    let tolerance = (voyage.asked * TOLERANCE.1).max(TOLERANCE.0);
    let error = voyage.reported_error.map(f64::abs);
    // To the millisecond: the deadline's own rounding is not what is looked for.
    let is_close = error.is_some_and(|error| (error - tolerance).abs() < 1e-3);
    let is_met = error.is_some_and(|error| error <= tolerance);
    let code = if voyage.deadline_met == Some(true) {
        MET
    } else {
        MISSED
    };
    voyage.exit_code == Some(code) && (is_close || voyage.deadline_met == Some(is_met))
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::arrived;
    use super::*;

    #[test]
    fn early_is_judged_as_late_is() {
        for error in [-0.4, 0.4, -0.6, 0.6] {
            assert!(tells_the_truth(&arrived(error)), "{error}");
        }
        let mut lenient = arrived(-5.0);
        lenient.deadline_met = Some(true);
        lenient.exit_code = Some(0);
        assert!(!tells_the_truth(&lenient));
        let mut wrong_code = arrived(-5.0);
        wrong_code.exit_code = Some(0);
        assert!(!tells_the_truth(&wrong_code));
        let collected = Collected {
            voyages: vec![lenient, arrived(0.0), arrived(1.0)],
            ..Collected::default()
        };
        let parts = judge(&collected);
        let third = |value: Option<f64>| (value.unwrap() * 3.0).round();
        assert_eq!(third(parts[0].value), 2.0);
        assert_eq!((third(parts[1].value), third(parts[2].value)), (1.0, 1.0));
        assert_eq!(judge(&Collected::default())[0].value, None);
    }
}
