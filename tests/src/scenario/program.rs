//! The kinds with Linux and a real program.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use super::{Scenario, ScenarioGuest};
use crate::guest::program::{Program, ProgramLoad};

struct Kind {
    program: Program,
    work_mib: Range<u32>,
    pause_ms: Range<u32>,
}

const KINDS: [Kind; 6] = [
    Kind {
        program: Program::Redis,
        work_mib: 6..14,
        pause_ms: 200..800,
    },
    // All it works on is dirty all the time: it must fit into the downtime.
    Kind {
        program: Program::StressNg,
        work_mib: 3..8,
        pause_ms: 300..1000,
    },
    Kind {
        program: Program::Copy,
        work_mib: 6..16,
        pause_ms: 800..2000,
    },
    Kind {
        program: Program::Sqlite,
        work_mib: 2..6,
        pause_ms: 300..1000,
    },
    Kind {
        program: Program::Gzip,
        work_mib: 3..8,
        pause_ms: 200..1000,
    },
    Kind {
        program: Program::Sort,
        work_mib: 2..6,
        pause_ms: 500..1500,
    },
];

/// A scenario of this kind; `None` if it is not one of these.
pub(super) fn draw(kind: &'static str, rng: &mut Rng) -> Option<Scenario> {
    let Kind {
        program,
        work_mib,
        pause_ms,
    } = KINDS
        .into_iter()
        .find(|candidate| candidate.program.name() == kind)?;
    let load = ProgramLoad {
        program,
        work_mib: rng.u32(work_mib),
        pause_ms: rng.u32(pause_ms),
        fill_mib: rng.u32(60..140),
    };
    Some(Scenario {
        kind,
        guest: ScenarioGuest::Program {
            load,
            ram_mib: rng.u32(80..120) * 4,
        },
        // What Linux itself leaves in memory comes to about 100 MiB.
        bytes_per_second: u64::from(100 + load.fill_mib) * 1_000_000 / rng.u64(5..9),
        downtime_limit: Duration::from_millis(rng.u64(300..600)),
        change_after: None,
    })
}
