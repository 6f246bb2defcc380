//! Counts what is read from and written to each file, and asked of each block
//! backend.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use pacer_common::counter;
use pacer_common::file::{BACKEND, FileCounts, FileKey};

use crate::kernel::device_of;
use crate::maps::FILES;
use crate::report::count;
use crate::{atomic, chunks};

const _: () = assert!(BPF_NOEXIST == 1);

/// Several reads or writes.
#[derive(Clone, Copy)]
pub(crate) struct Requests {
    pub(crate) count: u64,
    pub(crate) bytes: u64,
}

impl Requests {
    pub(crate) const NONE: Self = Self { count: 0, bytes: 0 };

    /// One more.
    #[inline(always)]
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// Raises the field `count` of what is counted of a file by one or as many as are
/// given, and `bytes` by so many.
macro_rules! add {
    ($counts:expr, $count:ident, $bytes:ident, $by:expr) => {
        add!($counts, $count, 1, $bytes, $by)
    };
    ($counts:expr, $count:ident, $requests:expr, $bytes:ident, $by:expr) => {
        // SAFETY: the value lives as long as the map. It is this CPU's own, but
        // uprobes may be preempted, hence changed atomically.
        unsafe {
            atomic::add(&raw mut (*$counts).$count, $requests);
            atomic::add(&raw mut (*$counts).$bytes, $by);
        }
    };
}

/// Content was written: `bytes` at `offset`.
#[inline(always)]
pub(crate) fn wrote(key: &FileKey, offset: u64, bytes: u64) {
    if let Some(counts) = counts(key) {
        add!(counts, writes, written_bytes, bytes);
        chunks::wrote(key, offset, bytes, chunks::now_ns());
    }
}

/// Content was read and written by several requests; where it was written,
/// [`chunks::wrote`] is told of each.
#[inline(always)]
pub(crate) fn transferred(key: &FileKey, read: Requests, written: Requests) {
    if read.count == 0 && written.count == 0 {
        return;
    }
    if let Some(counts) = counts(key) {
        add!(counts, reads, read.count, read_bytes, read.bytes);
        add!(counts, writes, written.count, written_bytes, written.bytes);
    }
}

/// A range was made zero.
#[inline(always)]
pub(crate) fn zeroed(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        add!(counts, zeroes, zeroed_bytes, bytes);
    }
}

/// A range was given back.
#[inline(always)]
pub(crate) fn discarded(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        add!(counts, discards, discarded_bytes, bytes);
    }
}

/// `bytes` were read.
#[inline(always)]
pub(crate) fn read(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        add!(counts, reads, read_bytes, bytes);
    }
}

/// This CPU's counts of a file, made at its first event.
#[inline(always)]
fn counts(key: &FileKey) -> Option<*mut FileCounts> {
    let counts = FILES.get_ptr_mut(key).or_else(|| first_counts(key));
    if counts.is_none() {
        count(counter::MAP_FULL);
    }
    counts
}

#[inline(always)]
fn first_counts(key: &FileKey) -> Option<*mut FileCounts> {
    let device = match key.super_block {
        BACKEND => 0,
        _ => device_of(key).map_or(0, u64::from),
    };
    let counts = FileCounts {
        device,
        // SAFETY: the helper reads a clock and has no conditions.
        first_at_ns: unsafe { bpf_ktime_get_ns() },
        ..FileCounts::NONE
    };
    // Another CPU may have made it just now, which is as good: with BPF_NOEXIST
    // its counts are not overwritten.
    let _ = FILES.insert(key, counts, u64::from(BPF_NOEXIST));
    // The kernel gives a new value to one CPU and zeroes to the others: user
    // space takes whichever is not 0.
    FILES.get_ptr_mut(key)
}
