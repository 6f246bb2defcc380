//! A slot of several GiB, whose log is told of in parts.

use std::fs::File;
use std::os::fd::AsRawFd;

use pacer_agent::probe::{EventKind, Probe, ProbeOptions};

use super::{LOG_DIRTY_PAGES, PAGE_BYTES, Vm, assert_nothing_missed, dirty_log, vm_of};
use crate::{alone, attach, kinds};

const PART_PAGES: u64 = 1 << 18;
/// Three parts and a bit. Nobody touches that memory: it costs nothing.
const PAGES: u64 = 3 * PART_PAGES + 77;
/// What the walk over the log of a GiB may cost.
const NS_PER_GIB: u64 = 10_000;

fn part(number: u64, dirty_pages: u64) -> EventKind {
    EventKind::DirtyPart {
        slot: 1,
        first_page: number * PART_PAGES,
        dirty_pages,
        device_pages: 0,
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn large_slots_are_told_of_in_parts() {
    let _alone = alone();
    let Some(mut vm) = vm_of(PAGES) else { return };
    let mut probe = attach();
    vm.register(1, LOG_DIRTY_PAGES, 0, PAGES);
    vm.clear_log(1, PART_PAGES, 64);
    vm.clear_log(1, 2 * PART_PAGES, PART_PAGES + 77);
    kinds(&mut probe);
    assert_eq!(vm.read_log(1), 0);
    let expected = [
        part(0, PART_PAGES),
        part(1, PART_PAGES - 64),
        part(2, 0),
        part(3, 0),
        dirty_log(1, 2 * PART_PAGES - 64, PAGES),
    ];
    assert_eq!(kinds(&mut probe), expected);
}

/// A run of the program counts one part alone here, and this side the others.
#[test]
#[ignore = "needs root and a kernel with BPF"]
fn the_rest_of_a_large_slot_is_counted_here() {
    let _alone = alone();
    let Some(mut vm) = vm_of(PAGES) else { return };
    let options = ProbeOptions { run_gib: 1 };
    let mut probe = Probe::attach_with(std::process::id(), &options).expect("it attaches");
    vm.register(1, LOG_DIRTY_PAGES, 0, PAGES);
    // From here on it is seen when the bitmap changes.
    kinds(&mut probe);
    vm.clear_log(1, PART_PAGES, 64);
    vm.clear_log(1, 2 * PART_PAGES, PART_PAGES + 77);
    // Into the first part and the last.
    read_all_over(&vm);
    kinds(&mut probe);
    assert_eq!(vm.read_log(1), 0);
    // The part that was counted is not looked at again.
    vm.clear_log(1, 0, PART_PAGES);
    let seen = kinds(&mut probe);
    let device_pages = |number: u64| match seen.get(usize::try_from(number).expect("few")) {
        Some(&EventKind::DirtyPart { device_pages, .. }) => device_pages,
        other => panic!("{other:?} is no part"),
    };
    let part = |number, dirty_pages| EventKind::DirtyPart {
        slot: 1,
        first_page: number * PART_PAGES,
        dirty_pages,
        device_pages: device_pages(number),
    };
    let parts = [
        part(0, PART_PAGES),
        part(1, PART_PAGES - 64),
        part(2, 0),
        part(3, 0),
    ];
    assert_eq!(seen[..4], parts);
    // Both sides' are in the sum; the third part was clear, so all were new.
    let in_third = device_pages(2);
    assert!((109..=111).contains(&in_third), "{in_third}");
    let in_all: u64 = (0..4).map(device_pages).sum();
    let log = EventKind::DirtyLog {
        slot: 1,
        dirty_pages: 2 * PART_PAGES - 64,
        device_pages: in_all,
        total_pages: PAGES,
        inferred: false,
    };
    assert_eq!(seen[4], log);
    assert_nothing_missed(&mut probe);
    // Read again before this side came: the first is lost, and counted.
    assert_eq!(vm.read_log(1), 0);
    assert_eq!(vm.read_log(1), 0);
    let seen = kinds(&mut probe);
    let unread = |kind: &EventKind| *kind == EventKind::LogUnread { slot: 1 };
    assert_eq!(seen.iter().filter(|kind| unread(kind)).count(), 1);
    assert!(matches!(seen.last(), Some(EventKind::DirtyLog { .. })));
    assert_eq!(probe.counters().overtaken_logs, 1);
}

/// The quietest of several, as the machine may be busy with other things.
#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_log_costs_little_to_count() {
    let _alone = alone();
    let Some(mut vm) = vm_of(PAGES) else { return };
    let mut probe = attach();
    vm.register(1, LOG_DIRTY_PAGES, 0, PAGES);
    if probe.counters().run_ns.is_none() {
        eprintln!("skipped: the kernel does not count run times");
        return;
    }
    let full = cheapest(&mut vm, &mut probe, false);
    vm.clear_log(1, 0, PAGES);
    let empty = cheapest(&mut vm, &mut probe, false);
    let with_reads = cheapest(&mut vm, &mut probe, true);
    eprintln!("ns per GiB: full {full}, empty {empty}, with what devices read {with_reads}");
    assert!(empty <= NS_PER_GIB && with_reads <= NS_PER_GIB);
    // As only a session's first log is.
    assert!(full <= 2 * NS_PER_GIB);
}

/// What it costs to count the log of a GiB, in ns.
fn cheapest(vm: &mut Vm, probe: &mut Probe, with_reads: bool) -> u64 {
    const TRIES: u32 = 200;
    let spent = |probe: &mut Probe| probe.counters().run_ns.expect("counted before");
    let mut cheapest = u64::MAX;
    for _ in 0..TRIES {
        if with_reads {
            read_all_over(vm);
        }
        let before = spent(probe);
        assert_eq!(vm.read_log(1), 0);
        cheapest = cheapest.min(spent(probe) - before);
        kinds(probe);
    }
    cheapest / (PAGES / PART_PAGES)
}

/// A byte into each of 330 pages, evenly over the memory: 110 a GiB, as a guest
/// that reads 43 MB/s from a disk has in 50 ms.
fn read_all_over(vm: &Vm) {
    let step = usize::try_from(PAGES / 330).expect("fits") * PAGE_BYTES;
    let vectors: Vec<_> = (0..330)
        .map(|at| libc::iovec {
            iov_base: vm.memory.wrapping_byte_add(at * step),
            iov_len: 1,
        })
        .collect();
    let zeroes = File::open("/dev/zero").expect("it is there");
    // SAFETY: the vectors lie within the machine's memory.
    let bytes = unsafe { libc::preadv(zeroes.as_raw_fd(), vectors.as_ptr(), 330, 0) };
    assert_eq!(bytes, 330);
}
