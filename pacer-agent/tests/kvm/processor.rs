//! A processor for the machine: it writes a known set of pages and halts.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use super::{Vm, ioctl};

const SET_TSS_ADDR: u64 = 0xae47;
const CREATE_VCPU: u64 = 0xae41;
const RUN: u64 = 0xae80;
const SET_REGS: u64 = 0x4090_ae82;
const GET_SREGS: u64 = 0x8138_ae83;
const SET_SREGS: u64 = 0x4138_ae84;

/// Real mode, from address 0: a byte into each page from 16 on.
const CODE: [u8; 17] = [
    0xB8, 0x00, 0x10, // mov $0x1000, %ax
    0x8E, 0xD8, // 1: mov %ax, %ds
    0xA2, 0x00, 0x00, // mov %al, 0
    0x05, 0x00, 0x01, // add $0x100, %ax
    0x3D, 0x00, 0x90, // cmp $0x9000, %ax
    0x75, 0xF3, // jne 1b
    0xF4, // hlt
];

/// The first page that it writes.
pub(crate) const FIRST_PAGE: u64 = 16;
/// How many pages it writes, one after the other.
pub(crate) const WRITTEN_PAGES: u64 = 128;

pub(crate) struct Processor(File);

impl Processor {
    /// Puts the code at the start of the machine's memory, which its slot must
    /// put at guest address 0.
    pub(crate) fn new(vm: &Vm) -> Self {
        // SAFETY: the memory is larger than the code, and nobody else's; the
        // calls take numbers, and the last gives a new descriptor.
        let file = unsafe {
            std::ptr::copy_nonoverlapping(CODE.as_ptr(), vm.memory.cast(), CODE.len());
            // Some processors need a place for real mode.
            libc::ioctl(vm.vm.as_raw_fd(), SET_TSS_ADDR, 0xfffb_d000_u64);
            let fd = libc::ioctl(vm.vm.as_raw_fd(), CREATE_VCPU, 0);
            assert!(fd >= 0, "KVM_CREATE_VCPU");
            File::from_raw_fd(fd)
        };
        let mut segments = [0_u64; 39];
        assert_eq!(ioctl(&file, GET_SREGS, &mut segments), 0);
        // The code segment comes first: its base, then limit and selector.
        segments[0] = 0;
        segments[1] &= !(0xffff << 32);
        assert_eq!(ioctl(&file, SET_SREGS, &mut segments), 0);
        Self(file)
    }

    pub(crate) fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Runs until it halts.
    pub(crate) fn write_pages(&self) {
        let mut registers = [0_u64; 18];
        // The flags' bit that is always set; the instruction pointer is 0.
        registers[17] = 2;
        assert_eq!(ioctl(&self.0, SET_REGS, &mut registers), 0);
        // SAFETY: KVM_RUN takes no argument.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), RUN, 0) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}
