//! Pacer's eBPF programs, one a file. Each asks first whether it runs for the
//! observed process. What is rare goes as an event into one ring; what is
//! frequent is counted in maps, with constant work for each call. Nothing is
//! lost without being counted.
#![no_std]
#![no_main]
// Atomic operations are written out for the BPF machine.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod atomic;
mod backends;
mod block;
mod chunks;
mod device_memory;
mod dirty_log;
mod dirty_ring_push;
mod fallocate_exit;
mod file;
mod filter;
mod guest_copy;
mod guest_store;
mod io_submit_exit;
mod io_uring_complete;
mod ioctl_enter;
mod ioctl_exit;
mod kernel;
mod kvm;
mod maps;
mod migrate_set_state;
mod migration_bitmap_sync;
mod pread_exit;
mod preadv_exit;
mod pwrite_exit;
mod ranges;
mod report;
mod sock_receive;
mod sock_send;
mod syscall;
mod tracepoint;
mod user;
mod vectors;
mod vm_stop;

// The kernel lends helpers such as `bpf_probe_read_user` to GPL programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
