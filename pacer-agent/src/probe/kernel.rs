//! Where this kernel keeps what the programs read from its memory.

use std::fs;

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
        inode_super: field("inode", &["i_sb"])?,
        super_device: field("super_block", &["s_dev"])?,
        ..KernelLayout::default()
    };
    let has_io_uring = add_io_uring(&btf, &mut layout).is_some();
    Ok(Kernel {
        layout,
        has_io_uring,
        sockets: sockets(&btf),
    })
}

/// A request begins with what is of its own kind, `io_rw` for reads and writes.
fn add_io_uring(btf: &Btf, layout: &mut KernelLayout) -> Option<()> {
    layout.request_fd = btf.offset_of("io_kiocb", &["cqe", "fd"])?;
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
