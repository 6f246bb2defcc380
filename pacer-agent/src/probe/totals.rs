//! Reads the programs' maps into [`Activity`].

use std::time::Duration;

use aya::Ebpf;
use aya::maps::{PerCpuHashMap, PerCpuValues};
use pacer_common::chunk::{self, CHUNK_SHIFT, CLASSES};
use pacer_common::counter;
use pacer_common::file::{self, BACKEND, FileCounts, FileKey};

use super::activity::{
    Activity, BackendActivity, ChunkIntervals, DeviceId, DeviceReads, FileActivity, FileId,
    IntervalClass, Requests,
};
use super::backend_names::NameReader;
use super::{counters, devices, sockets};
use crate::pacing::time::Time;

/// Everything counted so far.
pub(super) fn read(ebpf: &Ebpf, names: Option<&NameReader>) -> Activity {
    let (backends, files): (Vec<_>, Vec<_>) = counts(ebpf)
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| key.super_block == BACKEND);
    Activity {
        files: files
            .iter()
            .map(|(key, cpus)| file_activity(key, cpus))
            .collect(),
        backends: backends
            .iter()
            .map(|(key, cpus)| backend_activity(key, cpus, names))
            .collect(),
        devices: devices::read(ebpf).unwrap_or_default(),
        sockets: sockets::read(ebpf).unwrap_or_default(),
        sent_bytes: counters::sum(ebpf, counter::SENT_BYTES),
        device_reads: DeviceReads {
            ram_bytes: counters::sum(ebpf, counter::READ_TO_RAM_BYTES),
            other_bytes: counters::sum(ebpf, counter::READ_ELSEWHERE_BYTES),
        },
    }
}

/// What each CPU counted of one file or backend.
type Counts = (FileKey, PerCpuValues<FileCounts>);

fn counts(ebpf: &Ebpf) -> Option<Vec<Counts>> {
    let map: PerCpuHashMap<_, FileKey, FileCounts> =
        PerCpuHashMap::try_from(ebpf.map(file::FILES)?).ok()?;
    Some(map.iter().filter_map(Result::ok).collect())
}

fn file_activity(key: &FileKey, cpus: &[FileCounts]) -> FileActivity {
    let first_at_ns = cpus.iter().map(|counts| counts.first_at_ns).max();
    // The file systems without a device have minor numbers, so it is never 0.
    let device = cpus.iter().map(|counts| counts.device).max().unwrap_or(0);
    let device = u32::try_from(device).unwrap_or(0);
    FileActivity {
        id: FileId {
            device: DeviceId::from_kernel(device),
            inode: key.inode,
        },
        first_at: Time::from_nanos(first_at_ns.unwrap_or(0)),
        written: written(cpus),
        zeroed: zeroed(cpus),
        discarded: discarded(cpus),
        read: requests(cpus, |counts| counts.reads, |counts| counts.read_bytes),
        chunks: chunk_intervals(cpus),
    }
}

fn backend_activity(
    key: &FileKey,
    cpus: &[FileCounts],
    names: Option<&NameReader>,
) -> BackendActivity {
    BackendActivity {
        address: key.inode,
        names: names.map(|names| names.read(key.inode)).unwrap_or_default(),
        written: written(cpus),
        zeroed: zeroed(cpus),
        discarded: discarded(cpus),
        chunks: chunk_intervals(cpus),
    }
}

fn written(cpus: &[FileCounts]) -> Requests {
    requests(cpus, |counts| counts.writes, |counts| counts.written_bytes)
}

fn zeroed(cpus: &[FileCounts]) -> Requests {
    requests(cpus, |counts| counts.zeroes, |counts| counts.zeroed_bytes)
}

fn discarded(cpus: &[FileCounts]) -> Requests {
    requests(
        cpus,
        |counts| counts.discards,
        |counts| counts.discarded_bytes,
    )
}

fn requests(
    cpus: &[FileCounts],
    count: fn(&FileCounts) -> u64,
    bytes: fn(&FileCounts) -> u64,
) -> Requests {
    Requests {
        count: cpus.iter().map(count).sum(),
        bytes: cpus.iter().map(bytes).sum(),
    }
}

fn chunk_intervals(cpus: &[FileCounts]) -> ChunkIntervals {
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
        evicted: cpus.iter().map(|counts| counts.evicted_chunks).sum(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_add_up() {
        let key = FileKey {
            inode: 7,
            super_block: 2,
            generation: 0,
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
