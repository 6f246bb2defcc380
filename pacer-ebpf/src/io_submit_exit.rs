//! `sys_exit_io_submit`: the requests that the kernel accepted. It may accept
//! only the first few, and the rest is submitted again; the call's result says
//! how many.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::file::FileKey;

use crate::filter::observed_thread;
use crate::kernel::file_of;
use crate::syscall::{registers, result};
use crate::user::read_user;
use crate::vectors::{IoVec, total_bytes};
use crate::{device_memory, file};

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/aio_abi.h
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_PREADV: u16 = 7;
const IOCB_CMD_PWRITEV: u16 = 8;

/// Most requests walked; QEMU submits at most 1024.
const MAX_REQUESTS: u32 = 1024;

/// The front of `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Iocb {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: u16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: u64,
}

/// A walk over the requests of one call.
struct Batch {
    iocbs: u64,
    /// The descriptor of the last request, [`NO_DESCRIPTOR`] before the first,
    /// and its file: mostly they are all for one.
    descriptor: u64,
    file: FileKey,
}

/// No descriptor is as large.
const NO_DESCRIPTOR: u64 = u64::MAX;

#[tracepoint]
fn io_submit_exit(context: TracePointContext) -> u32 {
    let _ = try_io_submit_exit(&context);
    0
}

#[inline(always)]
fn try_io_submit_exit(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let accepted = u64::try_from(result(context)).ok()?;
    let mut batch = Batch {
        iocbs: registers().third(),
        descriptor: NO_DESCRIPTOR,
        file: FileKey {
            inode: 0,
            super_block: 0,
            generation: 0,
        },
    };
    // SAFETY: the callback has the form the helper wants, and `batch` outlives
    // the call.
    unsafe {
        bpf_loop(
            u32::try_from(accepted).map_or(MAX_REQUESTS, |accepted| accepted.min(MAX_REQUESTS)),
            on_request as *mut c_void,
            (&raw mut batch).cast(),
            0,
        )
    };
    Some(())
}

unsafe extern "C" fn on_request(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `try_io_submit_exit` passes its `Batch`, and nothing else uses it
    // now.
    let batch = unsafe { &mut *context.cast::<Batch>() };
    let _ = try_request(batch, index);
    0
}

#[inline(always)]
fn try_request(batch: &mut Batch, index: u32) -> Option<()> {
    let iocb: Iocb = read_user(read_user(batch.iocbs + u64::from(index) * 8)?)?;
    let bytes = match iocb.opcode {
        IOCB_CMD_PREAD | IOCB_CMD_PWRITE => iocb.bytes,
        // Without a walk where there is one alone.
        IOCB_CMD_PREADV | IOCB_CMD_PWRITEV if iocb.bytes == 1 => {
            read_user::<IoVec>(iocb.buffer)?.bytes
        }
        IOCB_CMD_PREADV | IOCB_CMD_PWRITEV => total_bytes(iocb.buffer, iocb.bytes),
        _ => return None,
    };
    if bytes == 0 {
        return None;
    }
    if batch.descriptor != u64::from(iocb.fd) {
        batch.file = file_of(iocb.fd)?;
        batch.descriptor = u64::from(iocb.fd);
    }
    match iocb.opcode {
        IOCB_CMD_PREAD => {
            file::read(&batch.file, bytes);
            device_memory::read_into(iocb.buffer, bytes);
        }
        IOCB_CMD_PREADV => {
            file::read(&batch.file, bytes);
            device_memory::read_into_vectors(iocb.buffer, iocb.bytes, bytes);
        }
        _ => file::wrote(&batch.file, iocb.offset, bytes),
    }
    Some(())
}
