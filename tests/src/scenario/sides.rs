//! Where the guest runs when all is over, and whether it is whole there.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Scenario, ScenarioGuest};
use crate::guest::program::rounds;
use crate::pair::Pair;
use crate::process::{check_interrupt, wait_until};
use crate::vm::Vm;

/// A QEMU that quits may still be alive when its agent has ended.
const SETTLE: Duration = Duration::from_secs(10);
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where it was.
    Source,
    /// Where it was to arrive.
    Destination,
}

/// What must never be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It runs on both sides.
    Doubled,
    /// It runs on neither, and nobody was told on which side it is whole.
    Lost,
    /// It runs, but its memory is not what it wrote, or its program ended.
    Damaged(String),
}

impl std::fmt::Display for Harm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Doubled => f.write_str("doubled: it runs on both sides"),
            Self::Lost => f.write_str("lost: it runs on neither side"),
            Self::Damaged(how) => write!(f, "damaged: {how}"),
        }
    }
}

/// Looks at both sides, once the agent of the source has ended with this outcome.
/// Where the guest is said to be stopped and whole, it need not run.
///
/// # Errors
/// A signal asked us to end.
pub fn look(scenario: &Scenario, pair: &Pair, outcome: &str) -> Result<Result<Side, Harm>> {
    let sides = || [&pair.source, &pair.destination].map(runs);
    let settled = wait_until("one side runs", SETTLE, || {
        let [source, destination] = sides();
        Ok((source != destination).then_some(()))
    });
    check_interrupt()?;
    // That it never was so is what is found out next.
    drop(settled);
    let side = match sides() {
        [true, true] => return Ok(Err(Harm::Doubled)),
        [false, false] if outcome == "stopped" => return Ok(Ok(Side::Source)),
        [false, false] => return Ok(Err(Harm::Lost)),
        [true, false] => Side::Source,
        [false, true] => Side::Destination,
    };
    let vm = match side {
        Side::Source => &pair.source,
        Side::Destination => &pair.destination,
    };
    let whole = is_whole(scenario, vm);
    check_interrupt()?;
    if let Err(error) = whole {
        return Ok(Err(Harm::Damaged(format!("{error:#}"))));
    }
    // The other may have begun to run meanwhile.
    Ok(match sides() {
        [true, true] => Err(Harm::Doubled),
        [false, false] => Err(Harm::Lost),
        _ => Ok(side),
    })
}

/// Whether a guest runs there; one whose QEMU is gone does not.
fn runs(vm: &Vm) -> bool {
    vm.is_alive() && vm.status().is_ok_and(|status| status == "running")
}

/// The guest's memory is what it wrote, or its program goes on with its work.
///
/// # Errors
/// It is not, or QEMU is gone.
pub fn is_whole(scenario: &Scenario, vm: &Vm) -> Result<()> {
    match scenario.guest {
        ScenarioGuest::Bare(guest) => {
            vm.verify_bare(&guest)?;
        }
        ScenarioGuest::Program { .. } => {
            let before = rounds(&vm.serial())?;
            wait_until("the program ends a round", ROUND_TIMEOUT, || {
                Ok((rounds(&vm.serial())? > before).then_some(()))
            })
            .with_context(|| vm.logs())?;
        }
    }
    Ok(())
}
