//! `io_uring_complete`: how much of a request was done.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::file;
use crate::maps::REQUESTS;

// Where the tracepoint keeps them since Linux 5.17.
const REQUEST_OFFSET: usize = 16;
const RESULT_OFFSET: usize = 32;

#[tracepoint]
fn io_uring_complete(context: TracePointContext) -> u32 {
    let _ = try_io_uring_complete(&context);
    0
}

#[inline(always)]
fn try_io_uring_complete(context: &TracePointContext) -> Option<()> {
    // SAFETY: the tracepoint has 8 bytes there.
    let address = unsafe { *context.as_ptr().byte_add(REQUEST_OFFSET).cast::<u64>() };
    // Only requests of the observed process are in the map.
    // SAFETY: a request is submitted once and completed once.
    let request = *unsafe { REQUESTS.get(address) }?;
    let _ = REQUESTS.remove(address);
    // SAFETY: the tracepoint has 4 bytes there.
    let result = unsafe { *context.as_ptr().byte_add(RESULT_OFFSET).cast::<i32>() };
    let bytes = u64::try_from(result).ok().filter(|&bytes| bytes > 0)?;
    if request.is_write != 0 {
        file::wrote(&request.file, request.offset, bytes);
    } else {
        file::read(&request.file, bytes);
    }
    Some(())
}
