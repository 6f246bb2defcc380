//! `sys_exit_pwrite64`, `pwritev`, `pwritev2`: how many bytes were written.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::call::WRITE;
use pacer_common::event::RawEvent;

use crate::calls;
use crate::filter::observed_thread;
use crate::report::report;

/// Where the tracepoint keeps the call's result.
const RET_OFFSET: usize = 16;

#[tracepoint]
fn pwrite_exit(context: TracePointContext) -> u32 {
    let _ = try_pwrite_exit(&context);
    0
}

#[inline(always)]
fn try_pwrite_exit(context: &TracePointContext) -> Option<()> {
    let call = calls::leave(observed_thread()?)?;
    // SAFETY: the tracepoint has 8 bytes there.
    let ret = unsafe { context.read_at::<i64>(RET_OFFSET) }.ok()?;
    if call.kind != WRITE || ret <= 0 {
        return None;
    }
    report(RawEvent {
        b: ret.cast_unsigned(),
        ..call.event
    });
    Some(())
}
