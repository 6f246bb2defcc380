//! Reads the programs' maps into [`Activity`].

use std::collections::BTreeMap;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, MapError, PerCpuHashMap};
use pacer_common::backend::{self, BackendCounts, BackendKey};
use pacer_common::chunk::{self, CHUNK_SHIFT, CLASSES};
use pacer_common::counter;
use pacer_common::file::{self, FileCounts, FileKey};

use super::activity::{
    Activity, BackendActivity, ChunkIntervals, DeviceId, DeviceReads, FileActivity, FileId,
    IntervalClass, Requests,
};
use super::{counters, devices, sockets};

/// Everything counted so far.
pub(super) fn read(ebpf: &Ebpf) -> Activity {
    Activity {
        files: files(ebpf).unwrap_or_default(),
        backends: backends(ebpf).unwrap_or_default(),
        devices: devices::read(ebpf).unwrap_or_default(),
        sockets: sockets::read(ebpf).unwrap_or_default(),
        sent_bytes: counters::sum(ebpf, counter::SENT_BYTES),
        device_reads: DeviceReads {
            ram_bytes: counters::sum(ebpf, counter::READ_TO_RAM_BYTES),
            other_bytes: counters::sum(ebpf, counter::READ_ELSEWHERE_BYTES),
        },
    }
}

fn files(ebpf: &Ebpf) -> Option<Vec<FileActivity>> {
    let map: PerCpuHashMap<_, FileKey, FileCounts> =
        PerCpuHashMap::try_from(ebpf.map(file::FILES)?).ok()?;
    let files = map.iter().filter_map(|entry: Result<_, MapError>| {
        let (key, counts) = entry.ok()?;
        Some(file_activity(&key, &counts))
    });
    Some(files.collect())
}

fn file_activity(key: &FileKey, cpus: &[FileCounts]) -> FileActivity {
    let sum = |field: fn(&FileCounts) -> u64| cpus.iter().map(field).sum();
    let requests = |count: fn(&FileCounts) -> u64, bytes: fn(&FileCounts) -> u64| Requests {
        count: sum(count),
        bytes: sum(bytes),
    };
    // The file systems without a device have minor numbers, so it is never 0.
    let device = cpus.iter().map(|counts| counts.device).max().unwrap_or(0);
    let device = u32::try_from(device).unwrap_or(0);
    FileActivity {
        id: FileId {
            device: DeviceId::from_kernel(device),
            inode: key.inode,
        },
        written: requests(|counts| counts.writes, |counts| counts.written_bytes),
        zeroed: requests(|counts| counts.zeroes, |counts| counts.zeroed_bytes),
        discarded: requests(|counts| counts.discards, |counts| counts.discarded_bytes),
        read: requests(|counts| counts.reads, |counts| counts.read_bytes),
        chunks: chunk_intervals(cpus, sum(|counts| counts.evicted_chunks)),
    }
}

fn chunk_intervals(cpus: &[FileCounts], evicted: u64) -> ChunkIntervals {
    let mut by_class = [0; CLASSES];
    for counts in cpus {
        for (total, part) in by_class.iter_mut().zip(counts.chunks) {
            *total += part;
        }
    }
    let mut chunks = (0..).zip(by_class).map(|(class, chunks)| IntervalClass {
        at_least: Duration::from_nanos(chunk::class_start_ns(class)),
        below: class_end(class),
        // Two CPUs were at one chunk at once: a count of -1 is possible.
        chunks: u64::try_from(chunks).unwrap_or(0),
    });
    ChunkIntervals {
        chunk_bytes: 1 << CHUNK_SHIFT,
        written_once: chunks.next().map_or(0, |once| once.chunks),
        classes: chunks.collect(),
        evicted,
    }
}

/// The last class is open.
fn class_end(class: u32) -> Duration {
    let last = u32::try_from(CLASSES).is_ok_and(|classes| class + 1 >= classes);
    if last {
        Duration::MAX
    } else {
        Duration::from_nanos(chunk::class_start_ns(class + 1))
    }
}

fn backends(ebpf: &Ebpf) -> Option<Vec<BackendActivity>> {
    let map: HashMap<_, BackendKey, BackendCounts> =
        HashMap::try_from(ebpf.map(backend::BACKENDS)?).ok()?;
    let mut backends = BTreeMap::new();
    for (key, counts) in map.iter().filter_map(Result::ok) {
        let backend = backends.entry(key.address).or_insert(BackendActivity {
            address: key.address,
            ..BackendActivity::default()
        });
        backend.written.add(counts.writes, counts.written_bytes);
        backend.zeroed.add(counts.zeroes, counts.zeroed_bytes);
        backend
            .discarded
            .add(counts.discards, counts.discarded_bytes);
    }
    Some(backends.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_add_up() {
        let key = FileKey {
            inode: 7,
            super_block: 1,
        };
        let mut first = FileCounts {
            device: 254 << 20 | 3,
            writes: 2,
            written_bytes: 8192,
            evicted_chunks: 1,
            ..FileCounts::NONE
        };
        first.chunks[0] = 3;
        first.chunks[2] = 1;
        let mut second = FileCounts {
            writes: 1,
            written_bytes: 512,
            ..FileCounts::NONE
        };
        second.chunks[0] = -1;
        let file = file_activity(&key, &[first, second]);
        assert_eq!(
            file.id.device,
            DeviceId {
                major: 254,
                minor: 3
            }
        );
        assert_eq!(
            file.written,
            Requests {
                count: 3,
                bytes: 8704
            }
        );
        assert_eq!(file.chunks.written_once, 2);
        assert_eq!(file.chunks.evicted, 1);
        assert_eq!(file.chunks.classes.len(), CLASSES - 1);
        assert_eq!(file.chunks.classes[1].chunks, 1);
        assert_eq!(file.chunks.classes[CLASSES - 2].below, Duration::MAX);
    }
}
