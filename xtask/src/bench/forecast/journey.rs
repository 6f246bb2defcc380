//! One run, as its report has it. Pure. Seconds are from t0.

use serde_json::Value;

/// What was forecast of one migration, and what came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Journey {
    /// What was moved.
    pub(super) kind: String,
    /// Under KVM, else under TCG.
    pub(super) is_kvm: bool,
    /// The guest behaves differently from some time on.
    pub(super) changes: bool,
    /// From this time, if it was seen.
    pub(super) change_at: Option<f64>,
    /// When the guest ran at the destination; `None` of a run given up.
    pub(super) total: Option<f64>,
    /// When a run was given up that did not arrive.
    pub(super) gave_up_after: f64,
    /// From STOP to running at the destination.
    pub(super) downtime: Option<f64>,
    /// In the order they were made.
    pub(super) forecasts: Vec<Forecast>,
    /// What the baselines said at the start; `None` where the report has none.
    pub(super) baselines: Option<Vec<Baseline>>,
    /// Ends of passes.
    pub(super) syncs: Vec<f64>,
    /// What the simulation of the trace says.
    pub(super) simulated: Option<f64>,
    /// Why there is no simulation.
    pub(super) simulation_missing: Option<String>,
}

/// One forecast.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Forecast {
    pub(super) at: f64,
    /// Whether there was enough to see for a verdict.
    pub(super) is_known: bool,
    pub(super) p05: Option<f64>,
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) downtime: Option<f64>,
    /// Percent of the work that was shown as done.
    pub(super) percent: Option<f64>,
    /// Whether a change of the guest was noticed; `None` where nothing is said.
    pub(super) change: Option<bool>,
}

/// What another method said at the start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Baseline {
    pub(super) name: String,
    /// `None`: never.
    pub(super) finish: Option<f64>,
}

impl Journey {
    /// Reads a run of the file; `None` of one that failed.
    pub(super) fn read(run: &Value) -> Option<Self> {
        let figures = run.get("figures")?;
        let report = &figures["report"];
        let baselines = report["baselines"].as_array();
        Some(Self {
            kind: run["parameters"]["kind"].as_str()?.to_owned(),
            is_kvm: report["qemu"]["accelerator"] == "kvm",
            changes: run["parameters"]["changes"] == true,
            change_at: figures["change_at_seconds"].as_f64(),
            total: report["total_seconds"].as_f64(),
            gave_up_after: figures["gave_up_after_seconds"].as_f64()?,
            downtime: report["downtime_seconds"].as_f64(),
            forecasts: list(&report["forecasts"]).map(Forecast::read).collect(),
            baselines: baselines.map(|list| list.iter().filter_map(Baseline::read).collect()),
            syncs: list(&report["passes"])
                .filter_map(|pass| pass["at_seconds"].as_f64())
                .collect(),
            simulated: figures["simulated_finish_seconds"].as_f64(),
            simulation_missing: figures["simulation_missing"].as_str().map(str::to_owned),
        })
    }

    /// The first forecast, whatever it says: it is made before the first byte.
    pub(super) fn first(&self) -> Option<&Forecast> {
        self.forecasts.first()
    }

    /// The last forecast made before `at`.
    pub(super) fn before(&self, at: f64) -> Option<&Forecast> {
        let mut forecasts = self.forecasts.iter().rev();
        forecasts.find(|forecast| forecast.at <= at)
    }

    /// The first forecast made from `at` on.
    pub(super) fn from(&self, at: f64) -> Option<&Forecast> {
        self.forecasts.iter().find(|forecast| forecast.at >= at)
    }

    /// When the guest was stopped for the switchover.
    pub(super) fn stopped_at(&self) -> Option<f64> {
        Some(self.total? - self.downtime?)
    }

    /// How far off a forecast was, in percent of the whole; 100 of one that
    /// says nothing, or never. `None` of a run that did not arrive.
    pub(super) fn error(&self, forecast: Option<&Forecast>) -> Option<f64> {
        self.error_of(forecast.and_then(|forecast| forecast.p50))
    }

    /// The same in percent of what was left when the forecast was made.
    pub(super) fn error_of_rest(&self, forecast: Option<&Forecast>) -> Option<f64> {
        let total = self.total?;
        let left = total
            - forecast
                .map_or(0.0, |forecast| forecast.at)
                .min(total * 0.99);
        Some(self.error(forecast)? * total / left)
    }

    /// The same of a finish.
    pub(super) fn error_of(&self, finish: Option<f64>) -> Option<f64> {
        let total = self.total?;
        Some(finish.map_or(100.0, |finish| (finish - total).abs() / total * 100.0))
    }

    /// Whether a forecast was off by a quarter or more, or wrong about
    /// converging. `None` where that is not known: it says of a run that was
    /// given up that it would have arrived later, or never, and nobody knows.
    pub(super) fn is_bad(&self, forecast: Option<&Forecast>) -> Option<bool> {
        const BAD_PERCENT: f64 = 25.0;
        if let Some(error) = self.error(forecast) {
            return Some(error >= BAD_PERCENT);
        }
        let forecast = forecast?;
        match forecast.p50 {
            None if !forecast.is_known => Some(true),
            // By its construction it never ends.
            finish if self.kind.ends_with("beyond-knee") => Some(finish.is_some()),
            None => None,
            Some(finish) if finish <= self.gave_up_after * (1.0 - BAD_PERCENT / 100.0) => {
                Some(true)
            }
            Some(_) => None,
        }
    }
}

impl Forecast {
    fn read(forecast: &Value) -> Self {
        let finish = |name: &str| forecast["finish_seconds"][name].as_f64();
        Self {
            at: forecast["at_seconds"].as_f64().unwrap_or_default(),
            is_known: forecast["verdict"] != "unknown",
            p05: finish("p05"),
            p50: finish("p50"),
            p95: finish("p95"),
            downtime: forecast["downtime_seconds"]["p50"].as_f64(),
            percent: forecast["percent"].as_f64(),
            change: forecast["change"].as_bool(),
        }
    }
}

impl Baseline {
    fn read(baseline: &Value) -> Option<Self> {
        Some(Self {
            name: baseline["name"].as_str()?.to_owned(),
            finish: baseline["finish_seconds"].as_f64(),
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

    /// A run of 40 s under KVM whose forecasts were `(at, p50)`, each with an
    /// interval of 10 %.
    pub(in super::super) fn arrived(forecasts: &[(f64, f64)]) -> Journey {
        let forecast = |&(at, p50): &(f64, f64)| Forecast {
            at,
            is_known: true,
            p05: Some(p50 * 0.9),
            p50: Some(p50),
            p95: Some(p50 * 1.1),
            downtime: Some(0.2),
            ..Forecast::default()
        };
        Journey {
            is_kvm: true,
            total: Some(40.0),
            downtime: Some(0.25),
            gave_up_after: 60.0,
            forecasts: forecasts.iter().map(forecast).collect(),
            ..Journey::default()
        }
    }

    /// Given up, with this first forecast.
    fn given_up(p50: Option<f64>, is_known: bool) -> Journey {
        Journey {
            gave_up_after: 60.0,
            forecasts: vec![Forecast {
                p50,
                is_known,
                ..Forecast::default()
            }],
            ..Journey::default()
        }
    }

    #[test]
    fn a_run_is_read() {
        let run = json!({
            "parameters": {"kind": "burst", "changes": true},
            "figures": {
                "gave_up_after_seconds": 60.0,
                "change_at_seconds": 7.5,
                "report": {
                    "total_seconds": 30.0,
                    "downtime_seconds": 0.5,
                    "qemu": {"accelerator": "kvm"},
                    "passes": [{"at_seconds": 9.0}, {"at_seconds": 12.0}],
                    "baselines": [{"name": "geometric", "finish_seconds": null}],
                    "forecasts": [
                        {"at_seconds": 0.0, "verdict": "unknown",
                         "finish_seconds": {"p05": null, "p50": null, "p95": null},
                         "downtime_seconds": {"p50": null}},
                        {"at_seconds": 1.0, "verdict": "feasible", "percent": 0.5,
                         "change": true,
                         "finish_seconds": {"p05": 28.0, "p50": 29.0, "p95": 33.0},
                         "downtime_seconds": {"p50": 0.4}},
                    ],
                },
            },
        });
        let journey = Journey::read(&run).unwrap();
        assert!(journey.is_kvm && journey.changes);
        assert_eq!(journey.change_at, Some(7.5));
        assert_eq!(journey.stopped_at(), Some(29.5));
        assert_eq!(journey.syncs, [9.0, 12.0]);
        let first = journey.first().unwrap();
        assert_eq!((first.p50, first.is_known), (None, false), "it counts");
        let second = journey.from(0.5).unwrap();
        assert_eq!((second.p50, second.percent), (Some(29.0), Some(0.5)));
        assert_eq!((second.downtime, second.change), (Some(0.4), Some(true)));
        assert_eq!(journey.baselines.unwrap()[0].finish, None);
        assert_eq!(Journey::read(&json!({"error": "no guest"})), None);
    }

    #[test]
    fn forecasts_are_found_by_their_time() {
        let journey = arrived(&[(1.0, 41.0), (10.0, 42.0), (20.0, 43.0)]);
        let at = |forecast: Option<&Forecast>| forecast.map(|forecast| forecast.at);
        assert_eq!(at(journey.first()), Some(1.0));
        assert_eq!(at(journey.before(15.0)), Some(10.0));
        assert_eq!(at(journey.before(0.5)), None);
        assert_eq!(at(journey.from(10.5)), Some(20.0));
        assert_eq!(at(journey.from(20.5)), None);
    }

    #[test]
    fn an_error_is_of_the_whole() {
        let journey = arrived(&[(1.0, 44.0)]);
        let error = journey.error(journey.first()).unwrap();
        assert!((error - 10.0).abs() < 1e-9, "{error}");
        assert_eq!(journey.error(None), Some(100.0), "says nothing");
        assert_eq!(given_up(Some(30.0), true).error(None), None);
    }

    #[test]
    fn bad_is_off_by_a_quarter_or_wrong_about_converging() {
        let bad = |journey: &Journey| journey.is_bad(journey.forecasts.first());
        assert_eq!(bad(&arrived(&[(1.0, 49.0)])), Some(false));
        assert_eq!(bad(&arrived(&[(1.0, 51.0)])), Some(true));
        assert_eq!(bad(&arrived(&[])), Some(true), "it arrived");
        assert_eq!(bad(&given_up(None, true)), None, "perhaps never");
        let never = Journey {
            kind: "sweep-beyond-knee".to_owned(),
            ..given_up(None, true)
        };
        assert_eq!(bad(&never), Some(false), "never, it said");
        let never = Journey {
            kind: "sweep-beyond-knee".to_owned(),
            ..given_up(Some(70.0), true)
        };
        assert_eq!(bad(&never), Some(true), "never, in truth");
        assert_eq!(bad(&given_up(None, false)), Some(true), "nothing was said");
        assert_eq!(bad(&given_up(Some(44.0), true)), Some(true));
        assert_eq!(bad(&given_up(Some(70.0), true)), None, "perhaps it would");
    }
}
