//! The programs in the kernel, tried on this test's own process: what it does
//! must be reported to the byte. `cargo xtask test` runs these as root.

mod kvm;
mod writes;

use std::sync::{Mutex, MutexGuard, PoisonError};

use pacer_agent::probe::{Event, EventKind, Probe, ProbeError};

/// One test at a time: each sees the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach() -> Probe {
    Probe::attach(std::process::id()).expect("the probe attaches")
}

/// The kinds of what was drained.
fn kinds(probe: &mut Probe) -> Vec<EventKind> {
    probe.drain().iter().map(|event| event.kind).collect()
}

#[test]
fn a_missing_process_is_told_apart() {
    let error = Probe::attach(u32::MAX).err().expect("there is none");
    assert!(matches!(error, ProbeError::NoSuchProcess { .. }), "{error}");
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn uprobes_that_do_not_fit_are_warnings() {
    let _alone = alone();
    let probe = attach();
    assert!(!probe.has_state_uprobe());
    // This test is no QEMU: its three functions are missing, nothing else.
    assert_eq!(probe.warnings().len(), 3, "{:?}", probe.warnings());
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn nothing_stays_open_after_the_drop() {
    let _alone = alone();
    let open = || {
        std::fs::read_dir("/proc/self/fd")
            .expect("proc is mounted")
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .filter(|target| target.contains("bpf") || target.contains("perf_event"))
            .count()
    };
    let before = open();
    let probe = attach();
    assert!(open() > before);
    drop(probe);
    assert_eq!(open(), before);
}

#[tokio::test]
#[ignore = "needs root and a kernel with BPF"]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock keeps other tests out, and each test has its own runtime"
)]
async fn readable_waits_for_the_next_event() {
    let _alone = alone();
    let mut probe = attach();
    let file = writes::file();
    for round in 0..100u8 {
        writes::pwrite(&file, u64::from(round), &[round]);
        probe.readable().await.expect("the ring can be waited for");
        // Ready for as long as nothing was drained.
        probe.readable().await.expect("the ring can be waited for");
        let events = probe.drain();
        assert_eq!(events.len(), 1, "round {round}: {events:?}");
        let later = tokio::time::Duration::from_millis(1);
        let empty = tokio::time::timeout(later, probe.readable()).await;
        assert!(empty.is_err(), "round {round}: nothing happened");
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn events_carry_the_monotonic_clock() {
    let _alone = alone();
    let mut probe = attach();
    let file = writes::file();
    let before = monotonic_nanos();
    writes::pwrite(&file, 0, b"x");
    let after = monotonic_nanos();
    let events: Vec<Event> = probe.drain();
    let at = events.first().expect("the write").at.as_nanos();
    assert!((before..=after).contains(&at), "{before} {at} {after}");
}

fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a timespec to write to.
    let ret = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(ret, 0);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn lost_events_and_run_times_are_counted() {
    const WRITES: u64 = 25_000;
    let _alone = alone();
    let mut probe = attach();
    let file = writes::file();
    for at in 0..WRITES {
        writes::pwrite(&file, at, b"x");
    }
    let full = probe.counters();
    assert!(full.lost_events > 0, "{full:?}");
    assert_eq!(full.events + full.lost_events, WRITES, "{full:?}");
    let drained = u64::try_from(probe.drain().len()).expect("fits");
    assert_eq!(drained, full.events, "what was kept can be drained");

    writes::pwrite(&file, 0, b"x");
    assert_eq!(probe.drain().len(), 1, "room again");
    assert_eq!(probe.counters().lost_events, full.lost_events);

    let (run_ns, run_count) = (full.run_ns, full.run_count);
    assert!(
        run_count >= Some(2 * WRITES),
        "root switches it on: {full:?}"
    );
    assert!(run_ns > Some(0), "{full:?}");
}
