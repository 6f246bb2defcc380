//! Guest disk writes per image: against QEMU's own count.

use std::path::{Path, PathBuf};

use anyhow::Result;
use pacer_tests::disk::{DiskAio, DiskFormat, DiskOptions, LoopDevice};
use pacer_tests::disk_check::{DiskCheck, every_mode, every_zeroing, load};
use pacer_tests::guest::disk_load::DiskLoad;
use pacer_tests::qemu::{QemuInstall, QemuVersion};
use serde_json::{Value, json};

use super::{Bencher, errors, rows};
use crate::bench::target::Part;

const ROW: &str = "disks";
const VERSIONS: [QemuVersion; 2] = [QemuVersion::System, QemuVersion::V7_2];
/// Blocks of any disk here.
const BLOCK_BYTES: u64 = 4096;
const DISK_BYTES: u64 = 64 << 20;
/// Which disks, and what offsets and lengths are multiples of. QEMU widens
/// requests to the blocks of what it writes with O_DIRECT: `wr_bytes` are what is
/// written there only for requests of whole blocks.
const LOADS: [(&str, u64); 3] = [("modes", 4096), ("zeroes", 4096), ("small", 512)];

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for version in VERSIONS {
        let runs = runs(bencher, version)?;
        parts.extend(figures(&runs, version));
    }
    Ok(parts)
}

fn runs(bencher: &mut Bencher<'_>, version: QemuVersion) -> Result<Vec<Value>> {
    let repeats = bencher.plan.repeats(2, 1);
    let requests = if bencher.plan.quick { 60 } else { 200 };
    let mut runs = Vec::new();
    for index in 0..repeats {
        for (kind, granularity_bytes) in LOADS {
            let disk_load = DiskLoad {
                seed: bencher.rng(kind, index).u32(..).into(),
                requests,
                granularity_bytes,
            };
            let parameters = json!({
                "qemu": version.to_string(), "disks": kind,
                "seed": disk_load.seed, "requests": requests,
                "granularity_bytes": granularity_bytes,
            });
            let pacer = bencher.plan.pacer.clone();
            runs.push(bencher.records.run(ROW, index, &parameters, || {
                observe(&pacer, version, kind, disk_load)
            })?);
        }
    }
    Ok(runs)
}

fn observe(pacer: &Path, version: QemuVersion, kind: &str, disk_load: DiskLoad) -> Result<Value> {
    let folder = tempfile::Builder::new().prefix("pacer-disks-").tempdir()?;
    let mut disks = match kind {
        "zeroes" => every_zeroing(folder.path()),
        _ => every_mode(folder.path()),
    };
    let mut loops = Vec::new();
    if kind == "zeroes" {
        for aio in [DiskAio::Threads, DiskAio::IoUring] {
            let device = loop_device(&folder.path().join(aio.name()))?;
            let id = format!("loop{}", aio.name());
            disks.push(DiskOptions {
                aio,
                discard: true,
                block_device: true,
                ..DiskOptions::new(id, device.path())
            });
            loops.push(device);
        }
    }
    let qemu = QemuInstall::find(version)?;
    let (checks, line) = load(pacer, qemu, disks, (disk_load, DISK_BYTES))?;
    let checks: Vec<Value> = checks
        .iter()
        .map(|check| to_json(check, disk_load.granularity_bytes))
        .collect();
    Ok(json!({"disks": checks, "missed": line.probe.missed(), "warnings": line.warnings}))
}

fn loop_device(file: &PathBuf) -> Result<LoopDevice> {
    std::fs::File::create(file)?.set_len(DISK_BYTES)?;
    LoopDevice::attach(file)
}

fn to_json(check: &DiskCheck, granularity_bytes: u64) -> Value {
    let DiskOptions {
        format, aio, cache, ..
    } = check.options;
    let image = check.image.as_ref();
    json!({
        "name": check.name(),
        "format": format.name(),
        "aio": aio.name(),
        "cache": cache.name(),
        "widened": cache.is_direct() && granularity_bytes < BLOCK_BYTES,
        "wr_bytes": check.stats.wr_bytes,
        "guest_bytes": check.guest_bytes(),
        "written_bytes": image.map(|disk| disk.written_bytes),
        "zeroed_bytes": image.map(|disk| disk.zeroed_bytes),
        "discarded_bytes": image.map(|disk| disk.discarded_bytes),
        "image_bytes": check.image_bytes(),
        "backend_bytes": check.backend_bytes(),
    })
}

fn figures(runs: &[Value], version: QemuVersion) -> Vec<Part> {
    let what = format!("disks, QEMU {version}");
    if let Some(part) = errors(runs, &what) {
        return vec![part];
    }
    let disks: Vec<&Value> = rows(runs, "disks").collect();
    let of = |format: DiskFormat| -> Vec<&Value> {
        let is_it = |disk: &&&Value| disk["format"] == format.name();
        disks.iter().filter(is_it).copied().collect()
    };
    let (raw, qcow2) = (of(DiskFormat::Raw), of(DiskFormat::Qcow2));
    let (widened, raw): (Vec<&Value>, Vec<&Value>) =
        raw.into_iter().partition(|disk| disk["widened"] == true);
    let exact = raw
        .iter()
        .filter(|disk| disk["image_bytes"] == disk["guest_bytes"])
        .count();
    let what = format!("raw images to the byte, every aio × cache, QEMU {version}");
    let mut parts = vec![Part::all(what, exact, raw.len(), "of the disks")];
    let what = format!("raw image over guest bytes, 512 B and more by O_DIRECT, QEMU {version}");
    parts.push(Part::median(what, &excess(&widened), "%"));
    // Both builds are known ones.
    let exact = qcow2
        .iter()
        .filter(|disk| disk["backend_bytes"] == disk["wr_bytes"])
        .count();
    let what = format!("qcow2 in guest bytes, every aio × cache, QEMU {version}");
    parts.push(Part::all(what, exact, qcow2.len(), "of the disks"));
    let whole = qcow2
        .iter()
        .filter(|disk| disk["image_bytes"].as_u64() >= disk["guest_bytes"].as_u64())
        .count();
    let what = format!("qcow2 images, all guest bytes and more, QEMU {version}");
    parts.push(Part::all(what, whole, qcow2.len(), "of the disks"));
    let what = format!("qcow2 image over guest bytes (its metadata), QEMU {version}");
    parts.push(Part::median(what, &excess(&qcow2), "%"));
    parts
}

/// Percent by which more was written to the images than by the guest.
fn excess(disks: &[&Value]) -> Vec<f64> {
    let percent = |disk: &&Value| {
        Some((disk["image_bytes"].as_f64()? / disk["guest_bytes"].as_f64()? - 1.0) * 100.0)
    };
    disks.iter().filter_map(percent).collect()
}
