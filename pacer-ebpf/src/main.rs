//! Pacer's eBPF programs, one a file. Each asks first whether it runs for the
//! observed process; what it finds goes as an event into one ring, and nothing
//! is lost without being counted.
#![no_std]
#![no_main]

mod calls;
mod dirty_log;
mod filter;
mod io_submit_enter;
mod io_submit_exit;
mod ioctl_enter;
mod ioctl_exit;
mod maps;
mod migrate_set_state;
mod migration_bitmap_sync;
mod pwrite_enter;
mod pwrite_exit;
mod report;
mod user;
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
