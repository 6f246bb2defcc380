//! The report as far as it goes, kept beside the journal for the agent that
//! goes on if this one dies.

use std::time::Duration;

use super::Driver;
use crate::clock;
use crate::pacing::time::Time;
use crate::report::{self, Report};
use crate::supervisor;

const KEEP_EVERY: Duration = Duration::from_secs(5);
/// A long migration has a long report: no more than this part of the time is
/// spent on keeping it.
const WORTH: u32 = 200;

/// When it is kept next.
#[derive(Debug, Default)]
pub(super) struct Draft {
    due: Option<Time>,
}

/// What is kept.
#[derive(serde::Serialize)]
struct Kept<'a> {
    early_is_fine: bool,
    report: &'a Report,
}

impl Driver {
    /// Keeps the report now and then, never while the guest stands.
    pub(super) fn keep_draft(&mut self, now: Time) {
        let (Some((journal, _)), None) = (&self.journal, self.switchover.stopped_at) else {
            return;
        };
        if supervisor::pid().is_none() || self.draft.due.is_some_and(|due| now < due) {
            return;
        }
        let kept = Kept {
            early_is_fine: self.prepared.wish.early_is_fine(),
            report: &self.record.report,
        };
        if let Err(error) = report::write_json(&kept, &journal.report_path()) {
            tracing::debug!(%error, "the report is not kept");
        }
        let taken = clock::now().since(now);
        self.draft.due = Some(now + KEEP_EVERY.max(taken * WORTH));
    }
}
