//! The ring of events: waiting for it, its clock, and what it loses. Memory slots
//! are registered as often as an event is wanted.

use pacer_agent::probe::Event;

use crate::{alone, attach, kvm};

const PAGES: u64 = 16;

#[tokio::test]
#[ignore = "needs root and a kernel with BPF"]
#[expect(
    clippy::await_holding_lock,
    reason = "the lock keeps other tests out, and each test has its own runtime"
)]
async fn readable_waits_for_the_next_event() {
    let _alone = alone();
    let Some(vm) = kvm::vm() else { return };
    let mut probe = attach();
    for round in 0..100 {
        vm.register(0, round % 2, 0, PAGES);
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
    let Some(vm) = kvm::vm() else { return };
    let mut probe = attach();
    let before = monotonic_nanos();
    vm.register(0, 0, 0, PAGES);
    let after = monotonic_nanos();
    let events: Vec<Event> = probe.drain();
    let at = events.first().expect("the slot").at.as_nanos();
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
    const CALLS: u64 = 20_000;
    let _alone = alone();
    let Some(vm) = kvm::vm() else { return };
    let mut probe = attach();
    for call in 0..CALLS {
        vm.register(0, call % 2, 0, PAGES);
    }
    let full = probe.counters();
    assert!(full.lost_events > 0, "{full:?}");
    assert_eq!(full.events + full.lost_events, CALLS, "{full:?}");
    let drained = u64::try_from(probe.drain().len()).expect("fits");
    assert_eq!(drained, full.events, "what was kept can be drained");

    vm.register(0, 0, 0, PAGES);
    assert_eq!(probe.drain().len(), 1, "room again");
    assert_eq!(probe.counters().lost_events, full.lost_events);

    assert!(
        full.run_count >= Some(CALLS),
        "root switches it on: {full:?}"
    );
    assert!(full.run_ns > Some(0), "{full:?}");
}
