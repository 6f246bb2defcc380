//! KVM's dirty log, driven without a guest: a log that starts with every page
//! set, of which parts are cleared, is known to the page.

mod device_reads;
mod large;
mod processor;
mod rings;

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use pacer_agent::probe::{EventKind, Probe};

use crate::{alone, attach, kinds};
use processor::{Processor, WRITTEN_PAGES};

const CREATE_VM: u64 = 0xae01;
const ENABLE_CAP: u64 = 0x4068_aea3;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const GET_DIRTY_LOG: u64 = 0x4010_ae42;
/// As QEMU 7.2 passes it: an `int`, whose sign fills the register.
const CLEAR_DIRTY_LOG: u64 = 0xffff_ffff_c018_aec0;

const CAP_MANUAL_DIRTY_LOG_PROTECT2: u64 = 168;
const MANUAL_PROTECT_AND_INITIALLY_SET: u64 = 3;
const LOG_DIRTY_PAGES: u64 = 1;

/// Three full pieces of the bitmap and a bit: 98,304 and 1,699 pages.
const PAGES: u64 = 100_003;
const PAGE_BYTES: usize = 4096;

/// A virtual machine with memory and no processor.
pub(crate) struct Vm {
    vm: File,
    memory: *mut c_void,
    pages: u64,
    bitmap: Vec<u64>,
}

/// A machine whose log is cleared apart from being read. `None`, with a word
/// why, where there is no KVM to try it on.
pub(crate) fn vm() -> Option<Vm> {
    vm_of(PAGES)
}

fn vm_of(pages: u64) -> Option<Vm> {
    let vm = plain_vm(pages)?;
    let mut cap = [0u64; 13];
    cap[0] = CAP_MANUAL_DIRTY_LOG_PROTECT2;
    cap[1] = MANUAL_PROTECT_AND_INITIALLY_SET;
    if ioctl(&vm.vm, ENABLE_CAP, &mut cap) != 0 {
        eprintln!("skipped: this KVM clears its dirty log when it is read");
        return None;
    }
    Some(vm)
}

/// A machine whose log is cleared by reading it.
fn plain_vm(pages: u64) -> Option<Vm> {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
        eprintln!("skipped: no /dev/kvm");
        return None;
    };
    // SAFETY: KVM_CREATE_VM takes a number and gives a new descriptor.
    let vm = unsafe {
        let fd = libc::ioctl(kvm.as_raw_fd(), CREATE_VM, 0);
        assert!(fd >= 0, "KVM_CREATE_VM");
        File::from_raw_fd(fd)
    };
    let bitmap = vec![0; usize::try_from(pages.div_ceil(64)).expect("fits")];
    let memory = map(bytes(pages));
    Some(Vm {
        vm,
        memory,
        pages,
        bitmap,
    })
}

fn bytes(pages: u64) -> usize {
    usize::try_from(pages).expect("fits") * PAGE_BYTES
}

fn map(bytes: usize) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0) };
    assert_ne!(memory, libc::MAP_FAILED);
    memory
}

fn ioctl<T>(vm: &File, request: u64, argument: &mut T) -> i32 {
    // SAFETY: the callers pair requests with arguments of the right size, whose
    // pointers are to the `Vm`'s own memory.
    unsafe { libc::ioctl(vm.as_raw_fd(), request, &raw mut *argument) }
}

impl Vm {
    /// Slot and flags are two 32-bit fields side by side.
    pub(crate) fn register(&self, slot: u64, flags: u64, guest_address: u64, pages: u64) {
        let bytes = pages * PAGE_BYTES as u64;
        let mut region = [slot | flags << 32, guest_address, bytes, self.memory as u64];
        assert_eq!(ioctl(&self.vm, SET_USER_MEMORY_REGION, &mut region), 0);
    }

    fn read_log(&mut self, slot: u64) -> i32 {
        let mut log = [slot, self.bitmap.as_mut_ptr() as u64];
        ioctl(&self.vm, GET_DIRTY_LOG, &mut log)
    }

    fn clear_log(&self, slot: u64, first_page: u64, pages: u64) {
        let all = vec![u64::MAX; self.bitmap.len()];
        let bitmap = all.as_ptr() as u64;
        let mut clear = [slot | pages << 32, first_page, bitmap];
        assert_eq!(ioctl(&self.vm, CLEAR_DIRTY_LOG, &mut clear), 0);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // SAFETY: mapped by `vm`, used by nothing but the machine that ends now.
        unsafe { libc::munmap(self.memory, bytes(self.pages)) };
    }
}

fn registered(vm: &Vm, slot: u32, pages: u64, logging: bool) -> EventKind {
    EventKind::SlotRegistered {
        slot,
        pages,
        user_address: vm.memory as u64,
        logging,
    }
}

fn dirty_log(slot: u32, dirty_pages: u64, total_pages: u64) -> EventKind {
    EventKind::DirtyLog {
        slot,
        dirty_pages,
        device_pages: 0,
        total_pages,
        inferred: false,
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn dirty_logs_are_counted_to_the_page() {
    let _alone = alone();
    let Some(mut vm) = vm() else { return };
    let mut probe = attach();
    vm.register(3, 0, 0, PAGES);
    assert_eq!(kinds(&mut probe), [registered(&vm, 3, PAGES, false)]);
    vm.register(3, LOG_DIRTY_PAGES, 0, PAGES);
    assert_eq!(vm.read_log(3), 0);
    vm.clear_log(3, 64, 640);
    assert_eq!(vm.read_log(3), 0);
    // Up to the slot's end, which ends within a word.
    vm.clear_log(3, 99_968, PAGES - 99_968);
    assert_eq!(vm.read_log(3), 0);
    let cleared = |first_page, pages| EventKind::LogCleared {
        slot: 3,
        first_page,
        pages,
    };
    let expected = [
        registered(&vm, 3, PAGES, true),
        dirty_log(3, PAGES, PAGES),
        cleared(64, 640),
        dirty_log(3, PAGES - 640, PAGES),
        cleared(99_968, 35),
        dirty_log(3, PAGES - 675, PAGES),
    ];
    assert_eq!(kinds(&mut probe), expected);
    assert_nothing_missed(&mut probe);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_log_that_is_cleared_by_reading_is_counted_too() {
    let _alone = alone();
    let Some(mut vm) = plain_vm(PAGES) else {
        return;
    };
    let processor = Processor::new(&vm);
    let mut probe = attach();
    vm.register(3, LOG_DIRTY_PAGES, 0, PAGES);
    assert_eq!(vm.read_log(3), 0);
    processor.write_pages();
    assert_eq!(vm.read_log(3), 0);
    assert_eq!(vm.read_log(3), 0);
    let expected = [
        registered(&vm, 3, PAGES, true),
        dirty_log(3, 0, PAGES),
        dirty_log(3, WRITTEN_PAGES, PAGES),
        dirty_log(3, 0, PAGES),
    ];
    assert_eq!(kinds(&mut probe), expected);
    assert_nothing_missed(&mut probe);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn slots_that_are_not_known_are_not_guessed() {
    let _alone = alone();
    let Some(mut vm) = vm() else { return };
    vm.register(5, LOG_DIRTY_PAGES, 0, PAGES);
    let mut probe = attach();
    let warnings = probe.warnings().len();
    assert_eq!(vm.read_log(5), 0);
    assert_eq!(kinds(&mut probe), [EventKind::LogUnread { slot: 5 }]);
    assert_eq!(probe.counters().unknown_slots, 1);
    let late = probe.warnings().get(warnings).expect("it is said");
    assert!(late.contains("calc-dirty-rate"), "{late}");
    // A call that fails is no event either.
    assert_ne!(vm.read_log(6), 0);
    assert_eq!(probe.counters().unknown_slots, 1);
    // At least as large as what is cleared of its log.
    vm.clear_log(5, 6400, 640);
    assert_eq!(vm.read_log(5), 0);
    let inferred = EventKind::DirtyLog {
        slot: 5,
        dirty_pages: 6400,
        device_pages: 0,
        total_pages: 7040,
        inferred: true,
    };
    assert_eq!(kinds(&mut probe).last(), Some(&inferred));
    assert_eq!(probe.counters().inferred_slots, 1);
    // Known once QEMU registers it anew, unknown once it is gone.
    vm.register(5, 0, 0, PAGES);
    vm.register(5, 0, 0, 0);
    let gone = registered(&vm, 5, 0, false);
    let expected = [registered(&vm, 5, PAGES, false), gone];
    assert_eq!(kinds(&mut probe), expected);
    assert_eq!(probe.warnings().len(), warnings + 1, "said once");
}

fn assert_nothing_missed(probe: &mut Probe) {
    let counters = probe.counters();
    let missed = (
        counters.lost_events,
        counters.unknown_slots,
        counters.overtaken_logs,
        counters.unreadable,
        counters.map_full,
    );
    assert_eq!(missed, (0, 0, 0, 0, 0));
}
