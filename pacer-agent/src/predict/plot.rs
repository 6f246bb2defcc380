//! Rate against finish, drawn with characters. Pure.

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::{Constraint, Rect};
use ratatui_core::symbols::Marker;
use ratatui_core::widgets::Widget as _;
use ratatui_widgets::chart::{Axis, Chart, Dataset, GraphType};

use super::words::rate;
use crate::pacing::prediction::Prediction;
use crate::units::show_seconds;

/// Fits any terminal.
const COLUMNS: u16 = 78;
const ROWS: u16 = 18;
/// Labels of the axes, evenly spread.
const RATES: u32 = 5;
const SECONDS: u32 = 4;

/// Both axes are logarithmic; the knee is a vertical line, a deadline a level
/// one. Every line ends with a line feed. `None` where no rate converges.
#[must_use]
pub fn plot(prediction: &Prediction) -> Option<String> {
    let (&(_, latest), &(_, earliest)) = (prediction.line.first()?, prediction.line.last()?);
    let highest = prediction.highest.rate;
    let deadline = prediction
        .deadline
        .map(|deadline| deadline.deadline_seconds);
    let rates = [prediction.lowest_rate.log10(), highest.log10()];
    let seconds = deadline
        .into_iter()
        .fold([earliest, latest], |range, deadline| {
            [range[0].min(deadline), range[1].max(deadline)]
        });
    // A little room keeps the ends off the axes.
    let seconds = [(seconds[0] / 1.1).log10(), (seconds[1] * 1.1).log10()];
    let line = logarithms(&prediction.line);
    let knee = prediction.knee.p50.filter(|&knee| knee <= highest);
    let knee_line = knee.map(|knee| seconds.map(|end| (knee.log10(), end)));
    let deadline_line = deadline.map(|deadline| rates.map(|end| (end, deadline.log10())));
    let mut datasets = vec![dataset(&line)];
    if let (Some(knee), Some(line)) = (knee, &knee_line) {
        datasets.push(dataset(line).name(format!("| knee {}", rate(knee))));
    }
    if let (Some(deadline), Some(line)) = (deadline, &deadline_line) {
        datasets.push(dataset(line).name(format!("- deadline {}", show_seconds(deadline))));
    }
    let whole = Constraint::Percentage(100);
    let chart = Chart::new(datasets)
        .x_axis(axis("rate", rates, RATES, rate))
        .y_axis(axis("finish", seconds, SECONDS, show_seconds))
        .hidden_legend_constraints((whole, whole));
    let area = Rect::new(0, 0, COLUMNS, ROWS);
    let mut buffer = Buffer::empty(area);
    chart.render(area, &mut buffer);
    Some(text(&buffer))
}

fn logarithms(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points
        .iter()
        .map(|(rate, seconds)| (rate.log10(), seconds.log10()))
        .collect()
}

fn dataset(points: &[(f64, f64)]) -> Dataset<'_> {
    Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .data(points)
}

/// An axis over `bounds`, which are logarithms, labelled with what they are of.
fn axis(
    title: &'static str,
    bounds: [f64; 2],
    labels: u32,
    show: impl Fn(f64) -> String,
) -> Axis<'static> {
    let labels = (0..labels).map(|step| {
        let share = f64::from(step) / f64::from(labels - 1);
        show(10_f64.powf(bounds[0] + (bounds[1] - bounds[0]) * share))
    });
    Axis::default()
        .title(title)
        .bounds(bounds)
        .labels(labels.collect::<Vec<_>>())
}

/// The characters alone, without colours.
fn text(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(COLUMNS)) {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::sample;
    use super::*;

    #[test]
    fn a_plot_has_its_axes_and_the_knee() {
        let text = plot(&sample().prediction).unwrap();
        assert!(text.lines().count() <= 20, "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        for word in [
            "knee 8.0 MB/s",
            "deadline 30.0 s",
            "3.0 MB/s",
            "100 MB/s",
            "finish",
        ] {
            assert!(text.contains(word), "no {word} in\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn without_convergence_there_is_none() {
        let mut prediction = sample().prediction;
        prediction.line.clear();
        assert_eq!(plot(&prediction), None);
    }
}
