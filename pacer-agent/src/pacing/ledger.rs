//! What the samples say about where the migration is: pages left, passes.

use std::time::Duration;

use super::number::to_f64;
use super::passes::{NORMAL_PAGE_BYTES, PAGE_BYTES, State, ZERO_PAGE_BYTES};
use super::sample::{QemuProgress, Ram, StreamCounters};
use super::time::Time;

/// One pass that ended. Times in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PassRecord {
    /// When it ended, from t0.
    pub at_seconds: f64,
    /// How long it took.
    pub seconds: f64,
    /// Bytes put on the wire meanwhile.
    pub bytes: u64,
    /// Pages sent with content or as zero meanwhile.
    pub pages: u64,
    /// Pages found dirty by the sync that ended it; 0 where nothing tells.
    pub dirty_pages: u64,
}

/// A sync was noticed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sync {
    /// The pass it ended; its `at_seconds` is left 0.
    pub pass: PassRecord,
    /// Pages found dirty, by QEMU's own count; `None` where it does not tell.
    pub found: Option<u64>,
    /// How long the pass was, of which `found` is the harvest.
    pub window: Duration,
}

/// The account of pages and passes.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    ram: Option<Ram>,
    stream: StreamCounters,
    qemu: Option<(QemuProgress, Time)>,
    /// Begun passes; 0 before the first.
    pass: u64,
    pass_began: Time,
    at_pass_start: StreamCounters,
    /// How long the pass before it was, in seconds.
    last_pass_seconds: Option<f64>,
    /// Pages dirty when the pass began, where QEMU does not say what is left.
    dirty_at_start: Option<f64>,
    /// The sync was seen in the dirty log, its marker in the stream not yet.
    marker_due: bool,
    /// Pages that QEMU has sent and the stream's counters have not seen: they
    /// are in socket buffers. Learned at syncs, where QEMU has nothing left.
    lag_pages: f64,
}

/// QEMU's figures older than this are not used.
const STALE: Duration = Duration::from_millis(1500);
/// Socket buffers larger than this (16 MiB) are an error of the account.
const MOST_LAG_PAGES: f64 = 4096.0;
/// Share of pages with content, before anything tells.
const PRIOR_MIX: f64 = 0.7;
/// That guess counts as much as this many pages seen.
const PRIOR_PAGES: f64 = 2000.0;

impl Ledger {
    /// The memory was sized up.
    pub const fn on_ram(&mut self, ram: Ram) {
        self.ram = Some(ram);
    }

    /// All pages of the guest; 0 while unknown.
    #[must_use]
    pub fn total_pages(&self) -> u64 {
        let qemu = self.qemu.map_or(0, |(qemu, _)| qemu.total_bytes);
        self.ram.map_or(qemu, |ram| ram.total_bytes) / 4096
    }

    /// The stream's counters, as last seen.
    #[must_use]
    pub const fn stream(&self) -> &StreamCounters {
        &self.stream
    }

    /// Passes begun; 0 before the first.
    #[must_use]
    pub const fn pass(&self) -> u64 {
        self.pass
    }

    /// The stream has begun.
    pub fn on_started(&mut self, at: Time) {
        if self.pass == 0 {
            self.pass = 1;
            self.pass_began = at;
        }
    }

    /// The stream's counters. Returns the sync they show, if any.
    pub fn on_stream(&mut self, stream: StreamCounters, at: Time) -> Option<Sync> {
        self.stream = stream;
        if stream.passes == 0 || self.qemu_is_fresh(at) {
            return None;
        }
        if stream.passes == self.pass && self.marker_due {
            self.marker_due = false;
            self.at_pass_start = stream;
        }
        if stream.passes <= self.pass {
            return None;
        }
        let sync = self.turn(stream.passes, None, at);
        self.dirty_at_start = None;
        sync
    }

    /// The kernel's dirty log was read: a sync that found `pages`. Returns it
    /// where nothing else shows it earlier.
    pub fn on_dirty_log(&mut self, pages: u64, at: Time) -> Option<Sync> {
        if self.pass == 0 || self.qemu_is_fresh(at) || self.stream.passes == 0 {
            return None;
        }
        let known = to_f64(pages);
        if self.stream.passes == self.pass && self.pass > 1 && self.dirty_at_start.is_none() {
            // The marker overtook the log.
            self.dirty_at_start = Some(known);
            return None;
        }
        let total = to_f64(self.total_pages());
        let left = self.pages_left(at, total, 0.0, known);
        // All of it in the first pass, too: at its end the mix is known.
        let normal = if self.pass <= 1 {
            self.normal_of(at, left, total, 0.0)
        } else {
            left
        };
        self.lag_pages = normal.min(MOST_LAG_PAGES);
        let sync = self.turn(self.pass + 1, Some(pages), at);
        self.dirty_at_start = Some(known);
        self.marker_due = true;
        sync
    }

    /// QEMU's figures. Returns the sync they show, if any.
    pub fn on_qemu(&mut self, qemu: QemuProgress, at: Time) -> Option<Sync> {
        if qemu.total_bytes == 0 {
            return None;
        }
        let before = self.qemu.replace((qemu, at));
        if qemu.dirty_sync_count <= self.pass {
            return None;
        }
        // What was left over before is counted again in what remains now.
        let left_over = before.map_or(0, |(before, _)| {
            let pages = |qemu: &QemuProgress| qemu.normal_pages + qemu.zero_pages;
            let sent = pages(&qemu).saturating_sub(pages(&before)) * 4096;
            before.remaining_bytes.saturating_sub(sent)
        });
        let grown = qemu.remaining_bytes.saturating_sub(left_over) / 4096;
        let found = (self.pass >= 1).then_some(grown);
        self.turn(qemu.dirty_sync_count, found, at)
    }

    /// Begins pass `pass`; the record of the one before, unless there is none.
    fn turn(&mut self, pass: u64, found: Option<u64>, at: Time) -> Option<Sync> {
        let passed = u32::try_from(pass.saturating_sub(self.pass)).unwrap_or(u32::MAX);
        let first = self.pass == 0;
        let seconds = at.since(self.pass_began);
        let before = self.at_pass_start;
        let sent = |now: u64, then: u64| now.saturating_sub(then);
        let record = PassRecord {
            at_seconds: 0.0,
            seconds: seconds.as_secs_f64(),
            bytes: sent(self.stream.bytes_on_wire, before.bytes_on_wire),
            pages: sent(self.stream.normal_pages, before.normal_pages)
                + sent(self.stream.zero_pages, before.zero_pages),
            dirty_pages: found.unwrap_or(0),
        };
        self.pass = pass;
        self.last_pass_seconds = (!first).then(|| seconds.as_secs_f64() / f64::from(passed.max(1)));
        self.pass_began = at;
        self.at_pass_start = self.stream;
        self.marker_due = false;
        (!first).then(|| Sync {
            pass: record,
            found,
            // Several at once: only that each was this long on average is known.
            window: seconds / passed.max(1),
        })
    }

    /// Where the migration is at `now`, with the bucket at `rate` since the
    /// samples came. `expected` are the pages a sync finds, for a pass whose
    /// beginning nothing counted. `None` while the size of memory is unknown.
    #[must_use]
    pub fn state(&self, now: Time, rate: f64, expected: f64) -> Option<State> {
        let total = to_f64(self.total_pages());
        if total < 1.0 {
            return None;
        }
        let left = self.pages_left(now, total, rate, expected);
        let normal = if self.pass <= 1 {
            self.normal_of(now, left, total, rate)
        } else {
            left
        };
        let started = self.pass >= 1;
        // Without QEMU's word the counters lag behind it by what is buffered.
        let lag = if self.qemu_is_fresh(now) || self.marker_due {
            0.0
        } else {
            self.lag_pages.min(normal)
        };
        Some(State {
            normal_pages: normal - lag,
            zero_pages: left - normal,
            pass_seconds: if started {
                now.since(self.pass_began).as_secs_f64()
            } else {
                0.0
            },
            sent_window: self.last_pass_seconds,
            content_parts: self
                .ram
                .filter(|_| self.pass <= 1)
                .and_then(|ram| ram.content_parts),
            total_pages: total,
            buffered_bytes: self.buffered(now),
            measured_rate: 0.0,
            stopped: false,
        })
    }

    /// How unsure [`Self::state`] is of the pages with content: the standard
    /// deviation of their logarithm.
    #[must_use]
    pub fn mix_uncertainty(&self) -> f64 {
        if self.pass > 1 {
            return 0.01;
        }
        if self.ram.is_some_and(|ram| ram.content_bytes.is_some()) {
            return 0.01;
        }
        let seen = to_f64(self.stream.normal_pages + self.stream.zero_pages);
        0.05 + 0.4 * (PRIOR_PAGES / (PRIOR_PAGES + seen)).sqrt()
    }

    /// Bytes on their way from QEMU to the bucket.
    fn buffered(&self, now: Time) -> f64 {
        let wire = self.stream.bytes_on_wire;
        let relay = to_f64(self.stream.bytes_from_qemu.saturating_sub(wire));
        let sockets = match self.qemu {
            Some((qemu, at)) if now.since(at) < STALE => {
                to_f64(qemu.normal_pages) * NORMAL_PAGE_BYTES
                    + to_f64(qemu.zero_pages) * ZERO_PAGE_BYTES
                    - to_f64(wire)
            }
            _ => self.lag_pages * NORMAL_PAGE_BYTES,
        };
        relay.max(sockets.min(MOST_LAG_PAGES * NORMAL_PAGE_BYTES))
    }

    fn qemu_is_fresh(&self, now: Time) -> bool {
        self.qemu.is_some_and(|(_, at)| now.since(at) < STALE)
    }

    fn pages_left(&self, now: Time, total: f64, rate: f64, expected: f64) -> f64 {
        let left = match self.qemu {
            Some((qemu, at)) if self.pass >= 1 && now.since(at) < STALE => {
                let since = sent_since(at, now, rate);
                let left = to_f64(qemu.remaining_bytes) / PAGE_BYTES;
                // Not below half: whether a sync came meanwhile is not known.
                (left - since).max(left / 2.0)
            }
            _ if self.pass <= 1 => {
                total - to_f64(self.stream.normal_pages + self.stream.zero_pages)
            }
            _ => {
                let sent = if self.marker_due {
                    0
                } else {
                    self.stream
                        .normal_pages
                        .saturating_sub(self.at_pass_start.normal_pages)
                };
                self.dirty_at_start.unwrap_or(expected) - to_f64(sent)
            }
        };
        left.clamp(0.0, total)
    }

    /// Of the `left` pages of the first pass, those with content.
    fn normal_of(&self, now: Time, left: f64, total: f64, rate: f64) -> f64 {
        let (normal, zero, since) = match self.qemu {
            Some((qemu, at)) => {
                let since = sent_since(at, now, rate);
                (qemu.normal_pages, qemu.zero_pages, since)
            }
            None => (self.stream.normal_pages, self.stream.zero_pages, 0.0),
        };
        let (normal, seen) = (to_f64(normal), to_f64(normal + zero));
        let estimate = match self.ram.and_then(|ram| ram.content_bytes) {
            Some(content) => to_f64(content) / PAGE_BYTES - normal - since,
            None => {
                let prior = PRIOR_PAGES.min(total);
                left * (normal + PRIOR_MIX * prior) / (seen + prior)
            }
        };
        estimate.clamp(0.0, left)
    }
}

/// Pages with content sent at `rate` since QEMU said how far it was.
fn sent_since(at: Time, now: Time, rate: f64) -> f64 {
    let seconds = now.since(at).min(STALE).as_secs_f64();
    rate * seconds / NORMAL_PAGE_BYTES
}
