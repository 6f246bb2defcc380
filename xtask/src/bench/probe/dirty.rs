//! Dirty pages per sync under KVM: against what the guest wrote, against what
//! QEMU then sends, and with devices that write to memory as well.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use fastrand::Rng;
use pacer_tests::dirty_check::{DirtyCheck, SyncCheck};
use pacer_tests::disk::{DiskAio, DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::process::pause;
use pacer_tests::qemu::{Accel, QemuVersion};
use pacer_tests::vm::Vm;
use serde_json::{Value, json};

use super::image::{Image, Place};
use super::{Bencher, errors, rows};
use crate::bench::target::{Limit, Part};

const VERSIONS: [QemuVersion; 2] = [QemuVersion::System, QemuVersion::V7_2];
const PAGE_BYTES: u64 = 4096;
const LIMIT_PERCENT: f64 = 3.0;
/// Enough that not all of them are written in a pass.
const BUFFER_PAGES: u32 = 2048;

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    if Accel::detect()? != Accel::Kvm {
        return Ok(vec![Part::missing("dirty logs", "no KVM")]);
    }
    let mut parts = Vec::new();
    for version in VERSIONS {
        parts.extend(windows(bencher, version)?);
        parts.extend(migrations(bencher, version)?);
        parts.extend(with_devices(bencher, version)?);
    }
    Ok(parts)
}

/// Against the guest's own word.
fn windows(bencher: &mut Bencher<'_>, version: QemuVersion) -> Result<Vec<Part>> {
    let row = "dirty-window";
    let windows_each = if bencher.plan.quick { 3 } else { 8 };
    let runs = runs(bencher, row, version, (5, 1), |pacer, rng, guest| {
        let options = DirtyCheck::options(guest, version)?;
        let mut check = DirtyCheck::start(pacer, version, options)?;
        let mut windows = Vec::new();
        for _ in 0..windows_each {
            let run = Duration::from_millis(rng.u64(20..400));
            let Some(window) = check.window(run)? else {
                continue;
            };
            windows.push(json!({
                "ran_seconds": window.ran.as_secs_f64(),
                "window_seconds": window.sync.window_seconds,
                "guest_pages": window.guest_pages,
                "probe_pages": window.sync.pages,
            }));
        }
        Ok(json!({"syncs": windows, "missed": check.finish()?}))
    })?;
    let what = format!("bare guest, against what it wrote, QEMU {version}");
    Ok(equal(&runs, &what, "guest_pages"))
}

/// Against what QEMU then sends.
fn migrations(bencher: &mut Bencher<'_>, version: QemuVersion) -> Result<Vec<Part>> {
    let row = "dirty-migration";
    let syncs_each = if bencher.plan.quick { 3 } else { 6 };
    let runs = runs(bencher, row, version, (5, 1), |pacer, rng, guest| {
        let options = DirtyCheck::options(guest, version)?;
        let check = DirtyCheck::start(pacer, version, options)?;
        let syncs = check.migrate(bandwidth(rng, version, guest), syncs_each)?;
        Ok(json!({"syncs": sync_list(&syncs), "missed": check.finish()?}))
    })?;
    let what = format!("bare guest, against the pages QEMU then sends, QEMU {version}");
    Ok(equal(&runs, &what, "qemu_pages"))
}

/// With disk reads and network traffic, against QEMU's own count.
fn with_devices(bencher: &mut Bencher<'_>, version: QemuVersion) -> Result<Vec<Part>> {
    let row = "dirty-devices";
    let syncs_each = if bencher.plan.quick { 3 } else { 6 };
    let runs = runs(bencher, row, version, (5, 1), |pacer, rng, guest| {
        let image = Image::create(Place::Disk)?;
        let bytes_per_second = bandwidth(rng, version, guest);
        let guest = busy(rng, guest, bytes_per_second);
        let mut options = DirtyCheck::options(guest, version)?;
        options.disks = vec![DiskOptions {
            aio: DiskAio::ALL[rng.usize(..DiskAio::ALL.len())],
            cache: DiskCache::None,
            ..DiskOptions::new("disk", image.path())
        }];
        let aio = options.disks[0].aio.name();
        let check = DirtyCheck::start(pacer, version, options)?;
        let syncs = with_frames(check.vm(), rng, || {
            check.migrate(bytes_per_second, syncs_each)
        })?;
        Ok(json!({"aio": aio, "syncs": sync_list(&syncs), "missed": check.finish()?}))
    })?;
    let what = format!("disk reads and network, off QEMU's own count, QEMU {version}");
    if let Some(part) = errors(&runs, &what) {
        return Ok(vec![part]);
    }
    let share =
        |sync: &Value, name: &str| Some(sync[name].as_f64()? / sync["qemu_pages"].as_f64()?);
    let syncs: Vec<&Value> = rows(&runs, "syncs").collect();
    let off = syncs.iter().filter_map(|sync| {
        let probe = share(sync, "probe_pages")? + share(sync, "device_pages").unwrap_or(0.0);
        Some((probe - 1.0).abs() * 100.0)
    });
    let off: Vec<f64> = off.collect();
    let by_devices = syncs
        .iter()
        .filter_map(|sync| Some(share(sync, "device_pages")? * 100.0));
    let by_devices: Vec<f64> = by_devices.collect();
    Ok(vec![
        Part::largest(format!("{what}, the worst sync"), &off, "%")
            .limit(Limit::AtMost(LIMIT_PERCENT)),
        Part::median(format!("{what}, the median sync"), &off, "%"),
        Part::median(
            format!("pages that only devices wrote, QEMU {version}"),
            &by_devices,
            "%",
        ),
    ])
}

/// Draws guests and measures each.
fn runs(
    bencher: &mut Bencher<'_>,
    row: &str,
    version: QemuVersion,
    (full, quick): (u32, u32),
    mut measure: impl FnMut(&Path, &mut Rng, BareGuest) -> Result<Value>,
) -> Result<Vec<Value>> {
    let repeats = bencher.plan.repeats(full, quick);
    let mut runs = Vec::new();
    for index in 0..repeats {
        let mut rng = bencher.rng(row, index);
        let guest = draw(&mut rng, index);
        let parameters = json!({
            "qemu": version.to_string(),
            "ram_mib": guest.ram_mib,
            "working_set_pages": guest.working_set_pages,
            "pages_per_second": guest.pages_per_second,
        });
        let pacer = bencher.plan.pacer.clone();
        runs.push(
            bencher
                .records
                .run(row, index, &parameters, || measure(&pacer, &mut rng, guest))?,
        );
    }
    Ok(runs)
}

/// Every other guest writes as fast as it can.
fn draw(rng: &mut Rng, index: u32) -> BareGuest {
    let fast = index % 2 == 1;
    BareGuest {
        ram_mib: [32, 64, 128, 256][rng.usize(..4)],
        working_set_pages: rng.u32(50..2000),
        pages_per_second: if fast { 0 } else { rng.u32(2000..8000) },
        ..BareGuest::PLAIN
    }
}

/// The same guest with a disk and a network card in use. What its disk reads is
/// 5 to 50 % of what the migration sends, so that a pass does not take for ever.
fn busy(rng: &mut Rng, guest: BareGuest, bytes_per_second: u64) -> BareGuest {
    let request_bytes = 4096 << rng.u32(..5);
    let per_second = bytes_per_second * rng.u64(5..50) / 100 / u64::from(request_bytes);
    let disk = BareDisk {
        request_bytes,
        queue_depth: rng.u32(1..=16),
        per_second: u32::try_from(per_second).unwrap_or(u32::MAX).max(1),
        buffer_pages: BUFFER_PAGES,
        ..BareDisk::new(BareDirection::Read, Image::BYTES)
    };
    BareGuest {
        ram_mib: 128,
        disk: Some(disk),
        network: true,
        ..guest
    }
}

/// Slower than the guest dirties, so that the migration goes on; QEMU 7.2
/// counts exactly below 4 MB/s.
fn bandwidth(rng: &mut Rng, version: QemuVersion, guest: BareGuest) -> u64 {
    let most = match version {
        QemuVersion::System => 20_000_000,
        QemuVersion::V7_2 => 3_900_000,
    };
    let dirtied = match guest.pages_per_second {
        0 => most,
        pages => u64::from(pages) * PAGE_BYTES * 3 / 4,
    };
    let most = dirtied.min(most);
    rng.u64(most / 2..most)
}

/// Sends frames to the guest meanwhile, some each few milliseconds.
fn with_frames<T>(vm: &Vm, rng: &mut Rng, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let (frames, bytes) = (rng.u32(1..10), rng.usize(100..1500));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                vm.send_frames(frames, bytes)?;
                pause(Duration::from_millis(5))?;
            }
            Ok(())
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        match sending.join() {
            Ok(sent) => sent.and(result),
            Err(_) => bail!("the sender panicked"),
        }
    })
}

fn sync_list(syncs: &[SyncCheck]) -> Vec<Value> {
    let list = syncs.iter().map(|check| {
        json!({
            "sync": check.qemu.sync,
            "window_seconds": check.sync.window_seconds,
            "qemu_pages": check.qemu.pages,
            "probe_pages": check.sync.pages,
            "device_pages": check.sync.device_pages,
        })
    });
    list.collect()
}

/// How many syncs are as `truth` has them, to the page.
fn equal(runs: &[Value], what: &str, truth: &str) -> Vec<Part> {
    if let Some(part) = errors(runs, what) {
        return vec![part];
    }
    let syncs: Vec<&Value> = rows(runs, "syncs").collect();
    let equal = syncs
        .iter()
        .filter(|sync| sync[truth] == sync["probe_pages"])
        .count();
    vec![Part::all(
        format!("{what}, equal"),
        equal,
        syncs.len(),
        "of the syncs",
    )]
}
