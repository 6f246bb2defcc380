//! What `pacer observe` says of real QEMUs, beside what is known to have
//! happened: pages by the guest's own word and by QEMU's, disk writes by QEMU's
//! counters, and nothing lost when there are many.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use pacer_tests::agent::pacer_binary;
use pacer_tests::dirty_check::DirtyCheck;
use pacer_tests::disk::{DiskAio, DiskCache, DiskFormat, DiskOptions};
use pacer_tests::disk_check::{every_mode, load};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::guest::disk_load::DiskLoad;
use pacer_tests::image_bench::ImageBench;
use pacer_tests::observe::{ObserveOptions, Observer};
use pacer_tests::process::pause;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Below what the guests here dirty, so that no migration completes, and below
/// what QEMU 7.2 counts exactly at.
const BYTES_PER_SECOND: u64 = 3_500_000;
const GUEST: BareGuest = BareGuest {
    ram_mib: 64,
    working_set_pages: 600,
    pages_per_second: 3000,
    ..BareGuest::PLAIN
};

/// `false`, with a word why, where there is no dirty log to see.
fn has_dirty_log() -> Result<bool> {
    let is_kvm = Accel::detect()? == Accel::Kvm;
    if !is_kvm {
        eprintln!("skipped: no KVM");
    }
    Ok(is_kvm)
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn dirty_pages_are_those_the_guest_wrote_and_qemu_sends() -> Result<()> {
    if !has_dirty_log()? {
        return Ok(());
    }
    let version = QemuVersion::from_env()?;
    let mut check = DirtyCheck::start(
        &pacer_binary()?,
        version,
        DirtyCheck::options(GUEST, version)?,
    )?;
    let mut seen = 0;
    for milliseconds in [40, 150, 300] {
        let Some(window) = check.window(Duration::from_millis(milliseconds))? else {
            eprintln!("this machine was too slow for a window");
            continue;
        };
        assert_eq!(window.sync.pages, window.guest_pages, "{window:?}");
        seen += 1;
    }
    assert!(seen > 0, "not one window");
    let syncs = check.migrate(BYTES_PER_SECOND, 4)?;
    assert!(syncs.len() >= 3, "{syncs:?}");
    for check in &syncs {
        assert_eq!(check.sync.pages, check.qemu.pages, "{check:?}");
    }
    assert_eq!(check.finish()?, 0, "nothing is missed");
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn pages_that_devices_write_are_counted_too() -> Result<()> {
    if !has_dirty_log()? {
        return Ok(());
    }
    let version = QemuVersion::from_env()?;
    let folder = tempfile::tempdir()?;
    let image = image(folder.path(), 32 << 20)?;
    let guest = BareGuest {
        disk: Some(BareDisk {
            request_bytes: 16 << 10,
            queue_depth: 4,
            per_second: 100,
            buffer_pages: 2048,
            ..BareDisk::new(BareDirection::Read, 32 << 20)
        }),
        network: true,
        ..GUEST
    };
    let mut options = DirtyCheck::options(guest, version)?;
    options.disks = vec![DiskOptions {
        cache: DiskCache::None,
        aio: DiskAio::Native,
        ..DiskOptions::new("disk", &image)
    }];
    let check = DirtyCheck::start(&pacer_binary()?, version, options)?;
    let over = AtomicBool::new(false);
    let syncs = std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                check.vm().send_frames(4, 1000)?;
                pause(Duration::from_millis(10))?;
            }
            Ok(())
        });
        let syncs = check.migrate(BYTES_PER_SECOND, 4);
        over.store(true, Ordering::Relaxed);
        sending
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        syncs
    })?;
    assert!(syncs.len() >= 3, "{syncs:?}");
    for check in &syncs {
        let by_devices = check.sync.device_pages.context("no device pages")?;
        assert!(by_devices > 0, "{check:?}");
        let off = (check.sync.pages + by_devices).abs_diff(check.qemu.pages);
        assert!(
            off * 100 <= check.qemu.pages * 3,
            "more than 3 % off: {check:?}"
        );
    }
    check.finish()?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn disk_writes_are_those_qemu_counts() -> Result<()> {
    const DISK_BYTES: u64 = 32 << 20;
    let folder = tempfile::tempdir()?;
    let disk_load = DiskLoad {
        seed: 3,
        requests: 50,
        // Less than that QEMU widens where it goes past the page cache.
        granularity_bytes: 4096,
    };
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let disks = every_mode(folder.path());
    let (checks, line) = load(&pacer_binary()?, qemu, disks, (disk_load, DISK_BYTES))?;
    for check in &checks {
        let name = check.name();
        assert!(check.stats.wr_bytes > 0, "{name}");
        match check.options.format {
            DiskFormat::Raw => assert_eq!(check.image_bytes(), check.guest_bytes(), "{name}"),
            // All that the guest wrote, and QEMU's tables.
            DiskFormat::Qcow2 => assert!(check.image_bytes() >= check.guest_bytes(), "{name}"),
        }
        // Both builds are known.
        let bytes = check.backend_bytes();
        assert_eq!(bytes, Some(check.stats.wr_bytes), "{name}");
    }
    assert_eq!(line.probe.missed(), 0, "{:?}", line.probe);
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn writes_behind_qcow2_are_at_the_guest_s_offsets() -> Result<()> {
    const DEVICE: &str = "/machine/peripheral/disk/virtio-backend";
    let folder = tempfile::tempdir()?;
    let disk = DiskOptions {
        format: DiskFormat::Qcow2,
        ..DiskOptions::new("disk", folder.path().join("image"))
    };
    disk.create_image(1 << 30)?;
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let mut options = VmOptions::new(Guest::Bare(GUEST), qemu, Accel::detect()?);
    options.disks = vec![disk];
    let vm = Vm::start(&options)?;
    vm.wait_started(TIMEOUT)?;
    let mut observer = Observer::start(&ObserveOptions::new(&pacer_binary()?, vm.pid()))?;
    // Far apart for the guest; in the image one cluster follows the other.
    for offset in ["1M", "700M", "300M", "700M"] {
        let write = format!("qemu-io -d {DEVICE} \"aio_write {offset} 4k\"");
        vm.qmp("human-monitor-command", json!({"command-line": write}))?;
        vm.qmp(
            "human-monitor-command",
            json!({"command-line": format!("qemu-io -d {DEVICE} aio_flush")}),
        )?;
    }
    let line = observer.fresh()?;
    let backend = line.backend("disk").context("the disk has no backend")?;
    assert_eq!((backend.writes, backend.written_bytes), (4, 4 * 4096));
    let often: u64 = backend
        .chunks
        .by_interval
        .iter()
        .map(|class| class.chunks)
        .sum();
    assert_eq!((backend.chunks.written_once, often), (2, 1), "{backend:?}");
    Ok(())
}

#[test]
#[ignore = "needs qemu-img, root and a kernel with BPF"]
fn no_write_is_lost_when_there_are_many() -> Result<()> {
    const WRITES: u32 = 100_000;
    let folder = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    })?;
    let image = image(folder.path(), 64 << 20)?;
    for aio in DiskAio::ALL {
        let bench = ImageBench::new(&image, aio, 64, WRITES).ready()?;
        let observer = Observer::start(&ObserveOptions::new(&pacer_binary()?, bench.pid()))?;
        let took = bench.run(TIMEOUT)?;
        let observed = observer.wait_ended(TIMEOUT)?;
        let last = observed.last();
        eprintln!("{}: {WRITES} writes in {took:?}", aio.name());
        let disk = last.disk(&image).context("the image was not seen")?;
        assert_eq!(
            disk.written_bytes,
            u64::from(WRITES) * 4096,
            "{}",
            aio.name()
        );
        assert_eq!(last.probe.missed(), 0, "{:?}", last.probe);
    }
    Ok(())
}

/// A raw image without holes.
fn image(folder: &Path, bytes: usize) -> Result<std::path::PathBuf> {
    let path = folder.join("image.raw");
    std::fs::write(&path, vec![1; bytes])?;
    Ok(path)
}
