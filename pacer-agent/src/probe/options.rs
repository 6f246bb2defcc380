//! What can be set about a probe.

use pacer_common::dirty_log::{DEFAULT_RUN_PIECES, PART_PIECES};

/// How a probe works. The default is right but for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOptions {
    /// GiB of a memory slot whose dirty log the programs count at once, without
    /// being interrupted: at about 5 µs each. What is beyond is counted by this
    /// side. At least 1.
    pub run_gib: u32,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self {
            run_gib: DEFAULT_RUN_PIECES / PART_PIECES,
        }
    }
}

impl ProbeOptions {
    pub(super) fn run_pieces(&self) -> u32 {
        self.run_gib.max(1).saturating_mul(PART_PIECES)
    }
}
