//! Where this kernel keeps what the programs read from its memory.

use std::fs;

use pacer_common::block::BlockLayout;
use pacer_common::kernel::KernelLayout;
use pacer_common::socket::SocketLayout;

use super::ProbeError;
use super::btf::Btf;

const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What was found.
pub(super) struct Kernel {
    pub(super) layout: KernelLayout,
    /// Whether the layout of io_uring's requests is known.
    pub(super) has_io_uring: bool,
    /// `None` where ports cannot be told.
    pub(super) sockets: Option<SocketLayout>,
    /// `None` where requests to block devices cannot be told.
    pub(super) block: Option<BlockLayout>,
}

/// Reads the running kernel's layout.
pub(super) fn read() -> Result<Kernel, ProbeError> {
    let data = fs::read(VMLINUX).map_err(|source| ProbeError::BtfMissing { source })?;
    let btf = Btf::parse(data).ok_or(ProbeError::BtfUnknown { what: "its format" })?;
    let field = |structure: &'static str, path: &[&str]| {
        btf.offset_of(structure, path)
            .ok_or(ProbeError::BtfUnknown { what: structure })
    };
    let mut layout = KernelLayout {
        task_files: field("task_struct", &["files"])?,
        files_table: field("files_struct", &["fdt"])?,
        table_files: field("fdtable", &["fd"])?,
        file_inode: field("file", &["f_inode"])?,
        inode_number: field("inode", &["i_ino"])?,
        inode_generation: field("inode", &["i_generation"])?,
        inode_super: field("inode", &["i_sb"])?,
        super_device: field("super_block", &["s_dev"])?,
        ..KernelLayout::default()
    };
    let has_io_uring = add_io_uring(&btf, &mut layout).is_some();
    Ok(Kernel {
        layout,
        has_io_uring,
        sockets: sockets(&btf),
        block: block(&btf),
    })
}

/// A request begins with what is of its own kind, `io_rw` for reads and writes.
fn add_io_uring(btf: &Btf, layout: &mut KernelLayout) -> Option<()> {
    layout.request_file = btf.offset_of("io_kiocb", &["file"])?;
    layout.request_opcode = btf.offset_of("io_kiocb", &["opcode"])?;
    layout.request_position = btf.offset_of("io_rw", &["kiocb", "ki_pos"])?;
    layout.request_address = btf.offset_of("io_rw", &["addr"])?;
    layout.request_length = btf.offset_of("io_rw", &["len"])?;
    Some(())
}

fn sockets(btf: &Btf) -> Option<SocketLayout> {
    Some(SocketLayout {
        local_port: btf.offset_of("sock", &["__sk_common", "skc_num"])?,
        peer_port: btf.offset_of("sock", &["__sk_common", "skc_dport"])?,
    })
}

fn block(btf: &Btf) -> Option<BlockLayout> {
    Some(BlockLayout {
        request_queue: btf.offset_of("request", &["q"])?,
        request_flags: btf.offset_of("request", &["cmd_flags"])?,
        request_bytes: btf.offset_of("request", &["__data_len"])?,
        queue_disk: btf.offset_of("request_queue", &["disk"])?,
        disk_major: btf.offset_of("gendisk", &["major"])?,
        disk_minor: btf.offset_of("gendisk", &["first_minor"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_kernel_is_described() {
        // A kernel without BTF has nothing to read: the error says so.
        match read() {
            Ok(kernel) => {
                assert_ne!(kernel.layout.task_files, 0);
                assert_ne!(kernel.layout.super_device, 0);
                assert!(kernel.block.is_some_and(|block| block.request_bytes != 0));
                assert!(
                    kernel
                        .sockets
                        .is_some_and(|sockets| sockets.local_port != 0)
                );
            }
            Err(error) => assert!(matches!(error, ProbeError::BtfMissing { .. }), "{error}"),
        }
    }
}
