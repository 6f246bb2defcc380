//! How often each chunk of a file is written.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_loop;
use pacer_common::chunk::{self, CHUNK_SHIFT, Chunk, MAX_CHUNKS, WAYS};
use pacer_common::counter;
use pacer_common::file::FileKey;

use crate::atomic;
use crate::maps::{CHUNKS, FILES};
use crate::report::count;

/// The time as chunks count it.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper reads a clock and has no conditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The chunks of one write, one after the other.
struct Walk {
    key: FileKey,
    first: u64,
    now_ns: u64,
}

/// `bytes` at `offset` of the file `key` were written at [`now_ns`].
#[inline(always)]
pub(crate) fn wrote(key: &FileKey, offset: u64, bytes: u64, now_ns: u64) {
    // At the file's own position, -1: where that was is not known.
    if offset > i64::MAX as u64 {
        return;
    }
    let first = offset >> CHUNK_SHIFT;
    let last = (offset + bytes - 1) >> CHUNK_SHIFT;
    if first == last {
        wrote_chunk(key, first, now_ns);
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
    let chunks = u32::try_from(chunks).map_or(MAX_CHUNKS, |chunks| chunks.min(MAX_CHUNKS));
    // SAFETY: the callback has the form the helper wants, and `walk` outlives
    // the call.
    unsafe { bpf_loop(chunks, next_chunk as *mut c_void, (&raw mut walk).cast(), 0) };
}

unsafe extern "C" fn next_chunk(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `wrote` passes its `Walk`, and nothing else uses it now.
    let walk = unsafe { &*context.cast::<Walk>() };
    wrote_chunk(&walk.key, walk.first + u64::from(index), walk.now_ns);
    0
}

#[inline(always)]
fn wrote_chunk(key: &FileKey, number: u64, now_ns: u64) {
    let Some(set) = CHUNKS.get_ptr_mut(chunk::set_of(key, number)) else {
        return;
    };
    // SAFETY: the value lives as long as the map. Two CPUs may be here at once:
    // then an interval is lost, or a chunk is kept twice for a while, and no
    // byte is counted wrongly.
    let set = unsafe { &mut *set };
    let mut oldest = 0;
    let mut oldest_at = u64::MAX;
    for (way, chunk) in set.iter_mut().enumerate() {
        if chunk.number == number && is_same(&chunk.file, key) && chunk.written_at_ns != 0 {
            // Another CPU may have been a little later.
            let interval_ns = now_ns.saturating_sub(chunk.written_at_ns);
            chunk.interval_ns = chunk::mean_with(chunk.interval_ns, interval_ns);
            chunk.written_at_ns = now_ns;
            return;
        }
        if chunk.written_at_ns < oldest_at {
            oldest_at = chunk.written_at_ns;
            oldest = way;
        }
    }
    let chunk = &mut set[oldest & (WAYS - 1)];
    if oldest_at != 0 {
        count_evicted(&chunk.file);
    }
    *chunk = Chunk {
        file: *key,
        number,
        written_at_ns: now_ns,
        interval_ns: 0,
    };
}

/// Whether two keys are of one file.
#[inline(always)]
const fn is_same(one: &FileKey, other: &FileKey) -> bool {
    one.inode == other.inode
        && one.super_block == other.super_block
        && one.generation == other.generation
}

/// A chunk of the file `key` is forgotten.
#[inline(always)]
fn count_evicted(key: &FileKey) {
    if let Some(counts) = FILES.get_ptr_mut(key) {
        // SAFETY: this CPU's own value, as in `file`.
        unsafe { atomic::add(&raw mut (*counts).evicted_chunks, 1) };
    }
}

const _: () = assert!(WAYS.is_power_of_two());
