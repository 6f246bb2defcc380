//! Which program goes on which hook: plain tables.

/// A program and a tracepoint it goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hook {
    pub(super) program: &'static str,
    pub(super) category: &'static str,
    pub(super) tracepoint: &'static str,
}

/// A program and the functions of QEMU it goes on: the first that is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function {
    pub(super) program: &'static str,
    pub(super) symbols: &'static [&'static str],
}

const fn syscall(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook {
        program,
        category: "syscalls",
        tracepoint,
    }
}

const fn sock(program: &'static str, tracepoint: &'static str) -> Hook {
    Hook {
        program,
        category: "sock",
        tracepoint,
    }
}

const fn function(program: &'static str, symbols: &'static [&'static str]) -> Function {
    Function { program, symbols }
}

/// Without these there is no dirty log: no probe.
pub(super) const REQUIRED: [Hook; 1] = [syscall("ioctl_exit", "sys_exit_ioctl")];

/// Only while a slot is larger than a program counts.
pub(super) const LARGE_SLOTS: Hook = syscall("ioctl_enter", "sys_enter_ioctl");

/// Not on every kernel: KVM may be a module, or not offer rings.
pub(super) const RINGS: [Hook; 1] = [Hook {
    program: "dirty_ring_push",
    category: "kvm",
    tracepoint: "kvm_dirty_ring_push",
}];

/// What QEMU reads and writes; without one, what goes that way is not seen.
pub(super) const FILES: [Hook; 8] = [
    syscall("pwrite_exit", "sys_exit_pwrite64"),
    syscall("pwrite_exit", "sys_exit_pwritev"),
    syscall("pwrite_exit", "sys_exit_pwritev2"),
    syscall("pread_exit", "sys_exit_pread64"),
    syscall("preadv_exit", "sys_exit_preadv"),
    syscall("preadv_exit", "sys_exit_preadv2"),
    syscall("io_submit_exit", "sys_exit_io_submit"),
    syscall("fallocate_exit", "sys_exit_fallocate"),
];

/// Only where a tap device is open: it is read like a file, and everything else
/// that QEMU reads this way, thousands of times a second, wakes its loop.
pub(super) const TAP: [Hook; 1] = [syscall("pread_exit", "sys_exit_read")];

/// Only where the layout of its requests is known.
pub(super) const IO_URING: Hook = Hook {
    program: "io_uring_complete",
    category: "io_uring",
    tracepoint: "io_uring_complete",
};

/// Programs and raw tracepoints: what block devices do. The completion first, so
/// that no request is noted that is never taken out again.
pub(super) const BLOCK: [(&str, &str); 2] = [
    ("block_complete", "block_rq_complete"),
    ("block_issue", "block_rq_issue"),
];

/// What QEMU sends and receives. Since Linux 6.3.
pub(super) const SOCKETS: [Hook; 2] = [
    sock("sock_send", "sock_send_length"),
    sock("sock_receive", "sock_recv_length"),
];

pub(super) const STATE_UPROBE: &str = "migrate_set_state";

/// Marks of a migration's progress. 7.2 keeps `migration_bitmap_sync_precopy`
/// to itself; the function under it also runs when QEMU measures a dirty rate.
pub(super) const MARKS: [Function; 3] = [
    function(STATE_UPROBE, &["migrate_set_state"]),
    function("vm_stop", &["vm_stop_force_state"]),
    function(
        "migration_bitmap_sync",
        &[
            "migration_bitmap_sync_precopy",
            "memory_global_dirty_log_sync",
        ],
    ),
];

/// What devices copy into guest memory, which counts while its writes are logged.
pub(super) const COPIES: Function = function("guest_copy", &["iov_from_buf_full"]);

pub(super) const STORE_UPROBE: &str = "guest_store";

/// QEMU's helpers for stores of a guest under TCG: as 8.2 and later name them,
/// then as 7.2 does.
pub(super) const STORES: [Function; 4] = [
    function(STORE_UPROBE, &["helper_stb_mmu", "helper_ret_stb_mmu"]),
    function(STORE_UPROBE, &["helper_stw_mmu", "helper_le_stw_mmu"]),
    function(STORE_UPROBE, &["helper_stl_mmu", "helper_le_stl_mmu"]),
    function(STORE_UPROBE, &["helper_stq_mmu", "helper_le_stq_mmu"]),
];

/// What the guest asks of its disks, where the build of QEMU is known.
pub(super) const BACKENDS: [Function; 3] = [
    function("backend_write", &["blk_aio_pwritev"]),
    function("backend_zero", &["blk_aio_pwrite_zeroes"]),
    function("backend_discard", &["blk_aio_pdiscard"]),
];
