//! `sys_exit_fallocate`: a range of a file was made zero or given back.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::file;
use crate::filter::observed_thread;
use crate::kernel::file_of;
use crate::syscall::{registers, result};

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/falloc.h
const PUNCH_HOLE: u64 = 0x02;
const ZERO_RANGE: u64 = 0x10;

#[tracepoint]
fn fallocate_exit(context: TracePointContext) -> u32 {
    let _ = try_fallocate_exit(&context);
    0
}

#[inline(always)]
fn try_fallocate_exit(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    if result(context) != 0 {
        return None;
    }
    let registers = registers();
    let (mode, bytes) = (registers.second(), registers.fourth());
    // Anything else allocates, and changes no content.
    if mode & PUNCH_HOLE != 0 {
        file::discarded(&file_of(registers.descriptor())?, bytes);
    } else if mode & ZERO_RANGE != 0 {
        file::zeroed(&file_of(registers.descriptor())?, bytes);
    }
    Some(())
}
