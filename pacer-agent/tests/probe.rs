//! The programs in the kernel, tried on this test's own process: what it does
//! must be reported to the byte. `cargo xtask test` runs these as root.

mod files;
mod kvm;
mod ring;

use std::sync::{Mutex, MutexGuard, PoisonError};

use pacer_agent::probe::{EventKind, Probe, ProbeError};

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
