//! Counts the pages set in a dirty log that lies in QEMU's memory.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use pacer_common::counter;
use pacer_common::dirty_log::{MAX_PIECES, PIECE_BYTES, bitmap_bytes, pieces};

use crate::maps::PIECE;
use crate::report::count;

/// What one walk over a bitmap carries from piece to piece.
struct Walk {
    address: u64,
    bytes: u64,
    dirty_pages: u64,
    failed: u64,
}

/// How many bits are set in the bitmap at `address` of a slot with `pages`
/// pages. `None`, and counted, where it cannot be read or is over 1 TiB.
#[inline(always)]
pub(crate) fn count_pages(address: u64, pages: u64) -> Option<u64> {
    let bytes = bitmap_bytes(pages);
    let mut walk = Walk {
        address,
        bytes,
        dirty_pages: 0,
        failed: 0,
    };
    let Some(pieces) = u32::try_from(pieces(bytes))
        .ok()
        .filter(|&pieces| pieces <= MAX_PIECES)
    else {
        count(counter::UNREADABLE);
        return None;
    };
    // SAFETY: the callback has the form the helper wants, and `walk` outlives
    // the call.
    unsafe {
        bpf_loop(
            pieces,
            count_piece as *mut c_void,
            (&raw mut walk).cast(),
            0,
        )
    };
    if walk.failed != 0 {
        count(counter::UNREADABLE);
        return None;
    }
    Some(walk.dirty_pages)
}

/// Adds up one piece; not 0 ends the walk.
unsafe extern "C" fn count_piece(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `count_pages` passes its `Walk`, and nothing else uses it now.
    let walk = unsafe { &mut *context.cast::<Walk>() };
    let done = u64::from(index) * u64::from(PIECE_BYTES);
    let left = walk.bytes - done;
    let bytes = match u32::try_from(left) {
        Ok(left) if left < PIECE_BYTES => left,
        _ => PIECE_BYTES,
    };
    let Some(piece) = PIECE.get_ptr_mut(0) else {
        walk.failed = 1;
        return 1;
    };
    // SAFETY: `piece` has room for PIECE_BYTES, which `bytes` does not exceed;
    // the helper checks the address in the process.
    let ret =
        unsafe { bpf_probe_read_user(piece.cast(), bytes, (walk.address + done) as *const c_void) };
    if ret != 0 {
        walk.failed = 1;
        return 1;
    }
    // SAFETY: the CPU's own buffer, which no program uses that could come
    // between: system call tracepoints run without preemption.
    let piece = unsafe { &*piece };
    let words = (bytes / 8) as usize;
    let mut dirty_pages = 0;
    for word in piece.iter().take(words) {
        dirty_pages += u64::from(word.count_ones());
    }
    walk.dirty_pages += dirty_pages;
    0
}
