//! How often each chunk of a file is written.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_loop;
use pacer_common::chunk::{self, CHUNK_SHIFT, CLASSES, Chunk, MAX_CHUNKS, WAYS};
use pacer_common::counter;
use pacer_common::file::{FileCounts, FileKey};

use crate::maps::{CHUNKS, FILES};
use crate::report::count;

/// The chunks of one write, one after the other.
struct Walk {
    key: FileKey,
    first: u64,
    now_ns: u64,
}

/// `bytes` at `offset` were written.
#[inline(always)]
pub(crate) fn wrote(key: &FileKey, counts: &mut FileCounts, offset: u64, bytes: u64) {
    // At the file's own position, -1: where that was is not known.
    if offset > i64::MAX as u64 {
        return;
    }
    // SAFETY: the helper reads a clock and has no conditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let first = offset >> CHUNK_SHIFT;
    let last = (offset + bytes - 1) >> CHUNK_SHIFT;
    if first == last {
        wrote_chunk(key, counts, first, now_ns);
        return;
    }
    let mut walk = Walk {
        key: *key,
        first,
        now_ns,
    };
    let chunks = last - first + 1;
    if chunks > u64::from(MAX_CHUNKS) {
        count(counter::CUT_WRITES);
    }
    let chunks = chunks.min(u64::from(MAX_CHUNKS)) as u32;
    // SAFETY: the callback has the form the helper wants, and `walk` outlives
    // the call.
    unsafe { bpf_loop(chunks, next_chunk as *mut c_void, (&raw mut walk).cast(), 0) };
}

unsafe extern "C" fn next_chunk(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `wrote` passes its `Walk`, and nothing else uses it now.
    let walk = unsafe { &*context.cast::<Walk>() };
    if let Some(counts) = FILES.get_ptr_mut(&walk.key) {
        // SAFETY: this CPU's own value, as in `file::counts`; the caller's
        // reference is not used while the walk runs.
        let counts = unsafe { &mut *counts };
        wrote_chunk(
            &walk.key,
            counts,
            walk.first + u64::from(index),
            walk.now_ns,
        );
    }
    0
}

#[inline(always)]
fn wrote_chunk(key: &FileKey, counts: &mut FileCounts, number: u64, now_ns: u64) {
    let set = chunk::set_of(key.inode, key.device, number);
    let Some(set) = CHUNKS.get_ptr_mut(set) else {
        return;
    };
    // SAFETY: the value lives as long as the map. Two CPUs may be here at once:
    // then an interval is lost, or a chunk is kept twice for a while, and no
    // byte is counted wrongly.
    let set = unsafe { &mut *set };
    let mut oldest = 0;
    let mut oldest_at = u64::MAX;
    for way in 0..WAYS {
        let chunk = &mut set[way];
        if chunk.number == number
            && chunk.inode == key.inode
            && chunk.device == key.device
            && chunk.written_at_ns != 0
        {
            written_again(chunk, counts, now_ns);
            return;
        }
        if chunk.written_at_ns < oldest_at {
            oldest_at = chunk.written_at_ns;
            oldest = way;
        }
    }
    let chunk = &mut set[oldest & (WAYS - 1)];
    if oldest_at != 0 {
        evict(chunk);
    }
    *chunk = Chunk {
        inode: key.inode,
        device: key.device,
        class: 0,
        number,
        written_at_ns: now_ns,
        interval_ns: 0,
    };
    counts.chunks[0] += 1;
}

#[inline(always)]
fn written_again(chunk: &mut Chunk, counts: &mut FileCounts, now_ns: u64) {
    // Another CPU may have been a little later.
    let interval_ns = now_ns.saturating_sub(chunk.written_at_ns);
    chunk.interval_ns = chunk::mean_with(chunk.interval_ns, interval_ns);
    chunk.written_at_ns = now_ns;
    let class = chunk::class_of(chunk.interval_ns);
    if class != chunk.class {
        leave(counts, chunk.class);
        join(counts, class);
        chunk.class = class;
    }
}

/// Takes a chunk out of the counts of its file, whichever that is.
#[inline(always)]
fn evict(chunk: &Chunk) {
    let key = FileKey {
        inode: chunk.inode,
        device: chunk.device,
        padding: 0,
    };
    if let Some(counts) = FILES.get_ptr_mut(&key) {
        // SAFETY: this CPU's own value, as in `file::counts`; where it is the
        // caller's too, no field is held over this.
        let counts = unsafe { &mut *counts };
        leave(counts, chunk.class);
        counts.evicted_chunks += 1;
    }
}

#[inline(always)]
fn join(counts: &mut FileCounts, class: u32) {
    if let Some(chunks) = counts.chunks.get_mut(class as usize) {
        *chunks += 1;
    }
}

#[inline(always)]
fn leave(counts: &mut FileCounts, class: u32) {
    if let Some(chunks) = counts.chunks.get_mut(class as usize) {
        *chunks -= 1;
    }
}

const _: () = assert!(WAYS.is_power_of_two() && CLASSES > 0);
