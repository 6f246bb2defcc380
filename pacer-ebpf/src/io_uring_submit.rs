//! `io_uring_submit_req`: a request enters a ring. What it is about is in the
//! request itself, at offsets from the kernel's BTF.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::counter;
use pacer_common::kernel::KernelLayout;
use pacer_common::uring::Request;

use crate::device_memory;
use crate::filter::observed_thread;
use crate::kernel::{file_of, layout, read_kernel};
use crate::maps::REQUESTS;
use crate::report::count;
use crate::vectors::total_bytes;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/io_uring.h
const READV: u8 = 1;
const WRITEV: u8 = 2;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const READ: u8 = 22;
const WRITE: u8 = 23;

// Where the tracepoint keeps them since Linux 5.17.
const REQUEST_OFFSET: usize = 16;
const OPCODE_OFFSET: usize = 32;

#[tracepoint]
fn io_uring_submit(context: TracePointContext) -> u32 {
    let _ = try_io_uring_submit(&context);
    0
}

#[inline(always)]
fn try_io_uring_submit(context: &TracePointContext) -> Option<()> {
    // SAFETY: the tracepoint has one byte there.
    let opcode = unsafe { *context.as_ptr().byte_add(OPCODE_OFFSET).cast::<u8>() };
    if !matches!(
        opcode,
        READV | WRITEV | READ_FIXED | WRITE_FIXED | READ | WRITE
    ) {
        return None;
    }
    observed_thread()?;
    // SAFETY: the tracepoint has 8 bytes there.
    let address = unsafe { *context.as_ptr().byte_add(REQUEST_OFFSET).cast::<u64>() };
    let layout = layout();
    let is_write = matches!(opcode, WRITEV | WRITE_FIXED | WRITE);
    let request = Request {
        file: file_of(read_kernel(address, layout.request_fd)?)?,
        offset: read_kernel(address, layout.request_position)?,
        is_write: u64::from(is_write),
    };
    if REQUESTS.insert(address, request, 0).is_err() {
        count(counter::MAP_FULL);
    }
    if !is_write {
        // Now and not at the completion, which may run in another process.
        read_into(address, &layout, opcode == READV)?;
    }
    Some(())
}

#[inline(always)]
fn read_into(request: u64, layout: &KernelLayout, is_vectored: bool) -> Option<()> {
    let buffer = read_kernel(request, layout.request_address)?;
    let length: u32 = read_kernel(request, layout.request_length)?;
    let length = u64::from(length);
    if is_vectored {
        device_memory::read_into_vectors(buffer, length, total_bytes(buffer, length));
    } else {
        device_memory::read_into(buffer, length);
    }
    Some(())
}
