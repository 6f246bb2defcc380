//! Files, block backends and block devices as they are told. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::latency::{grown, quantile};
use super::line::{Backend, Chunks, Device, Direction, Disk, IntervalClass, Totals};
use crate::probe::activity::{
    BackendActivity, ChunkIntervals, DeviceActivity, DeviceId, DeviceRequests, FileActivity,
    FileId, Requests,
};
use crate::probe::open_files::Image;
use crate::units::to_f64;

/// The time between two ticks, for rates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick(pub(super) Duration);

impl Tick {
    /// What grew from `before` to `now`, per second; 0 at the first tick.
    fn rate(self, now: u64, before: u64) -> f64 {
        let seconds = self.0.as_secs_f64();
        if seconds > 0.0 {
            to_f64(now.saturating_sub(before)) / seconds
        } else {
            0.0
        }
    }
}

/// The images that are open, and those that were and have been used.
#[derive(Debug, Default)]
pub(super) struct Known {
    images: BTreeMap<FileId, Image>,
}

impl Known {
    /// Takes in which images are open now; those no longer open are kept as
    /// long as `files` tells of them.
    pub(super) fn update(&mut self, open: Vec<Image>, files: &[FileActivity]) {
        let mut images: BTreeMap<_, _> = open.into_iter().map(|image| (image.id, image)).collect();
        for (id, image) in std::mem::take(&mut self.images) {
            if files.iter().any(|file| is_same(file.id, id)) {
                images.entry(id).or_insert(image);
            }
        }
        self.images = images;
    }

    /// What is known of a file: by device and inode, and where a file system
    /// (overlayfs, btrfs) tells programs another device than the kernel's own,
    /// by inode if only one has it.
    fn find(&self, id: FileId) -> Option<&Image> {
        if let Some(image) = self.images.get(&id) {
            return Some(image);
        }
        let mut alike = self.images.values().filter(|image| is_same(image.id, id));
        let found = alike.next();
        found.filter(|_| alike.next().is_none())
    }

    /// One entry for each file that did something and each image that is open.
    /// `block_devices`: what lies under the devices that images are on.
    pub(super) fn disks(
        &self,
        now: &[FileActivity],
        before: &[FileActivity],
        block_devices: &BTreeMap<DeviceId, DeviceId>,
        tick: Tick,
    ) -> Vec<Disk> {
        let disk = |file: &FileActivity, earlier, image: Option<&Image>| {
            let on = image.map(|image| image.on);
            let block_device = on.and_then(|on| block_devices.get(&on).copied());
            Disk {
                block_device: block_device.map(numbers),
                ..disk(file, earlier, image, tick)
            }
        };
        let mut disks: Vec<Disk> = now
            .iter()
            .map(|file| {
                let earlier = before.iter().find(|earlier| is_one(earlier, file));
                let is_newest = now
                    .iter()
                    .all(|other| other.id != file.id || other.first_at <= file.first_at);
                disk(file, earlier, self.find(file.id).filter(|_| is_newest))
            })
            .collect();
        let used: Vec<FileId> = now
            .iter()
            .filter_map(|file| self.find(file.id))
            .map(|image| image.id)
            .collect();
        for image in self.images.values() {
            if !used.contains(&image.id) {
                let unused = FileActivity {
                    id: image.id,
                    ..FileActivity::default()
                };
                disks.push(disk(&unused, None, Some(image)));
            }
        }
        disks.sort_by(|one, other| (&one.path, one.inode).cmp(&(&other.path, other.inode)));
        disks
    }
}

/// Whether both are of one file, and not of one that had its inode before.
fn is_one(one: &FileActivity, other: &FileActivity) -> bool {
    (one.id, one.first_at) == (other.id, other.first_at)
}

/// Whether two ids may be of one file.
fn is_same(one: FileId, other: FileId) -> bool {
    one.inode == other.inode
}

fn disk(
    file: &FileActivity,
    before: Option<&FileActivity>,
    image: Option<&Image>,
    tick: Tick,
) -> Disk {
    let rate = |part: fn(&FileActivity) -> Requests| {
        tick.rate(
            part(file).bytes,
            before.map_or(0, |before| part(before).bytes),
        )
    };
    Disk {
        path: image.map(|image| image.path.clone()),
        device: numbers(image.map_or(file.id.device, |image| image.id.device)),
        inode: file.id.inode,
        direct: image.map(|image| image.direct),
        writable: image.map(|image| image.writable),
        totals: totals(file.written, file.zeroed, file.discarded),
        reads: file.read.count,
        read_bytes: file.read.bytes,
        written_bytes_per_second: rate(|file| file.written),
        zeroed_bytes_per_second: rate(|file| file.zeroed),
        discarded_bytes_per_second: rate(|file| file.discarded),
        read_bytes_per_second: rate(|file| file.read),
        chunks: chunks(&file.chunks),
        block_device: None,
    }
}

const fn totals(written: Requests, zeroed: Requests, discarded: Requests) -> Totals {
    Totals {
        writes: written.count,
        written_bytes: written.bytes,
        zeroes: zeroed.count,
        zeroed_bytes: zeroed.bytes,
        discards: discarded.count,
        discarded_bytes: discarded.bytes,
    }
}

fn chunks(chunks: &ChunkIntervals) -> Chunks {
    Chunks {
        chunk_bytes: chunks.chunk_bytes,
        written_once: chunks.written_once,
        by_interval: chunks
            .classes
            .iter()
            .map(|class| IntervalClass {
                at_least_seconds: class.at_least.as_secs_f64(),
                below_seconds: (class.below < Duration::MAX).then_some(class.below.as_secs_f64()),
                chunks: class.chunks,
            })
            .collect(),
        evicted: chunks.evicted,
    }
}

/// A device's numbers as `/sys/dev/block` writes them.
pub(super) fn numbers(id: DeviceId) -> String {
    format!("{}:{}", id.major, id.minor)
}

/// What the guest asked of its disks.
pub(super) fn backends(backends: &[BackendActivity]) -> Vec<Backend> {
    let mut sorted: Vec<&BackendActivity> = backends.iter().collect();
    sorted.sort_by_key(|backend| backend.address);
    sorted
        .into_iter()
        .map(|backend| Backend {
            name: backend.names.device.clone(),
            node: backend.names.node.clone(),
            totals: totals(backend.written, backend.zeroed, backend.discarded),
            chunks: chunks(&backend.chunks),
        })
        .collect()
}

/// The block devices, named by `names`.
pub(super) fn devices(
    now: &[DeviceActivity],
    before: &[DeviceActivity],
    names: &BTreeMap<DeviceId, String>,
    tick: Tick,
) -> Vec<Device> {
    let none = DeviceActivity::default();
    let mut sorted: Vec<&DeviceActivity> = now.iter().collect();
    sorted.sort_by_key(|device| device.id);
    sorted
        .into_iter()
        .map(|device| {
            let before = before.iter().find(|before| before.id == device.id);
            let before = before.unwrap_or(&none);
            Device {
                device: numbers(device.id),
                name: names.get(&device.id).cloned().unwrap_or_default(),
                read: direction(&device.read, &before.read, tick),
                write: direction(&device.write, &before.write, tick),
                in_flight: device.in_flight,
                queue_depth: queue_depth(device, before, tick),
            }
        })
        .collect()
}

fn direction(now: &DeviceRequests, before: &DeviceRequests, tick: Tick) -> Direction {
    let new = grown(&now.by_latency, &before.by_latency);
    let requests = now.requests.count.saturating_sub(before.requests.count);
    let latency = now.latency.saturating_sub(before.latency);
    Direction {
        requests: now.requests.count,
        bytes: now.requests.bytes,
        mean_seconds: (requests > 0).then(|| latency.as_secs_f64() / to_f64(requests)),
        p50_seconds: quantile(&new, 0.5),
        p99_seconds: quantile(&new, 0.99),
        bytes_per_second: tick.rate(now.requests.bytes, before.requests.bytes),
        by_latency: now.by_latency.clone(),
        latency: now.latency,
    }
}

/// By Little's law: the time that requests spent in the device, per time. Each
/// counts when it completes, so a request longer than a tick counts late.
fn queue_depth(now: &DeviceActivity, before: &DeviceActivity, tick: Tick) -> f64 {
    let spent = |now: &DeviceRequests, before: &DeviceRequests| {
        now.latency.saturating_sub(before.latency).as_secs_f64()
    };
    let seconds = tick.0.as_secs_f64();
    if seconds > 0.0 {
        (spent(&now.read, &before.read) + spent(&now.write, &before.write)) / seconds
    } else {
        0.0
    }
}
