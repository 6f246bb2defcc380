//! Counts the pages set in a dirty log that lies in QEMU's memory, and those
//! that only devices wrote, part by part.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use pacer_common::counter;
use pacer_common::device::{GROUP_WORDS, NO_PIECE};
use pacer_common::dirty_log::{
    DEFAULT_RUN_PIECES, PART_PAGES, PART_PIECES, PIECE_BYTES, PIECE_PAGES, PIECE_WORDS,
    bitmap_bytes, pieces,
};
use pacer_common::event::{DIRTY_PART, RawEvent};

use crate::atomic;
use crate::maps::{DEVICE_PIECES, PIECE};
use crate::report::{count, report};

/// Set by the loader.
#[unsafe(no_mangle)]
static RUN_PIECES: Global<u32> = Global::new(DEFAULT_RUN_PIECES);

/// Pages that one run counts.
#[inline(always)]
pub(crate) fn run_pages() -> u64 {
    u64::from(RUN_PIECES.load()) * PIECE_PAGES
}

/// The words of a piece are added up in so many goes.
const STRETCHES: u32 = 8;
const STRETCH_WORDS: usize = PIECE_WORDS / STRETCHES as usize;

/// An address that is not a process'.
const NOWHERE: *const c_void = usize::MAX as *const c_void;

/// A log that QEMU has read.
pub(crate) struct Log {
    pub(crate) slot: u32,
    /// Where its bitmap is in QEMU.
    pub(crate) address: u64,
    /// Pages of the slot.
    pub(crate) pages: u64,
    /// The first piece of the bitmap of what devices wrote, or [`NO_PIECE`].
    pub(crate) device_piece: u32,
}

/// What one run has counted.
pub(crate) struct Counted {
    /// Pages of the slot, from the first on, that it went through.
    pub(crate) pages: u64,
    pub(crate) dirty: u64,
    pub(crate) device_only: u64,
}

/// Pages.
#[derive(Clone, Copy)]
struct Counts {
    /// Set in the log.
    dirty: u64,
    /// Written by devices, and not set in the log.
    device_only: u64,
}

const NONE: Counts = Counts {
    dirty: 0,
    device_only: 0,
};

/// What one walk over a bitmap carries from piece to piece.
struct Walk {
    address: u64,
    bytes: u64,
    total: Counts,
    part: Counts,
    slot: u32,
    device_piece: u32,
    /// Whether parts are told of: there is more than one.
    in_parts: u32,
    failed: u32,
}

/// Counts what is in `log` as far as one run goes, and reports its parts if it
/// has several. `None`, and counted, where it cannot be read.
#[inline(always)]
pub(crate) fn count_pages(log: &Log) -> Option<Counted> {
    let pages = log.pages.min(run_pages());
    let bytes = bitmap_bytes(pages);
    let mut walk = Walk {
        address: log.address,
        bytes,
        total: NONE,
        part: NONE,
        slot: log.slot,
        device_piece: log.device_piece,
        in_parts: u32::from(log.pages > PART_PAGES),
        failed: 0,
    };
    // SAFETY: the callback has the form the helper wants, and `walk` outlives
    // the call.
    unsafe {
        bpf_loop(
            u32::try_from(pieces(bytes)).unwrap_or(u32::MAX),
            count_piece as *mut c_void,
            (&raw mut walk).cast(),
            0,
        )
    };
    if walk.failed != 0 {
        count(counter::UNREADABLE);
        return None;
    }
    Some(Counted {
        pages,
        dirty: walk.total.dirty,
        device_only: walk.total.device_only,
    })
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
    if bytes < PIECE_BYTES {
        // No process has memory there: the helper fails, and then fills the
        // buffer with zeroes. To count the words that were read alone, the
        // verifier would have to follow each number of them, and gives up
        // ("BPF program is too large").
        // SAFETY: `piece` has room for PIECE_BYTES.
        unsafe { bpf_probe_read_user(piece.cast(), PIECE_BYTES, NOWHERE) };
    }
    // SAFETY: `piece` has room for PIECE_BYTES, which `bytes` does not exceed;
    // the helper checks the address in the process.
    let ret =
        unsafe { bpf_probe_read_user(piece.cast(), bytes, (walk.address + done) as *const c_void) };
    if ret != 0 {
        walk.failed = 1;
        return 1;
    }
    // No program uses the CPU's own buffer that could come between: system call
    // tracepoints run without preemption.
    walk.part.dirty += count_ones();
    if walk.device_piece != NO_PIECE {
        walk.part.device_only += take_device_only(walk.device_piece + index);
    }
    let is_last = left <= u64::from(PIECE_BYTES);
    if is_last || index % PART_PIECES == PART_PIECES - 1 {
        end_part(walk, index);
    }
    0
}

/// Bits at each place of the words so far: how many ones, twos, fours and eights.
#[derive(Default)]
struct Sums {
    ones: u64,
    twos: u64,
    fours: u64,
    /// Not a place: all of them.
    eights: u64,
}

/// Bits set in the CPU's buffer. The BPF machine cannot count bits: a word costs
/// a dozen instructions. Carry-save adders (Harley and Seal) first add up eight
/// words to one, which has the bits that count eight.
#[inline(always)]
fn count_ones() -> u64 {
    let mut sums = Sums::default();
    // A helper's loop around a short one: written out, the verifier would try
    // all ways through it.
    // SAFETY: the callback has the form the helper wants, and `sums` outlives
    // the call.
    unsafe {
        bpf_loop(
            STRETCHES,
            add_stretch as *mut c_void,
            (&raw mut sums).cast(),
            0,
        )
    };
    8 * sums.eights
        + 4 * u64::from(sums.fours.count_ones())
        + 2 * u64::from(sums.twos.count_ones())
        + u64::from(sums.ones.count_ones())
}

/// Adds up some of the words.
unsafe extern "C" fn add_stretch(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `count_ones` passes its `Sums`, and nothing else uses it now.
    let sums = unsafe { &mut *context.cast::<Sums>() };
    let Some(piece) = PIECE.get_ptr_mut(0) else {
        return 1;
    };
    let first = (index % STRETCHES) as usize * STRETCH_WORDS;
    // SAFETY: the CPU's own buffer; a stretch from `first` on is within it.
    let stretch = unsafe {
        &*piece
            .cast::<u64>()
            .add(first)
            .cast::<[u64; STRETCH_WORDS]>()
    };
    for words in stretch.as_chunks::<8>().0 {
        // Most of a log is empty.
        if words.iter().fold(0, |any, word| any | word) == 0 {
            continue;
        }
        let (two_a, sum) = add(sums.ones, words[0], words[1]);
        let (two_b, sum) = add(sum, words[2], words[3]);
        let (four_a, sum_of_twos) = add(sums.twos, two_a, two_b);
        let (two_a, sum) = add(sum, words[4], words[5]);
        let (two_b, sum) = add(sum, words[6], words[7]);
        let (four_b, sum_of_twos) = add(sum_of_twos, two_a, two_b);
        let (eight, sum_of_fours) = add(sums.fours, four_a, four_b);
        (sums.ones, sums.twos, sums.fours) = (sum, sum_of_twos, sum_of_fours);
        sums.eights += u64::from(eight.count_ones());
    }
    0
}

/// Adds three bits at each place: the carries, and the sums.
#[inline(always)]
const fn add(a: u64, b: u64, c: u64) -> (u64, u64) {
    let sum = a ^ b;
    ((a & b) | (sum & c), sum ^ c)
}

/// The bitmap of what devices wrote, and the log for the same pages, as they
/// are gone through group by group.
struct Groups {
    device_piece: u64,
    /// Those that are left.
    groups: u64,
    device_only: u64,
}

/// Takes out what the piece has of devices, and counts the pages of it that the
/// log, which is in the CPU's buffer, lacks.
#[inline(always)]
fn take_device_only(device_piece: u32) -> u64 {
    let Some(device) = DEVICE_PIECES.get_ptr_mut(device_piece) else {
        return 0;
    };
    // SAFETY: the map's value, which all programs change atomically.
    if unsafe { (&raw const (*device).groups).read() } == 0 {
        return 0;
    }
    let mut groups = Groups {
        device_piece: u64::from(device_piece),
        // SAFETY: as above.
        groups: unsafe { atomic::exchange(&raw mut (*device).groups, 0) },
        device_only: 0,
    };
    // A helper's loop: the verifier would go through one written out word by
    // word, and give up ("BPF program is too large").
    // SAFETY: the callback has the form the helper wants, and `groups` outlives
    // the call.
    unsafe {
        bpf_loop(
            groups.groups.count_ones(),
            take_group as *mut c_void,
            (&raw mut groups).cast(),
            0,
        )
    };
    groups.device_only
}

/// Takes out the first group that is left.
unsafe extern "C" fn take_group(_index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `take_device_only` passes its `Groups`, and nothing else uses it
    // now.
    let groups = unsafe { &mut *context.cast::<Groups>() };
    let Ok(device_piece) = u32::try_from(groups.device_piece) else {
        return 1;
    };
    let (Some(device), Some(log)) = (
        DEVICE_PIECES.get_ptr_mut(device_piece),
        PIECE.get_ptr_mut(0),
    ) else {
        return 1;
    };
    let lowest = groups.groups & groups.groups.wrapping_neg();
    groups.groups ^= lowest;
    let first = (lowest.wrapping_sub(1).count_ones() as usize * GROUP_WORDS) & (PIECE_WORDS - 1);
    for at in first..first + GROUP_WORDS {
        // SAFETY: the map's values; groups do not reach beyond their words.
        unsafe {
            let word = (&raw mut (*device).words).cast::<u64>().add(at);
            if word.read() != 0 {
                let logged = log.cast::<u64>().add(at).read();
                let device_only = atomic::exchange(word, 0) & !logged;
                groups.device_only += u64::from(device_only.count_ones());
            }
        }
    }
    0
}

/// The piece `index` is a part's last.
#[inline(always)]
fn end_part(walk: &mut Walk, index: u32) {
    walk.total.dirty += walk.part.dirty;
    walk.total.device_only += walk.part.device_only;
    if walk.in_parts != 0 {
        report(RawEvent {
            kind: DIRTY_PART,
            subject: walk.slot,
            a: walk.part.dirty,
            b: u64::from(index / PART_PIECES * PART_PIECES) * PIECE_PAGES,
            c: walk.part.device_only,
            ..RawEvent::default()
        });
    }
    walk.part = NONE;
}
