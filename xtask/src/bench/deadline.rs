//! `bench deadline`: guests that are moved to a deadline, and whether they arrive at
//! it: undisturbed, disturbed half-way, and where it cannot be.

mod average_rate;
mod collect;
mod disturbed;
mod downtime;
mod draw;
mod early;
mod harm;
mod model;
mod on_time;
mod picture;
mod simulated;
mod verdicts;
mod voyage;

use anyhow::Result;

use super::Plan;
use super::record::Records;
use super::target::{Part, Target};
use draw::Class;
use voyage::{Paired, Voyage};

/// One row.
struct Row {
    what: &'static str,
    target: &'static str,
    /// What it is judged by; nothing is everything.
    classes: &'static [Class],
    judge: fn(&Collected) -> Vec<Part>,
}

/// The runs that there are so far.
#[derive(Default)]
struct Collected {
    voyages: Vec<Voyage>,
    pairs: Vec<Paired>,
}

const ROWS: [Row; 9] = [
    Row {
        what: "feasible runs that arrive at the deadline",
        target: "≥ 95 % within max(0.5 s, 0.5 %)",
        classes: &[Class::Undisturbed],
        judge: on_time::share,
    },
    Row {
        what: "worst feasible run",
        target: "≤ max(2 s, 2 %)",
        classes: &[Class::Undisturbed],
        judge: on_time::worst,
    },
    Row {
        what: "disturbed half-way, still feasible",
        target: "≥ 90 % within max(1 s, 1 %)",
        classes: &disturbed::DISTURBANCES,
        judge: disturbed::judge,
    },
    Row {
        what: "early arrivals, with --deadline and --finish-at",
        target: "as bad as late ones: counted the same",
        classes: &[],
        judge: early::judge,
    },
    Row {
        what: "average rate, against the lowest constant one that would have met the deadline",
        target: "≤ 1.1 times",
        classes: &[Class::Undisturbed],
        judge: average_rate::judge,
    },
    Row {
        what: "infeasible said, with an earliest finish that proves right",
        target: "≥ 95 % within 5 s and 10 %; feasible ones called infeasible ≤ 1 %",
        classes: &[Class::Infeasible, Class::LinkFalls, Class::Undisturbed],
        judge: verdicts::judge,
    },
    Row {
        what: "downtime through the relay against plain TCP, paired, median",
        target: "≤ +10 ms on loopback, + 1.5 round trips elsewhere",
        classes: &[Class::Downtime],
        judge: downtime::against_plain,
    },
    Row {
        what: "downtime against its limit",
        target: "≤ limit + 50 ms in ≥ 95 %",
        classes: &[],
        judge: downtime::within_limit,
    },
    Row {
        what: "guest killed, lost, doubled or damaged",
        target: "0, in every run",
        classes: &[],
        judge: harm::judge,
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
    let is_needed = |class: Class| {
        let mut needs = rows.iter().map(|row| row.classes);
        needs.any(|classes| classes.is_empty() || classes.contains(&class))
    };
    let collected = collect::collect(plan, records, is_needed)?;
    picture::draw(
        &records.path().with_extension("pictures"),
        &collected.voyages,
    )?;
    let target = |row: Row| Target::new(row.what, row.target, (row.judge)(&collected));
    Ok(rows.into_iter().map(target).collect())
}

impl Collected {
    /// Those that are feasible without doubt, and to which nothing happens.
    fn feasible(&self) -> Vec<&Voyage> {
        let voyages = self.voyages.iter();
        voyages.filter(|voyage| voyage.is_feasible()).collect()
    }
}

/// Runs of which none gave a figure.
const NONE_YET: &str = "no such run so far";
