//! Reads the programs' maps into [`Activity`].

use aya::Ebpf;
use aya::maps::{PerCpuHashMap, PerCpuValues};
use pacer_common::counter;
use pacer_common::file::{self, BACKEND, FileCounts, FileKey};

use super::activity::{
    Activity, BackendActivity, DeviceId, DeviceReads, FileActivity, FileId, Requests,
};
use super::backend_names::NameReader;
use super::chunk_table::ChunkTable;
use super::{counters, devices, sockets};
use crate::pacing::time::Time;

/// Everything counted so far.
pub(super) fn read(ebpf: &Ebpf, names: Option<&NameReader>) -> Activity {
    let (backends, files): (Vec<_>, Vec<_>) = counts(ebpf)
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| key.super_block == BACKEND);
    let chunks = ChunkTable::read(ebpf);
    Activity {
        files: files
            .iter()
            .map(|(key, cpus)| file_activity(key, cpus, &chunks))
            .collect(),
        backends: backends
            .iter()
            .map(|(key, cpus)| backend_activity(key, cpus, names, &chunks))
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

fn file_activity(key: &FileKey, cpus: &[FileCounts], chunks: &ChunkTable) -> FileActivity {
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
        chunks: chunks.of(key, evicted(cpus)),
    }
}

fn backend_activity(
    key: &FileKey,
    cpus: &[FileCounts],
    names: Option<&NameReader>,
    chunks: &ChunkTable,
) -> BackendActivity {
    BackendActivity {
        address: key.inode,
        names: names.map(|names| names.read(key.inode)).unwrap_or_default(),
        written: written(cpus),
        zeroed: zeroed(cpus),
        discarded: discarded(cpus),
        chunks: chunks.of(key, evicted(cpus)),
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

fn evicted(cpus: &[FileCounts]) -> u64 {
    cpus.iter().map(|counts| counts.evicted_chunks).sum()
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
        let first = FileCounts {
            device: 254 << 20 | 3,
            writes: 2,
            written_bytes: 8192,
            evicted_chunks: 1,
            ..FileCounts::NONE
        };
        let second = FileCounts {
            writes: 1,
            written_bytes: 512,
            ..FileCounts::NONE
        };
        let file = file_activity(&key, &[first, second], &ChunkTable::default());
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
        assert_eq!(file.chunks.evicted, 1);
    }
}
