//! `bench forecast`: guests that are moved at a fixed rate, and what was
//! forecast of them against what came.

mod accuracy;
mod baselines;
mod changes;
mod collect;
mod cost;
mod journey;
mod picture;
mod promises;

use anyhow::Result;

use super::Plan;
use super::record::Records;
use super::target::{Part, Target};
use journey::Journey;

/// One row.
struct Row {
    what: &'static str,
    target: &'static str,
    judge: Judge,
}

/// Where a row's figures come from.
#[derive(Clone, Copy)]
enum Judge {
    /// What was collected.
    Runs(fn(&Collected) -> Vec<Part>),
    /// A measurement of its own.
    Own(fn(&Plan, &mut Records) -> Result<Vec<Part>>),
}

/// The runs that there are so far.
struct Collected {
    journeys: Vec<Journey>,
    /// Starts that did not come to an end of which anything can be said, whether or
    /// not the run was made again.
    failed: usize,
}

const ROWS: [Row; 11] = [
    Row {
        what: "error of p50 at the start",
        target: "median ≤ 3 %, 90th percentile ≤ 8 %",
        judge: Judge::Runs(accuracy::at_start),
    },
    Row {
        what: "the same at half of the real time",
        target: "median ≤ 2 %, 90th percentile ≤ 4 %",
        judge: Judge::Runs(accuracy::at_half),
    },
    Row {
        what: "the same at three quarters",
        target: "median ≤ 1 %, 90th percentile ≤ 3 %",
        judge: Judge::Runs(accuracy::at_three_quarters),
    },
    Row {
        what: "bad share (off by 25 % or more, or wrong about converging)",
        target: "≤ 1 %",
        judge: Judge::Runs(accuracy::bad_share),
    },
    Row {
        what: "each baseline on the same runs",
        target: "at least 2 times worse in the median",
        judge: Judge::Runs(baselines::judge),
    },
    Row {
        what: "real finish inside the 90 % interval made at the start",
        target: "85 to 95 % of ≥ 100 runs",
        judge: Judge::Runs(promises::inside),
    },
    Row {
        what: "downtime forecast at switchover",
        target: "error ≤ 20 % or 20 ms",
        judge: Judge::Runs(promises::downtime),
    },
    Row {
        what: "progress goes backwards in the percent shown",
        target: "never",
        judge: Judge::Runs(promises::progress),
    },
    Row {
        what: "a forecast for 1 TiB of RAM and 16 TiB of disk",
        target: "≤ 1 ms, no allocation that grows with size",
        judge: Judge::Own(cost::measure),
    },
    Row {
        what: "simulated finish against the real one, same guest and rate",
        target: "≤ 3 % median",
        judge: Judge::Runs(promises::simulated),
    },
    Row {
        what: "guests that change, from two syncs after the change",
        target: "as the first four rows",
        judge: Judge::Runs(changes::judge),
    },
];

/// Measures every row.
///
/// # Errors
/// A signal asked us to end, or the file of runs cannot be written. What cannot
/// be measured is said in its row.
pub(super) fn run(plan: &Plan, records: &mut Records) -> Result<Vec<Target>> {
    let is_asked =
        |row: &Row| plan.rows.is_empty() || plan.rows.iter().any(|part| row.what.contains(part));
    let rows: Vec<Row> = ROWS.into_iter().filter(is_asked).collect();
    let mut collected = Collected {
        journeys: Vec::new(),
        failed: 0,
    };
    if rows.iter().any(|row| matches!(row.judge, Judge::Runs(_))) {
        collected = collect::collect(plan, records)?;
        picture::draw(&records.path().with_extension("svg"), &collected.journeys)?;
    }
    let targets = rows.iter().map(|row| {
        let parts = match row.judge {
            Judge::Runs(judge) => judge(&collected),
            Judge::Own(measure) => measure(plan, records)?,
        };
        Ok(Target::new(row.what, row.target, parts))
    });
    targets.collect()
}

impl Collected {
    /// Those of guests that behave the same from first to last.
    fn unchanging(&self) -> Vec<&Journey> {
        let journeys = self.journeys.iter();
        journeys.filter(|journey| !journey.changes).collect()
    }

    /// Those of them that arrived.
    fn arrived(&self) -> Vec<&Journey> {
        let mut journeys = self.unchanging();
        journeys.retain(|journey| journey.total.is_some());
        journeys
    }
}

/// The parts of all these, with their targets, and then those of each
/// accelerator, stated.
fn by_accelerator(
    journeys: &[&Journey],
    judge: impl Fn(&str, &[&Journey]) -> Vec<Part>,
) -> Vec<Part> {
    let mut parts = judge("", journeys);
    for (name, is_kvm) in [(", KVM", true), (", TCG", false)] {
        let those = journeys.iter().copied();
        let those: Vec<&Journey> = those.filter(|journey| journey.is_kvm == is_kvm).collect();
        if !those.is_empty() {
            parts.extend(judge(name, &those).into_iter().map(Part::stated));
        }
    }
    parts
}
