//! From dirty logs to points of the dirty curve. Pure: no clock, no I/O.
//!
//! QEMU synchronises its dirty bitmap by reading the dirty log of every slot
//! that is logged, one after the other: a *burst*. The choices made here:
//!
//! - A burst ends as soon as every logged slot was read, or early: by a slot read
//!   again, a slot or the migration's state changed, a log cleared, or the
//!   owner's [`DirtyWindows::flush`].
//! - It becomes a sample if it tells of nine tenths of the logged pages. If not,
//!   it was a session's first, or no synchronisation at all (the display reads
//!   the log of its own slot), and is dropped. So is one over less than half of
//!   the guest's memory: of its RAM where that is known, else of all slots that
//!   are known.
//! - The first log of a slot's logging session says nothing (every page is set)
//!   and is skipped; a session begins when the slot is registered with logging.
//! - A page's window is the time since the part of the log it lies in was last
//!   cleared. QEMU clears in parts of up to 1 GiB just before it sends them, so
//!   within one slot the parts' windows differ: the slot's is their mean,
//!   weighted by pages, and the sample's is the same mean over the slots.
//!   [`DirtyWindows::growth`] has the parts one by one.
//! - Pages never cleared in a session that began with every page set are still
//!   set, written or not: they are taken off the count and have no window.
//! - Once the guest is being stopped for the switchover, windows end there: it
//!   writes no more, however late the last log is read.
//! - Under TCG there is no log. While the stores are watched, a window goes from
//!   one sync of the dirty bitmap to the next.
//! - Of a slot that was registered before the probe came only those parts count
//!   whose log was seen to be cleared as a whole; the sample is marked.
//! - KVM's dirty rings are emptied at a sync and in between. A window goes from
//!   sync to sync, as QEMU's own mark shows them.
//! - A kernel that clears a log by reading it (no CLEAR is ever seen) has
//!   windows from read to read.

mod rings;
mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Event, EventKind};
use crate::pacing::sample::{DirtyWindow, Origin, Sample};
use crate::pacing::time::Time;
use rings::Rings;
use slot::{Counts, PartCounts, Reading, Slot, Spans};

/// How long the owner waits for the next dirty log of a burst before it calls
/// [`DirtyWindows::flush`]. Within a burst logs follow each other by well under
/// a millisecond.
pub const BURST_GAP: Duration = Duration::from_millis(20);

/// The share of the logged pages that a burst must cover, in percent.
const WHOLE_PERCENT: u64 = 90;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// What the last sync found in one part of the guest's memory: 1 GiB of a slot,
/// or what is left of it. Parts that QEMU cleared early in the pass have long
/// windows, those it came to late have short ones: how the dirty set grows
/// within a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartWindow {
    /// How long its window was: the mean over its pages, where they were not
    /// cleared at once.
    pub window: Duration,
    /// Distinct pages of it that vCPUs wrote in that window.
    pub dirty_pages: u64,
    /// As in [`DirtyWindow::device_pages`].
    pub device_pages: u64,
    /// Pages it has.
    pub pages: u64,
}

/// Turns the events of one process into samples of its dirty curve.
#[derive(Debug, Default)]
pub struct DirtyWindows {
    /// The slots whose pages are logged.
    slots: BTreeMap<u32, Slot>,
    /// Pages of every slot that is known, logged or not.
    sizes: BTreeMap<u32, u64>,
    /// Parts of the log that is told of next, and of which slot.
    parts: (u32, Vec<PartCounts>),
    burst: Burst,
    rings: Rings,
    /// Whether this kernel clears logs apart from reading them.
    clears_apart: bool,
    /// Pages of the guest's RAM, where its owner knows.
    ram_pages: Option<u64>,
    pages_at_last_sync: Option<u64>,
    growth: Vec<PartWindow>,
    /// When the stores of a guest under TCG were last counted, and in which time
    /// of watching.
    stores_counted: Option<(u32, Time)>,
    /// When the guest was stopped, as far as its logging goes on since.
    stopped_at: Option<Time>,
}

impl DirtyWindows {
    /// Knows of no slot yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells how much RAM the guest has, in bytes. From then on bursts over
    /// less than half of it are no samples: with a display, QEMU logs the
    /// frame buffer's slot alone. (Slots may be of other memory too.)
    pub const fn expect_ram(&mut self, total_bytes: u64) {
        self.ram_pages = Some(total_bytes / PAGE_BYTES);
    }

    /// Takes the next event, in the order of the probe. Returns a sample if it
    /// completed a burst; else call [`DirtyWindows::flush`] after
    /// [`BURST_GAP`] without another event.
    pub fn handle_event(&mut self, event: &Event) -> Option<Sample> {
        // The owner may come later than the gap.
        let paused = self.burst.has_paused(event.at).then(|| self.end_burst());
        let sample = self.take_in(event);
        // A slot that is alone in its burst ends it at once: not both.
        paused.flatten().or(sample)
    }

    fn take_in(&mut self, event: &Event) -> Option<Sample> {
        match event.kind {
            EventKind::DirtyLog {
                slot,
                dirty_pages,
                device_pages,
                total_pages,
                inferred,
            } => {
                let log = Counts {
                    dirty_pages,
                    device_pages,
                };
                // A log that is read was switched on, even if that was not seen.
                let slot_state = self
                    .slots
                    .entry(slot)
                    .or_insert_with(|| Slot::new(total_pages, inferred));
                slot_state.grow(total_pages);
                self.sizes.insert(slot, slot_state.pages);
                self.on_log(slot, log, event.at)
            }
            EventKind::LogUnread { slot } => {
                self.on_unread(slot, event.at);
                None
            }
            EventKind::DirtyPart {
                slot,
                first_page,
                dirty_pages,
                device_pages,
            } => {
                let counts = Counts {
                    dirty_pages,
                    device_pages,
                };
                self.on_part(slot, PartCounts { first_page, counts });
                None
            }
            EventKind::LogCleared {
                slot,
                first_page,
                pages,
            } => {
                let sample = self.end_burst();
                self.on_clear(slot, first_page, pages, event.at);
                sample
            }
            EventKind::SlotRegistered {
                slot,
                pages,
                logging,
                ..
            } => {
                let sample = self.end_burst();
                self.on_registered(slot, pages, logging);
                sample
            }
            EventKind::GuestStopping => {
                self.stopped_at = Some(event.at);
                self.end_burst()
            }
            EventKind::StoresCounted {
                pages,
                overflow,
                watching,
            } => self.on_stores(pages, overflow, watching, event.at),
            EventKind::BitmapSync => {
                let sample = self.end_burst().or_else(|| self.rings.end());
                self.rings.begin_end(event.at);
                sample
            }
            EventKind::RingsReset { pages, .. } => {
                // Pages of the next window end the last one, if nobody did.
                let due = self.rings.is_due(event.at);
                let sample = due.then(|| self.rings.end()).flatten();
                self.rings.add(pages);
                sample
            }
            EventKind::MigrationState { .. } => self.end_burst(),
        }
    }

    /// Ends a burst that has paused for [`BURST_GAP`] by `now`; otherwise does
    /// nothing.
    pub fn flush(&mut self, now: Time) -> Option<Sample> {
        if self.rings.is_due(now) {
            return self.rings.end();
        }
        self.burst
            .has_paused(now)
            .then(|| self.end_burst())
            .flatten()
    }

    /// Distinct pages that vCPUs wrote in the window before the last sync over
    /// all slots. `None` before there was one.
    #[must_use]
    pub const fn pages_dirty_at_last_sync(&self) -> Option<u64> {
        self.pages_at_last_sync
    }

    /// What the last sync found in each part of the guest's memory whose window
    /// is known, slot by slot. Empty before there was one.
    #[must_use]
    pub fn growth(&self) -> &[PartWindow] {
        &self.growth
    }

    fn on_registered(&mut self, slot: u32, pages: u64, logging: bool) {
        // Logging begins or ends with the migration: if that one failed, the
        // guest runs again, and no event says so.
        self.stopped_at = None;
        if pages > 0 {
            self.sizes.insert(slot, pages);
        } else {
            self.sizes.remove(&slot);
        }
        if logging && pages > 0 {
            self.slots.insert(slot, Slot::new(pages, false));
        } else {
            self.slots.remove(&slot);
        }
    }

    fn on_clear(&mut self, id: u32, first_page: u64, pages: u64, at: Time) {
        self.clears_apart = true;
        // Of a slot that was registered before the probe came nothing is known
        // but what is cleared.
        let end = first_page.saturating_add(pages);
        let slot = self.slots.entry(id).or_insert_with(|| Slot::new(end, true));
        slot.grow(end);
        slot.clear(first_page, pages, at);
        self.sizes.insert(id, slot.pages);
    }

    fn on_part(&mut self, slot: u32, part: PartCounts) {
        if self.parts.0 != slot || part.first_page == 0 {
            self.parts = (slot, Vec::new());
        }
        self.parts.1.push(part);
    }

    /// Its pages are told of by no sample, but the next window begins here
    /// where logs are cleared by reading.
    fn on_unread(&mut self, id: u32, at: Time) {
        self.parts = (id, Vec::new());
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.skip(at);
            self.burst.seen.insert(id);
            self.burst.last = at;
        }
    }

    fn on_log(&mut self, id: u32, log: Counts, at: Time) -> Option<Sample> {
        let early = self.burst.seen.contains(&id).then(|| self.end_burst());
        let (slot_of_parts, parts) = std::mem::take(&mut self.parts);
        let parts = if slot_of_parts == id { &parts[..] } else { &[] };
        let slot = self.slots.get_mut(&id)?;
        let end = self.stopped_at.map_or(at, |stopped_at| stopped_at.min(at));
        let reading = slot.read(log, parts, end, self.clears_apart);
        self.burst.add(id, slot, reading, at);
        let complete = self.slots.keys().all(|id| self.burst.seen.contains(id));
        // Not both: a burst of one slot completes with its first log.
        early
            .flatten()
            .or_else(|| complete.then(|| self.end_burst()).flatten())
    }

    /// Only what was watched from sync to sync, and all of it, is a sample.
    fn on_stores(&mut self, pages: u64, overflow: u64, watching: u32, at: Time) -> Option<Sample> {
        let end = self.stopped_at.map_or(at, |stopped_at| stopped_at.min(at));
        let (before, began) = self.stores_counted.replace((watching, at))?;
        if before != watching {
            // Another migration: the guest runs.
            self.stopped_at = None;
        }
        let window = end.since(began);
        if before != watching || overflow > 0 || window.is_zero() {
            return None;
        }
        self.pages_at_last_sync = Some(pages);
        Some(Sample::Dirty(DirtyWindow {
            window,
            pages,
            device_pages: 0,
            origin: Origin::StoreHelper,
        }))
    }

    /// Whether it can be a sync, as far as the slots tell. Of a slot that was
    /// registered before the probe came, a log that said nothing was read too.
    fn is_sync(&self, burst: &Burst) -> bool {
        let known: u64 = self.sizes.values().sum();
        let read: u64 = burst
            .seen
            .iter()
            .filter_map(|slot| self.sizes.get(slot))
            .sum();
        self.ram_pages.is_some() && !burst.inferred || read >= known / 2
    }

    fn end_burst(&mut self) -> Option<Sample> {
        let burst = std::mem::take(&mut self.burst);
        let logged: u64 = self.slots.values().map(|slot| slot.pages).sum();
        let whole = burst.told_pages.saturating_mul(100) >= logged.saturating_mul(WHOLE_PERCENT)
            && burst.told_pages >= self.ram_pages.unwrap_or(0) / 2;
        let window = burst.spans.mean()?;
        if !(whole || burst.inferred) || !self.is_sync(&burst) || window.is_zero() {
            return None;
        }
        self.growth = burst.parts;
        let origin = if burst.inferred {
            Origin::DirtyLogPart
        } else {
            self.pages_at_last_sync = Some(burst.counts.dirty_pages);
            Origin::DirtyLog
        };
        Some(Sample::Dirty(DirtyWindow {
            window,
            pages: burst.counts.dirty_pages,
            device_pages: burst.counts.device_pages,
            origin,
        }))
    }
}

/// The logs read since the last sync.
#[derive(Debug, Default)]
struct Burst {
    seen: BTreeSet<u32>,
    /// Pages of the slots whose logs said something.
    told_pages: u64,
    /// One of them is known in part only.
    inferred: bool,
    counts: Counts,
    spans: Spans,
    parts: Vec<PartWindow>,
    /// When the last log was read.
    last: Time,
}

impl Burst {
    /// Whether nothing came for so long by `now` that nothing more will.
    fn has_paused(&self, now: Time) -> bool {
        now.since(self.last) >= BURST_GAP
    }

    fn add(&mut self, id: u32, slot: &Slot, reading: Option<Reading>, at: Time) {
        self.seen.insert(id);
        self.last = at;
        if let Some(reading) = reading {
            self.inferred |= slot.inferred;
            self.told_pages = self.told_pages.saturating_add(slot.pages);
            self.counts.add(reading.counts);
            self.spans.add_all(&reading.spans);
            self.parts.extend(reading.parts);
        }
    }
}

#[cfg(test)]
mod tests {
    use pacer_common::dirty_log::PART_PAGES;

    use super::*;

    const MILLISECOND: u64 = 1_000_000;

    fn at(milliseconds: u64, kind: EventKind) -> Event {
        Event {
            at: Time::from_nanos(milliseconds * MILLISECOND),
            kind,
        }
    }

    fn register(slot: u32, pages: u64) -> EventKind {
        EventKind::SlotRegistered {
            slot,
            pages,
            user_address: 0,
            logging: true,
        }
    }

    fn log(slot: u32, dirty_pages: u64, total_pages: u64) -> EventKind {
        EventKind::DirtyLog {
            slot,
            dirty_pages,
            device_pages: 0,
            total_pages,
            inferred: false,
        }
    }

    fn clear(slot: u32, first_page: u64, pages: u64) -> EventKind {
        EventKind::LogCleared {
            slot,
            first_page,
            pages,
        }
    }

    fn sample(milliseconds: u64, pages: u64) -> Option<Sample> {
        Some(Sample::Dirty(DirtyWindow {
            window: Duration::from_millis(milliseconds),
            pages,
            device_pages: 0,
            origin: Origin::DirtyLog,
        }))
    }

    /// The samples that a script of (milliseconds, event) gives.
    fn check(windows: &mut DirtyWindows, script: &[(u64, EventKind)], expected: &[Option<Sample>]) {
        let samples: Vec<_> = script
            .iter()
            .map(|&(time, kind)| windows.handle_event(&at(time, kind)))
            .filter(Option::is_some)
            .collect();
        assert_eq!(samples, expected);
    }

    #[test]
    fn the_first_log_is_skipped_and_windows_start_at_the_clear() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (1, log(0, 1000, 1000)),
            (5, clear(0, 0, 1000)),
            (105, log(0, 70, 1000)),
            (110, clear(0, 0, 1000)),
            (160, log(0, 40, 1000)),
        ];
        check(&mut windows, &script, &[sample(100, 70), sample(50, 40)]);
        assert_eq!(windows.pages_dirty_at_last_sync(), Some(40));
    }

    #[test]
    fn slots_add_up_and_the_large_one_sets_the_window() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 900)),
            (0, register(1 << 16, 100)),
            (1, log(0, 900, 900)),
            (1, log(1 << 16, 100, 100)),
            (10, clear(0, 0, 900)),
            (60, clear(1 << 16, 0, 100)),
            (110, log(0, 30, 900)),
            (110, log(1 << 16, 5, 100)),
        ];
        check(&mut windows, &script, &[sample(95, 35)]);
    }

    #[test]
    fn parts_of_a_slot_have_their_own_windows() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 1000, 1000)),
            (0, clear(0, 0, 1000)),
            // The second half is sent, and cleared, later.
            (100, clear(0, 500, 500)),
            (200, log(0, 10, 1000)),
        ];
        check(&mut windows, &script, &[sample(150, 10)]);
    }

    #[test]
    fn what_was_never_cleared_is_not_counted() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 1000, 1000)),
            (0, clear(0, 0, 600)),
            (100, log(0, 420, 1000)),
        ];
        check(&mut windows, &script, &[sample(100, 20)]);
    }

    #[test]
    fn without_clears_windows_go_from_read_to_read() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 12, 1000)),
            (50, log(0, 7, 1000)),
            (150, log(0, 9, 1000)),
        ];
        check(&mut windows, &script, &[sample(50, 7), sample(100, 9)]);
    }

    #[test]
    fn the_display_alone_is_no_sync() {
        let mut windows = DirtyWindows::new();
        windows.expect_ram(1000 * PAGE_BYTES);
        let script = [
            (0, register(9, 100)),
            (0, log(9, 100, 100)),
            (1, clear(9, 0, 100)),
            (31, log(9, 3, 100)),
            (32, register(0, 1000)),
            (33, log(0, 1000, 1000)),
            (33, log(9, 3, 100)),
            (40, clear(0, 0, 1000)),
            (41, clear(9, 0, 100)),
            (50, log(9, 3, 100)),
            (60, log(9, 3, 100)),
        ];
        check(&mut windows, &script, &[]);
        assert_eq!(windows.pages_dirty_at_last_sync(), None);
    }

    /// A slot whose pages are not logged.
    fn register_unlogged(slot: u32, pages: u64) -> EventKind {
        EventKind::SlotRegistered {
            slot,
            pages,
            user_address: 0,
            logging: false,
        }
    }

    #[test]
    fn the_display_alone_is_no_sync_where_nobody_says_how_much_ram_there_is() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register_unlogged(0, 1000)),
            (0, register_unlogged(1, 500)),
            (0, register(9, 100)),
            (0, log(9, 100, 100)),
            (1, clear(9, 0, 100)),
            (31, log(9, 3, 100)),
            (32, clear(9, 0, 100)),
            // The guest's memory was unplugged but for a little.
            (40, register_unlogged(0, 0)),
            (40, register_unlogged(1, 50)),
            (62, log(9, 4, 100)),
        ];
        check(&mut windows, &script, &[sample(30, 4)]);
    }

    #[test]
    fn a_late_probe_takes_no_display_for_a_sync_once_it_knows_of_more() {
        let mut windows = DirtyWindows::new();
        let late = |slot, dirty_pages, total_pages| EventKind::DirtyLog {
            slot,
            dirty_pages,
            device_pages: 0,
            total_pages,
            inferred: true,
        };
        let script = [
            (0, clear(0, 0, 1000)),
            (0, clear(9, 0, 100)),
            (40, late(9, 3, 100)),
            (41, clear(9, 0, 100)),
            // Its parts do not add up: nothing is told of it.
            (100, EventKind::LogUnread { slot: 0 }),
            (100, late(9, 4, 100)),
        ];
        let expected = DirtyWindow {
            window: Duration::from_millis(59),
            pages: 4,
            device_pages: 0,
            origin: Origin::DirtyLogPart,
        };
        check(&mut windows, &script, &[Some(Sample::Dirty(expected))]);
    }

    #[test]
    fn a_lost_log_of_a_small_slot_does_not_lose_the_sync() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, register(1, 10)),
            (0, log(0, 1000, 1000)),
            (0, log(1, 10, 10)),
            (0, clear(0, 0, 1000)),
            (100, log(0, 50, 1000)),
        ];
        check(&mut windows, &script, &[]);
        let soon = Time::from_nanos(110 * MILLISECOND);
        assert_eq!(windows.flush(soon), None, "it may go on");
        let later = Time::from_nanos(120 * MILLISECOND);
        assert_eq!(windows.flush(later), sample(100, 50));
        assert_eq!(windows.flush(later), None, "once only");
    }

    #[test]
    fn a_new_session_starts_over() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 1000, 1000)),
            (0, clear(0, 0, 1000)),
            (10, register_unlogged(0, 1000)),
            (20, register(0, 1000)),
            (21, log(0, 1000, 1000)),
            (22, clear(0, 0, 1000)),
            (72, log(0, 5, 1000)),
        ];
        check(&mut windows, &script, &[sample(50, 5)]);
    }

    #[test]
    fn windows_end_where_the_guest_stops() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 1000, 1000)),
            (10, clear(0, 0, 1000)),
            (60, EventKind::GuestStopping),
            (90, log(0, 5, 1000)),
            (91, clear(0, 0, 1000)),
            // Nothing is written while it stands still.
            (95, log(0, 0, 1000)),
        ];
        check(&mut windows, &script, &[sample(50, 5)]);
        // It runs on at the source, and the next migration begins.
        let script = [
            (200, register(0, 1000)),
            (200, log(0, 1000, 1000)),
            (210, clear(0, 0, 1000)),
            (230, log(0, 4, 1000)),
        ];
        check(&mut windows, &script, &[sample(20, 4)]);
    }

    #[test]
    fn pages_of_devices_stand_beside_those_of_vcpus() {
        let mut windows = DirtyWindows::new();
        let log = |slot, dirty_pages, device_pages| EventKind::DirtyLog {
            slot,
            dirty_pages,
            device_pages,
            total_pages: 1000,
            inferred: false,
        };
        let script = [
            (0, register(0, 1000)),
            (0, register(1, 1000)),
            (0, log(0, 1000, 0)),
            (0, log(1, 1000, 7)),
            (0, clear(0, 0, 1000)),
            (50, clear(1, 0, 1000)),
            (100, log(0, 50, 20)),
            (100, log(1, 5, 3)),
        ];
        let expected = DirtyWindow {
            window: Duration::from_millis(75),
            pages: 55,
            device_pages: 23,
            origin: Origin::DirtyLog,
        };
        check(&mut windows, &script, &[Some(Sample::Dirty(expected))]);
        let part = |milliseconds, dirty_pages, device_pages| PartWindow {
            window: Duration::from_millis(milliseconds),
            dirty_pages,
            device_pages,
            pages: 1000,
        };
        assert_eq!(windows.growth(), [part(100, 50, 20), part(50, 5, 3)]);
    }

    #[test]
    fn a_late_probe_tells_of_what_it_knows_alone() {
        const PAGES: u64 = PART_PAGES + 100;
        let mut windows = DirtyWindows::new();
        let late = |dirty_pages, total_pages| EventKind::DirtyLog {
            slot: 0,
            dirty_pages,
            device_pages: 0,
            total_pages,
            inferred: true,
        };
        let part = |first_page, dirty_pages| EventKind::DirtyPart {
            slot: 0,
            first_page,
            dirty_pages,
            device_pages: 0,
        };
        let script = [
            (0, EventKind::LogUnread { slot: 0 }),
            // The second part of the slot, of which the first is unknown.
            (10, clear(0, PART_PAGES, 100)),
            (50, part(0, 999)),
            (50, part(PART_PAGES, 7)),
            (50, late(1006, PAGES)),
            (60, clear(0, 0, PAGES)),
            (100, part(0, 50)),
            (100, part(PART_PAGES, 5)),
            (100, late(55, PAGES)),
        ];
        let sample = |milliseconds, pages| {
            Some(Sample::Dirty(DirtyWindow {
                window: Duration::from_millis(milliseconds),
                pages,
                device_pages: 0,
                origin: Origin::DirtyLogPart,
            }))
        };
        check(&mut windows, &script, &[sample(40, 7), sample(40, 55)]);
        assert_eq!(windows.pages_dirty_at_last_sync(), None);
        assert_eq!(windows.growth().len(), 2);
    }

    #[test]
    fn a_log_that_was_not_counted_is_no_sample() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, log(0, 12, 1000)),
            (50, EventKind::LogUnread { slot: 0 }),
            // Read again: that ends the burst, which says nothing.
            (150, log(0, 9, 1000)),
        ];
        check(&mut windows, &script, &[sample(100, 9)]);
    }

    #[test]
    fn rings_are_told_of_from_sync_to_sync() {
        let mut windows = DirtyWindows::new();
        let reset = |pages| EventKind::RingsReset {
            pages,
            pushed: pages,
        };
        let script = [
            (0, EventKind::BitmapSync),
            (1, reset(900)),
            (60, reset(30)),
            (100, EventKind::BitmapSync),
            (101, reset(12)),
        ];
        check(&mut windows, &script, &[]);
        let later = Time::from_nanos(121 * MILLISECOND);
        let sample = windows.flush(later);
        let expected = DirtyWindow {
            window: Duration::from_millis(100),
            pages: 42,
            device_pages: 0,
            origin: Origin::DirtyRing,
        };
        assert_eq!(sample, Some(Sample::Dirty(expected)));
        assert_eq!(windows.flush(later), None, "once only");
    }

    #[test]
    fn stores_count_from_sync_to_sync() {
        let mut windows = DirtyWindows::new();
        let stores = |pages, overflow, watching| EventKind::StoresCounted {
            pages,
            overflow,
            watching,
        };
        let script = [
            // Watched since some time within that window.
            (10, EventKind::BitmapSync),
            (10, stores(5, 0, 1)),
            (60, stores(70, 0, 1)),
            (90, stores(30, 2, 1)),
            // Not watched meanwhile.
            (200, stores(1, 0, 2)),
            (220, EventKind::GuestStopping),
            (230, stores(9, 0, 2)),
            (240, stores(0, 0, 2)),
        ];
        let expected = [(50, 70), (20, 9)].map(|(milliseconds, pages)| {
            Some(Sample::Dirty(DirtyWindow {
                window: Duration::from_millis(milliseconds),
                pages,
                device_pages: 0,
                origin: Origin::StoreHelper,
            }))
        });
        check(&mut windows, &script, &expected);
    }

    #[test]
    fn a_pause_ends_a_burst_however_late_it_is_seen() {
        let mut windows = DirtyWindows::new();
        let script = [
            (0, register(0, 1000)),
            (0, register(1, 10)),
            (0, log(0, 1000, 1000)),
            (0, log(1, 10, 10)),
            (0, clear(0, 0, 1000)),
            (0, clear(1, 0, 10)),
            // The display looks at its own memory, and long after QEMU at all.
            (50, log(1, 3, 10)),
            (200, log(0, 40, 1000)),
            (200, log(1, 4, 10)),
        ];
        let samples: Vec<_> = script
            .iter()
            .filter_map(|&(time, kind)| windows.handle_event(&at(time, kind)))
            .collect();
        assert_eq!(samples.len(), 1, "{samples:?}");
        assert_eq!(windows.pages_dirty_at_last_sync(), Some(44));
    }

    #[test]
    fn parts_belong_to_the_log_that_follows() {
        const PAGES: u64 = PART_PAGES + 100;
        let mut windows = DirtyWindows::new();
        let part = |slot, first_page, dirty_pages| EventKind::DirtyPart {
            slot,
            first_page,
            dirty_pages,
            device_pages: 0,
        };
        let script = [
            (0, register(0, PAGES)),
            (0, log(0, PAGES, PAGES)),
            (0, clear(0, 0, PART_PAGES)),
            (40, clear(0, PART_PAGES, 100)),
            // Of a log whose end was not told.
            (90, part(0, 0, 9)),
            (100, part(0, 0, 30)),
            (100, part(0, PART_PAGES, 4)),
            (100, log(0, 34, PAGES)),
        ];
        let samples = script.map(|(time, kind)| windows.handle_event(&at(time, kind)));
        assert_eq!(samples.iter().flatten().count(), 1);
        let growth: Vec<_> = windows
            .growth()
            .iter()
            .map(|part| (part.window.as_millis(), part.dirty_pages, part.pages))
            .collect();
        assert_eq!(growth, [(100, 30, PART_PAGES), (60, 4, 100)]);
    }
}
