//! Guests to be moved for the sake of the benchmarks: kinds of them, whose
//! parameters are drawn from a seed, and how one is moved: at a rate ([`run`]), to
//! a deadline ([`timed`]), and by QEMU alone ([`plain`]).

mod bare;
pub mod change;
pub mod plain;
mod program;
pub mod run;
pub mod sides;
pub mod timed;

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;
use serde_json::{Value, json};

use crate::guest::bare::BareGuest;
use crate::guest::linux::LinuxGuest;
use crate::guest::program::ProgramLoad;
use crate::vm::Guest;

/// A guest and how it is moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The kind it was drawn of.
    pub kind: &'static str,
    /// What is moved.
    pub guest: ScenarioGuest,
    /// `--rate`.
    pub bytes_per_second: u64,
    /// `--downtime-limit`.
    pub downtime_limit: Duration,
    /// When the guest begins to behave differently, from when it began to
    /// write; `None` if it never does.
    pub change_after: Option<Duration>,
}

/// What is moved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScenarioGuest {
    /// The bare guest, under KVM where there is one.
    Bare(BareGuest),
    /// Linux under TCG with a real program.
    Program {
        /// The program.
        load: ProgramLoad,
        /// Guest RAM, in MiB.
        ram_mib: u32,
    },
}

/// How many kinds there are.
pub const KINDS: usize = ORDER.len();

/// Every kind comes round once in so many runs; what comes first is for those
/// who have little time.
const ORDER: [&str; 33] = [
    "random-small-set",
    "sqlite",
    "hot-beyond-rate",
    "change-set",
    "sweep-beyond-knee",
    "none-mostly-zero",
    "burst-short",
    "sweep-large-set",
    "copy",
    "limit-tight",
    "random-near-knee",
    "oscillating-pace",
    "none-full",
    "hot-90-10",
    "redis",
    "change-busier",
    "sweep-within-limit",
    "rate-low",
    "random-large-set",
    "burst-long",
    "stress-ng",
    "sweep-near-knee",
    "zero-half",
    "oscillating-sets",
    "none-small",
    "hot-99-1",
    "sort",
    "change-calmer",
    "limit-loose",
    "sweep-small-set",
    "random-beyond-knee",
    "rate-high",
    "gzip",
];

impl Scenario {
    /// The scenario of run `index`: its kind follows from the index alone, its
    /// parameters are drawn.
    #[must_use]
    pub fn draw(index: usize, rng: &mut Rng) -> Self {
        let kind = ORDER[index % KINDS];
        bare::draw(kind, rng)
            .or_else(|| program::draw(kind, rng))
            .expect("every kind is drawn by one of them, which a test sees to")
    }

    /// Whether the guest behaves differently from some time on.
    #[must_use]
    pub const fn changes(&self) -> bool {
        self.change_after.is_some()
    }

    /// The guest with its files.
    ///
    /// # Errors
    /// What `cargo xtask setup` leaves is not there.
    pub fn guest(&self) -> Result<Guest> {
        Ok(match self.guest {
            ScenarioGuest::Bare(guest) => Guest::Bare(guest),
            ScenarioGuest::Program { load, ram_mib } => {
                Guest::Linux(LinuxGuest::with_program(load, ram_mib)?)
            }
        })
    }

    /// All of it, for who reads the runs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let guest = match self.guest {
            ScenarioGuest::Bare(guest) => json!({
                "ram_mib": guest.ram_mib,
                "fill_mib": guest.fill_mib,
                "working_set_pages": guest.working_set_pages,
                "pages_per_second": guest.pages_per_second,
                "pattern": guest.pattern.map(|pattern| format!("{pattern:?}")),
            }),
            ScenarioGuest::Program { load, ram_mib } => json!({
                "ram_mib": ram_mib,
                "program": load.program.name(),
                "work_mib": load.work_mib,
                "pause_ms": load.pause_ms,
                "fill_mib": load.fill_mib,
            }),
        };
        json!({
            "kind": self.kind,
            "guest": guest,
            "rate_bytes_per_second": self.bytes_per_second,
            "downtime_limit_seconds": self.downtime_limit.as_secs_f64(),
            "changes": self.changes(),
            "change_after_seconds": self.change_after.map(|after| after.as_secs_f64()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_kind_is_drawn_and_can_be() {
        let kinds: BTreeSet<&str> = ORDER.into_iter().collect();
        assert_eq!(kinds.len(), KINDS, "no kind twice");
        for seed in 0..200 {
            for (index, kind) in ORDER.into_iter().enumerate() {
                let scenario = Scenario::draw(index, &mut Rng::with_seed(seed));
                assert_eq!(scenario.kind, kind);
                if let ScenarioGuest::Bare(guest) = scenario.guest {
                    let checked = guest.bios();
                    assert!(checked.is_ok(), "{seed} {scenario:?} {:?}", checked.err());
                }
                assert!((2_000_000..250_000_000).contains(&scenario.bytes_per_second));
            }
        }
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed| Scenario::draw(2, &mut Rng::with_seed(seed));
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn the_mix_is_what_it_should_be() {
        let drawn: Vec<Scenario> = (0..KINDS)
            .map(|index| Scenario::draw(index, &mut Rng::with_seed(1)))
            .collect();
        let programs = drawn
            .iter()
            .filter(|scenario| matches!(scenario.guest, ScenarioGuest::Program { .. }))
            .count();
        assert!(programs >= 6 && drawn.len() - programs >= 24);
        let changing = drawn.iter().filter(|scenario| scenario.changes()).count();
        assert_eq!(changing, 3);
    }
}
