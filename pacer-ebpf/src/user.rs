//! Reads from the memory of the observed process.

use aya_ebpf::helpers::bpf_probe_read_user;
use pacer_common::counter;

use crate::report::count;

/// The value at `address` in the process; counted where it cannot be read.
/// `T` must be valid for every byte pattern.
#[inline(always)]
pub(crate) fn read_user<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address itself and fails where nothing is
    // mapped; callers ask for integers and structs of integers only.
    let value = unsafe { bpf_probe_read_user(address as *const T) };
    if value.is_err() {
        count(counter::UNREADABLE);
    }
    value.ok()
}
