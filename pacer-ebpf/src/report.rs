//! Events into the ring, and the counters beside it.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use pacer_common::counter;
use pacer_common::event::RawEvent;

use crate::filter::own_tgid;
use crate::maps::{COUNTERS, EVENTS};

/// Puts `event`, stamped with the time, into the ring, or counts it as lost.
#[inline(always)]
pub(crate) fn report(event: RawEvent) {
    let Some(mut entry) = EVENTS.reserve::<RawEvent>(0) else {
        count(counter::LOST_EVENTS);
        return;
    };
    // SAFETY: the helper reads a clock and has no conditions.
    let ktime_ns = unsafe { bpf_ktime_get_ns() };
    entry.write(RawEvent {
        ktime_ns,
        // Known: the filter asked for it.
        tgid: own_tgid().unwrap_or(0),
        ..event
    });
    entry.submit(0);
    count(counter::EVENTS);
}

/// Raises a counter by one.
#[inline(always)]
pub(crate) fn count(index: u32) {
    count_bytes(index, 1);
}

/// Raises a counter by `bytes`.
#[inline(always)]
pub(crate) fn count_bytes(index: u32, bytes: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a map's value lives as long as the map, and this one is the
        // CPU's own. (A uprobe may be preempted, and could lose a count here to
        // a program that comes between.)
        unsafe { *counter += bytes };
    }
}
