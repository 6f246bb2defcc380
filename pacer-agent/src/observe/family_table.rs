//! The table of metric families: names, what is and is not in them, and where
//! in a line their values are. Pure.

use super::line::{Backend, Device, Direction, Disk, Line, Totals};
use super::ram::nominal_seconds;
use crate::units::to_f64;

/// What a family counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One family.
pub(super) struct Family {
    /// Without the prefix `pacer_`.
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    /// Its values in a line.
    pub(super) samples: fn(&Line) -> Vec<Sample>,
}

/// One value.
#[derive(Debug)]
pub(super) struct Sample {
    /// As many as the family has.
    pub(super) labels: Vec<String>,
    pub(super) value: Value,
}

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    Number(f64),
    Distribution {
        count: u64,
        sum: f64,
        /// Upper bounds, and how many lie below or at each.
        cumulative: Vec<(f64, u64)>,
    },
}

impl Value {
    /// Adds another of the same family.
    pub(super) fn add(&mut self, other: Self) {
        match (self, other) {
            (Self::Number(value), Self::Number(other)) => *value += other,
            (
                Self::Distribution {
                    count,
                    sum,
                    cumulative,
                },
                Self::Distribution {
                    count: other_count,
                    sum: other_sum,
                    cumulative: other_cumulative,
                },
            ) => {
                *count += other_count;
                *sum += other_sum;
                for ((_, below), (_, other_below)) in cumulative.iter_mut().zip(other_cumulative) {
                    *below += other_below;
                }
            }
            // A family has one kind of value.
            (Self::Number(_), Self::Distribution { .. })
            | (Self::Distribution { .. }, Self::Number(_)) => {}
        }
    }
}

const PAGE_BYTES: u64 = 4096;
/// Latencies are told apart by powers of two from 2^10 ns (1 us) up to 2^35 ns
/// (34 s).
const LATENCY_BUCKETS: std::ops::RangeInclusive<i32> = 10..=35;

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    samples: fn(&Line) -> Vec<Sample>,
    help: &'static str,
) -> Family {
    Family {
        name,
        help,
        kind: Kind::Counter,
        labels,
        samples,
    }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    samples: fn(&Line) -> Vec<Sample>,
    help: &'static str,
) -> Family {
    Family {
        kind: Kind::Gauge,
        ..counter(name, labels, samples, help)
    }
}

const WINDOW: &[&str] = &["window", "origin"];
const DISK: &[&str] = &["disk", "kind"];
const BACKEND: &[&str] = &["backend", "kind"];
const DEVICE: &[&str] = &["device", "direction"];

/// Every family.
pub(super) static FAMILIES: &[Family] = &[
    gauge(
        "guest_dirty_window_bytes",
        WINDOW,
        |line| windows(line, |rate| to_f64(rate.pages.saturating_mul(PAGE_BYTES))),
        "Distinct memory that the guest wrote within the newest window of about this many \
         seconds; no rate for other windows, since a page counts once.",
    ),
    gauge(
        "guest_dirty_window_seconds",
        WINDOW,
        |line| windows(line, |rate| rate.window_seconds),
        "How long that window was.",
    ),
    gauge(
        "guest_dirty_window_age_seconds",
        WINDOW,
        |line| windows(line, |rate| rate.age_seconds),
        "How long ago that window ended.",
    ),
    counter(
        "guest_syncs_total",
        &["origin"],
        |line| {
            let totals = line.ram.totals.iter();
            let sample = |(origin, total): (&&str, &super::line::SyncTotals)| {
                number([(*origin).to_owned()], to_f64(total.syncs))
            };
            totals.map(sample).collect()
        },
        "Windows over which it was seen which pages the guest wrote.",
    ),
    counter(
        "guest_dirty_pages_total",
        &["origin", "writer"],
        dirty_pages,
        "Distinct pages of 4 KiB written within each of those windows, summed over them: by \
         vCPUs, and those that only QEMU's devices wrote. Where the origin does not tell them \
         apart, all are vcpu.",
    ),
    counter(
        "disk_requests_total",
        DISK,
        |line| disks(line, false),
        "Requests of QEMU to a file: writes, ranges made zero, ranges given back, reads.",
    ),
    counter(
        "disk_bytes_total",
        DISK,
        |line| disks(line, true),
        "Their bytes, those of an image format's metadata among them.",
    ),
    gauge(
        "disk_chunks",
        &["disk", "at_least_seconds"],
        disk_chunks,
        "Chunks of a file that were written more than once, by the mean interval between their \
         writes: from this many seconds up to the next class.",
    ),
    gauge(
        "disk_chunks_written_once",
        &["disk"],
        |line| {
            let disks = line.disks.iter();
            let once = |disk: &Disk| number([disk_name(disk)], to_f64(disk.chunks.written_once));
            disks.map(once).collect()
        },
        "Chunks of a file that were written once so far.",
    ),
    counter(
        "disk_chunks_evicted_total",
        &["disk"],
        |line| {
            let disks = line.disks.iter();
            let evicted = |disk: &Disk| number([disk_name(disk)], to_f64(disk.chunks.evicted));
            disks.map(evicted).collect()
        },
        "Chunks forgotten to make room for others.",
    ),
    counter(
        "backend_requests_total",
        BACKEND,
        |line| backends(line, false),
        "What the guest asked of a disk, before an image format changed it; absent where this \
         build of QEMU is not known.",
    ),
    counter(
        "backend_bytes_total",
        BACKEND,
        |line| backends(line, true),
        "Its bytes.",
    ),
    counter(
        "device_bytes_total",
        DEVICE,
        |line| directions(line, |direction| Value::Number(to_f64(direction.bytes))),
        "Bytes that a block device of this host read or wrote, for whatever process.",
    ),
    Family {
        kind: Kind::Histogram,
        ..counter(
            "device_latency_seconds",
            DEVICE,
            |line| directions(line, latencies),
            "Requests that a block device of this host completed, for whatever process, by the \
             time from issue to completion; flushes and discards are not counted.",
        )
    },
    gauge(
        "device_in_flight_requests",
        &["device"],
        |line| each_device(line, |device| to_f64(device.in_flight)),
        "Requests that a block device has now.",
    ),
    gauge(
        "device_queue_depth_requests",
        &["device"],
        |line| each_device(line, |device| device.queue_depth),
        "Requests that a block device had in the mean over the last tick.",
    ),
    counter(
        "socket_sent_bytes_total",
        &["local", "peer"],
        |line| {
            let sockets = line.sockets.iter();
            let sample = |socket: &super::line::Socket| {
                let ends = [socket.local.clone(), socket.peer.clone()];
                number(ends, to_f64(socket.sent_bytes))
            };
            sockets.map(sample).collect()
        },
        "Bytes that QEMU handed to a connection.",
    ),
    counter(
        "qemu_read_bytes_total",
        &["into"],
        |line| {
            vec![
                number(["ram"], to_f64(line.device_reads.ram_bytes)),
                number(["other"], to_f64(line.device_reads.other_bytes)),
            ]
        },
        "Bytes that QEMU read from files and network devices: into guest memory, by address, \
         where KVM's dirty log does not show them; or elsewhere.",
    ),
    counter(
        "probe_events_total",
        &[],
        |line| scalar(line.probe.events),
        "Events that the eBPF programs handed over, of this QEMU.",
    ),
    counter(
        "probe_lost_events_total",
        &[],
        |line| scalar(line.probe.lost_events),
        "Events that the eBPF programs could not hand over.",
    ),
    counter(
        "probe_unknown_slots_total",
        &[],
        |line| scalar(line.probe.unknown_slots),
        "Dirty logs that were not read since the size of their memory slot is not known.",
    ),
    gauge(
        "probe_inferred_slots",
        &[],
        |line| scalar(line.probe.inferred_slots),
        "Memory slots registered before Pacer came of which a lower bound of their size is known \
         by now.",
    ),
    counter(
        "probe_overtaken_logs_total",
        &[],
        |line| scalar(line.probe.overtaken_logs),
        "Dirty logs of large memory slots that were not counted: QEMU changed them before they \
         were read.",
    ),
    counter(
        "probe_unreadable_total",
        &[],
        |line| scalar(line.probe.unreadable),
        "Calls whose arguments could not be read; they are in no other figure.",
    ),
    counter(
        "probe_map_full_total",
        &[],
        |line| scalar(line.probe.map_full),
        "Calls that found no room in a map; they are in no other figure.",
    ),
    counter(
        "probe_cut_writes_total",
        &[],
        |line| scalar(line.probe.cut_writes),
        "Writes so long that only their first chunks are in the write intervals; their bytes are \
         counted.",
    ),
    counter(
        "probe_run_seconds_total",
        &["program"],
        |line| programs(line, |program| Some(to_f64(program.run_ns?) * 1e-9)),
        "Time spent in each eBPF program; absent where the kernel does not count it.",
    ),
    counter(
        "probe_runs_total",
        &["program"],
        |line| programs(line, |program| Some(to_f64(program.run_count?))),
        "How often each eBPF program ran; absent where the kernel does not count it.",
    ),
    counter(
        "probe_missed_runs_total",
        &["program"],
        |line| programs(line, |program| Some(to_f64(program.missed))),
        "How often the kernel left a program out because another one ran on that CPU; what it \
         would have counted is in no other figure.",
    ),
    gauge(
        "probe_memory_bytes",
        &[],
        |line| scalar(line.probe.memory_bytes),
        "Resident memory of this process, and its BPF maps.",
    ),
];

fn number<const N: usize>(labels: [impl Into<String>; N], value: f64) -> Sample {
    Sample {
        labels: labels.map(Into::into).into(),
        value: Value::Number(value),
    }
}

fn scalar(value: u64) -> Vec<Sample> {
    vec![number([""; 0], to_f64(value))]
}

fn windows(line: &Line, value: fn(&super::line::DirtyRate) -> f64) -> Vec<Sample> {
    let rates = line.ram.dirty_rates.iter();
    let sample = |rate| {
        let rate: &super::line::DirtyRate = rate;
        // Rounded: 0.05 is not what a power of ten gives.
        let nominal = (nominal_seconds(rate.window_seconds) * 1e9).round() / 1e9;
        number([nominal.to_string(), rate.origin.to_owned()], value(rate))
    };
    rates.map(sample).collect()
}

fn dirty_pages(line: &Line) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (origin, totals) in &line.ram.totals {
        samples.push(number([*origin, "vcpu"], to_f64(totals.pages)));
        if let Some(device_pages) = totals.device_pages {
            samples.push(number([*origin, "device"], to_f64(device_pages)));
        }
    }
    samples
}

/// A disk's name, or what else tells it from others.
fn disk_name(disk: &Disk) -> String {
    let unnamed = || format!("inode {} on {}", disk.inode, disk.device);
    disk.path.clone().unwrap_or_else(unnamed)
}

fn disks(line: &Line, bytes: bool) -> Vec<Sample> {
    let mut samples = Vec::new();
    for disk in &line.disks {
        let name = disk_name(disk);
        samples.extend(totals(&name, &disk.totals, bytes));
        let read = if bytes { disk.read_bytes } else { disk.reads };
        samples.push(number([name.as_str(), "read"], to_f64(read)));
    }
    samples
}

fn backends(line: &Line, bytes: bool) -> Vec<Sample> {
    let name = |(number, backend): (usize, &Backend)| {
        let name = backend.name.as_ref().or(backend.node.as_ref());
        let name = name.cloned().unwrap_or_else(|| number.to_string());
        totals(&name, &backend.totals, bytes)
    };
    line.backends.iter().enumerate().flat_map(name).collect()
}

fn totals(name: &str, totals: &Totals, bytes: bool) -> [Sample; 3] {
    let kinds = [
        ("write", totals.writes, totals.written_bytes),
        ("zero", totals.zeroes, totals.zeroed_bytes),
        ("discard", totals.discards, totals.discarded_bytes),
    ];
    kinds.map(|(kind, count, length)| {
        number([name, kind], to_f64(if bytes { length } else { count }))
    })
}

fn disk_chunks(line: &Line) -> Vec<Sample> {
    let mut samples = Vec::new();
    for disk in &line.disks {
        for class in &disk.chunks.by_interval {
            let labels = [disk_name(disk), class.at_least_seconds.to_string()];
            samples.push(number(labels, to_f64(class.chunks)));
        }
    }
    samples
}

fn device_name(device: &Device) -> String {
    if device.name.is_empty() {
        device.device.clone()
    } else {
        device.name.clone()
    }
}

fn each_device(line: &Line, value: fn(&Device) -> f64) -> Vec<Sample> {
    let devices = line.devices.iter();
    let sample = |device| number([device_name(device)], value(device));
    devices.map(sample).collect()
}

fn directions(line: &Line, value: fn(&Direction) -> Value) -> Vec<Sample> {
    let of = |device: &Device, name: &str, direction| Sample {
        labels: vec![device_name(device), name.to_owned()],
        value: value(direction),
    };
    let both = |device| {
        let device: &Device = device;
        [
            of(device, "read", &device.read),
            of(device, "write", &device.write),
        ]
    };
    line.devices.iter().flat_map(both).collect()
}

fn latencies(direction: &Direction) -> Value {
    let mut below = direction.by_latency.iter().zip(1..).peekable();
    let mut count = 0;
    let cumulative = LATENCY_BUCKETS
        .map(|exponent| {
            // Number k ends at 2^(k+1).
            while let Some((requests, _)) = below.next_if(|(_, end)| *end <= exponent) {
                count += requests;
            }
            // From whole nanoseconds: no digits of a rounded product.
            ((2f64.powi(exponent) / 1e9), count)
        })
        .collect();
    Value::Distribution {
        count: direction.by_latency.iter().sum(),
        sum: direction.latency.as_secs_f64(),
        cumulative,
    }
}

fn programs(line: &Line, value: fn(&super::line::Program) -> Option<f64>) -> Vec<Sample> {
    let programs = line.probe.programs.iter();
    let sample = |program| {
        let program: &super::line::Program = program;
        Some(number([program.name.as_str()], value(program)?))
    };
    programs.filter_map(sample).collect()
}
