//! `io_uring_complete`: a request is done, as far as its result says. What it was
//! about is still in the request itself, at offsets from the kernel's BTF. The
//! kernel completes requests in a thread of the process that made them.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::filter::observed_thread;
use crate::kernel::RingRequest;
use crate::{device_memory, file, tracepoint};

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/io_uring.h
const READV: u8 = 1;
const WRITEV: u8 = 2;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const READ: u8 = 22;
const WRITE: u8 = 23;

#[tracepoint]
fn io_uring_complete(context: TracePointContext) -> u32 {
    let _ = try_io_uring_complete(&context);
    0
}

#[inline(always)]
fn try_io_uring_complete(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let layout = tracepoint::layout();
    let result: i32 = tracepoint::field(context, layout.complete_result)?;
    let bytes = u64::try_from(result).ok().filter(|&bytes| bytes > 0)?;
    // None of its own: an entry that no request made.
    let address = tracepoint::field(context, layout.complete_request)?;
    let request = RingRequest::at(address);
    match request.opcode()? {
        WRITEV | WRITE_FIXED | WRITE => {
            // File systems move the position on by what they wrote.
            let offset = request.position()?.saturating_sub(bytes);
            file::wrote(&request.file()?, offset, bytes);
        }
        READ | READ_FIXED => {
            file::read(&request.file()?, bytes);
            device_memory::read_into(request.buffer()?, bytes);
        }
        READV => {
            file::read(&request.file()?, bytes);
            let count = u64::from(request.length()?);
            device_memory::read_into_vectors(request.buffer()?, count, bytes);
        }
        _ => {}
    }
    Some(())
}
