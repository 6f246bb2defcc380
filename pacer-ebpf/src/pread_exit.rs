//! `sys_exit_pread64`, `read`: a file was read into one buffer.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::filter::observed_thread;
use crate::kernel::file_of;
use crate::syscall::{registers, result};
use crate::{device_memory, file};

#[tracepoint]
fn pread_exit(context: TracePointContext) -> u32 {
    let _ = try_pread_exit(&context);
    0
}

#[inline(always)]
fn try_pread_exit(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let bytes = u64::try_from(result(context))
        .ok()
        .filter(|&bytes| bytes > 0)?;
    let registers = registers();
    file::read(&file_of(registers.descriptor())?, bytes);
    device_memory::read_into(registers.second(), bytes);
    Some(())
}
