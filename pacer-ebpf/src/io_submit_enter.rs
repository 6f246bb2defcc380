//! `sys_enter_io_submit`: where the list of requests is.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::call::{Call, IO_SUBMIT};

use crate::calls;
use crate::filter::observed_thread;

const IOCBS_OFFSET: usize = 32;

#[tracepoint]
fn io_submit_enter(context: TracePointContext) -> u32 {
    let _ = try_io_submit_enter(&context);
    0
}

#[inline(always)]
fn try_io_submit_enter(context: &TracePointContext) -> Option<()> {
    let thread = observed_thread()?;
    // SAFETY: the tracepoint has 8 bytes there.
    let address = unsafe { context.read_at::<u64>(IOCBS_OFFSET) }.ok()?;
    let call = Call {
        kind: IO_SUBMIT,
        address,
        ..Call::default()
    };
    calls::enter(thread, &call);
    Some(())
}
