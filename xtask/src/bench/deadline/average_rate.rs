//! What the deadline cost: the average rate while there was something to send, against
//! the lowest constant rate that would have met it, by the simulation of the trace.

use super::voyage::Voyage;
use super::{Collected, NONE_YET};
use crate::bench::target::{Limit, Part};

const TIMES: f64 = 1.1;

pub(super) fn judge(collected: &Collected) -> Vec<Part> {
    let feasible = collected.feasible();
    let ratios: Vec<f64> = feasible.iter().filter_map(|voyage| ratio(voyage)).collect();
    if ratios.is_empty() {
        return vec![Part::missing("average rate", NONE_YET)];
    }
    let whole: Vec<f64> = feasible
        .iter()
        .filter_map(|voyage| ratio_from_t0(voyage))
        .collect();
    let within = ratios.iter().filter(|&&ratio| ratio <= TIMES).count();
    vec![
        Part::median("from the first byte on, median", &ratios, "times")
            .limit(Limit::AtMost(TIMES)),
        Part::quantile(
            "from the first byte on, 90th percentile",
            &ratios,
            0.9,
            "times",
        ),
        Part::share("at most 1.1 times", within, ratios.len(), "of the runs"),
        Part::median("from t0 on, median", &whole, "times"),
    ]
}

fn ratio(voyage: &Voyage) -> Option<f64> {
    of(voyage, voyage.sending_since)
}

fn ratio_from_t0(voyage: &Voyage) -> Option<f64> {
    of(voyage, 0.0)
}

fn of(voyage: &Voyage, since: f64) -> Option<f64> {
    let seconds = voyage.total? - since;
    let average = voyage.bytes_on_wire? / seconds.max(0.1);
    voyage.lowest_rate.map(|lowest| average / lowest)
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::{arrived, missed};
    use super::*;

    #[test]
    fn an_average_is_of_the_time_of_sending() {
        let mut voyage = arrived(0.0);
        assert!((ratio(&voyage).unwrap() - 1.0).abs() < 1e-9);
        voyage.sending_since = 20.0;
        assert!((ratio(&voyage).unwrap() - 1.25).abs() < 1e-9);
        assert!((ratio_from_t0(&voyage).unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(ratio(&missed()), None);
        let mut dear = arrived(0.0);
        dear.bytes_on_wire = Some(1.2e9);
        let collected = Collected {
            voyages: vec![dear],
            ..Collected::default()
        };
        assert!(judge(&collected)[0].value.unwrap() > TIMES);
        assert_eq!(judge(&Collected::default())[0].value, None);
    }
}
