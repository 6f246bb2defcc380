//! `sys_exit_pwrite64`, `pwritev`, `pwritev2`: a file was written. The three
//! have descriptor and position in the same registers, so one program serves
//! all.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::file;
use crate::filter::observed_thread;
use crate::kernel::file_of;
use crate::syscall::{registers, result};

#[tracepoint]
fn pwrite_exit(context: TracePointContext) -> u32 {
    let _ = try_pwrite_exit(&context);
    0
}

#[inline(always)]
fn try_pwrite_exit(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let bytes = u64::try_from(result(context))
        .ok()
        .filter(|&bytes| bytes > 0)?;
    let registers = registers();
    let key = file_of(registers.descriptor())?;
    // `pwritev` splits its position in two for 32-bit machines; on 64 bits the
    // first is all of it.
    file::wrote(&key, registers.fourth(), bytes);
    Some(())
}
