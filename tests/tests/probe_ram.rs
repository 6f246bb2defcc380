//! What the probe sees of a guest's memory, against what the guest is known to
//! have written and what QEMU itself finds.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::{Result, ensure};
use pacer_agent::pacing::sample::{DirtyWindow, Origin, Sample};
use pacer_agent::probe::windows::DirtyWindows;
use pacer_agent::probe::{EventKind, Probe};
use pacer_tests::disk::{DiskAio, DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk, BareWalk};
use pacer_tests::guest::linux::{LinuxGuest, LinuxWork};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Sends the guest to nowhere, so slowly that a pass takes a while, and never
/// ends by itself.
fn migrate_to_nowhere(vm: &Vm, bytes_per_second: u64) -> Result<()> {
    let parameters = json!({ "max-bandwidth": bytes_per_second, "downtime-limit": 1 });
    vm.qmp("migrate-set-parameters", parameters)?;
    vm.qmp("migrate", json!({ "uri": "exec:cat > /dev/null" }))?;
    Ok(())
}

/// What the probe sees, window by window.
struct Windows {
    probe: Probe,
    windows: DirtyWindows,
    seen: VecDeque<DirtyWindow>,
}

impl Windows {
    fn watch(vm: &Vm, accel: Accel) -> Result<Self> {
        let mut probe = Probe::attach(vm.pid())?;
        probe.watch_stores(accel == Accel::Tcg)?;
        Ok(Self {
            probe,
            windows: DirtyWindows::new(),
            seen: VecDeque::new(),
        })
    }

    /// The oldest window that was not taken yet.
    fn next(&mut self) -> Result<DirtyWindow> {
        wait_until("the probe sees QEMU's sync", TIMEOUT, || {
            for event in self.probe.drain() {
                if let EventKind::StoresCounted { overflow, .. } = event.kind {
                    ensure!(overflow == 0, "{overflow} stores found no room");
                }
                if let Some(Sample::Dirty(window)) = self.windows.handle_event(&event) {
                    self.seen.push_back(window);
                }
            }
            Ok(self.seen.pop_front())
        })
    }
}

/// What QEMU says of its pages.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    syncs: u64,
    remaining: u64,
    sent: u64,
}

impl Account {
    fn read(vm: &Vm) -> Result<Self> {
        let info = vm.qmp("query-migrate", json!({}))?;
        let number = |name: &str| info["ram"][name].as_u64().unwrap_or(0);
        Ok(Self {
            syncs: number("dirty-sync-count"),
            remaining: number("remaining") / 4096,
            sent: number("normal") + number("duplicate"),
        })
    }

    /// Pages that became dirty between two looks.
    const fn found_since(self, before: Self) -> u64 {
        self.remaining + (self.sent - before.sent) - before.remaining
    }
}

fn start(guest: Guest, accel: Accel) -> Result<Vm> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    Vm::start(&VmOptions::new(guest, qemu, accel))
}

/// By how much of what QEMU found the probe's count differs.
fn error(found: u64, window: DirtyWindow) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "pages of a small guest")]
    let error = window.all_pages() as f64 / found as f64 - 1.0;
    eprintln!("{window:?}, QEMU found {found}: {:+.2} %", error * 100.0);
    error
}

/// What QEMU found at its next sync but the first, which begins the migration.
fn wait_sync(vm: &Vm, before: &mut Account) -> Result<u64> {
    wait_until("QEMU syncs", TIMEOUT, || {
        let now = Account::read(vm)?;
        let last = std::mem::replace(before, now);
        let is_next = last.syncs > 0 && now.syncs > last.syncs;
        Ok(is_next.then(|| now.found_since(last)))
    })
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn what_a_kvm_guest_reads_from_its_disk_is_found_dirty() -> Result<()> {
    const SPAN_BYTES: u64 = 64 << 20;
    if Accel::detect()? != Accel::Kvm {
        eprintln!("skipped: the bare guest does not run under KVM here");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let modes = [
        (DiskAio::Threads, DiskCache::Writeback),
        (DiskAio::Native, DiskCache::None),
        (DiskAio::IoUring, DiskCache::None),
    ];
    // The system calls are the same in all versions: one will do.
    let count = match QemuVersion::from_env()? {
        QemuVersion::System => modes.len(),
        QemuVersion::V7_2 => 1,
    };
    for &(aio, cache) in &modes[..count] {
        let guest = BareGuest {
            ram_mib: 96,
            fill_mib: 24,
            working_set_pages: 600,
            pages_per_second: 1000,
            disk: Some(BareDisk {
                request_bytes: 16 << 10,
                queue_depth: 8,
                per_second: 400,
                walk: BareWalk::Random(NonZeroU32::MIN),
                buffer_pages: 4096,
                ..BareDisk::new(BareDirection::Read, SPAN_BYTES)
            }),
            ..BareGuest::PLAIN
        };
        let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
        let mut options = VmOptions::new(Guest::Bare(guest), qemu, Accel::Kvm);
        let mut disk = DiskOptions::new("disk", folder.path().join("disk"));
        (disk.aio, disk.cache) = (aio, cache);
        disk.create_image(SPAN_BYTES)?;
        options.disks = vec![disk];
        let vm = Vm::start(&options)?;
        vm.wait_started(TIMEOUT)?;
        let mut windows = Windows::watch(&vm, Accel::Kvm)?;
        migrate_to_nowhere(&vm, 48 << 20)?;
        let found = wait_sync(&vm, &mut Account::default())?;
        let window = windows.next()?;
        assert_eq!(window.origin, Origin::DirtyLog);
        assert!(window.device_pages > 500, "{aio:?}: {window:?}");
        assert!(error(found, window).abs() <= 0.03, "{aio:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn pages_that_a_tcg_guest_writes_are_counted_exactly() -> Result<()> {
    const WORKING_SET_PAGES: u32 = 700;
    let bare = BareGuest {
        ram_mib: 64,
        fill_mib: 24,
        working_set_pages: WORKING_SET_PAGES,
        pages_per_second: 0,
        ..BareGuest::PLAIN
    };
    let vm = start(Guest::Bare(bare), Accel::Tcg)?;
    vm.wait_started(TIMEOUT)?;
    let mut stores = Windows::watch(&vm, Accel::Tcg)?;
    migrate_to_nowhere(&vm, 16 << 20)?;
    // 7.2 itself loses what a TCG guest writes after the first pass.
    let syncs = match QemuVersion::from_env()? {
        QemuVersion::System => 3,
        QemuVersion::V7_2 => 1,
    };
    for _ in 0..syncs {
        let window = stores.next()?;
        assert_eq!(window.origin, Origin::StoreHelper);
        // All of the working set, the control page and the stack, in whatever
        // window: it goes round many times in each.
        assert_eq!(window.pages, u64::from(WORKING_SET_PAGES) + 2, "{window:?}");
    }
    stores.probe.watch_stores(false)?;
    vm.qmp("migrate_cancel", json!({}))?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn pages_that_linux_writes_under_tcg_are_what_qemu_finds() -> Result<()> {
    /// The share by which the two may differ.
    const TOLERANCE: f64 = 0.08;
    let work = LinuxWork {
        ram_mib: 256,
        fill_mib: 32,
        working_set_pages: 4000,
        pages_per_second: 2000,
        records_per_second: 0,
    };
    let folder = tempfile::tempdir()?;
    let guest = LinuxGuest::new(work, folder.path(), 16)?;
    let vm = start(Guest::Linux(guest), Accel::Tcg)?;
    vm.wait_started(TIMEOUT)?;
    let mut stores = Windows::watch(&vm, Accel::Tcg)?;
    migrate_to_nowhere(&vm, 48 << 20)?;
    let mut before = Account::default();
    for _ in 0..2 {
        let found = wait_sync(&vm, &mut before)?;
        let window = stores.next()?;
        assert!(error(found, window).abs() <= TOLERANCE);
    }
    Ok(())
}
