//! The calls that threads are in.

use pacer_common::call::Call;
use pacer_common::counter;

use crate::maps::CALLS;
use crate::report::count;

/// Remembers the call that `thread` enters.
#[inline(always)]
pub(crate) fn enter(thread: u64, call: &Call) {
    if CALLS.insert(thread, call, 0).is_err() {
        count(counter::MAP_FULL);
    }
}

/// The call that `thread` leaves, if it is a remembered one; it is forgotten.
#[inline(always)]
pub(crate) fn leave(thread: u64) -> Option<Call> {
    // SAFETY: only this thread writes the entry of this thread, and it is here.
    let call = *unsafe { CALLS.get(thread) }?;
    // It was there just now, so this does not fail.
    let _ = CALLS.remove(thread);
    Some(call)
}
