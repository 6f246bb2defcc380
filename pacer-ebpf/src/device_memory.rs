//! What QEMU reads for its devices: it lands in guest memory without a trace in
//! KVM's dirty log.

use pacer_common::counter;

use crate::report::count_bytes;

/// `bytes` were, or are being, read to `address`.
#[inline(always)]
pub(crate) fn read_into(_address: u64, bytes: u64) {
    count_bytes(counter::READ_ELSEWHERE_BYTES, bytes);
}

/// `bytes` were, or are being, read into `count` vectors at `address`.
#[inline(always)]
pub(crate) fn read_into_vectors(_address: u64, _count: u64, bytes: u64) {
    count_bytes(counter::READ_ELSEWHERE_BYTES, bytes);
}
