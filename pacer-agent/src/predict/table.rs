//! The answer as a table. Pure.

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::words::{rate, short};
use crate::pacing::prediction::{Convergence, Prediction, Row};
use crate::units::{from_f64, show_bytes, show_seconds};

const COLUMNS: [&str; 7] = [
    "rate",
    "finish p05",
    "p50",
    "p95",
    "downtime p50",
    "p95",
    "bytes p50",
];

/// A row for each rate, lowest first, and one for the knee where it belongs;
/// every line ends with a line feed.
#[must_use]
pub fn table(prediction: &Prediction) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(COLUMNS.iter().copied().chain([""]));
    let mut knee = prediction.knee.p50;
    for row in &prediction.rows {
        if let Some(passed) = knee.take_if(|knee| *knee <= row.rate) {
            table.add_row(marker(passed));
        }
        table.add_row(cells(row));
    }
    if let Some(above) = knee {
        table.add_row(marker(above));
    }
    for column in table.column_iter_mut().take(COLUMNS.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt() + "\n"
}

fn marker(knee: f64) -> Vec<Cell> {
    let empty = COLUMNS.iter().skip(1).map(|_| Cell::new(""));
    std::iter::once(Cell::new(rate(knee)))
        .chain(empty)
        .chain([Cell::new("<- the knee")])
        .collect()
}

fn cells(row: &Row) -> Vec<Cell> {
    let forecast = &row.forecast;
    let (finish, downtime) = (forecast.finish_seconds, forecast.downtime_seconds);
    let convergence = row.convergence();
    let known = |value: Option<f64>, show: fn(f64) -> String| {
        let value = value.filter(|_| convergence != Convergence::No);
        Cell::new(value.map_or_else(|| "-".to_owned(), show))
    };
    let remark = match convergence {
        Convergence::Yes => "",
        Convergence::Unsure => "may not converge",
        Convergence::No => "will not converge",
    };
    vec![
        Cell::new(rate(row.rate)),
        known(finish.p05, show_seconds),
        known(finish.p50, show_seconds),
        known(finish.p95, show_seconds),
        known(downtime.p50, short),
        known(downtime.p95, short),
        known(forecast.bytes.p50, |bytes| {
            show_bytes(from_f64(bytes.round()))
        }),
        Cell::new(remark),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::answer::tests::sample;
    use super::*;

    #[test]
    fn the_knee_is_marked_between_the_rates() {
        let expected = [
            "     rate  finish p05     p50    p95  downtime p50     p95  bytes p50",
            " 3.0 MB/s           -       -      -             -       -          -  will not converge",
            " 8.0 MB/s                                                              <- the knee",
            " 9.0 MB/s      30.0 s  40.0 s      -        100 ms  120 ms     200 MB  may not converge",
            " 100 MB/s       2.5 s   2.6 s  2.8 s        100 ms  120 ms     200 MB",
        ];
        let text = table(&sample().prediction);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_knee_above_all_rates_is_the_last_row() {
        let mut prediction = sample().prediction;
        prediction.rows.truncate(1);
        let text = table(&prediction);
        assert!(text.ends_with("<- the knee\n"), "{text}");
        assert_eq!(text.lines().count(), 3);
    }
}
