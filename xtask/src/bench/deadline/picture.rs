//! How the controller went about it, drawn: from one real run of each class what it
//! commanded and what went, what it found dirty, and when it expected to arrive.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::draw::Class;
use super::voyage::Voyage;

/// Of a picture, in pixels.
const SIZE: (u32, u32) = (760, 540);
const PICTURED: [Class; 6] = [
    Class::Undisturbed,
    Class::DirtyRate,
    Class::SetMoves,
    Class::LinkHalved,
    Class::LinkDown,
    Class::Infeasible,
];
const MEGA: f64 = 1e6;
const MIB_PER_PAGE: f64 = 1.0 / 256.0;
/// How far from the deadline an expected arrival is still drawn, as a share of it.
const MOST_OFF: f64 = 0.3;
const BAND: RGBColor = RGBColor(0x9e, 0xc5, 0xe8);
const LINE: RGBColor = RGBColor(0x1b, 0x4f, 0x8a);
const ACHIEVED: RGBColor = RGBColor(0xd0, 0x7a, 0x1e);
const DISTURBED: RGBColor = RGBColor(0xb0, 0x30, 0x30);
const SYNC: RGBColor = RGBColor(0x3a, 0x7d, 0x44);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws the first run of each class that arrived, `control-CLASS.svg` in `folder`.
///
/// # Errors
/// A file cannot be written.
pub(super) fn draw(folder: &Path, voyages: &[Voyage]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for class in PICTURED {
        let mut arrived = voyages.iter().filter(|voyage| voyage.class == class);
        let Some(voyage) = arrived.find(|voyage| voyage.total.is_some()) else {
            continue;
        };
        let path = folder.join(format!("control-{}.svg", class.word()));
        let failed = |error: &dyn std::error::Error| anyhow!("{}: {error}", path.display());
        let root = SVGBackend::new(&path, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| failed(&error))?;
        picture(&root, voyage).map_err(|error| failed(&*error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn picture(root: &Area<'_>, voyage: &Voyage) -> Drawn {
    let error = voyage.error().unwrap_or_default();
    let title = format!(
        "{}: {}, {:.0} s asked for, {error:+.2} s",
        voyage.class.word(),
        voyage.kind,
        voyage.asked
    );
    let areas = root
        .titled(&title, ("sans-serif", 15))?
        .split_evenly((3, 1));
    rate_chart(&areas[0], voyage)?;
    dirty_chart(&areas[1], voyage)?;
    arrival_chart(&areas[2], voyage)
}

/// The end of every chart's time.
fn end(voyage: &Voyage) -> f64 {
    voyage.total.unwrap_or(voyage.asked).max(voyage.asked) * 1.02
}

fn rate_chart(area: &Area<'_>, voyage: &Voyage) -> Drawn {
    let commanded = commanded(voyage);
    let achieved = achieved(voyage);
    let rates = commanded.iter().chain(&achieved).map(|&(_, rate)| rate);
    let most = rates.fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .x_label_area_size(18)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end(voyage), 0.0..most)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(4)
        .y_desc("rate, MB/s")
        .label_style(("sans-serif", 11))
        .draw()?;
    if let Some(at) = voyage.disturbed_at {
        chart.draw_series(LineSeries::new([(at, 0.0), (at, most)], &DISTURBED))?;
    }
    chart.draw_series(LineSeries::new(achieved, ACHIEVED.stroke_width(2)))?;
    chart.draw_series(LineSeries::new(commanded, LINE.stroke_width(1)))?;
    Ok(())
}

fn dirty_chart(area: &Area<'_>, voyage: &Voyage) -> Drawn {
    let passes = voyage.passes.iter();
    let found: Vec<(f64, f64)> = passes
        .map(|&(at, pages)| (at, pages * MIB_PER_PAGE))
        .collect();
    let most = found.iter().map(|&(_, mib)| mib).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .x_label_area_size(18)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end(voyage), 0.0..most)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(4)
        .y_desc("dirty at a sync, MiB")
        .label_style(("sans-serif", 11))
        .draw()?;
    if let Some(at) = voyage.disturbed_at {
        chart.draw_series(LineSeries::new([(at, 0.0), (at, most)], &DISTURBED))?;
    }
    for &(at, mib) in &found {
        chart.draw_series(LineSeries::new(
            [(at, 0.0), (at, mib)],
            SYNC.stroke_width(2),
        ))?;
        chart.draw_series([Circle::new((at, mib), 3, SYNC.filled())])?;
    }
    Ok(())
}

fn arrival_chart(area: &Area<'_>, voyage: &Voyage) -> Drawn {
    let goal = voyage.total.unwrap_or(voyage.asked);
    let low = voyage.asked.min(goal) * (1.0 - MOST_OFF);
    let high = voyage.asked.max(goal) * (1.0 + MOST_OFF);
    let expected = expected(voyage, low, high);
    let mut chart = ChartBuilder::on(area)
        .margin(6)
        .x_label_area_size(30)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..end(voyage), low..high)?;
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(4)
        .x_desc("seconds from t0")
        .y_desc("expected arrival, s")
        .label_style(("sans-serif", 11))
        .draw()?;
    let lower = expected.iter().map(|&(at, finish)| (at, finish[0]));
    let upper = expected.iter().rev().map(|&(at, finish)| (at, finish[2]));
    let band: Vec<(f64, f64)> = lower.chain(upper).collect();
    chart.draw_series([Polygon::new(band, BAND.mix(0.6))])?;
    let asked = [(0.0, voyage.asked), (end(voyage), voyage.asked)];
    chart.draw_series(LineSeries::new(asked, &BLACK))?;
    if let Some(at) = voyage.disturbed_at {
        chart.draw_series(LineSeries::new([(at, low), (at, high)], &DISTURBED))?;
    }
    let middle = expected.iter().map(|&(at, finish)| (at, finish[1]));
    chart.draw_series(LineSeries::new(middle, LINE.stroke_width(2)))?;
    chart.draw_series([Circle::new((goal, goal), 4, DISTURBED.filled())])?;
    Ok(())
}

/// Corners of the stairs of what was commanded, in MB/s; an open bucket is not drawn.
fn commanded(voyage: &Voyage) -> Vec<(f64, f64)> {
    let mut corners: Vec<(f64, f64)> = Vec::new();
    for rate in &voyage.rates {
        let Some(bytes_per_second) = rate.commanded else {
            continue;
        };
        if let Some(&(_, before)) = corners.last() {
            corners.push((rate.at, before));
        }
        corners.push((rate.at, bytes_per_second / MEGA));
    }
    corners
}

/// What went up to each change, in MB/s.
fn achieved(voyage: &Voyage) -> Vec<(f64, f64)> {
    let rates = voyage.rates.iter();
    rates
        .filter_map(|rate| Some((rate.at, rate.achieved? / MEGA)))
        .collect()
}

/// Each forecast's finish, within what is drawn.
fn expected(voyage: &Voyage, low: f64, high: f64) -> Vec<(f64, [f64; 3])> {
    let known = voyage
        .forecasts
        .iter()
        .filter(|forecast| forecast.finish[0].is_some());
    let finish = |finish: Option<f64>| finish.unwrap_or(high).clamp(low, high);
    known
        .map(|forecast| (forecast.at, forecast.finish.map(finish)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::voyage::tests::{arrived, missed};
    use super::super::voyage::{Forecast, Rate};
    use super::*;

    fn voyage(class: Class) -> Voyage {
        let rate = |at, commanded| Rate {
            at,
            commanded,
            achieved: Some(9e6),
        };
        Voyage {
            class,
            disturbed_at: class.is_disturbed().then_some(50.0),
            rates: vec![
                rate(2.0, Some(1e7)),
                rate(60.0, Some(2e7)),
                rate(99.0, None),
            ],
            passes: vec![(90.0, 5000.0), (98.0, 100.0)],
            forecasts: vec![
                Forecast::default(),
                Forecast {
                    at: 3.0,
                    finish: [Some(99.0), Some(100.0), None],
                    ..Forecast::default()
                },
            ],
            ..arrived(0.2)
        }
    }

    #[test]
    fn the_command_is_stairs_and_the_open_bucket_is_left_out() {
        let corners = commanded(&voyage(Class::Undisturbed));
        assert_eq!(corners, [(2.0, 10.0), (60.0, 10.0), (60.0, 20.0)]);
        assert_eq!(achieved(&voyage(Class::Undisturbed)).len(), 3);
    }

    #[test]
    fn an_open_interval_ends_at_the_edge() {
        let expected = expected(&voyage(Class::Undisturbed), 70.0, 130.0);
        assert_eq!(expected, [(3.0, [99.0, 100.0, 130.0])]);
    }

    #[test]
    fn there_is_a_picture_of_each_class_that_arrived() {
        let folder = tempfile::tempdir().unwrap();
        let mut lost = missed();
        lost.class = Class::LinkDown;
        let voyages = [voyage(Class::Undisturbed), voyage(Class::DirtyRate), lost];
        draw(folder.path(), &voyages).unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join(name));
        assert!(
            text("control-undisturbed.svg")
                .unwrap()
                .contains("100 s asked for")
        );
        assert!(text("control-dirty-rate.svg").is_ok());
        assert!(text("control-link-down.svg").is_err());
    }
}
