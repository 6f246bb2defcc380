//! `io_uring_submit_req`: a request enters a ring. What it is about is in the
//! request itself, at offsets from the kernel's BTF.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::counter;
use pacer_common::uring::Request;

use crate::filter::observed_thread;
use crate::kernel::{RingRequest, file_of};
use crate::maps::REQUESTS;
use crate::report::count;
use crate::vectors::total_bytes;
use crate::{device_memory, tracepoint};

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/io_uring.h
const READV: u8 = 1;
const WRITEV: u8 = 2;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const READ: u8 = 22;
const WRITE: u8 = 23;

#[tracepoint]
fn io_uring_submit(context: TracePointContext) -> u32 {
    let _ = try_io_uring_submit(&context);
    0
}

#[inline(always)]
fn try_io_uring_submit(context: &TracePointContext) -> Option<()> {
    let tracepoint = tracepoint::layout();
    let opcode: u8 = tracepoint::field(context, tracepoint.submit_opcode)?;
    if !matches!(
        opcode,
        READV | WRITEV | READ_FIXED | WRITE_FIXED | READ | WRITE
    ) {
        return None;
    }
    observed_thread()?;
    let address = tracepoint::field(context, tracepoint.submit_request)?;
    let request = RingRequest::at(address);
    let is_write = matches!(opcode, WRITEV | WRITE_FIXED | WRITE);
    let noted = Request {
        file: file_of(request.fd()?)?,
        offset: request.position()?,
        is_write: u64::from(is_write),
    };
    if REQUESTS.insert(address, noted, 0).is_err() {
        count(counter::MAP_FULL);
    }
    if !is_write {
        // Now and not at the completion, which may run in another process.
        read_into(&request, opcode == READV)?;
    }
    Some(())
}

#[inline(always)]
fn read_into(request: &RingRequest, is_vectored: bool) -> Option<()> {
    let buffer = request.buffer()?;
    let length = u64::from(request.length()?);
    if is_vectored {
        device_memory::read_into_vectors(buffer, length, total_bytes(buffer, length));
    } else {
        device_memory::read_into(buffer, length);
    }
    Some(())
}
