//! `sys_enter_pwrite64`, `pwritev`, `pwritev2`: file and position. The three
//! keep them at the same offsets, so one program serves all.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::call::{Call, WRITE};
use pacer_common::event::{FILE_WRITE, RawEvent};

use crate::calls;
use crate::filter::observed_thread;

const FD_OFFSET: usize = 16;
// `pwritev` splits its position in two for 32-bit machines; on 64 bits the
// lower one is all of it. -1, the file's own position, is `NO_OFFSET`.
const POSITION_OFFSET: usize = 40;

#[tracepoint]
fn pwrite_enter(context: TracePointContext) -> u32 {
    let _ = try_pwrite_enter(&context);
    0
}

#[inline(always)]
fn try_pwrite_enter(context: &TracePointContext) -> Option<()> {
    let thread = observed_thread()?;
    // SAFETY: the tracepoint has 8 bytes there, the lower half first.
    let fd = unsafe { context.read_at::<u32>(FD_OFFSET) }.ok()?;
    // SAFETY: the tracepoint has 8 bytes there.
    let position = unsafe { context.read_at::<u64>(POSITION_OFFSET) }.ok()?;
    let call = Call {
        kind: WRITE,
        event: RawEvent {
            kind: FILE_WRITE,
            subject: fd,
            a: position,
            ..RawEvent::default()
        },
        ..Call::default()
    };
    calls::enter(thread, &call);
    Some(())
}
