//! Requests to block devices, from issue to completion, of whatever process:
//! the device is shared. Only devices that user space put into the map.
//!
//! On raw tracepoints: the kernel skips a program on a plain one while any other
//! program on a plain tracepoint is running on that CPU, and completions come as
//! interrupts into whatever runs. On a raw one it skips only a program that
//! would interrupt itself. (`bpf_prog_active` in `trace_call_bpf`, against
//! `prog->active` in `__bpf_trace_run`:
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/trace/bpf_trace.c>)

use aya_ebpf::Global;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use pacer_common::block::{self, BlockLayout, BlockRequest, DirectionCounts};
use pacer_common::counter;

use crate::kernel::read_kernel;
use crate::maps::{BLOCK_REQUESTS, DEVICES};
use crate::report::count;

// https://github.com/torvalds/linux/blob/v6.18/include/linux/blk_types.h
const OPERATION_MASK: u32 = 0xFF;
const READ: u32 = 0;
const WRITE: u32 = 1;

/// As the kernel packs a device's number.
const MINOR_BITS: u32 = 20;

#[unsafe(no_mangle)]
static BLOCK_LAYOUT: Global<BlockLayout> = Global::new(BlockLayout {
    request_queue: 0,
    request_flags: 0,
    request_bytes: 0,
    queue_disk: 0,
    disk_major: 0,
    disk_minor: 0,
});

/// The device gets a request: merged and split as it will be. One that it hands
/// back is issued again, and its time then starts anew.
#[raw_tracepoint(tracepoint = "block_rq_issue")]
fn block_issue(context: RawTracePointContext) -> i32 {
    let _ = try_block_issue(context.arg(0));
    0
}

#[inline(always)]
fn try_block_issue(request: u64) -> Option<()> {
    let layout = BLOCK_LAYOUT.load();
    let queue: u64 = read_kernel(request, layout.request_queue)?;
    let disk: u64 = read_kernel(queue, layout.queue_disk)?;
    let major: u32 = read_kernel(disk, layout.disk_major)?;
    let minor: u32 = read_kernel(disk, layout.disk_minor)?;
    let device = major << MINOR_BITS | minor;
    DEVICES.get_ptr(device)?;
    let flags: u32 = read_kernel(request, layout.request_flags)?;
    let direction = match flags & OPERATION_MASK {
        READ => block::READ,
        WRITE => block::WRITE,
        // A flush, a discard, zeroes: nothing that a rate is taken of. Should
        // the end of what was at this address have been missed, this is it.
        _ => {
            let _ = BLOCK_REQUESTS.remove(request);
            return None;
        }
    };
    let issued = BlockRequest {
        // SAFETY: the helper reads a clock and has no conditions.
        issued_ns: unsafe { bpf_ktime_get_ns() },
        device,
        direction,
    };
    if BLOCK_REQUESTS.insert(request, issued, 0).is_err() {
        count(counter::MAP_FULL);
    }
    Some(())
}

/// The device did a request, or a part of it.
#[raw_tracepoint(tracepoint = "block_rq_complete")]
fn block_complete(context: RawTracePointContext) -> i32 {
    let _ = try_block_complete(context.arg(0), context.arg(2));
    0
}

#[inline(always)]
fn try_block_complete(request: u64, done_bytes: u32) -> Option<()> {
    // Only requests to watched devices are in the map.
    // SAFETY: nobody else completes this request now.
    let issued = *unsafe { BLOCK_REQUESTS.get(request) }?;
    let bytes_left: u32 = read_kernel(request, BLOCK_LAYOUT.load().request_bytes)?;
    let is_whole = done_bytes >= bytes_left;
    if is_whole {
        let _ = BLOCK_REQUESTS.remove(request);
    }
    let counts = DEVICES.get_ptr_mut(issued.device)?;
    // SAFETY: the value lives as long as the map (or, if user space takes the
    // device out now, until this program ends). It is this CPU's own, and only
    // this program writes it, which does not interrupt itself.
    let counts = unsafe { &mut *counts };
    let direction = counts.directions.get_mut(issued.direction as usize)?;
    direction.bytes += u64::from(done_bytes);
    if is_whole {
        // SAFETY: the helper reads a clock and has no conditions.
        let now_ns = unsafe { bpf_ktime_get_ns() };
        add(direction, now_ns.saturating_sub(issued.issued_ns));
    }
    Some(())
}

#[inline(always)]
fn add(direction: &mut DirectionCounts, latency_ns: u64) {
    direction.requests += 1;
    direction.latency_ns += latency_ns;
    let class = block::latency_class(latency_ns);
    if let Some(requests) = direction.by_latency.get_mut(class as usize) {
        *requests += 1;
    }
}
