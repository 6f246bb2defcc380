//! Uprobes on QEMU's `blk_aio_pwritev`, `blk_aio_pwrite_zeroes` and
//! `blk_aio_pdiscard`: what a guest asks of its disks, at the offsets it knows.
//! The layout they read belongs to a build of QEMU: attached only to known ones.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;
use pacer_common::file::{BACKEND, FileKey};

use crate::file;
use crate::filter::observed_thread;
use crate::user::read_user;

/// Where `QEMUIOVector` keeps its size.
const VECTOR_SIZE_OFFSET: u64 = 32;

#[uprobe]
fn backend_write(context: ProbeContext) -> u32 {
    if let Some(key) = backend(&context)
        && let Some(offset) = context.arg(1)
        && let Some(vector) = context.arg::<u64>(2)
        && let Some(bytes) = read_user(vector + VECTOR_SIZE_OFFSET)
        && bytes > 0
    {
        file::wrote(&key, offset, bytes);
    }
    0
}

#[uprobe]
fn backend_zero(context: ProbeContext) -> u32 {
    if let Some(key) = backend(&context)
        && let Some(bytes) = context.arg(2)
    {
        file::zeroed(&key, bytes);
    }
    0
}

#[uprobe]
fn backend_discard(context: ProbeContext) -> u32 {
    if let Some(key) = backend(&context)
        && let Some(bytes) = context.arg(2)
    {
        file::discarded(&key, bytes);
    }
    0
}

/// The backend in the first argument.
#[inline(always)]
fn backend(context: &ProbeContext) -> Option<FileKey> {
    observed_thread()?;
    Some(FileKey {
        inode: context.arg(0)?,
        super_block: BACKEND,
        generation: 0,
    })
}
