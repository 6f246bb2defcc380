//! What QEMU reads for its devices: it lands in guest memory without a trace in
//! KVM's dirty log. The pages are noted in a bitmap of our own while the log is
//! kept, and taken out of it when QEMU reads the log.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use pacer_common::counter;
use pacer_common::device::{GROUP_WORDS, NO_PIECE, Range};
use pacer_common::dirty_log::PIECE_WORDS;
use pacer_common::slot::PAGE_SHIFT;

use crate::atomic;
use crate::maps::DEVICE_PIECES;
use crate::ranges;
use crate::report::count_bytes;
use crate::user::read_user;
use crate::vectors::{IoVec, VECTOR_BYTES, at_most};

const WORD_PAGES: u64 = 64;

/// Most words noted for one buffer: 2 GiB, the most that a call reads.
const MAX_WORDS: u64 = (1 << 31) / 4096 / WORD_PAGES + 1;

/// Vectors that are being written.
struct Vectors {
    address: u64,
    /// Bytes that are not placed yet.
    left: u64,
    /// 1 if a call reads into them, 0 if QEMU copies what it has.
    is_read: u64,
}

/// Pages that are being noted, counted in the slot's range.
struct Marks {
    first_piece: u64,
    first_page: u64,
    last_page: u64,
}

/// `bytes` were, or are being, read to `address`.
#[inline(always)]
pub(crate) fn read_into(address: u64, bytes: u64) {
    let index = if copied_into(address, bytes) {
        counter::READ_TO_RAM_BYTES
    } else {
        counter::READ_ELSEWHERE_BYTES
    };
    count_bytes(index, bytes);
}

/// `bytes` are being copied to `address`. Whether that is guest memory.
#[inline(always)]
fn copied_into(address: u64, bytes: u64) -> bool {
    let Some(range) = ranges::at(address) else {
        return false;
    };
    if range.logged != 0 && range.first_piece != NO_PIECE && bytes > 0 {
        note(range, address, bytes);
    }
    true
}

/// `bytes` were, or are being, read into `count` vectors at `address`.
#[inline(always)]
pub(crate) fn read_into_vectors(address: u64, count: u64, bytes: u64) {
    walk(address, count, bytes, 1);
}

/// `bytes` are being copied into `count` vectors at `address`.
#[inline(always)]
pub(crate) fn copied_into_vectors(address: u64, count: u64, bytes: u64) {
    walk(address, count, bytes, 0);
}

#[inline(always)]
fn walk(address: u64, count: u64, bytes: u64, is_read: u64) {
    let mut vectors = Vectors {
        address,
        left: bytes,
        is_read,
    };
    // SAFETY: the callback has the form the helper wants, and `vectors`
    // outlives the call.
    unsafe {
        bpf_loop(
            at_most(count),
            next_vector as *mut c_void,
            (&raw mut vectors).cast(),
            0,
        )
    };
}

unsafe extern "C" fn next_vector(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `walk` passes its `Vectors`, and nothing else uses
    // it now.
    let vectors = unsafe { &mut *context.cast::<Vectors>() };
    let Some(vector) = read_user::<IoVec>(vectors.address + u64::from(index) * VECTOR_BYTES) else {
        return 1;
    };
    let bytes = vector.bytes.min(vectors.left);
    if vectors.is_read != 0 {
        read_into(vector.base, bytes);
    } else {
        copied_into(vector.base, bytes);
    }
    vectors.left -= bytes;
    i64::from(vectors.left == 0)
}

/// Notes the pages from `address` on; one that is touched in part is written.
#[inline(always)]
fn note(range: &Range, address: u64, bytes: u64) {
    // The range may have changed since it was found.
    let start = range.start;
    let length = range.end.saturating_sub(start);
    let first = address.saturating_sub(start);
    let last = (first + bytes).min(length).saturating_sub(1);
    if length == 0 || first > last {
        return;
    }
    let mut marks = Marks {
        first_piece: u64::from(range.first_piece),
        first_page: first >> PAGE_SHIFT,
        last_page: last >> PAGE_SHIFT,
    };
    let words = marks.last_page / WORD_PAGES - marks.first_page / WORD_PAGES + 1;
    // SAFETY: the callback has the form the helper wants, and `marks` outlives
    // the call.
    unsafe {
        bpf_loop(
            words.min(MAX_WORDS) as u32,
            note_word as *mut c_void,
            (&raw mut marks).cast(),
            0,
        )
    };
}

/// Notes the pages of one word.
unsafe extern "C" fn note_word(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `note` passes its `Marks`, and nothing else uses it now.
    let marks = unsafe { &*context.cast::<Marks>() };
    let first_word = marks.first_page / WORD_PAGES;
    let word = first_word + u64::from(index);
    let mut bits = u64::MAX;
    if index == 0 {
        bits &= u64::MAX << (marks.first_page % WORD_PAGES);
    }
    if word == marks.last_page / WORD_PAGES {
        bits &= u64::MAX >> (WORD_PAGES - 1 - marks.last_page % WORD_PAGES);
    }
    let piece = marks.first_piece + word / PIECE_WORDS as u64;
    let (Ok(piece), Ok(at)) = (
        u32::try_from(piece),
        usize::try_from(word % PIECE_WORDS as u64),
    ) else {
        return 1;
    };
    let Some(piece) = DEVICE_PIECES.get_ptr_mut(piece) else {
        return 1;
    };
    // The word before its group: whoever takes the group finds the word.
    // SAFETY: the map's value, in which `at` is below PIECE_WORDS; all programs
    // change it atomically.
    unsafe {
        atomic::or((&raw mut (*piece).words).cast::<u64>().add(at), bits);
        atomic::or(&raw mut (*piece).groups, 1 << (at / GROUP_WORDS));
    }
    0
}
