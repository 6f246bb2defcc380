//! One run, as its report and what was seen from outside have it. Pure. Seconds are
//! from t0.

use serde_json::Value;

use super::draw::Class;

/// A migration to a deadline, and what came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Voyage {
    pub(super) class: Class,
    /// What was moved.
    pub(super) kind: String,
    /// `--deadline` or `--finish-at`.
    pub(super) aim: String,
    /// `--max-rate`, `link`, or `open`.
    pub(super) limit: &'static str,
    /// When it was to arrive.
    pub(super) asked: f64,
    /// When it was seen to run at the destination; `None` of one that did not arrive.
    pub(super) total: Option<f64>,
    /// The same as the report has it.
    pub(super) reported_total: Option<f64>,
    pub(super) reported_error: Option<f64>,
    /// What Pacer itself says of the deadline.
    pub(super) deadline_met: Option<bool>,
    pub(super) exit_code: Option<i64>,
    /// Why it did not arrive, or was not even begun.
    pub(super) failed: Option<String>,
    pub(super) harm: Option<String>,
    /// From STOP to running at the destination, the longer of what was seen and
    /// what the report has.
    pub(super) downtime: Option<f64>,
    pub(super) downtime_limit: Option<f64>,
    pub(super) bytes_on_wire: Option<f64>,
    /// When sending began.
    pub(super) sending_since: f64,
    /// The earliest finish at the highest rate: of the simulation of its trace, else
    /// by the model it was drawn with.
    pub(super) earliest: Option<f64>,
    /// The lowest constant rate that would have met the deadline.
    pub(super) lowest_rate: Option<f64>,
    /// When guest or link changed.
    pub(super) disturbed_at: Option<f64>,
    pub(super) forecasts: Vec<Forecast>,
    pub(super) rates: Vec<Rate>,
    /// Ends of passes, each with the pages found dirty.
    pub(super) passes: Vec<(f64, f64)>,
}

/// One forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Forecast {
    pub(super) at: f64,
    pub(super) is_infeasible: bool,
    pub(super) earliest: Option<f64>,
    /// p05, p50, p95 of the finish.
    pub(super) finish: [Option<f64>; 3],
}

/// A change of the rate, in bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) at: f64,
    /// `None` is no limit.
    pub(super) commanded: Option<f64>,
    /// Up to then.
    pub(super) achieved: Option<f64>,
}

/// The same migration by QEMU alone and through the relay.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Paired {
    pub(super) kind: String,
    /// Downtimes, in seconds.
    pub(super) plain: Option<f64>,
    pub(super) relay: Option<f64>,
    pub(super) downtime_limit: Option<f64>,
    /// Of the path between them; `None` is the loopback.
    pub(super) round_trip: Option<f64>,
    pub(super) failed: Option<String>,
    pub(super) harm: Option<String>,
}

/// A deadline so far from the earliest finish that one verdict alone is right.
const FEASIBLE: f64 = 1.2;
const INFEASIBLE: f64 = 0.8;

impl Voyage {
    /// Reads a run of the file; `None` of one that is no voyage.
    pub(super) fn read(run: &Value) -> Option<Self> {
        let (parameters, figures) = (&run["parameters"], &run["figures"]);
        let report = &figures["report"];
        let has = |name: &str| parameters[name].is_number();
        let arrived = report["outcome"] == "completed";
        let mut failed = figures["failed"].as_str().map(str::to_owned);
        if !arrived && failed.is_none() {
            failed = Some(format!("{}: {}", report["outcome"], report["reason"]));
        }
        let steps = list(&report["handover"]);
        let mut begun = steps.filter(|step| step["step"] == "P1 START");
        let seen = figures["seen_downtime_seconds"].as_f64();
        let reported = report["downtime_seconds"].as_f64();
        Some(Self {
            class: Class::from_word(parameters["class"].as_str()?)?,
            kind: parameters["scenario"]["kind"].as_str()?.to_owned(),
            aim: parameters["aim"].as_str()?.to_owned(),
            limit: match (
                has("max_rate_bytes_per_second"),
                has("link_bytes_per_second"),
            ) {
                (true, _) => "--max-rate",
                (false, true) => "link",
                (false, false) => "open",
            },
            asked: figures["asked_seconds"]
                .as_f64()
                .or_else(|| parameters["deadline_seconds"].as_f64())?,
            total: figures["seen_total_seconds"]
                .as_f64()
                .or_else(|| report["total_seconds"].as_f64())
                .filter(|_| arrived),
            reported_total: report["total_seconds"].as_f64(),
            reported_error: report["deadline_error_seconds"].as_f64(),
            deadline_met: report["deadline_met"].as_bool(),
            exit_code: figures["exit_code"].as_i64(),
            failed,
            harm: figures["harm"].as_str().map(str::to_owned),
            downtime: seen.into_iter().chain(reported).max_by(f64::total_cmp),
            downtime_limit: report["downtime_limit_seconds"].as_f64(),
            bytes_on_wire: report["bytes_on_wire"].as_f64(),
            sending_since: begun
                .next()
                .and_then(|step| step["at_seconds"].as_f64())
                .unwrap_or(0.0),
            earliest: figures["earliest_seconds"]
                .as_f64()
                .or_else(|| parameters["model_earliest_seconds"].as_f64()),
            lowest_rate: figures["lowest_rate_bytes_per_second"].as_f64(),
            disturbed_at: figures["disturbed_at_seconds"].as_f64(),
            forecasts: list(&report["forecasts"]).map(Forecast::read).collect(),
            rates: list(&report["rates"]).map(Rate::read).collect(),
            passes: list(&report["passes"])
                .filter_map(|pass| {
                    Some((pass["at_seconds"].as_f64()?, pass["dirty_pages"].as_f64()?))
                })
                .collect(),
        })
    }

    /// Seconds after the deadline; negative before it. `None` of one that did not
    /// arrive.
    pub(super) fn error(&self) -> Option<f64> {
        Some(self.total? - self.asked)
    }

    /// Whether it arrived no more than so many seconds, or such a share of the
    /// deadline, away from it: early is as wrong as late.
    pub(super) fn is_within(&self, seconds: f64, share: f64) -> bool {
        let tolerance = (self.asked * share).max(seconds);
        self.error().is_some_and(|error| error.abs() <= tolerance)
    }

    /// The deadline over the earliest finish.
    pub(super) fn ratio(&self) -> Option<f64> {
        Some(self.asked / self.earliest?)
    }

    /// Undisturbed, and the deadline can be met without doubt.
    pub(super) fn is_feasible(&self) -> bool {
        self.class == Class::Undisturbed && self.ratio().is_none_or(|ratio| ratio >= FEASIBLE)
    }

    /// The deadline cannot be met without doubt. Where it is the link that falls on the
    /// way, no simulation knows that, and the real arrival tells.
    pub(super) fn is_infeasible(&self) -> bool {
        let ratio = match self.class {
            Class::LinkFalls => self.total.map(|total| self.asked / total),
            Class::Infeasible => self.ratio(),
            _ => return false,
        };
        ratio.is_none_or(|ratio| ratio <= INFEASIBLE)
    }

    /// The last forecast made by then, and not before `from`.
    pub(super) fn last_between(&self, from: f64, to: f64) -> Option<&Forecast> {
        let mut forecasts = self.forecasts.iter().rev();
        forecasts.find(|forecast| (from..=to).contains(&forecast.at))
    }
}

impl Forecast {
    fn read(forecast: &Value) -> Self {
        let finish = |name: &str| forecast["finish_seconds"][name].as_f64();
        Self {
            at: forecast["at_seconds"].as_f64().unwrap_or_default(),
            is_infeasible: forecast["verdict"] == "infeasible",
            earliest: forecast["earliest_feasible_seconds"].as_f64(),
            finish: ["p05", "p50", "p95"].map(finish),
        }
    }
}

impl Rate {
    fn read(rate: &Value) -> Self {
        Self {
            at: rate["at_seconds"].as_f64().unwrap_or_default(),
            commanded: rate["commanded_bytes_per_second"].as_f64(),
            achieved: rate["achieved_bytes_per_second"].as_f64(),
        }
    }
}

impl Paired {
    /// Reads a run of the file; `None` of one that is no pair.
    pub(super) fn read(run: &Value) -> Option<Self> {
        let (parameters, figures) = (&run["parameters"], &run["figures"]);
        (parameters["class"] == Class::Downtime.word()).then(|| Self {
            kind: parameters["scenario"]["kind"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            plain: figures["plain"]["downtime_seconds"].as_f64(),
            relay: figures["relay"]["seen_downtime_seconds"].as_f64(),
            downtime_limit: parameters["scenario"]["downtime_limit_seconds"].as_f64(),
            round_trip: parameters["round_trip_seconds"].as_f64(),
            failed: figures["failed"].as_str().map(str::to_owned),
            harm: figures["relay"]["harm"].as_str().map(str::to_owned),
        })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// Undisturbed, of 100 s, off by so much.
    pub(in super::super) fn arrived(error: f64) -> Voyage {
        Voyage {
            kind: "sweep".to_owned(),
            aim: "--deadline".to_owned(),
            limit: "link",
            asked: 100.0,
            total: Some(100.0 + error),
            reported_total: Some(100.0 + error),
            reported_error: Some(error),
            deadline_met: Some(error.abs() <= 0.5),
            exit_code: Some(if error.abs() <= 0.5 { 0 } else { 3 }),
            downtime: Some(0.2),
            downtime_limit: Some(0.3),
            bytes_on_wire: Some(1e9),
            sending_since: 0.0,
            earliest: Some(50.0),
            lowest_rate: Some(1e7),
            ..Voyage::default()
        }
    }

    /// Undisturbed, and it never arrived.
    pub(in super::super) fn missed() -> Voyage {
        Voyage {
            total: None,
            failed: Some("returned".to_owned()),
            ..arrived(0.0)
        }
    }

    #[test]
    fn a_run_is_read() {
        let run = json!({
            "parameters": {
                "class": "link-down",
                "scenario": {"kind": "sweep"},
                "aim": "--finish-at",
                "deadline_seconds": 40.0,
                "link_bytes_per_second": 5_000_000,
                "model_earliest_seconds": 20.0,
            },
            "figures": {
                "exit_code": 3,
                "asked_seconds": 41.0,
                "seen_total_seconds": 42.0,
                "seen_downtime_seconds": 0.4,
                "disturbed_at_seconds": 20.0,
                "report": {
                    "outcome": "completed",
                    "total_seconds": 42.01,
                    "deadline_error_seconds": 1.01,
                    "deadline_met": false,
                    "downtime_seconds": 0.38,
                    "downtime_limit_seconds": 0.3,
                    "bytes_on_wire": 1000,
                    "handover": [{"at_seconds": 2.5, "step": "P1 START"}],
                    "rates": [{"at_seconds": 2.6, "commanded_bytes_per_second": null}],
                    "passes": [{"at_seconds": 30.0, "dirty_pages": 70}],
                    "forecasts": [{"at_seconds": 1.0, "verdict": "infeasible",
                        "earliest_feasible_seconds": 50.0,
                        "finish_seconds": {"p05": 49.0, "p50": 50.0, "p95": null}}],
                },
            },
        });
        let voyage = Voyage::read(&run).unwrap();
        assert_eq!((voyage.class, voyage.limit), (Class::LinkDown, "link"));
        assert_eq!((voyage.error(), voyage.downtime), (Some(1.0), Some(0.4)));
        assert_eq!(voyage.ratio(), Some(41.0 / 20.0));
        assert_eq!((voyage.sending_since, voyage.passes[0].1), (2.5, 70.0));
        let forecast = voyage.last_between(0.0, 5.0).unwrap();
        assert!(forecast.is_infeasible && forecast.finish[2].is_none());
        assert_eq!(
            Voyage::read(&json!({"parameters": {"class": "downtime"}})),
            None
        );
    }

    #[test]
    fn what_did_not_arrive_says_why() {
        let mut run = json!({
            "parameters": {"class": "undisturbed", "scenario": {"kind": "sweep"},
                "aim": "--deadline", "deadline_seconds": 40.0},
            "figures": {"report": {"outcome": "returned", "reason": "the link is gone",
                "total_seconds": null}},
        });
        let voyage = Voyage::read(&run).unwrap();
        assert_eq!(voyage.error(), None);
        assert!(voyage.failed.unwrap().contains("the link is gone"));
        assert!(!Voyage::read(&run).unwrap().is_within(1e9, 1.0));
        run["figures"] = json!({"failed": "QEMU did not start"});
        let voyage = Voyage::read(&run).unwrap();
        assert_eq!(voyage.failed.as_deref(), Some("QEMU did not start"));
    }

    #[test]
    fn in_between_either_verdict_counts() {
        let with = |class, earliest| Voyage {
            class,
            earliest: Some(earliest),
            ..arrived(30.0)
        };
        assert!(with(Class::Undisturbed, 80.0).is_feasible());
        assert!(!with(Class::Undisturbed, 90.0).is_feasible());
        assert!(with(Class::Infeasible, 126.0).is_infeasible());
        assert!(!with(Class::Infeasible, 110.0).is_infeasible());
        assert!(
            with(Class::LinkFalls, 10.0).is_infeasible(),
            "it arrived at 130 s"
        );
        assert!(!with(Class::LinkDown, 10.0).is_feasible());
    }

    #[test]
    fn a_pair_is_read() {
        let run = json!({
            "parameters": {"class": "downtime", "scenario": {"kind": "sweep"}},
            "figures": {"plain": {"downtime_seconds": 0.1},
                "relay": {"seen_downtime_seconds": 0.15, "harm": "lost"}},
        });
        let pair = Paired::read(&run).unwrap();
        assert_eq!((pair.plain, pair.relay), (Some(0.1), Some(0.15)));
        assert!(pair.harm.is_some());
        assert_eq!(
            Paired::read(&json!({"parameters": {"class": "infeasible"}})),
            None
        );
    }
}
