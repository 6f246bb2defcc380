//! Forecast against reality, drawn: one small chart a kind, from real runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::journey::{Forecast, Journey};

/// Charts beside each other.
const COLUMNS: usize = 6;
/// Of each, in pixels.
const WIDTH: u32 = 190;
const HEIGHT: u32 = 130;
/// What is farther off than this, in percent, is drawn at the edge.
const MOST_PERCENT: f64 = 30.0;
const BAND: RGBColor = RGBColor(0x9e, 0xc5, 0xe8);
const LINE: RGBColor = RGBColor(0x1b, 0x4f, 0x8a);
const SYNC: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);

/// A forecast beside what came.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    /// The share of the real time that had passed.
    share: f64,
    /// Percent by which it was too late: p05, p50, p95.
    off: [f64; 3],
}

/// Draws the first run of each kind that arrived.
///
/// # Errors
/// The file cannot be written.
pub(super) fn draw(path: &Path, journeys: &[Journey]) -> Result<()> {
    let mut kinds: BTreeMap<&str, &Journey> = BTreeMap::new();
    let arrived = journeys.iter().filter(|journey| journey.total.is_some());
    for journey in arrived {
        kinds.entry(&journey.kind).or_insert(journey);
    }
    let rows = kinds.len().div_ceil(COLUMNS).max(1);
    let size = (
        WIDTH * u32::try_from(COLUMNS)?,
        HEIGHT * u32::try_from(rows)?,
    );
    let failed = |error: &dyn std::error::Error| anyhow!("{}: {error}", path.display());
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let areas = root.split_evenly((rows, COLUMNS));
    for (area, (kind, journey)) in areas.iter().zip(kinds) {
        chart(area, kind, journey).map_err(|error| failed(&*error))?;
    }
    root.present().map_err(|error| failed(&error))
}

fn chart(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    kind: &str,
    journey: &Journey,
) -> Result<(), Box<dyn std::error::Error>> {
    let points = points(journey);
    let mut chart = ChartBuilder::on(area)
        .caption(kind, ("sans-serif", 11))
        .margin(4)
        .x_label_area_size(14)
        .y_label_area_size(26)
        .build_cartesian_2d(0.0..1.0, -MOST_PERCENT..MOST_PERCENT)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .x_labels(3)
        .y_labels(3)
        .label_style(("sans-serif", 9))
        .draw()?;
    for share in syncs(journey) {
        let line = [(share, -MOST_PERCENT), (share, MOST_PERCENT)];
        chart.draw_series(LineSeries::new(line, &SYNC))?;
    }
    let low = points.iter().map(|point| (point.share, point.off[0]));
    let high = points.iter().rev().map(|point| (point.share, point.off[2]));
    let band: Vec<(f64, f64)> = low.chain(high).collect();
    chart.draw_series([Polygon::new(band, BAND.mix(0.6))])?;
    chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 0.0)], &BLACK))?;
    let line = points.iter().map(|point| (point.share, point.off[1]));
    chart.draw_series(LineSeries::new(line, LINE.stroke_width(2)))?;
    Ok(())
}

/// What was forecast, until the guest stopped.
fn points(journey: &Journey) -> Vec<Point> {
    let Some(total) = journey.total else {
        return Vec::new();
    };
    let known = journey
        .forecasts
        .iter()
        .filter(|forecast| (forecast.is_known || forecast.p50.is_some()) && forecast.at <= total);
    let off = |finish: Option<f64>| {
        let off = finish.map_or(MOST_PERCENT, |finish| (finish / total - 1.0) * 100.0);
        off.clamp(-MOST_PERCENT, MOST_PERCENT)
    };
    let point = |forecast: &Forecast| Point {
        share: forecast.at / total,
        off: [forecast.p05, forecast.p50, forecast.p95].map(off),
    };
    known.map(point).collect()
}

/// Shares of the real time at which passes ended.
fn syncs(journey: &Journey) -> Vec<f64> {
    let Some(total) = journey.total else {
        return Vec::new();
    };
    let syncs = journey.syncs.iter().filter(|&&at| at <= total);
    syncs.map(|at| at / total).collect()
}

#[cfg(test)]
mod tests {
    use super::super::journey::tests::arrived;
    use super::*;

    #[test]
    fn what_was_forecast_is_held_against_what_came() {
        let journey = arrived(&[(4.0, 44.0), (20.0, 400.0)]);
        let points = points(&journey);
        assert_eq!((points[0].share, points[0].off[1].round()), (0.1, 10.0));
        assert_eq!(points[1].off, [MOST_PERCENT; 3]);
    }

    #[test]
    fn each_kind_is_drawn_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("forecast.svg");
        let of = |kind: &str| Journey {
            kind: kind.to_owned(),
            syncs: vec![20.0],
            ..arrived(&[(1.0, 41.0), (30.0, 40.0)])
        };
        draw(&path, &[of("sweep"), of("sweep"), of("random")]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(">\nsweep").count(), 1, "{text}");
        assert_eq!(text.matches(">\nrandom").count(), 1);
    }
}
