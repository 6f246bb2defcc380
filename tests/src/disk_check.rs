//! Disks of every kind that QEMU accepts, loaded by one guest while `pacer
//! observe` looks on: what it saw beside what QEMU counted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::block_stats::BlockStats;
use crate::disk::{DetectZeroes, DiskAio, DiskBus, DiskCache, DiskFormat, DiskOptions};
use crate::guest::disk_load::{DiskLoad, DiskReport, parse_disk_reports};
use crate::guest::linux::LinuxGuest;
use crate::observe::{Backend, Disk, Line, ObserveOptions, Observer};
use crate::qemu::{Accel, QemuInstall};
use crate::vm::{Guest, Vm, VmOptions};

const RAM_MIB: u32 = 256;
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const LOAD_TIMEOUT: Duration = Duration::from_secs(240);

/// One disk after its load.
#[derive(Clone, Debug)]
pub struct DiskCheck {
    /// How it was set up.
    pub options: DiskOptions,
    /// What QEMU counted.
    pub stats: BlockStats,
    /// What the guest did.
    pub report: DiskReport,
    /// What the probe saw of the image; `None` if nothing.
    pub image: Option<Disk>,
    /// What the probe saw the guest ask for; `None` where this build of QEMU is
    /// not known.
    pub backend: Option<Backend>,
}

impl DiskCheck {
    /// Bytes that the guest wrote, zeroed or discarded, of those that reach the
    /// image. QEMU's `wr_bytes` are writes and zeroes; its count of discards is
    /// not kept for virtio-blk, so they are the guest's own.
    #[must_use]
    pub const fn guest_bytes(&self) -> u64 {
        let discarded_bytes = if self.options.discard {
            self.report.discarded_bytes
        } else {
            0
        };
        self.stats.wr_bytes + discarded_bytes
    }

    /// Bytes that the probe saw written to, zeroed in or taken out of the image.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        let bytes = |disk: &Disk| disk.written_bytes + disk.zeroed_bytes + disk.discarded_bytes;
        self.image.as_ref().map_or(0, bytes)
    }

    /// Bytes that the probe saw the guest write and zero: QEMU's `wr_bytes`.
    #[must_use]
    pub fn backend_bytes(&self) -> Option<u64> {
        let backend = self.backend.as_ref()?;
        Some(backend.written_bytes + backend.zeroed_bytes)
    }

    /// For messages: `raw aio=native cache=none …`.
    #[must_use]
    pub fn name(&self) -> String {
        let options = &self.options;
        let mut name = format!(
            "{} aio={} cache={} {:?}",
            options.format.name(),
            options.aio.name(),
            options.cache.name(),
            options.bus
        );
        if options.discard {
            name += " discard=unmap";
        }
        if options.detect_zeroes != DetectZeroes::Off {
            name += &format!(" detect-zeroes={}", options.detect_zeroes.name());
        }
        if options.iothread {
            name += " iothread";
        }
        if options.block_device {
            name += " block device";
        }
        name
    }
}

/// Every aio × cache × format that QEMU accepts, over all buses, with and
/// without iothreads; images in `folder`.
#[must_use]
pub fn every_mode(folder: &Path) -> Vec<DiskOptions> {
    let mut disks = Vec::new();
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        for aio in DiskAio::ALL {
            for cache in DiskCache::ALL {
                let id = format!("{}{}{}", format.name(), short(aio), cache.name());
                let number = disks.len();
                let disk = DiskOptions {
                    format,
                    aio,
                    cache,
                    // A PC has room for a few ATA and PCI disks, and for any
                    // number of LUNs.
                    bus: match number % 4 {
                        0 if number < 8 => DiskBus::Ide,
                        1 if number < 32 => DiskBus::VirtioBlk,
                        _ => DiskBus::VirtioScsi,
                    },
                    iothread: number % 8 == 1 || number % 4 == 2,
                    ..DiskOptions::new(&id, folder.join(&id))
                };
                if disk.accepts() {
                    disks.push(disk);
                }
            }
        }
    }
    disks
}

/// What discards and zeroes can become; images in `folder`.
#[must_use]
pub fn every_zeroing(folder: &Path) -> Vec<DiskOptions> {
    let mut disks = Vec::new();
    for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
        for aio in [DiskAio::Threads, DiskAio::IoUring] {
            for (discard, detect_zeroes) in [
                (true, DetectZeroes::Off),
                (false, DetectZeroes::On),
                (true, DetectZeroes::Unmap),
            ] {
                let zeroes = detect_zeroes.name();
                let id = format!("{}{}{}", format.name(), short(aio), zeroes);
                disks.push(DiskOptions {
                    format,
                    aio,
                    discard,
                    detect_zeroes,
                    bus: DiskBus::VirtioScsi,
                    ..DiskOptions::new(&id, folder.join(&id))
                });
            }
        }
    }
    disks
}

const fn short(aio: DiskAio) -> &'static str {
    match aio {
        DiskAio::Threads => "thr",
        DiskAio::Native => "nat",
        DiskAio::IoUring => "uri",
    }
}

/// Starts a guest with these disks, each of `disk_bytes` and made anew, and
/// returns once the load is over.
///
/// # Errors
/// A disk failed, or the guest cannot be started or observed.
pub fn load(
    pacer: &Path,
    qemu: QemuInstall,
    disks: Vec<DiskOptions>,
    (load, disk_bytes): (DiskLoad, u64),
) -> Result<(Vec<DiskCheck>, Line)> {
    for disk in &disks {
        disk.create_image(disk_bytes)?;
    }
    let guest = Guest::Linux(LinuxGuest::with_disk_load(load, RAM_MIB)?);
    let mut options = VmOptions::new(guest, qemu, Accel::Tcg);
    options.disks = disks;
    options.paused = true;
    options.own_group = true;
    let vm = Vm::start(&options)?;
    let mut observer = Observer::start(&ObserveOptions::new(pacer, vm.pid()))?;
    vm.qmp("cont", json!({}))?;
    vm.wait_started(BOOT_TIMEOUT)?;
    let over = |serial: &str| parse_disk_reports(serial).map_or(true, |done| done.is_some());
    vm.wait_serial(over, LOAD_TIMEOUT)?;
    let reports = parse_disk_reports(&vm.serial())?.context("the load is not over")?;
    let mut stats = vm.block_stats()?;
    let line = observer.fresh()?;
    let checks = options
        .disks
        .into_iter()
        .map(|disk| {
            let stats = stats.remove(&disk.id);
            let stats = stats.with_context(|| format!("QEMU has no disk {}", disk.id))?;
            let report = reports.iter().find(|report| report.name == disk.id);
            let report = report.with_context(|| format!("the guest has no disk {}", disk.id))?;
            Ok(DiskCheck {
                image: line.disk(&disk.path).cloned(),
                backend: line.backend(&disk.id).cloned(),
                report: report.clone(),
                stats,
                options: disk,
            })
        })
        .collect::<Result<_>>()?;
    Ok((checks, line))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_mode_is_there_once() {
        let disks = every_mode(Path::new("/images"));
        // Native goes with two of the five caches.
        assert_eq!(disks.len(), 2 * (5 + 2 + 5));
        let ids: BTreeSet<&str> = disks.iter().map(|disk| disk.id.as_str()).collect();
        assert_eq!(ids.len(), disks.len());
        assert!(ids.iter().all(|id| id.len() <= 20), "{ids:?}");
        let on = |bus| disks.iter().filter(|disk| disk.bus == bus).count();
        assert!(on(DiskBus::Ide) <= 4 && on(DiskBus::Ide) > 1);
        assert!(on(DiskBus::VirtioBlk) > 3);
        assert!(disks.iter().any(|disk| disk.iothread));
    }

    #[test]
    fn every_zeroing_is_accepted() {
        let disks = every_zeroing(Path::new("/images"));
        assert!(disks.iter().all(DiskOptions::accepts));
        assert!(disks.iter().all(|disk| disk.id.len() <= 20));
    }
}
