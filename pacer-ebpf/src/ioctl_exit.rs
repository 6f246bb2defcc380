//! `sys_exit_ioctl`: the calls by which QEMU works with KVM's dirty logs, and
//! those that zero or discard a part of a block device.

use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::filter::{candidate_thread, observed_thread};
use crate::kernel::file_of;
use crate::syscall::{Registers, registers, result};
use crate::user::read_user;
use crate::{file, kvm};

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/fs.h
const BLKDISCARD: u32 = 0x1277;
const BLKSECDISCARD: u32 = 0x127d;
const BLKZEROOUT: u32 = 0x127f;

#[tracepoint]
fn ioctl_exit(context: TracePointContext) -> u32 {
    let _ = try_ioctl_exit(&context);
    0
}

#[inline(always)]
fn try_ioctl_exit(context: &TracePointContext) -> Option<()> {
    let registers = registers();
    // 32 bits: older QEMUs (7.2) pass an `int`, whose sign fills the rest of
    // the register for KVM_CLEAR_DIRTY_LOG.
    let request = registers.request();
    // vCPU threads come here once per exit to user space: leave early.
    match request {
        kvm::SET_USER_MEMORY_REGION
        | kvm::SET_USER_MEMORY_REGION2
        | kvm::GET_DIRTY_LOG
        | kvm::CLEAR_DIRTY_LOG => {
            candidate_thread()?;
            if result(context) == 0 {
                kvm::on_call(context, request, registers.third())?;
            }
        }
        kvm::RESET_DIRTY_RINGS => {
            observed_thread()?;
            if let Ok(pages) = u64::try_from(result(context)) {
                kvm::on_rings_reset(pages);
            }
        }
        BLKDISCARD | BLKSECDISCARD | BLKZEROOUT => {
            observed_thread()?;
            if result(context) == 0 {
                on_range(request, &registers)?;
            }
        }
        _ => {}
    }
    Some(())
}

#[inline(always)]
fn on_range(request: u32, registers: &Registers) -> Option<()> {
    let [_, bytes]: [u64; 2] = read_user(registers.third())?;
    let key = file_of(registers.descriptor())?;
    if request == BLKZEROOUT {
        file::zeroed(&key, bytes);
    } else {
        file::discarded(&key, bytes);
    }
    Some(())
}
