//! One line of `pacer observe --json`: what is in it, and under which name.
//! Totals are since the attach, rates over the last tick.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// One tick.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Line {
    /// Version of this format.
    pub schema: u32,
    /// When, by the wall (RFC 3339).
    pub at: String,
    /// When, since the attach.
    pub at_seconds: f64,
    /// The observed process.
    pub pid: u32,
    /// It has ended: this is the last line.
    pub ended: bool,
    /// What QEMU says of itself.
    pub qemu: Qemu,
    /// The guest's memory.
    pub ram: Ram,
    /// The files that are images, or were written or read.
    pub disks: Vec<Disk>,
    /// What the guest asked of its disks, in its own offsets.
    pub backends: Vec<Backend>,
    /// The block devices under the images.
    pub devices: Vec<Device>,
    /// Connections that were sent on.
    pub sockets: Vec<Socket>,
    /// What QEMU read for its devices.
    pub device_reads: DeviceReads,
    /// What it cost to see that.
    pub probe: Probe,
    /// What is not seen, each with its cause and remedy.
    pub warnings: Vec<String>,
}

/// QEMU, as far as it was asked; `None` without `--qmp`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Qemu {
    /// Its version.
    pub version: Option<String>,
    /// `kvm` or `tcg`.
    pub accelerator: Option<&'static str>,
}

/// How the guest writes its memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ram {
    /// Windows that ended since the last line.
    pub syncs: Vec<Sync>,
    /// The newest window of about each length, shortest first.
    pub dirty_rates: Vec<DirtyRate>,
    /// Whether there is a figure that is not out of date.
    pub known: bool,
    /// Why there is none.
    pub why_not: Option<String>,
    /// All windows since the attach, by origin.
    #[serde(skip)]
    pub totals: BTreeMap<&'static str, SyncTotals>,
}

/// Windows of one origin since the attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTotals {
    /// How many.
    pub syncs: u64,
    /// Their pages, summed.
    pub pages: u64,
    /// Their device pages, summed; `None` if none told them apart.
    pub device_pages: Option<u64>,
}

/// One window between two looks at which pages were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sync {
    /// When it ended, since the attach.
    pub at_seconds: f64,
    /// How long it was.
    pub window_seconds: f64,
    /// Distinct pages of 4 KiB that vCPUs wrote in it.
    pub pages: u64,
    /// Further distinct pages that only QEMU's devices wrote, by address.
    /// `None` where the origin does not tell them apart.
    pub device_pages: Option<u64>,
    /// Pages that were looked at. `None` if the guest's size is not known.
    pub total_pages: Option<u64>,
    /// Where the figure comes from.
    pub origin: &'static str,
}

/// The newest window of about one length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct DirtyRate {
    /// How long it was.
    pub window_seconds: f64,
    /// Distinct pages of 4 KiB written in it, by vCPUs and by devices.
    pub pages: u64,
    /// Those, per second of the window: no rate for other windows.
    pub pages_per_second: f64,
    /// How long ago it ended.
    pub age_seconds: f64,
    /// Where the figure comes from.
    pub origin: &'static str,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Disk {
    /// Its name. `None` if it is not known (no right to ask, or closed again
    /// between two ticks).
    pub path: Option<String>,
    /// The device its file system is on.
    pub device: String,
    /// Its inode there.
    pub inode: u64,
    /// Opened with O_DIRECT. `None` as with the name.
    pub direct: Option<bool>,
    /// Opened for writing; a backing file is not. `None` as with the name.
    pub writable: Option<bool>,
    /// What was asked of it.
    #[serde(flatten)]
    pub totals: Totals,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Over the last tick.
    pub written_bytes_per_second: f64,
    /// Over the last tick.
    pub zeroed_bytes_per_second: f64,
    /// Over the last tick.
    pub discarded_bytes_per_second: f64,
    /// Over the last tick.
    pub read_bytes_per_second: f64,
    /// How often its parts are written.
    pub chunks: Chunks,
    /// The block device that holds it. `None` where no single one does.
    pub block_device: Option<String>,
}

/// What changes a disk's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Ranges made zero.
    pub zeroes: u64,
    /// Their bytes.
    pub zeroed_bytes: u64,
    /// Ranges given back.
    pub discards: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
}

/// How often the chunks of a file are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Chunks {
    /// Size of a chunk.
    pub chunk_bytes: u64,
    /// Chunks written once so far.
    pub written_once: u64,
    /// Chunks by the mean interval between their writes.
    pub by_interval: Vec<IntervalClass>,
    /// Chunks forgotten to make room.
    pub evicted: u64,
}

/// Chunks whose mean write interval lies within a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct IntervalClass {
    /// The range's lower end.
    pub at_least_seconds: f64,
    /// The range's upper end, not in it. `None`: it has none.
    pub below_seconds: Option<f64>,
    /// How many chunks.
    pub chunks: u64,
}

/// One block backend of QEMU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Backend {
    /// The id of the device that the guest sees, or else the backend's own name.
    /// `None` if it has neither.
    pub name: Option<String>,
    /// The name of its topmost block node. `None` if it has none now.
    pub node: Option<String>,
    /// What the guest asked of it.
    #[serde(flatten)]
    pub totals: Totals,
    /// How often its parts are written, by the guest's offsets.
    pub chunks: Chunks,
}

/// One block device of this host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    /// Its numbers.
    pub device: String,
    /// Its name.
    pub name: String,
    /// Reads that it completed.
    pub read: Direction,
    /// Writes that it completed.
    pub write: Direction,
    /// Requests it has now.
    pub in_flight: u64,
    /// Requests it had in the mean over the last tick.
    pub queue_depth: f64,
}

/// Requests of one direction: totals, and latencies over the last tick (`None`
/// if none completed in it).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Direction {
    /// Requests completed.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Mean latency.
    pub mean_seconds: Option<f64>,
    /// Half of the requests took no longer.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 requests took no longer.
    pub p99_seconds: Option<f64>,
    /// Over the last tick.
    pub bytes_per_second: f64,
    /// Requests since the attach, by latency: number `k` holds those of 2^k up
    /// to 2^(k+1) ns.
    #[serde(skip)]
    pub by_latency: Vec<u64>,
    /// Their latencies' sum since the attach.
    #[serde(skip)]
    pub latency: Duration,
}

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Socket {
    /// QEMU's end.
    pub local: String,
    /// The other end.
    pub peer: String,
    /// Bytes QEMU handed to it.
    pub sent_bytes: u64,
}

/// What QEMU read for its devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceReads {
    /// Bytes read into guest memory, by address.
    pub ram_bytes: u64,
    /// Bytes read elsewhere.
    pub other_bytes: u64,
}

/// What the probe saw, lost and cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Probe {
    /// Events handed over.
    pub events: u64,
    /// Events lost because the ring was full.
    pub lost_events: u64,
    /// Dirty logs not read because their slot's size is not known.
    pub unknown_slots: u64,
    /// Memory slots registered before the attach of which a lower bound of
    /// their size is known by now.
    pub inferred_slots: u64,
    /// Dirty logs of large slots not counted: QEMU was faster.
    pub overtaken_logs: u64,
    /// Calls whose arguments could not be read.
    pub unreadable: u64,
    /// Calls or slots that found no room in a map.
    pub map_full: u64,
    /// Writes of which only the first chunks are in `chunks`.
    pub cut_writes: u64,
    /// Time spent in all programs. `None` where the kernel does not count it.
    pub run_ns: Option<u64>,
    /// How often programs ran, likewise.
    pub run_count: Option<u64>,
    /// Share of one CPU that the programs took over the last tick, likewise.
    pub core_ratio: Option<f64>,
    /// Each program.
    pub programs: Vec<Program>,
    /// Resident memory of this process, and its BPF maps.
    pub memory_bytes: u64,
}

/// One program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Time spent in it.
    pub run_ns: Option<u64>,
    /// How often it ran.
    pub run_count: Option<u64>,
    /// How often the kernel left it out.
    pub missed: u64,
}
