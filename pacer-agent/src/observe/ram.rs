//! How the guest writes its memory, from windows as they end. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::line::{DirtyRate, Ram, Sync, SyncTotals};
use crate::pacing::sample::{DirtyWindow, Origin};
use crate::pacing::time::Time;
use crate::probe::{Event, EventKind};
use crate::units::to_f64;

/// A figure that is older says nothing about the guest now.
const OUT_OF_DATE: Duration = Duration::from_secs(60);
/// Windows are told apart by length in steps of 1, 2 and 5: a migration's are
/// all different.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
const PAGE_BYTES: u64 = 4096;

/// Why nothing is known of the guest's memory when there is no figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asking {
    /// QEMU is not asked.
    #[default]
    WithoutQmp,
    /// QEMU is asked to measure.
    Measuring,
    /// It was, and its monitor is gone.
    Gone,
}

/// What was seen of the guest's memory.
#[derive(Debug, Default)]
pub struct RamState {
    new: Vec<(Time, DirtyWindow)>,
    newest: BTreeMap<i32, (Time, DirtyWindow)>,
    totals: BTreeMap<&'static str, SyncTotals>,
    /// Pages of the slots whose dirty log was read.
    logged: BTreeMap<u32, u64>,
    total_bytes: Option<u64>,
    last_log: Option<Time>,
    last_part: Option<Time>,
    /// Whether QEMU is asked.
    pub asking: Asking,
}

impl RamState {
    /// How much RAM the guest has, as QEMU says.
    pub const fn set_total(&mut self, bytes: u64) {
        self.total_bytes = Some(bytes);
    }

    /// Takes in which slots are logged. Windows come by
    /// [`RamState::handle_window`].
    pub fn handle_event(&mut self, event: &Event) {
        match event.kind {
            EventKind::DirtyLog {
                slot, total_pages, ..
            } => {
                self.logged.insert(slot, total_pages);
            }
            EventKind::SlotRegistered {
                slot,
                pages,
                logging,
                ..
            } if !logging || pages == 0 => {
                self.logged.remove(&slot);
            }
            _ => {}
        }
    }

    /// A window ended at `at`.
    pub fn handle_window(&mut self, window: DirtyWindow, at: Time) {
        if is_seen(window.origin) {
            self.last_log = Some(at);
        }
        if window.window.is_zero() {
            return;
        }
        // A part of the memory says nothing of all of it.
        if window.origin == Origin::DirtyLogPart {
            self.last_part = Some(at);
        } else {
            self.newest
                .insert(class(window.window.as_secs_f64()), (at, window));
        }
        let totals = self.totals.entry(word(window.origin)).or_default();
        totals.syncs += 1;
        totals.pages = totals.pages.saturating_add(window.pages);
        if let Some(pages) = device_pages(&window) {
            let sum = totals.device_pages.unwrap_or(0);
            totals.device_pages = Some(sum.saturating_add(pages));
        }
        self.new.push((at, window));
    }

    /// QEMU's own figure for a measurement that was made from `began` to `at`:
    /// of use where the probe did not see the log that it was made from.
    pub fn handle_measured(&mut self, window: DirtyWindow, began: Time, at: Time) {
        if self.last_log.is_none_or(|seen| seen < began) {
            self.handle_window(window, at);
        }
    }

    /// What to say at `now`, of a process observed since `started`.
    pub fn line(&mut self, started: Time, now: Time) -> Ram {
        let syncs = std::mem::take(&mut self.new);
        let total_pages = self.total_pages();
        let known = self
            .newest
            .values()
            .any(|(at, _)| now.since(*at) <= OUT_OF_DATE);
        Ram {
            syncs: syncs
                .iter()
                .map(|(at, window)| sync(*at, window, started, total_pages))
                .collect(),
            dirty_rates: self
                .newest
                .values()
                .map(|(at, window)| dirty_rate(*at, window, now))
                .collect(),
            known,
            totals: self.totals.clone(),
            why_not: (!known).then(|| self.why_not(now).to_owned()),
        }
    }

    fn total_pages(&self) -> Option<u64> {
        let logged: u64 = self.logged.values().sum();
        if logged > 0 {
            return Some(logged);
        }
        self.total_bytes.map(|bytes| bytes / PAGE_BYTES)
    }

    fn why_not(&self, now: Time) -> &'static str {
        if self
            .last_part
            .is_some_and(|at| now.since(at) <= OUT_OF_DATE)
        {
            return "pacer came while QEMU logged already: only a part of the memory is seen \
                    until QEMU has cleared its whole log";
        }
        match self.asking {
            Asking::WithoutQmp => {
                "outside of a migration nothing shows which pages are written; with --qmp Pacer \
                 has QEMU measure it"
            }
            Asking::Measuring => "QEMU has not measured it in the last minute",
            Asking::Gone => "QEMU's monitor (--qmp) does not answer any more",
        }
    }
}

fn sync(at: Time, window: &DirtyWindow, started: Time, total_pages: Option<u64>) -> Sync {
    Sync {
        at_seconds: at.since(started).as_secs_f64(),
        window_seconds: window.window.as_secs_f64(),
        pages: window.pages,
        device_pages: device_pages(window),
        total_pages,
        origin: word(window.origin),
    }
}

fn dirty_rate(at: Time, window: &DirtyWindow, now: Time) -> DirtyRate {
    let window_seconds = window.window.as_secs_f64();
    DirtyRate {
        window_seconds,
        pages: window.all_pages(),
        pages_per_second: to_f64(window.all_pages()) / window_seconds,
        age_seconds: now.since(at).as_secs_f64(),
        origin: word(window.origin),
    }
}

/// Pages that only devices wrote, where they are told apart.
fn device_pages(window: &DirtyWindow) -> Option<u64> {
    matches!(window.origin, Origin::DirtyLog | Origin::DirtyLogPart).then_some(window.device_pages)
}

/// Whether the probe counted it, and not QEMU.
fn is_seen(origin: Origin) -> bool {
    origin.marks_sync() || origin == Origin::DirtyLogPart
}

/// The word for where a figure comes from.
#[must_use]
pub const fn word(origin: Origin) -> &'static str {
    match origin {
        Origin::DirtyLog => "dirty-log",
        Origin::DirtyLogPart => "dirty-log-part",
        Origin::DirtyRing => "dirty-ring",
        Origin::StoreHelper => "store-helper",
        Origin::Qemu => "qemu",
        Origin::PageSampling => "page-sampling",
        Origin::ContentSampling => "content-sampling",
        Origin::Stream => "stream",
    }
}

/// Which of the lengths 1, 2, 5, 10, … (and 0.5, 0.2, 0.1, …) seconds is
/// nearest, in proportion: 0 is 1 s, one more is the next longer.
fn class(seconds: f64) -> i32 {
    let decade = seconds.log10().floor();
    let mantissa = seconds / 10f64.powf(decade);
    // The borders are the geometric means of neighbours.
    let step = [(2f64).sqrt(), (10f64).sqrt(), (50f64).sqrt()]
        .iter()
        .filter(|border| mantissa >= **border)
        .count();
    #[expect(clippy::cast_possible_truncation, reason = "-9 to 10 for a Duration")]
    let decade = decade as i32;
    decade * 3 + i32::try_from(step).unwrap_or(0)
}

/// The length that stands for its class, in seconds.
#[must_use]
pub fn nominal_seconds(seconds: f64) -> f64 {
    let class = class(seconds);
    let step = usize::try_from(class.rem_euclid(3)).unwrap_or(0);
    STEPS[step] * 10f64.powi(class.div_euclid(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::from_nanos(milliseconds * 1_000_000)
    }

    fn window(milliseconds: u64, pages: u64, origin: Origin) -> DirtyWindow {
        DirtyWindow {
            window: Duration::from_millis(milliseconds),
            pages,
            device_pages: 0,
            origin,
        }
    }

    #[test]
    fn lengths_fall_into_classes() {
        let check = |seconds: f64, nominal: f64| {
            let found = nominal_seconds(seconds);
            assert!((found / nominal - 1.0).abs() < 1e-9, "{seconds}: {found}");
        };
        check(0.05, 0.05);
        check(0.0512, 0.05);
        check(0.1, 0.1);
        check(0.999, 1.0);
        check(1.0, 1.0);
        check(1.3, 1.0);
        check(1.5, 2.0);
        check(7.0, 5.0);
        check(7.2, 10.0);
        check(1234.0, 1000.0);
    }

    #[test]
    fn a_window_is_told_once_and_kept_as_a_rate() {
        let mut ram = RamState::default();
        ram.set_total(4096 * 1000);
        ram.handle_window(window(100, 7, Origin::DirtyLog), at(1100));
        ram.handle_window(window(110, 11, Origin::DirtyLog), at(1300));
        ram.handle_window(window(1000, 40, Origin::DirtyLog), at(2300));
        let first = ram.line(at(1000), at(2500));
        assert_eq!(first.syncs.len(), 3);
        assert_eq!(first.syncs[1].pages, 11);
        assert!((first.syncs[1].at_seconds - 0.3).abs() < 1e-9);
        assert_eq!(first.syncs[1].total_pages, Some(1000));
        let pages: Vec<_> = first.dirty_rates.iter().map(|rate| rate.pages).collect();
        assert_eq!(pages, [11, 40], "the newest of each length, shortest first");
        assert!((first.dirty_rates[0].pages_per_second - 100.0).abs() < 1e-9);
        assert!((first.dirty_rates[0].age_seconds - 1.2).abs() < 1e-9);
        assert!(first.known);
        let second = ram.line(at(1000), at(3500));
        assert_eq!(second.syncs, []);
        assert_eq!(second.dirty_rates.len(), 2);
    }

    #[test]
    fn what_is_not_known_is_said_and_why() {
        let mut ram = RamState::default();
        let line = ram.line(at(0), at(0));
        assert!(!line.known);
        assert!(line.why_not.is_some_and(|why| why.contains("--qmp")));
        ram.handle_window(window(100, 7, Origin::DirtyLog), at(0));
        assert!(ram.line(at(0), at(60_000)).known);
        assert!(!ram.line(at(0), at(60_001)).known, "out of date");
    }

    #[test]
    fn qemus_figure_is_used_where_the_log_was_not_seen() {
        let mut ram = RamState::default();
        let measured = window(100, 256, Origin::Qemu);
        ram.handle_window(window(100, 7, Origin::DirtyLog), at(150));
        ram.handle_measured(measured, at(40), at(160));
        assert_eq!(ram.line(at(0), at(200)).syncs.len(), 1, "the probe saw it");
        ram.handle_measured(measured, at(300), at(400));
        assert_eq!(ram.line(at(0), at(500)).syncs[0].origin, "qemu");
    }

    #[test]
    fn what_devices_wrote_is_told_apart_where_it_can_be() {
        let mut ram = RamState::default();
        let seen = DirtyWindow {
            device_pages: 3,
            ..window(100, 7, Origin::DirtyLog)
        };
        ram.handle_window(seen, at(1));
        ram.handle_window(seen, at(101));
        ram.handle_window(window(1000, 9, Origin::PageSampling), at(1000));
        let line = ram.line(at(0), at(1000));
        assert_eq!(line.syncs[0].pages, 7);
        assert_eq!(line.syncs[0].device_pages, Some(3));
        assert_eq!(line.syncs[2].device_pages, None);
        assert_eq!(line.dirty_rates[0].pages, 10, "of whatever writer");
        let totals = line.totals["dirty-log"];
        assert_eq!((totals.syncs, totals.pages), (2, 14));
        assert_eq!(totals.device_pages, Some(6));
        assert_eq!(line.totals["page-sampling"].device_pages, None);
    }

    #[test]
    fn a_part_of_the_memory_is_no_rate() {
        let mut ram = RamState::default();
        ram.handle_window(window(100, 7, Origin::DirtyLogPart), at(1));
        let line = ram.line(at(0), at(2));
        assert_eq!(line.syncs[0].origin, "dirty-log-part");
        assert_eq!(line.dirty_rates, []);
        assert!(line.why_not.is_some_and(|why| why.contains("a part")));
        ram.handle_window(window(100, 7, Origin::DirtyLog), at(3));
        assert!(ram.line(at(0), at(4)).known);
    }

    #[test]
    fn slots_that_are_logged_are_the_total() {
        let mut ram = RamState::default();
        let event = |kind| Event { at: at(1), kind };
        let log = |slot, total_pages| EventKind::DirtyLog {
            slot,
            dirty_pages: 1,
            device_pages: 0,
            total_pages,
            inferred: false,
        };
        ram.handle_event(&event(log(0, 1000)));
        ram.handle_event(&event(log(1, 24)));
        ram.handle_window(window(100, 7, Origin::DirtyLog), at(1));
        assert_eq!(ram.line(at(0), at(2)).syncs[0].total_pages, Some(1024));
    }
}
