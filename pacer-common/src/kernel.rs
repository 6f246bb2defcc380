//! Where this kernel keeps what no stable interface tells: offsets that the
//! loader reads from the kernel's own BTF.

use core::mem::{align_of, size_of};

/// Name of the global with the [`KernelLayout`].
pub const KERNEL_LAYOUT: &str = "KERNEL_LAYOUT";

/// Offsets of fields, in bytes. The path from a file descriptor to its inode,
/// and what an io_uring request is about.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelLayout {
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_table: u32,
    /// `fdtable.fd`
    pub table_files: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_ino`
    pub inode_number: u32,
    /// `inode.i_generation`
    pub inode_generation: u32,
    /// `inode.i_sb`
    pub inode_super: u32,
    /// `super_block.s_dev`
    pub super_device: u32,
    /// `io_kiocb.file`
    pub request_file: u32,
    /// `io_kiocb.opcode`
    pub request_opcode: u32,
    /// `io_rw.kiocb.ki_pos`, from the start of the request.
    pub request_position: u32,
    /// `io_rw.addr`, from the start of the request.
    pub request_address: u32,
    /// `io_rw.len`, from the start of the request.
    pub request_length: u32,
}

const _: () = {
    assert!(size_of::<KernelLayout>() == 52);
    assert!(align_of::<KernelLayout>() == 4);
};

// SAFETY: `repr(C)`, integers only, 13 of 4 bytes that fill it without padding
// (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for KernelLayout {}
