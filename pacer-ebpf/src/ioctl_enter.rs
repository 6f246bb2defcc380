//! `sys_enter_ioctl`, only while there is a slot larger than a program counts:
//! QEMU is about to change the bitmap that user space may be counting.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::filter::observed_thread;
use crate::kvm;

// Where the tracepoint keeps the call's second and third argument.
const REQUEST_OFFSET: usize = 24;
const ARGUMENT_OFFSET: usize = 32;

#[tracepoint]
fn ioctl_enter(context: TracePointContext) -> u32 {
    let _ = try_ioctl_enter(&context);
    0
}

#[inline(always)]
fn try_ioctl_enter(context: &TracePointContext) -> Option<()> {
    let argument = |offset| {
        // SAFETY: the tracepoint has 8 bytes at either offset.
        unsafe { *context.as_ptr().byte_add(offset).cast::<u64>() }
    };
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is it")]
    let request = argument(REQUEST_OFFSET) as u32;
    if matches!(request, kvm::GET_DIRTY_LOG | kvm::CLEAR_DIRTY_LOG) {
        observed_thread()?;
        kvm::before_call(request, argument(ARGUMENT_OFFSET))?;
    }
    Some(())
}
