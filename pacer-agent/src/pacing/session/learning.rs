//! What a session learns of the guest, from samples and syncs.

use std::time::Duration;

use super::super::ledger::Sync;
use super::super::sample::{DirtyWindow, Origin};
use super::super::time::Time;
use super::{Action, FORECAST_EVERY, Phase, Session};

/// An error beyond this (a third more or less), and twice what is expected, is a
/// change, not noise.
const SURPRISE: f64 = 0.3;
/// What is new in a sample in the first pass must be half as much again, what is in all
/// of it twice as much, and so many deviations off.
const NEW_SURPRISE: (f64, f64) = (0.4, 2.0);
const LONG_SURPRISE: (f64, f64) = (0.7, 3.0);

impl Session {
    pub(super) fn on_dirty(&mut self, window: DirtyWindow, at: Time) {
        if window.origin.marks_sync() {
            self.logged_at = Some(at);
            if matches!(self.phase, Phase::Copying { .. }) {
                self.learn(window, at);
                let sync = self.ledger.on_dirty_log(window.all_pages(), at);
                self.on_sync(sync, at);
                return;
            }
        }
        if window.origin == Origin::ContentSampling {
            self.compare(window);
        }
        self.curve.observe(window, at);
    }

    /// In the first pass each sample tells of all the time since before the start, and
    /// little that the one before it did not: whether the guest is another is told by
    /// what was known at the start. One that is calmer shows it only at a sync.
    pub(super) fn compare(&mut self, window: DirtyWindow) {
        let before = self.last_sample.replace(window);
        let Some(known) = &self.first_curve else {
            return;
        };
        // Pages that are new since the sample before are no more than are written in
        // so short a time, which was looked at.
        let new = before.map(|before| DirtyWindow {
            window: window.window.saturating_sub(before.window),
            pages: window.pages.saturating_sub(before.pages),
            ..window
        });
        let is_more = |window: DirtyWindow, (surprise, deviations): (f64, f64)| {
            let spread = known.relative_uncertainty(window.window);
            known
                .error_about(window)
                .is_some_and(|error| error > surprise.max(deviations * spread))
        };
        if is_more(window, LONG_SURPRISE) || new.is_some_and(|new| is_more(new, NEW_SURPRISE)) {
            self.changed = true;
            self.first_curve = None;
        }
    }

    pub(super) fn on_sync(&mut self, sync: Option<Sync>, at: Time) {
        let Some(sync) = sync else { return };
        // Around a sync QEMU may have had nothing to send; only within a pass
        // is it the link that falls short.
        self.link.skip();
        if matches!(self.phase, Phase::Copying { .. }) {
            let pass = self.ledger.pass();
            self.phase = Phase::Copying { pass };
        }
        // The log's own figure is the better one, and was learned already.
        let logged = self
            .logged_at
            .is_some_and(|logged| at.since(logged) < sync.window.min(FORECAST_EVERY));
        if let Some(pages) = sync.found
            && !logged
        {
            let window = DirtyWindow {
                window: self.mean_window(sync.window),
                pages,
                device_pages: 0,
                origin: Origin::Qemu,
            };
            self.learn(window, at);
        }
        let mut record = sync.pass;
        record.at_seconds = at.since(self.t0).as_secs_f64();
        self.actions.push_back(Action::PassEnded(record));
        self.next_tick = self.next_tick.min(at);
    }

    /// The mean window of a pass: QEMU clears its log chunk by chunk of 1 GiB
    /// as the sweep gets there.
    pub(super) fn mean_window(&self, pass: Duration) -> Duration {
        let chunks = u32::try_from(self.ledger.total_pages().div_ceil(1 << 18)).unwrap_or(1);
        let chunks = f64::from(chunks.max(1));
        pass.mul_f64(0.5 + 0.5 / chunks)
    }

    /// Learns a point found by a sync, and how wrong the curve was about it.
    pub(super) fn learn(&mut self, window: DirtyWindow, at: Time) {
        if let Some(error) = self.curve.error_about(window) {
            let spread = self.curve.relative_uncertainty(window.window);
            if error.abs() > SURPRISE.max(2.0 * spread) {
                self.changed |= self.curve.has_counted(window.window);
                // Beyond what was observed it is the guess that was wrong.
                if self.curve.has_observed(window.window) {
                    self.curve.shift(window.window, error.exp());
                }
            }
            if self.curve.has_observed(window.window) {
                self.surprises.push(window.window, error);
            }
        }
        self.curve.observe(window, at);
    }
}
