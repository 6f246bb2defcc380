//! A system call at its end: its arguments are still in the registers that the
//! thread entered the kernel with, so no program is needed at its start and
//! nothing has to be remembered in between.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::pt_regs;
use aya_ebpf::helpers::generated::{bpf_get_current_task_btf, bpf_task_pt_regs};
use aya_ebpf::programs::TracePointContext;

/// Where every `sys_exit_*` tracepoint keeps the call's result.
const RESULT_OFFSET: usize = 16;

/// What the call returned.
#[inline(always)]
pub(crate) fn result(context: &TracePointContext) -> i64 {
    // A plain load: the verifier knows the context. `read_at` would call a
    // helper that copies.
    // SAFETY: every `sys_exit_*` tracepoint has 8 bytes there.
    unsafe { *context.as_ptr().byte_add(RESULT_OFFSET).cast::<i64>() }
}

/// The registers of the current thread as it entered the kernel.
pub(crate) struct Registers(*const pt_regs);

#[inline(always)]
pub(crate) fn registers() -> Registers {
    // SAFETY: the helpers have no conditions; the current task has registers.
    Registers(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as *const pt_regs)
}

impl Registers {
    #[inline(always)]
    fn first(&self) -> u64 {
        // SAFETY: the helper returned the task's registers, which the verifier
        // knows as such.
        unsafe { (*self.0).rdi }
    }

    /// The first argument where it is a descriptor: an `int`, whatever the upper
    /// half of the register holds.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is it")]
    pub(crate) fn descriptor(&self) -> u32 {
        self.first() as u32
    }

    /// The second argument where it is an `ioctl`'s request, likewise.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is it")]
    pub(crate) fn request(&self) -> u32 {
        self.second() as u32
    }

    /// The second argument.
    #[inline(always)]
    pub(crate) fn second(&self) -> u64 {
        // SAFETY: as in `first`.
        unsafe { (*self.0).rsi }
    }

    /// The third argument.
    #[inline(always)]
    pub(crate) fn third(&self) -> u64 {
        // SAFETY: as in `first`.
        unsafe { (*self.0).rdx }
    }

    /// The fourth argument.
    #[inline(always)]
    pub(crate) fn fourth(&self) -> u64 {
        // SAFETY: as in `first`.
        unsafe { (*self.0).r10 }
    }
}
