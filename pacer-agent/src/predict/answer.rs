//! Everything that is told of one guest. Pure.

use std::time::Duration;

use crate::pacing::dirty_curve::DirtyCurve;
use crate::pacing::prediction::Prediction;
use crate::pacing::sample::DirtyWindow;

/// The guest, as it was found.
#[derive(Clone, Debug)]
pub struct Facts {
    /// QEMU's process.
    pub pid: u32,
    /// QEMU's version, as `10.0.2`.
    pub version: String,
    /// `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// Its vCPUs run; else nothing is known of what they will write.
    pub is_running: bool,
    /// Size of its RAM, in bytes.
    pub total_bytes: u64,
    /// The share of its RAM that is zero, at least; `None` where the host does
    /// not tell.
    pub zero_ratio: Option<f64>,
    /// What was measured, shortest window first.
    pub windows: Vec<DirtyWindow>,
    /// What is less well known than it might be, each with its cause.
    pub notes: Vec<String>,
}

/// A point of the dirty curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// Length of the window, in seconds.
    pub window_seconds: f64,
    /// Distinct pages a second written in it.
    pub pages_per_second: f64,
    /// No window nearly as long was measured.
    pub is_extrapolated: bool,
}

/// The answer, and to what.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The guest.
    pub facts: Facts,
    /// How it writes its memory.
    pub curve: Vec<CurvePoint>,
    /// QEMU's downtime limit.
    pub downtime_limit: Duration,
    /// The operator gave the highest rate; else it is what a link is taken for.
    pub is_rate_limited: bool,
    /// What the migration would be.
    pub prediction: Prediction,
}

/// The windows that are told of, in seconds.
const WINDOWS: [f64; 3] = [0.1, 1.0, 10.0];
/// A window so many times as long as the longest measured is extrapolated.
const NEAR: f64 = 1.5;

/// The points of `curve` that are told of. Empty while nothing is known.
#[must_use]
pub fn curve_points(curve: &DirtyCurve, measured: &[DirtyWindow]) -> Vec<CurvePoint> {
    let longest = measured
        .iter()
        .map(|window| window.window.as_secs_f64())
        .fold(0.0, f64::max);
    WINDOWS
        .into_iter()
        .filter_map(|window_seconds| {
            let pages = curve.pages(Duration::from_secs_f64(window_seconds))?;
            Some(CurvePoint {
                window_seconds,
                pages_per_second: pages / window_seconds,
                is_extrapolated: window_seconds > longest * NEAR,
            })
        })
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pacing::forecast::{Forecast, Percentiles};
    use crate::pacing::prediction::{DeadlineRates, Row, SettledPass};
    use crate::pacing::sample::Origin;
    use crate::pacing::time::Time;

    pub(in crate::predict) fn window(millis: u64, pages: u64) -> DirtyWindow {
        DirtyWindow {
            window: Duration::from_millis(millis),
            pages,
            device_pages: 0,
            origin: Origin::DirtyLog,
        }
    }

    fn row(rate: f64, finish: [f64; 3]) -> Row {
        let around = |p50: f64| Percentiles::new(p50 * 0.9, p50, p50 * 1.2);
        let ends = finish[1].is_finite();
        let some = |p50: f64| {
            if ends {
                around(p50)
            } else {
                Percentiles::default()
            }
        };
        Row {
            rate,
            lead_seconds: 1.0,
            forecast: Forecast {
                finish_seconds: Percentiles::new(finish[0], finish[1], finish[2]),
                downtime_seconds: some(0.1),
                bytes: some(200e6),
            },
        }
    }

    /// A guest of 256 MiB that converges from 8 MB/s on.
    pub(in crate::predict) fn sample() -> Answer {
        const NEVER: f64 = f64::INFINITY;
        let rows = vec![
            row(3e6, [NEVER, NEVER, NEVER]),
            row(9e6, [30.0, 40.0, NEVER]),
            row(100e6, [2.5, 2.6, 2.8]),
        ];
        Answer {
            facts: Facts {
                pid: 42,
                version: "10.0.2".to_owned(),
                accelerator: "kvm",
                is_running: true,
                total_bytes: 256 << 20,
                zero_ratio: Some(0.42),
                windows: vec![window(50, 100), window(1000, 1500)],
                notes: vec!["this and that".to_owned()],
            },
            curve: vec![
                CurvePoint {
                    window_seconds: 0.1,
                    pages_per_second: 1900.4,
                    is_extrapolated: false,
                },
                CurvePoint {
                    window_seconds: 10.0,
                    pages_per_second: 200.0,
                    is_extrapolated: true,
                },
            ],
            downtime_limit: Duration::from_millis(300),
            is_rate_limited: true,
            prediction: Prediction {
                highest: rows[2],
                rows,
                knee: Percentiles::new(7e6, 8e6, 9.5e6),
                settled: SettledPass {
                    seconds: 0.05,
                    bytes_per_second: 7.9e6,
                },
                line: vec![(8e6, 60.0), (9e6, 40.0), (30e6, 8.0), (100e6, 2.6)],
                lowest_rate: 3e6,
                deadline: Some(DeadlineRates {
                    deadline_seconds: 30.0,
                    even_rate: Some(10_123_456.0),
                    safe_rate: Some(11e6),
                }),
            },
        }
    }

    #[test]
    fn what_is_beyond_the_windows_is_extrapolated() {
        let measured = [window(50, 100), window(1000, 1500)];
        let mut curve = DirtyCurve::new(65_536);
        assert_eq!(curve_points(&curve, &measured), []);
        for window in measured {
            curve.observe(window, Time::ZERO);
        }
        let points = curve_points(&curve, &measured);
        let extrapolated: Vec<bool> = points.iter().map(|point| point.is_extrapolated).collect();
        assert_eq!(extrapolated, [false, false, true]);
        assert!((1200.0..1800.0).contains(&points[1].pages_per_second));
    }
}
