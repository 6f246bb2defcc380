//! `pacer observe --qmp` on real QEMU: without a migration QEMU is asked to
//! measure, and what it reads for that is seen.

use std::time::Duration;

use anyhow::Result;
use pacer_tests::agent::pacer_binary;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::observe::{ObserveOptions, Observer, Sync};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};

const TIMEOUT: Duration = Duration::from_secs(60);
const WORKING_SET: u32 = 600;
const GUEST: BareGuest = BareGuest {
    ram_mib: 64,
    working_set_pages: WORKING_SET,
    pages_per_second: 3000,
    ..BareGuest::PLAIN
};

/// The windows of the first set that QEMU is asked for, seen from without.
fn first_set(accel: Accel, version: QemuVersion) -> Result<Vec<Sync>> {
    let qemu = QemuInstall::find(version)?;
    let vm = Vm::start(&VmOptions::new(Guest::Bare(GUEST), qemu, accel))?;
    vm.wait_started(TIMEOUT)?;
    let mut options = ObserveOptions::new(&pacer_binary()?, vm.pid());
    options.qmp = Some(vm.pacer_qmp());
    let observer = Observer::start(&options)?;
    let windows = match version {
        QemuVersion::V7_2 => 2,
        QemuVersion::System => 6,
    };
    wait_until("QEMU has measured", TIMEOUT, || {
        let syncs = observer.syncs();
        Ok((syncs.len() >= windows).then_some(syncs))
    })
}

fn seconds(sync: &Sync) -> f64 {
    sync.window_seconds
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn windows_that_qemu_measures_are_seen_in_the_dirty_log() -> Result<()> {
    if Accel::detect()? != Accel::Kvm {
        eprintln!("skipped: no KVM");
        return Ok(());
    }
    let mut syncs = first_set(Accel::Kvm, QemuVersion::from_env()?)?;
    syncs.sort_by(|one, other| seconds(one).total_cmp(&seconds(other)));
    for sync in &syncs {
        assert_eq!(sync.origin, "dirty-log", "{sync:?}");
        assert!(sync.pages > 0 && sync.device_pages.is_some(), "{sync:?}");
        // The stack and the control page are written too.
        assert!(sync.pages < u64::from(WORKING_SET) + 64, "{sync:?}");
    }
    let (Some(shortest), Some(longest)) = (syncs.first(), syncs.last()) else {
        unreachable!("as many as were waited for");
    };
    assert!((1.5..4.0).contains(&seconds(longest)), "{longest:?}");
    assert!(longest.pages >= u64::from(WORKING_SET), "{longest:?}");
    if syncs.len() > 2 {
        assert!(seconds(shortest) < 0.2, "{shortest:?}");
        assert!(shortest.pages < longest.pages, "{shortest:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn without_a_log_qemu_samples_pages() -> Result<()> {
    for sync in first_set(Accel::Tcg, QemuVersion::from_env()?)? {
        assert_eq!(sync.origin, "page-sampling", "{sync:?}");
        assert_eq!(sync.device_pages, None, "{sync:?}");
        assert!((0.05..=2.0).contains(&seconds(&sync)), "{sync:?}");
    }
    Ok(())
}
