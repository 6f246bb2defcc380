//! Requests to the disk that this test's files are on, against the kernel's own
//! count. Others use the disk too: what is compared is all that it did.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use pacer_agent::probe::Probe;
use pacer_agent::probe::activity::{DeviceActivity, DeviceId, DeviceRequests};
use pacer_agent::probe::block_devices::Host;

use crate::{alone, attach};

const PAGE: usize = 4096;
const PAGES: u64 = 500;
const SECTOR_BYTES: u64 = 512;

/// A buffer as O_DIRECT needs it.
#[repr(align(4096))]
struct Page([u8; PAGE]);

/// `/sys/dev/block/…/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    reads: u64,
    read_bytes: u64,
    read_ms: u64,
    writes: u64,
    written_bytes: u64,
    write_ms: u64,
    in_flight: u64,
    flushes: u64,
}

/// <https://docs.kernel.org/block/stat.html>
fn stat(device: DeviceId) -> Stat {
    let path = format!("/sys/dev/block/{}:{}/stat", device.major, device.minor);
    let text = fs::read_to_string(path).expect("sysfs is mounted");
    let fields: Vec<u64> = text
        .split_whitespace()
        .map(|field| field.parse().expect("a number"))
        .collect();
    Stat {
        reads: fields[0],
        read_bytes: fields[2] * SECTOR_BYTES,
        read_ms: fields[3],
        writes: fields[4],
        written_bytes: fields[6] * SECTOR_BYTES,
        write_ms: fields[7],
        in_flight: fields[8],
        flushes: fields[15],
    }
}

fn activity(probe: &Probe) -> DeviceActivity {
    let devices = probe.activity().devices;
    assert_eq!(devices.len(), 1, "{devices:?}");
    devices.into_iter().next().expect("one")
}

/// A moment at which the disk has nothing in hand and its counts, which are read
/// one after the other, belong together.
fn quiet(probe: &Probe, device: DeviceId) -> (Stat, DeviceActivity) {
    for _ in 0..100_000 {
        let before = stat(device);
        let activity = activity(probe);
        if before.in_flight == 0 && stat(device) == before {
            return (before, activity);
        }
    }
    panic!("the disk is never idle");
}

/// A file on a disk, and the disk.
fn file() -> (File, DeviceId) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(format!("pacer-block-{}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("a file without the page cache");
    fs::remove_file(&path).expect("it is there");
    let of_file = file.metadata().expect("it is open").dev();
    let backing = Host::default().devices_under(DeviceId::from_stat(of_file));
    let device = backing.devices.first().expect("the file is on a disk");
    assert_eq!(backing.unknown, Vec::<String>::new());
    // So that what follows changes no metadata.
    write(&file, 0..PAGES);
    file.sync_all().expect("it is on the disk");
    (file, *device)
}

fn write(file: &File, pages: std::ops::Range<u64>) {
    for page in pages {
        let offset = page * PAGE as u64;
        file.write_all_at(&Page([7; PAGE]).0, offset)
            .expect("it is written");
    }
}

fn read(file: &File) {
    let mut page = Page([0; PAGE]);
    for at in 0..PAGES {
        file.read_exact_at(&mut page.0, at * PAGE as u64)
            .expect("it is read");
    }
}

/// What came between two moments in one direction.
#[derive(Debug)]
struct Done {
    requests: u64,
    bytes: u64,
    milliseconds: f64,
}

fn between(before: &DeviceRequests, after: &DeviceRequests) -> Done {
    let by_latency: u64 = after.by_latency.iter().sum();
    assert_eq!(by_latency, after.requests.count);
    let latency = after.latency.saturating_sub(before.latency);
    Done {
        requests: after.requests.count - before.requests.count,
        bytes: after.requests.bytes - before.requests.bytes,
        milliseconds: latency.as_secs_f64() * 1000.0,
    }
}

/// Whether all that the kernel counted was seen.
fn all_is_seen(probe: &Probe, file: &File, device: DeviceId) -> bool {
    let (stat_before, before) = quiet(probe, device);
    write(file, 0..PAGES);
    read(file);
    let (stat_after, after) = quiet(probe, device);
    let read = between(&before.read, &after.read);
    let written = between(&before.write, &after.write);
    println!("read {read:?}, written {written:?}");
    let reads = stat_after.reads - stat_before.reads;
    let writes = stat_after.writes - stat_before.writes;
    let read_bytes = stat_after.read_bytes - stat_before.read_bytes;
    let written_bytes = stat_after.written_bytes - stat_before.written_bytes;
    let flushes = stat_after.flushes - stat_before.flushes;
    assert!(reads >= PAGES && writes >= PAGES);
    assert!(read.bytes <= read_bytes && written.bytes <= written_bytes);
    check_latency(&read, stat_after.read_ms - stat_before.read_ms);
    check_latency(&written, stat_after.write_ms - stat_before.write_ms);
    // The kernel counts a flush that someone asked for as a write of nothing.
    let without_flushes = writes.saturating_sub(flushes)..=writes;
    (read.requests, read.bytes, written.bytes) == (reads, read_bytes, written_bytes)
        && without_flushes.contains(&written.requests)
}

/// The kernel's time begins earlier, when the request is made, and is cut to
/// whole milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a test's few milliseconds")]
fn check_latency(done: &Done, kernel_ms: u64) {
    println!("the kernel says {kernel_ms} ms");
    assert!(done.milliseconds > 0.0);
    assert!(done.milliseconds < kernel_ms as f64 + 1.0);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn requests_are_those_that_the_kernel_counts() {
    const TRIES: usize = 7;
    let _alone = alone();
    let mut probe = attach();
    let (file, device) = file();
    probe.watch_devices(&[device]).expect("it is watched");
    assert_eq!(activity(&probe).id, device);
    // A completion interrupts whatever runs. There are machines that run no
    // program while certain processes are current: what interrupts those is not
    // seen, and the kernel counts no miss. It happens seldom.
    let exact = (0..TRIES).filter(|_| all_is_seen(&probe, &file, device));
    let exact = exact.count();
    assert!(exact > TRIES / 2, "{exact} of {TRIES}");
    assert_eq!(probe.counters().map_full, 0);
    let programs = probe.cost().programs;
    let block = programs.iter().filter(|one| one.name.starts_with("block"));
    for program in block {
        println!("{program:?}");
        assert_eq!(program.missed, 0);
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn what_the_device_has_in_hand_is_seen() {
    const WRITERS: u64 = 4;
    let _alone = alone();
    let mut probe = attach();
    let (file, device) = file();
    // A disk, and one that does not exist.
    let nowhere = DeviceId { major: 0, minor: 1 };
    probe.watch_devices(&[nowhere, device]).expect("watched");
    assert_eq!(probe.activity().devices.len(), 2);
    probe.watch_devices(&[device]).expect("watched");
    let mut most = 0;
    thread::scope(|scope| {
        let part = PAGES / WRITERS;
        let writers: Vec<_> = (0..WRITERS)
            .map(|at| (at * part)..(at * part + part))
            .map(|pages| scope.spawn(|| write(&file, pages)))
            .collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            most = most.max(activity(&probe).in_flight);
        }
    });
    println!("up to {most} in flight");
    assert!(most > 0);
    quiet(&probe, device);
    let counted = activity(&probe).write.requests.count;
    assert!(counted > PAGES / 2, "{counted}");
    probe.watch_devices(&[]).expect("nothing is watched");
    write(&file, 0..10);
    assert_eq!(probe.activity().devices, []);
}
