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
    // 32 bits, as at the exit. The lower half comes first.
    // SAFETY: the tracepoint has 8 bytes there.
    let request = unsafe { *context.as_ptr().byte_add(REQUEST_OFFSET).cast::<u32>() };
    if matches!(request, kvm::GET_DIRTY_LOG | kvm::CLEAR_DIRTY_LOG) {
        observed_thread()?;
        // SAFETY: as above.
        let argument = unsafe { *context.as_ptr().byte_add(ARGUMENT_OFFSET).cast::<u64>() };
        kvm::before_call(request, argument)?;
    }
    Some(())
}
