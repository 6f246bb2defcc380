//! Counts what is read from and written to each file.

use aya_ebpf::bindings::BPF_NOEXIST;
use pacer_common::counter;
use pacer_common::file::{FileCounts, FileKey};

use crate::chunks;
use crate::kernel::device_of;
use crate::maps::FILES;
use crate::report::count;

const _: () = assert!(BPF_NOEXIST == 1);

/// Content was written: `bytes` at `offset`.
#[inline(always)]
pub(crate) fn wrote(key: &FileKey, offset: u64, bytes: u64) {
    if let Some(counts) = counts(key) {
        counts.writes += 1;
        counts.written_bytes += bytes;
        chunks::wrote(key, &raw mut *counts, offset, bytes);
    }
}

/// A range was made zero.
#[inline(always)]
pub(crate) fn zeroed(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        counts.zeroes += 1;
        counts.zeroed_bytes += bytes;
    }
}

/// A range was given back.
#[inline(always)]
pub(crate) fn discarded(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        counts.discards += 1;
        counts.discarded_bytes += bytes;
    }
}

/// `bytes` were read.
#[inline(always)]
pub(crate) fn read(key: &FileKey, bytes: u64) {
    if let Some(counts) = counts(key) {
        counts.reads += 1;
        counts.read_bytes += bytes;
    }
}

/// This CPU's counts of a file, made at its first event.
#[inline(always)]
fn counts(key: &FileKey) -> Option<&'static mut FileCounts> {
    let counts = match FILES.get_ptr_mut(key) {
        Some(counts) => counts,
        None => {
            let Some(counts) = first_counts(key) else {
                count(counter::MAP_FULL);
                return None;
            };
            counts
        }
    };
    // SAFETY: the value lives as long as the map. It is this CPU's own, and
    // tracepoints run without preemption.
    Some(unsafe { &mut *counts })
}

#[inline(always)]
fn first_counts(key: &FileKey) -> Option<*mut FileCounts> {
    let counts = FileCounts {
        device: device_of(key).map_or(0, u64::from),
        ..FileCounts::NONE
    };
    // Another CPU may have made it just now, which is as good: with BPF_NOEXIST
    // its counts are not overwritten.
    let _ = FILES.insert(key, counts, u64::from(BPF_NOEXIST));
    let counts = FILES.get_ptr_mut(key)?;
    // The kernel gives a new value to one CPU and zeroes to the others, where
    // the device is told again: user space takes whichever is not 0.
    Some(counts)
}
