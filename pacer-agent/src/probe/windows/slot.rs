//! One slot in its logging session: when its parts were cleared, and what a log
//! says about them.

use std::collections::BTreeMap;
use std::time::Duration;

use pacer_common::dirty_log::PART_PAGES;

use super::PartWindow;
use crate::pacing::time::Time;

/// What a log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Pages set.
    pub(super) dirty_pages: u64,
    /// Further pages that devices wrote.
    pub(super) device_pages: u64,
}

impl Counts {
    pub(super) const fn add(&mut self, other: Self) {
        self.dirty_pages = self.dirty_pages.saturating_add(other.dirty_pages);
        self.device_pages = self.device_pages.saturating_add(other.device_pages);
    }
}

/// What a log has of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartCounts {
    pub(super) first_page: u64,
    pub(super) counts: Counts,
}

/// What one log said: pages written, and the windows they were written in.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) counts: Counts,
    pub(super) spans: Spans,
    /// The same part by part; empty where not all parts were told of.
    pub(super) parts: Vec<PartWindow>,
}

/// Lengths of time, each weighted by the pages it holds for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spans {
    pages: u64,
    /// 2^64 ns times 2^64 pages fit.
    page_nanos: u128,
}

impl Spans {
    fn add(&mut self, pages: u64, span: Duration) {
        let page_nanos = span.as_nanos().saturating_mul(u128::from(pages));
        self.pages = self.pages.saturating_add(pages);
        self.page_nanos = self.page_nanos.saturating_add(page_nanos);
    }

    pub(super) fn add_all(&mut self, other: &Self) {
        self.pages = self.pages.saturating_add(other.pages);
        self.page_nanos = self.page_nanos.saturating_add(other.page_nanos);
    }

    /// `None` over no pages.
    pub(super) fn mean(&self) -> Option<Duration> {
        let nanos = self.page_nanos.checked_div(u128::from(self.pages))?;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }
}

/// A slot in its logging session.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) pages: u64,
    /// It was registered before the probe came: it has at least these pages, and
    /// nothing is known of its session's first log.
    pub(super) inferred: bool,
    /// When the log was last read. `None`: not in this session.
    last_read: Option<Time>,
    /// The session's first log had every page set.
    initially_set: bool,
    /// Areas that were cleared, by their first page; they do not overlap.
    cleared: BTreeMap<u64, Area>,
}

/// A part of a slot's log that was cleared at once.
#[derive(Clone, Copy, Debug)]
struct Area {
    /// The page after its last.
    end: u64,
    cleared_at: Time,
}

impl Slot {
    pub(super) const fn new(pages: u64, inferred: bool) -> Self {
        Self {
            pages,
            inferred,
            last_read: None,
            initially_set: false,
            cleared: BTreeMap::new(),
        }
    }

    /// It has at least this many pages, if not all were known.
    pub(super) fn grow(&mut self, pages: u64) {
        if self.inferred {
            self.pages = self.pages.max(pages);
        }
    }

    /// A log was read at `at` and not counted.
    pub(super) const fn skip(&mut self, at: Time) {
        self.last_read = Some(at);
    }

    /// Takes a log whose windows end at `end`. `None` if it says nothing.
    /// `parts` are its parts, in order; what does not add up to `log` is left
    /// aside.
    pub(super) fn read(
        &mut self,
        log: Counts,
        parts: &[PartCounts],
        end: Time,
        clears_apart: bool,
    ) -> Option<Reading> {
        if self.inferred {
            self.last_read = Some(end);
            return self.read_known(log, parts, end);
        }
        let Some(last_read) = self.last_read.replace(end) else {
            self.initially_set = log.dirty_pages >= self.pages;
            return None;
        };
        let since = (!clears_apart).then_some(last_read);
        let spans = self.spans(0, self.pages, since, end);
        if spans.pages == 0 {
            return None;
        }
        Some(Reading {
            counts: self.without_stale(log, self.pages, &spans),
            spans,
            parts: self
                .part_windows(log, parts, since, end)
                .into_iter()
                .map(|(part, _)| part)
                .collect(),
        })
    }

    /// Only the parts that were cleared as a whole: what else is set was written
    /// nobody knows when.
    fn read_known(&self, log: Counts, parts: &[PartCounts], end: Time) -> Option<Reading> {
        let mut reading = Reading::default();
        for (part, spans) in self.part_windows(log, parts, None, end) {
            if spans.pages == part.pages {
                reading.counts.add(Counts {
                    dirty_pages: part.dirty_pages,
                    device_pages: part.device_pages,
                });
                reading.spans.add_all(&spans);
                reading.parts.push(part);
            }
        }
        (reading.spans.pages > 0).then_some(reading)
    }

    /// The parts of which any page was cleared, and the windows of those pages.
    fn part_windows(
        &self,
        log: Counts,
        parts: &[PartCounts],
        since: Option<Time>,
        end: Time,
    ) -> Vec<(PartWindow, Spans)> {
        let whole = [PartCounts {
            first_page: 0,
            counts: log,
        }];
        let parts = if self.pages <= PART_PAGES {
            &whole
        } else {
            parts
        };
        if !self.is_whole(log, parts) {
            return Vec::new();
        }
        let windows = parts.iter().filter_map(|part| {
            let pages = PART_PAGES.min(self.pages - part.first_page);
            let spans = self.spans(part.first_page, part.first_page + pages, since, end);
            let counts = self.without_stale(part.counts, pages, &spans);
            let part = PartWindow {
                window: spans.mean()?,
                pages,
                dirty_pages: counts.dirty_pages,
                device_pages: counts.device_pages,
            };
            Some((part, spans))
        });
        windows.collect()
    }

    /// Whether `parts` are all parts of `log`: none was lost on the way.
    fn is_whole(&self, log: Counts, parts: &[PartCounts]) -> bool {
        let mut next_page = 0;
        let mut sum = 0;
        for part in parts {
            if part.first_page != next_page {
                return false;
            }
            next_page += PART_PAGES;
            sum += part.counts.dirty_pages;
        }
        next_page >= self.pages && sum == log.dirty_pages
    }

    /// The windows of the pages from `first` to `end_page`, which ended at
    /// `end`: since the log was read, where that clears it, else since each was
    /// cleared.
    fn spans(&self, first: u64, end_page: u64, since: Option<Time>, end: Time) -> Spans {
        let mut spans = Spans::default();
        if let Some(since) = since {
            spans.add(end_page - first, end.since(since));
            return spans;
        }
        let before = self.cleared.range(..first).next_back();
        for (&start, area) in before
            .into_iter()
            .chain(self.cleared.range(first..end_page))
        {
            let pages = area.end.min(end_page).saturating_sub(start.max(first));
            spans.add(pages, end.since(area.cleared_at));
        }
        spans
    }

    /// Of `pages` pages, those that were never cleared in a session that began
    /// with all set are still set, written or not.
    fn without_stale(&self, counts: Counts, pages: u64, spans: &Spans) -> Counts {
        let stale = if self.initially_set {
            pages.saturating_sub(spans.pages)
        } else {
            0
        };
        Counts {
            dirty_pages: counts.dirty_pages.saturating_sub(stale),
            ..counts
        }
    }

    /// The pages from `first` on were cleared: cuts them out of older areas.
    pub(super) fn clear(&mut self, first: u64, pages: u64, at: Time) {
        let end = first.saturating_add(pages).min(self.pages);
        if first >= end {
            return;
        }
        let overlapping: Vec<(u64, Area)> = self
            .cleared
            .range(..end)
            .filter(|(_, area)| area.end > first)
            .map(|(&start, &area)| (start, area))
            .collect();
        for (start, area) in overlapping {
            self.cleared.remove(&start);
            if start < first {
                self.cleared.insert(start, Area { end: first, ..area });
            }
            if area.end > end {
                self.cleared.insert(end, area);
            }
        }
        let area = Area {
            end,
            cleared_at: at,
        };
        self.cleared.insert(first, area);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(nanos: u64) -> Time {
        Time::from_nanos(nanos)
    }

    #[test]
    fn clears_cut_older_areas() {
        let mut slot = Slot::new(100, false);
        slot.clear(0, 100, time(1));
        slot.clear(20, 10, time(2));
        slot.clear(25, 50, time(3));
        slot.clear(90, 1000, time(4));
        slot.clear(200, 5, time(5));
        let areas: Vec<_> = slot
            .cleared
            .iter()
            .map(|(&first, area)| (first, area.end, area.cleared_at.as_nanos()))
            .collect();
        assert_eq!(
            areas,
            [
                (0, 20, 1),
                (20, 25, 2),
                (25, 75, 3),
                (75, 90, 1),
                (90, 100, 4)
            ]
        );
    }

    fn part(number: u64, dirty_pages: u64) -> PartCounts {
        PartCounts {
            first_page: number * PART_PAGES,
            counts: Counts {
                dirty_pages,
                device_pages: number,
            },
        }
    }

    /// Three parts, the last of ten pages, cleared from just before each part's
    /// start on, as QEMU does with a slot that begins 1 MiB into its block.
    fn cleared() -> Slot {
        let mut slot = Slot::new(2 * PART_PAGES + 10, false);
        let log = Counts {
            dirty_pages: slot.pages,
            device_pages: 0,
        };
        assert!(slot.read(log, &[], time(0), true).is_none());
        slot.clear(0, PART_PAGES - 256, time(1000));
        slot.clear(PART_PAGES - 256, PART_PAGES, time(2000));
        slot
    }

    #[test]
    fn parts_have_windows_of_their_own() {
        let mut slot = cleared();
        slot.clear(2 * PART_PAGES - 256, 256 + 10, time(4000));
        let log = Counts {
            dirty_pages: 60,
            device_pages: 3,
        };
        let parts = [part(0, 10), part(1, 20), part(2, 30)];
        let reading = slot.read(log, &parts, time(5000), true).expect("it tells");
        let windows: Vec<_> = reading
            .parts
            .iter()
            .map(|part| (part.window.as_nanos(), part.dirty_pages, part.pages))
            .collect();
        // 256 of the 262,144 pages belong to the neighbour's clear.
        assert_eq!(
            windows,
            [
                (3999, 10, PART_PAGES),
                (2998, 20, PART_PAGES),
                (1000, 30, 10)
            ]
        );
        assert_eq!(reading.parts[2].device_pages, 2);
    }

    #[test]
    fn a_part_never_cleared_has_no_window() {
        let mut slot = cleared();
        let log = Counts {
            dirty_pages: 286,
            device_pages: 0,
        };
        // 256 pages of the second part and all of the third are still set.
        let parts = [part(0, 10), part(1, 266), part(2, 10)];
        let reading = slot.read(log, &parts, time(5000), true).expect("it tells");
        assert_eq!(reading.counts.dirty_pages, 20);
        let dirty: Vec<_> = reading.parts.iter().map(|part| part.dirty_pages).collect();
        assert_eq!(dirty, [10, 10]);
    }

    #[test]
    fn lost_parts_are_not_guessed() {
        let log = Counts {
            dirty_pages: 60,
            device_pages: 0,
        };
        for parts in [
            &[part(0, 30), part(2, 30)][..],
            &[part(0, 30), part(1, 30)],
            &[part(0, 30), part(1, 20), part(2, 9)],
            &[],
        ] {
            let reading = cleared().read(log, parts, time(5000), true);
            assert!(reading.expect("the whole is known").parts.is_empty());
        }
    }
}
