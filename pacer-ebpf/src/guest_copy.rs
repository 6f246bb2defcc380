//! Uprobe on QEMU's `iov_from_buf_full(vectors, count, offset, buffer, bytes)`:
//! a device copies what it has into guest memory, as a network card does with a
//! packet. No system call shows where that goes.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::device_memory;
use crate::filter::observed_thread;

#[uprobe]
fn guest_copy(context: ProbeContext) -> u32 {
    let _ = try_guest_copy(&context);
    0
}

#[inline(always)]
fn try_guest_copy(context: &ProbeContext) -> Option<()> {
    observed_thread()?;
    let vectors: u64 = context.arg(0)?;
    let count: u32 = context.arg(1)?;
    let offset: u64 = context.arg(2)?;
    let bytes: u64 = context.arg(4)?;
    // What lies before the offset, a header, is written at the same time.
    device_memory::copied_into_vectors(vectors, u64::from(count), offset.saturating_add(bytes));
    Some(())
}
