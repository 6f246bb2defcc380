//! Reads from the kernel's memory, at the offsets that the loader found in its
//! BTF.

use core::ptr;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::bpf_get_current_task_btf;
use pacer_common::counter;
use pacer_common::file::FileKey;
use pacer_common::kernel::KernelLayout;

use crate::report::count;

#[unsafe(no_mangle)]
static KERNEL_LAYOUT: KernelLayout = KernelLayout {
    task_files: 0,
    files_table: 0,
    table_files: 0,
    file_inode: 0,
    inode_number: 0,
    inode_generation: 0,
    inode_super: 0,
    super_device: 0,
    request_file: 0,
    request_opcode: 0,
    request_position: 0,
    request_address: 0,
    request_length: 0,
};

/// The offset in one field of the layout. Read by itself and not with the
/// others, so that the verifier knows its value.
macro_rules! offset {
    ($field:ident) => {
        layout_word(&KERNEL_LAYOUT.$field)
    };
}

/// Read at run time, since the loader sets it.
#[inline(always)]
fn layout_word(field: &'static u32) -> u32 {
    // SAFETY: a reference is valid to read.
    unsafe { ptr::read_volatile(field) }
}

/// Follows the pointer at `offset` of a structure whose type the verifier
/// knows: a plain load, which the kernel makes safe.
///
/// # Safety
///
/// `structure` must be such a pointer; the verifier checks it.
#[inline(always)]
unsafe fn follow(structure: *const u8, offset: u32) -> *const u8 {
    // SAFETY: accepted at a field's offset alone; a load from an address that is
    // gone gives 0.
    unsafe { *structure.byte_add(offset as usize).cast::<*const u8>() }
}

/// What a request of io_uring is about.
pub(crate) struct RingRequest {
    address: u64,
}

impl RingRequest {
    /// The request at `address` in the kernel.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self { address }
    }

    /// What is asked for.
    #[inline(always)]
    pub(crate) fn opcode(&self) -> Option<u8> {
        read_kernel(self.address, offset!(request_opcode))
    }

    /// The file it is for; counted where it cannot be found.
    #[inline(always)]
    pub(crate) fn file(&self) -> Option<FileKey> {
        let file = read_kernel(self.address, offset!(request_file));
        counted(file.and_then(key_of))
    }

    /// Where in the file it begins, in bytes; once it is done, where it ended.
    #[inline(always)]
    pub(crate) fn position(&self) -> Option<u64> {
        read_kernel(self.address, offset!(request_position))
    }

    /// Address of the buffer, or of the vectors.
    #[inline(always)]
    pub(crate) fn buffer(&self) -> Option<u64> {
        read_kernel(self.address, offset!(request_address))
    }

    /// Bytes of the buffer, or how many vectors.
    #[inline(always)]
    pub(crate) fn length(&self) -> Option<u32> {
        read_kernel(self.address, offset!(request_length))
    }
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
    counted(try_file_of(fd))
}

/// Counts a file that cannot be found.
#[inline(always)]
fn counted(key: Option<FileKey>) -> Option<FileKey> {
    if key.is_none() {
        count(counter::UNREADABLE);
    }
    key
}

#[inline(always)]
fn try_file_of(fd: u32) -> Option<FileKey> {
    // SAFETY: the helper has no conditions.
    let task: *const u8 = unsafe { bpf_get_current_task_btf() }.cast();
    // SAFETY: the current task, and from there by fields of known types.
    let entries = unsafe {
        let files = follow(task, offset!(task_files));
        let table = follow(files, offset!(files_table));
        follow(table, offset!(table_files)) as u64
    };
    key_of(read_kernel(entries, fd * 8)?)
}

/// The key of the `struct file` at `file`.
#[inline(always)]
fn key_of(file: u64) -> Option<FileKey> {
    let inode: u64 = read_kernel(file, offset!(file_inode))?;
    Some(FileKey {
        inode: read_kernel(inode, offset!(inode_number))?,
        super_block: read_kernel(inode, offset!(inode_super))?,
        generation: read_kernel::<u32>(inode, offset!(inode_generation))?.into(),
    })
}

/// The device of a file's file system, as the kernel packs it.
#[inline(always)]
pub(crate) fn device_of(key: &FileKey) -> Option<u32> {
    read_kernel(key.super_block, offset!(super_device))
}
