//! Slots larger than the programs count at once: this side counts the rest as
//! soon as it is told of it.

use aya::Ebpf;
use aya::maps::HashMap;
use pacer_common::dirty_log::PIECE_PAGES;
use pacer_common::event::{self as raw, RawEvent};
use pacer_common::slot::{SLOTS, Slot};

use super::error::chain;
use super::rest::{self, Rest};
use super::{EventKind, ProbeOptions, attach};
use crate::clock;
use crate::pacing::time::Time;

/// Follows the large slots of the observed process.
#[derive(Debug)]
pub(super) struct LargeSlots {
    /// Pages of a slot that the programs count.
    run_pages: u64,
    tgid: Option<u32>,
    /// That was tried.
    asked: bool,
    /// Since when QEMU's calls are seen at their beginning.
    seen_since: Option<Time>,
    /// The rest of the log that is told of next, if it could be counted.
    rest: Option<(RawEvent, Option<Rest>)>,
    overtaken_logs: u64,
    /// Why the calls are not seen; taken once.
    warning: Option<String>,
}

/// What became of an event.
pub(super) enum Handled {
    /// It is none of these.
    Not,
    /// It is part of one that follows.
    Kept,
    /// It is the log as a whole.
    Counted {
        /// [`EventKind::DirtyPart`]s that go before it.
        parts: Vec<EventKind>,
        /// The log.
        log: RawEvent,
    },
}

impl LargeSlots {
    pub(super) fn new(options: &ProbeOptions) -> Self {
        Self {
            run_pages: u64::from(options.run_pieces()) * PIECE_PAGES,
            tgid: None,
            asked: false,
            seen_since: None,
            rest: None,
            overtaken_logs: 0,
            warning: None,
        }
    }

    /// What is not seen, once.
    pub(super) const fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    /// `tgid` is the process, which may have large slots already.
    pub(super) fn observe(&mut self, ebpf: &mut Ebpf, tgid: u32) {
        self.tgid = Some(tgid);
        if largest_slot(ebpf, tgid) > self.run_pages {
            self.see_calls(ebpf);
        }
    }

    /// Logs that were not counted because QEMU was faster.
    pub(super) const fn overtaken_logs(&self) -> u64 {
        self.overtaken_logs
    }

    pub(super) fn handle(&mut self, ebpf: &mut Ebpf, event: &RawEvent) -> Handled {
        match event.kind {
            raw::SLOT_REGISTERED | raw::LOG_CLEARED => {
                if Some(event.tgid) == self.tgid && end_page(event) > self.run_pages {
                    self.see_calls(ebpf);
                }
                Handled::Not
            }
            raw::LOG_REST => {
                let is_ours = Some(event.tgid) == self.tgid;
                let at = Time::from_nanos(event.ktime_ns);
                let seen = self.seen_since.is_some_and(|since| since < at);
                let rest = (is_ours && seen).then(|| rest::count(ebpf, event));
                self.rest = Some((*event, rest.flatten()));
                Handled::Kept
            }
            raw::DIRTY_LOG if event.flags & raw::PARTIAL != 0 => self.end(event),
            _ => Handled::Not,
        }
    }

    /// The log whose rest was counted, or not.
    fn end(&mut self, event: &RawEvent) -> Handled {
        let rest = self.rest.take().and_then(|(begun, rest)| {
            let same = (begun.tgid, begun.subject) == (event.tgid, event.subject);
            rest.filter(|_| same)
        });
        match rest {
            Some(rest) => Handled::Counted {
                log: RawEvent {
                    a: event.a + rest.counts.dirty_pages,
                    c: event.c + rest.counts.device_pages,
                    ..*event
                },
                parts: rest.parts,
            },
            None => {
                self.overtaken_logs += 1;
                Handled::Counted {
                    log: RawEvent {
                        kind: raw::LOG_UNREAD,
                        ..*event
                    },
                    parts: Vec::new(),
                }
            }
        }
    }

    /// From now on a program notes when QEMU begins to change a bitmap.
    fn see_calls(&mut self, ebpf: &mut Ebpf) {
        if std::mem::replace(&mut self.asked, true) {
            return;
        }
        match attach::attach_large_slots(ebpf) {
            Ok(()) => self.seen_since = Some(clock::now()),
            Err(error) => {
                self.warning = Some(format!(
                    "dirty logs of memory slots beyond {} GiB are not counted: {}",
                    self.run_pages >> 18,
                    chain(&error)
                ));
            }
        }
    }
}

/// The page after the last that a slot has, or is known to have.
const fn end_page(event: &RawEvent) -> u64 {
    match event.kind {
        raw::LOG_CLEARED => event.a.saturating_add(event.b),
        _ => event.a,
    }
}

/// Pages of the process' largest slot.
fn largest_slot(ebpf: &Ebpf, tgid: u32) -> u64 {
    let Some(Ok(slots)) = ebpf.map(SLOTS).map(HashMap::<_, u64, Slot>::try_from) else {
        return 0;
    };
    slots
        .iter()
        .filter_map(Result::ok)
        .filter(|(key, _)| key >> 32 == u64::from(tgid))
        .map(|(_, slot)| slot.pages)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(slot: u32) -> RawEvent {
        RawEvent {
            kind: raw::DIRTY_LOG,
            subject: slot,
            tgid: 9,
            a: 5,
            b: 1 << 30,
            c: 2,
            flags: raw::PARTIAL,
            ..RawEvent::default()
        }
    }

    fn counting(slot: u32, rest: Option<Rest>) -> LargeSlots {
        let begun = RawEvent {
            kind: raw::LOG_REST,
            ..log(slot)
        };
        LargeSlots {
            rest: Some((begun, rest)),
            ..LargeSlots::new(&ProbeOptions::default())
        }
    }

    fn rest() -> Option<Rest> {
        let counts = rest::Counts {
            dirty_pages: 70,
            device_pages: 30,
        };
        Some(Rest {
            counts,
            parts: Vec::new(),
        })
    }

    /// Kind and counts of what a partial log becomes.
    fn check(large: &mut LargeSlots, expected: (u32, u64, u64)) {
        let Handled::Counted { log, .. } = large.end(&log(3)) else {
            panic!("it is a log");
        };
        assert_eq!((log.kind, log.a, log.c), expected);
    }

    #[test]
    fn the_two_parts_make_one_log() {
        check(&mut counting(3, rest()), (raw::DIRTY_LOG, 75, 32));
    }

    #[test]
    fn a_log_without_its_rest_is_none() {
        for mut large in [
            counting(3, None),
            counting(4, rest()),
            LargeSlots::new(&ProbeOptions::default()),
        ] {
            check(&mut large, (raw::LOG_UNREAD, 5, 2));
            assert_eq!(large.overtaken_logs(), 1);
        }
    }
}
