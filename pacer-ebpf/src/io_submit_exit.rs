//! `sys_exit_io_submit`: the writes among the requests that were accepted. Read
//! here and not at the enter, because the kernel may accept only the first few
//! and the rest is submitted again; the call's result says how many.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::call::IO_SUBMIT;
use pacer_common::event::{FILE_WRITE, RawEvent};

use crate::calls;
use crate::filter::observed_thread;
use crate::report::report;
use crate::user::read_user;

/// Where the tracepoint keeps the call's result.
const RET_OFFSET: usize = 16;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/aio_abi.h
const IOCB_CMD_PWRITE: u16 = 1;
const IOCB_CMD_PWRITEV: u16 = 8;

/// Most requests or vectors walked: `UIO_MAXIOV`; QEMU submits at most 1024.
const MAX_WALKED: u32 = 1024;

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

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IoVec {
    base: u64,
    bytes: u64,
}

/// A walk over vectors: where they are, and the sum so far.
struct Sum {
    address: u64,
    bytes: u64,
}

#[tracepoint]
fn io_submit_exit(context: TracePointContext) -> u32 {
    let _ = try_io_submit_exit(&context);
    0
}

#[inline(always)]
fn try_io_submit_exit(context: &TracePointContext) -> Option<()> {
    let call = calls::leave(observed_thread()?)?;
    // SAFETY: the tracepoint has 8 bytes there.
    let ret = unsafe { context.read_at::<i64>(RET_OFFSET) }.ok()?;
    if call.kind != IO_SUBMIT || ret <= 0 {
        return None;
    }
    let mut iocbs = call.address;
    // SAFETY: the callback has the form the helper wants, and `iocbs` outlives
    // the call.
    unsafe {
        bpf_loop(
            at_most(ret.cast_unsigned()),
            on_request as *mut c_void,
            (&raw mut iocbs).cast(),
            0,
        )
    };
    Some(())
}

/// Reports one request if it is a write.
unsafe extern "C" fn on_request(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `try_io_submit_exit` passes its address of the list.
    let iocbs = unsafe { *context.cast::<u64>() };
    let _ = try_request(iocbs + u64::from(index) * 8);
    0
}

#[inline(always)]
fn try_request(entry: u64) -> Option<()> {
    let iocb: Iocb = read_user(read_user(entry)?)?;
    let bytes = match iocb.opcode {
        IOCB_CMD_PWRITE => iocb.bytes,
        IOCB_CMD_PWRITEV => sum_vectors(iocb.buffer, iocb.bytes),
        _ => return None,
    };
    report(RawEvent {
        kind: FILE_WRITE,
        subject: iocb.fd,
        a: iocb.offset,
        b: bytes,
        ..RawEvent::default()
    });
    Some(())
}

/// Bytes of `count` vectors at `address`.
#[inline(always)]
fn sum_vectors(address: u64, count: u64) -> u64 {
    let mut sum = Sum { address, bytes: 0 };
    // SAFETY: the callback has the form the helper wants, and `sum` outlives
    // the call.
    unsafe {
        bpf_loop(
            at_most(count),
            add_vector as *mut c_void,
            (&raw mut sum).cast(),
            0,
        )
    };
    sum.bytes
}

unsafe extern "C" fn add_vector(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `sum_vectors` passes its `Sum`, and nothing else uses it now.
    let sum = unsafe { &mut *context.cast::<Sum>() };
    if let Some(vector) = read_user::<IoVec>(sum.address + u64::from(index) * 16) {
        sum.bytes += vector.bytes;
    }
    0
}

/// `count` as the helper takes it, within what is walked.
#[inline(always)]
fn at_most(count: u64) -> u32 {
    match u32::try_from(count) {
        Ok(count) if count < MAX_WALKED => count,
        _ => MAX_WALKED,
    }
}
