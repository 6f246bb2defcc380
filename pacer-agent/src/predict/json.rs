//! The answer as one JSON object, for programs; `docs/predict.md` documents it.
//! Pure.

use serde::Serialize;

use super::answer::{Answer, CurvePoint};
use super::words;
use crate::observe::ram::word;
use crate::pacing::prediction::{Convergence, DeadlineRates, Row};
use crate::pacing::sample::DirtyWindow;
use crate::report::Interval;

/// It changes when a field changes its meaning.
const SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
struct Object<'a> {
    schema: u32,
    qemu: Qemu<'a>,
    guest: Guest,
    windows: Vec<Window>,
    dirty_rates: Vec<DirtyRate>,
    downtime_limit_seconds: f64,
    highest_rate_bytes_per_second: f64,
    highest_rate_is_assumed: bool,
    knee_bytes_per_second: Interval,
    reason: String,
    rates: Vec<Rate>,
    fastest: Rate,
    deadline: Option<Deadline>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct Qemu<'a> {
    pid: u32,
    version: &'a str,
    accelerator: &'a str,
}

#[derive(Debug, Serialize)]
struct Guest {
    running: bool,
    ram_bytes: u64,
    zero_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Window {
    window_seconds: f64,
    pages: u64,
    origin: &'static str,
}

#[derive(Debug, Serialize)]
struct DirtyRate {
    window_seconds: f64,
    pages_per_second: f64,
    extrapolated: bool,
}

#[derive(Debug, Serialize)]
struct Rate {
    rate_bytes_per_second: f64,
    converges: bool,
    measuring_seconds: f64,
    finish_seconds: Interval,
    downtime_seconds: Interval,
    bytes: Interval,
}

#[derive(Debug, Serialize)]
struct Deadline {
    deadline_seconds: f64,
    verdict: String,
    reason: String,
    rate_bytes_per_second: DeadlineRate,
    earliest_feasible_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct DeadlineRate {
    p50: Option<f64>,
    p95: Option<f64>,
}

/// `answer` as one line.
#[must_use]
pub fn object(answer: &Answer) -> String {
    let object = Object::from(answer);
    let text = serde_json::to_string(&object).expect("plain data with text keys");
    text + "\n"
}

impl<'a> From<&'a Answer> for Object<'a> {
    fn from(answer: &'a Answer) -> Self {
        let (facts, prediction) = (&answer.facts, &answer.prediction);
        Self {
            schema: SCHEMA,
            qemu: Qemu {
                pid: facts.pid,
                version: &facts.version,
                accelerator: facts.accelerator,
            },
            guest: Guest {
                running: facts.is_running,
                ram_bytes: facts.total_bytes,
                zero_ratio: facts.zero_ratio,
            },
            windows: facts.windows.iter().map(Window::from).collect(),
            dirty_rates: answer.curve.iter().map(DirtyRate::from).collect(),
            downtime_limit_seconds: answer.downtime_limit.as_secs_f64(),
            highest_rate_bytes_per_second: prediction.highest.rate,
            highest_rate_is_assumed: !answer.is_rate_limited,
            knee_bytes_per_second: prediction.knee.into(),
            reason: words::convergence(answer),
            rates: prediction.rows.iter().map(Rate::from).collect(),
            fastest: Rate::from(&prediction.highest),
            deadline: prediction
                .deadline
                .as_ref()
                .map(|rates| deadline(rates, answer)),
            notes: &facts.notes,
        }
    }
}

fn deadline(rates: &DeadlineRates, answer: &Answer) -> Deadline {
    let earliest = answer.prediction.highest.forecast.finish_seconds;
    Deadline {
        deadline_seconds: rates.deadline_seconds,
        verdict: rates.verdict().to_string(),
        reason: words::deadline(rates, answer),
        rate_bytes_per_second: DeadlineRate {
            p50: rates.even_rate,
            p95: rates.safe_rate,
        },
        earliest_feasible_seconds: earliest.p50,
    }
}

impl From<&DirtyWindow> for Window {
    fn from(window: &DirtyWindow) -> Self {
        Self {
            window_seconds: window.window.as_secs_f64(),
            pages: window.all_pages(),
            origin: word(window.origin),
        }
    }
}

impl From<&CurvePoint> for DirtyRate {
    fn from(point: &CurvePoint) -> Self {
        Self {
            window_seconds: point.window_seconds,
            pages_per_second: point.pages_per_second,
            extrapolated: point.is_extrapolated,
        }
    }
}

impl From<&Row> for Rate {
    fn from(row: &Row) -> Self {
        Self {
            rate_bytes_per_second: row.rate,
            converges: row.convergence() != Convergence::No,
            measuring_seconds: row.lead_seconds,
            finish_seconds: row.forecast.finish_seconds.into(),
            downtime_seconds: row.forecast.downtime_seconds.into(),
            bytes: row.forecast.bytes.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::answer::tests::sample;
    use super::*;

    #[test]
    fn every_field_is_there_for_programs() {
        let text = object(&sample());
        assert_eq!(text.lines().count(), 1);
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["schema"], 1);
        assert_eq!(object["qemu"]["accelerator"], "kvm");
        assert_eq!(object["guest"]["ram_bytes"], 268_435_456_u64);
        assert_eq!(object["windows"][1]["origin"], "dirty-log");
        assert_eq!(object["dirty_rates"][1]["extrapolated"], true);
        assert_eq!(object["knee_bytes_per_second"]["p50"], 8e6);
        assert_eq!(object["rates"][0]["converges"], false);
        assert_eq!(object["rates"][0]["finish_seconds"]["p50"], Value::Null);
        assert_eq!(object["rates"][1]["converges"], true);
        assert_eq!(object["rates"][1]["measuring_seconds"], 1.0);
        assert_eq!(object["rates"][1]["finish_seconds"]["p95"], Value::Null);
        assert_eq!(object["fastest"]["finish_seconds"]["p95"], 2.8);
        assert_eq!(object["deadline"]["verdict"], "feasible");
        assert_eq!(object["deadline"]["rate_bytes_per_second"]["p95"], 11e6);
        let mut answer = sample();
        answer.prediction.deadline = None;
        let object: Value = serde_json::from_str(&super::object(&answer)).unwrap();
        assert_eq!(object["deadline"], Value::Null);
    }
}
