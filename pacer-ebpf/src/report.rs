//! Events into the ring, and the counters beside it.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use pacer_common::counter;
use pacer_common::event::{RING_BYTES, RawEvent};

use crate::atomic;
use crate::filter::own_tgid;
use crate::maps::{COUNTERS, EVENTS};

/// What is left in the ring, in bytes, from which on its reader is woken for any
/// event.
const FULL_BYTES: u64 = RING_BYTES as u64 / 4;

/// Puts `event`, stamped with the time, into the ring, or counts it as lost. Its
/// reader finds it at its next tick: to wake it would cost more than all else
/// here, an interrupt of this CPU, while QEMU waits.
#[inline(always)]
pub(crate) fn report(event: RawEvent) {
    let is_full = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)) > FULL_BYTES;
    put(event, is_full);
}

/// As [`report`], and wakes the reader: it must act on the event at once.
#[inline(always)]
pub(crate) fn report_now(event: RawEvent) {
    put(event, true);
}

#[inline(always)]
fn put(event: RawEvent, wakes: bool) {
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
    entry.submit(u64::from(if wakes {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    }));
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
        // SAFETY: a map's value lives as long as the map. This one is the CPU's
        // own, but uprobes may be preempted, hence changed atomically.
        unsafe { atomic::add(counter, bytes) };
    }
}
