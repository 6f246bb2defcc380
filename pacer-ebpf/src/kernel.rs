//! Reads from the kernel's memory, at the offsets that the loader found in its
//! BTF.

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_task, bpf_probe_read_kernel};
use pacer_common::counter;
use pacer_common::file::FileKey;
use pacer_common::kernel::KernelLayout;

use crate::report::count;

#[unsafe(no_mangle)]
static KERNEL_LAYOUT: Global<KernelLayout> = Global::new(KernelLayout {
    task_files: 0,
    files_table: 0,
    table_files: 0,
    file_inode: 0,
    inode_number: 0,
    inode_super: 0,
    super_device: 0,
    request_fd: 0,
    request_position: 0,
    request_address: 0,
    request_length: 0,
    padding: 0,
});

/// The offsets.
#[inline(always)]
pub(crate) fn layout() -> KernelLayout {
    KERNEL_LAYOUT.load()
}

/// The value `offset` bytes after `address` in the kernel. `T` must be valid
/// for every byte pattern.
#[inline(always)]
pub(crate) fn read_kernel<T: Copy>(address: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and fails where nothing is mapped;
    // callers ask for integers only.
    unsafe { bpf_probe_read_kernel((address + u64::from(offset)) as *const T) }.ok()
}

/// The file that the current process has under the descriptor `fd`; counted
/// where it cannot be found. `fd` must be one that a system call took.
#[inline(always)]
pub(crate) fn file_of(fd: u32) -> Option<FileKey> {
    let key = try_file_of(fd);
    if key.is_none() {
        count(counter::UNREADABLE);
    }
    key
}

#[inline(always)]
fn try_file_of(fd: u32) -> Option<FileKey> {
    let layout = layout();
    // SAFETY: the helper has no conditions.
    let task = unsafe { bpf_get_current_task() };
    let files: u64 = read_kernel(task, layout.task_files)?;
    let table: u64 = read_kernel(files, layout.files_table)?;
    let entries: u64 = read_kernel(table, layout.table_files)?;
    let file: u64 = read_kernel(entries + u64::from(fd) * 8, 0)?;
    let inode: u64 = read_kernel(file, layout.file_inode)?;
    let super_block: u64 = read_kernel(inode, layout.inode_super)?;
    Some(FileKey {
        inode: read_kernel(inode, layout.inode_number)?,
        device: read_kernel(super_block, layout.super_device)?,
        padding: 0,
    })
}
