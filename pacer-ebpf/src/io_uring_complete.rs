//! `io_uring_complete`: how much of a request was done.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::maps::REQUESTS;
use crate::{file, tracepoint};

#[tracepoint]
fn io_uring_complete(context: TracePointContext) -> u32 {
    let _ = try_io_uring_complete(&context);
    0
}

#[inline(always)]
fn try_io_uring_complete(context: &TracePointContext) -> Option<()> {
    let layout = tracepoint::layout();
    let address: u64 = tracepoint::field(context, layout.complete_request)?;
    // Only requests of the observed process are in the map.
    // SAFETY: a request is submitted once and completed once.
    let request = *unsafe { REQUESTS.get(address) }?;
    let _ = REQUESTS.remove(address);
    let result: i32 = tracepoint::field(context, layout.complete_result)?;
    let bytes = u64::try_from(result).ok().filter(|&bytes| bytes > 0)?;
    if request.is_write != 0 {
        file::wrote(&request.file, request.offset, bytes);
    } else {
        file::read(&request.file, bytes);
    }
    Some(())
}
