//! What a process reads into its guest's memory, as QEMU does for a disk.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use pacer_agent::probe::activity::DeviceReads;
use pacer_agent::probe::{EventKind, Probe};

use super::processor::{FIRST_PAGE, Processor, WRITTEN_PAGES};
use super::{LOG_DIRTY_PAGES, PAGE_BYTES, PAGES, Vm, vm, vm_of};
use crate::{alone, attach};

const SLOT: u64 = 4;
const PAGE: u64 = PAGE_BYTES as u64;

/// A megabyte to read.
fn disk() -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&[7; 1 << 20]).expect("it takes it");
    file
}

/// (address in the machine's memory, bytes) as a vector.
fn vector(vm: &Vm, (at, bytes): (u64, u64)) -> libc::iovec {
    assert!(at + bytes <= PAGES * PAGE);
    libc::iovec {
        iov_base: vm
            .memory
            .wrapping_byte_add(usize::try_from(at).expect("fits")),
        iov_len: usize::try_from(bytes).expect("fits"),
    }
}

/// Reads into the machine's memory: `preadv`, or `pread` for one place.
fn read(vm: &Vm, disk: &File, places: &[(u64, u64)]) {
    let vectors: Vec<_> = places.iter().map(|&place| vector(vm, place)).collect();
    let count = i32::try_from(vectors.len()).expect("few");
    // SAFETY: the vectors lie within the machine's memory, as `vector` checks.
    let bytes = unsafe {
        match vectors[..] {
            [one] => libc::pread(disk.as_raw_fd(), one.iov_base, one.iov_len, 0),
            _ => libc::preadv(disk.as_raw_fd(), vectors.as_ptr(), count, 0),
        }
    };
    let expected: u64 = places.iter().map(|place| place.1).sum();
    assert_eq!(u64::try_from(bytes), Ok(expected.min(1 << 20)));
}

/// The counts of the log, of vCPUs and of devices alone.
fn log(vm: &mut Vm, probe: &mut Probe) -> (u64, u64) {
    assert_eq!(vm.read_log(SLOT), 0);
    let events = probe.drain();
    let logs: Vec<_> = events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::DirtyLog {
                dirty_pages,
                device_pages,
                ..
            } => Some((dirty_pages, device_pages)),
            _ => None,
        })
        .collect();
    assert_eq!(logs.len(), 1, "{events:?}");
    logs[0]
}

/// A machine whose log is on and clear.
fn logged(probe: &mut Probe, vm: &mut Vm) {
    vm.register(SLOT, LOG_DIRTY_PAGES, 0, PAGES);
    assert_eq!(log(vm, probe), (PAGES, 0));
    // By QEMU's rule a call ends at a multiple of 64 pages, or at the end.
    vm.clear_log(SLOT, 0, PAGES);
    assert_eq!(log(vm, probe), (0, 0));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn pages_read_into_are_counted_once() {
    let _alone = alone();
    let Some(mut vm) = vm() else { return };
    let mut probe = attach();
    logged(&mut probe, &mut vm);
    let disk = disk();
    // Pages 10 and 11 in part, twice.
    read(&vm, &disk, &[(10 * PAGE + 4095, 2)]);
    read(&vm, &disk, &[(10 * PAGE, 1)]);
    // Over the edges of words and of a piece of the bitmap, and the last page.
    read(
        &vm,
        &disk,
        &[
            (60 * PAGE, 70 * PAGE),
            (32_767 * PAGE, 2 * PAGE),
            ((PAGES - 1) * PAGE, PAGE),
        ],
    );
    assert_eq!(log(&mut vm, &mut probe), (0, 2 + 70 + 2 + 1));
    assert_eq!(log(&mut vm, &mut probe), (0, 0), "taken out");
    let reads = probe.activity().device_reads;
    let expected = DeviceReads {
        ram_bytes: 3 + 73 * PAGE,
        other_bytes: reads.other_bytes,
    };
    assert_eq!(reads, expected);
    super::assert_nothing_missed(&mut probe);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn pages_that_vcpus_wrote_too_are_theirs() {
    let _alone = alone();
    let Some(mut vm) = vm() else { return };
    let mut probe = attach();
    logged(&mut probe, &mut vm);
    Processor::new(&vm).write_pages();
    // Half of it before, half within what the processor writes.
    let disk = disk();
    read(&vm, &disk, &[((FIRST_PAGE - 8) * PAGE, 16 * PAGE)]);
    assert_eq!(log(&mut vm, &mut probe), (WRITTEN_PAGES, 8));
    // What was read is gone, what was written stays until it is cleared.
    assert_eq!(log(&mut vm, &mut probe), (WRITTEN_PAGES, 0));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn memory_that_is_plugged_later_has_room_and_too_much_is_told() {
    /// 32 GiB.
    const PLUGGED_PAGES: u64 = 1 << 23;
    let _alone = alone();
    let mut probe = attach();
    let Some(mut vm) = vm_of(PLUGGED_PAGES) else {
        return;
    };
    vm.register(SLOT, LOG_DIRTY_PAGES, 0, PLUGGED_PAGES);
    assert_eq!(log(&mut vm, &mut probe), (PLUGGED_PAGES, 0));
    vm.clear_log(SLOT, 0, PLUGGED_PAGES);
    read(&vm, &disk(), &[(99 * PAGE, 3 * PAGE)]);
    assert_eq!(log(&mut vm, &mut probe), (0, 3));
    assert_eq!(probe.counters().map_full, 0);
    let plugged = |probe: &Probe| {
        let warnings = probe.warnings().iter();
        warnings.filter(|text| text.contains("plugged")).count()
    };
    assert_eq!(plugged(&probe), 0, "{:?}", probe.warnings());
    // Three times as much, twice.
    for slot in [SLOT + 1, SLOT + 2] {
        let address = (slot - SLOT) * 3 * PLUGGED_PAGES * PAGE;
        vm.register(slot, LOG_DIRTY_PAGES, address, 3 * PLUGGED_PAGES);
        assert_eq!(probe.counters().map_full, slot - SLOT);
        assert_eq!(plugged(&probe), 1, "{:?}", probe.warnings());
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn short_reads_and_other_memory_are_told_apart() {
    let _alone = alone();
    let Some(mut vm) = vm() else { return };
    let mut probe = attach();
    logged(&mut probe, &mut vm);
    let disk = disk();
    let before = probe.activity().device_reads;
    // Of 2 MiB asked for there is one: the second buffer stays as it was.
    read(&vm, &disk, &[(0, 1 << 20), (1 << 20, 1 << 20)]);
    let mut elsewhere = vec![0_u8; 5000];
    // SAFETY: as many bytes as the buffer has.
    let bytes = unsafe { libc::pread(disk.as_raw_fd(), elsewhere.as_mut_ptr().cast(), 5000, 0) };
    assert_eq!(bytes, 5000);
    let reads = probe.activity().device_reads;
    assert_eq!(reads.ram_bytes - before.ram_bytes, 1 << 20);
    assert!(reads.other_bytes - before.other_bytes >= 5000);
    assert_eq!(log(&mut vm, &mut probe), (0, 256));
    // The slot is still there when its log is off; nothing is noted then.
    vm.register(SLOT, 0, 0, PAGES);
    read(&vm, &disk, &[(0, PAGE)]);
    assert_eq!(
        probe.activity().device_reads.ram_bytes - reads.ram_bytes,
        PAGE
    );
    vm.register(SLOT, LOG_DIRTY_PAGES, 0, PAGES);
    assert_eq!(log(&mut vm, &mut probe), (PAGES, 0));
}
