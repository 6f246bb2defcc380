//! `sys_exit_io_submit`: the requests that the kernel accepted. It may accept
//! only the first few, and the rest is submitted again; the call's result says
//! how many.

use core::ffi::c_void;
use core::hint::black_box;

use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_user};
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::counter;
use pacer_common::dirty_log::PIECE_WORDS;
use pacer_common::file::FileKey;

use crate::file::Requests;
use crate::filter::observed_thread;
use crate::kernel::file_of;
use crate::maps::PIECE;
use crate::report::count;
use crate::syscall::{registers, result};
use crate::user::read_user;
use crate::vectors::{IoVec, total_bytes};
use crate::{chunks, device_memory, file};

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
    /// Where the addresses of the requests are.
    iocbs: u64,
    accepted: u64,
    now_ns: u64,
    /// The descriptor of the last request, [`NO_DESCRIPTOR`] before the first,
    /// and its file: mostly they are all for one.
    descriptor: u64,
    file: FileKey,
    /// What was asked of that file since it was another.
    read: Requests,
    written: Requests,
}

/// No descriptor is as large.
const NO_DESCRIPTOR: u64 = u64::MAX;

/// Addresses that the CPU's buffer holds.
#[expect(clippy::cast_possible_truncation, reason = "a few hundred")]
const HELD: u32 = PIECE_WORDS as u32;

#[tracepoint]
fn io_submit_exit(context: TracePointContext) -> u32 {
    let _ = try_io_submit_exit(&context);
    0
}

#[inline(always)]
fn try_io_submit_exit(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let accepted = u32::try_from(result(context)).ok()?.min(MAX_REQUESTS);
    let mut batch = Batch {
        iocbs: registers().third(),
        accepted: u64::from(accepted),
        now_ns: chunks::now_ns(),
        descriptor: NO_DESCRIPTOR,
        file: FileKey {
            inode: 0,
            super_block: 0,
            generation: 0,
        },
        read: Requests::NONE,
        written: Requests::NONE,
    };
    // SAFETY: the callback has the form the helper wants, and `batch` outlives
    // the call.
    unsafe {
        bpf_loop(
            accepted,
            on_request as *mut c_void,
            (&raw mut batch).cast(),
            0,
        )
    };
    file::transferred(&batch.file, batch.read, batch.written);
    Some(())
}

unsafe extern "C" fn on_request(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `try_io_submit_exit` passes its `Batch`, and nothing else uses it
    // now.
    let batch = unsafe { &mut *context.cast::<Batch>() };
    let _ = try_request(batch, index);
    0
}

/// Where request `index` is. Many addresses are read at once, into the buffer
/// that dirty logs are counted in: while this program runs, nothing else does
/// on this CPU that uses it.
#[inline(always)]
fn address_of(batch: &Batch, index: u32) -> Option<u64> {
    let held = PIECE.get_ptr_mut(0)?;
    let at = index % HELD;
    if at == 0 {
        let left = batch.accepted.saturating_sub(u64::from(index));
        // Hidden from the compiler, so that the verifier sees the bound.
        let bytes = u32::try_from(left).map_or(HELD, |left| black_box(left).min(HELD)) * 8;
        let address = batch.iocbs + u64::from(index) * 8;
        // SAFETY: the buffer has room for `HELD` addresses; the helper checks
        // those of the process.
        let ret = unsafe { bpf_probe_read_user(held.cast(), bytes, address as *const c_void) };
        if ret != 0 {
            count(counter::UNREADABLE);
            return None;
        }
    }
    // SAFETY: the CPU's own buffer, and `at` is below its length.
    Some(unsafe { held.cast::<u64>().add(at as usize).read() })
}

#[inline(always)]
fn try_request(batch: &mut Batch, index: u32) -> Option<()> {
    let iocb: Iocb = read_user(address_of(batch, index)?)?;
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
        file::transferred(&batch.file, batch.read, batch.written);
        (batch.read, batch.written) = (Requests::NONE, Requests::NONE);
        batch.descriptor = NO_DESCRIPTOR;
        batch.file = file_of(iocb.fd)?;
        batch.descriptor = u64::from(iocb.fd);
    }
    match iocb.opcode {
        IOCB_CMD_PREAD => {
            batch.read.add(bytes);
            device_memory::read_into(iocb.buffer, bytes);
        }
        IOCB_CMD_PREADV => {
            batch.read.add(bytes);
            device_memory::read_into_vectors(iocb.buffer, iocb.bytes, bytes);
        }
        _ => {
            batch.written.add(bytes);
            chunks::wrote(&batch.file, iocb.offset, bytes, batch.now_ns);
        }
    }
    Some(())
}
