//! `sock_recv_length`: bytes came from a socket. A guest's packets do, and are
//! copied into its memory by QEMU.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::counter;

use crate::filter::observed_thread;
use crate::report::count_bytes;
use crate::tracepoint;

// https://github.com/torvalds/linux/blob/v6.18/include/linux/socket.h
const MSG_PEEK: i32 = 2;

#[tracepoint]
fn sock_receive(context: TracePointContext) -> u32 {
    let _ = try_sock_receive(&context);
    0
}

#[inline(always)]
fn try_sock_receive(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let layout = tracepoint::layout();
    let flags: i32 = tracepoint::field(context, layout.receive_flags)?;
    let result: i32 = tracepoint::field(context, layout.receive_result)?;
    let bytes = u64::try_from(result).ok().filter(|&bytes| bytes > 0)?;
    // What is only looked at comes once more.
    if flags & MSG_PEEK == 0 {
        count_bytes(counter::READ_ELSEWHERE_BYTES, bytes);
    }
    Some(())
}
