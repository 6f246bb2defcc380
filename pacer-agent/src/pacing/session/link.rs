//! What may be sent: the link, the operator's limit, and the guest's disk.

use std::time::Duration;

use super::super::controller::Caps;
use super::super::disk_guard::Sent;
use super::super::number::{to_f64, to_u64};
use super::super::objective::Reason;
use super::super::sample::StreamCounters;
use super::super::time::Time;
use super::{Phase, Session};

/// What a link is taken for that nobody has measured: 10 Gbit/s.
const UNKNOWN_LINK: f64 = 1.25e9;
/// What QEMU and two agents send at the switchover, from a standing start, over a link
/// that nobody measured, in bytes a second: what was seen over loopback with 2 cores.
const UNMEASURED_OPEN: f64 = 3e8;
/// A link that nobody measured is relied on for this many times what it took.
const UNTRIED: f64 = 3.0;
/// More zero pages than this for each that is none take QEMU longer than the link.
const ZEROES_PER_PAGE: u64 = 4;

impl Session {
    pub(super) fn observe_link(&mut self, counters: StreamCounters, at: Time) {
        let before = std::mem::replace(&mut self.counted, counters);
        let backlog = counters.bytes_from_qemu > counters.bytes_on_wire;
        self.backlog_seen |= backlog;
        // A relay that is behind shows it; if this one ever was and is not now,
        // then QEMU had nothing to send. Without a limit that is all there is to have.
        let idle = self.backlog_seen && !backlog && self.commanded != Some(u64::MAX);
        let held = self
            .decision
            .is_none_or(|decision| decision.reason == Reason::Waiting);
        if held || !matches!(self.phase, Phase::Copying { .. }) {
            // Past STOP it is not the link that sets the pace.
            self.link.forget();
        } else if idle || is_among_zeroes(before, counters) {
            self.link.skip();
        } else {
            self.link.observe(counters.bytes_on_wire, at);
        }
    }

    /// What the link is taken to carry, in bytes a second.
    #[must_use]
    pub fn link(&self) -> f64 {
        self.link.bytes_per_second().unwrap_or(UNKNOWN_LINK)
    }

    /// What is sent once the bucket is open.
    pub(super) fn open_rate(&self) -> f64 {
        let link = self.link();
        if self.link.is_told() {
            link
        } else {
            link.min(UNMEASURED_OPEN.max(self.rate_in_force()))
        }
    }

    pub(super) fn cap(&self) -> f64 {
        let limit = self.limited().map_or(f64::INFINITY, to_f64);
        self.link().min(limit).max(1.0)
    }

    /// What the operator allows, and the guest's disk.
    pub(super) fn limited(&self) -> Option<u64> {
        let disk = self.disk_guard.cap().map(to_u64);
        let limits = [self.config.limits.max_rate, disk];
        limits.into_iter().flatten().min()
    }

    pub(super) fn caps(&self) -> Caps {
        let possible = self.cap();
        let measured = self.link.bytes_per_second().is_some();
        let best = self.link.best();
        Caps {
            possible,
            sure: if measured || best <= 0.0 {
                possible
            } else {
                possible.min(best * UNTRIED)
            },
            limited: self.limited(),
        }
    }

    pub(super) fn on_disk_latency(&mut self, mean: Duration, at: Time) {
        let sent = Sent {
            rate: self.rate_in_force(),
            highest: self.config.limits.max_rate.map_or(self.link(), to_f64),
        };
        let limit = self.config.limits.disk_latency_limit;
        self.disk_guard.observe(mean, limit, sent, at);
        self.next_tick = self.next_tick.min(at);
    }
}

/// Where QEMU looks for pages that are not zero it is not the link that sets the pace:
/// it goes through some 15 times as many as a link of 100 MB/s takes.
fn is_among_zeroes(before: StreamCounters, now: StreamCounters) -> bool {
    let zeroes = now.zero_pages.saturating_sub(before.zero_pages);
    let normal = now.normal_pages.saturating_sub(before.normal_pages);
    zeroes > ZEROES_PER_PAGE * normal
}
