//! How often the chunks of each file are written, from the programs' table.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Map, MapData};
use pacer_common::chunk::{self, CHUNK_SHIFT, CHUNKS, CLASSES, Chunk, SETS, WAYS};
use pacer_common::file::FileKey;

use super::activity::{ChunkIntervals, IntervalClass};

/// Chunks of each file by class.
#[derive(Debug, Default)]
pub(super) struct ChunkTable {
    files: HashMap<(u64, u64, u64), [u64; CLASSES]>,
}

/// Chunks that the table has room for.
const CHUNKS_IN_ALL: usize = SETS as usize * WAYS;

impl ChunkTable {
    /// As the table is now: about a millisecond.
    pub(super) fn read(ebpf: &Ebpf) -> Self {
        let mut table = Self::default();
        let Some(Map::Array(map)) = ebpf.map(CHUNKS) else {
            return table;
        };
        if let Some(mapping) = Mapping::of(map) {
            mapping.chunks().for_each(|chunk| table.add(&chunk));
        }
        table
    }

    fn add(&mut self, chunk: &Chunk) {
        if chunk.written_at_ns == 0 {
            return;
        }
        let classes = self.files.entry(hash_key(&chunk.file)).or_default();
        let class = match chunk.interval_ns {
            0 => 0,
            interval => chunk::class_of(interval),
        };
        if let Some(count) = classes.get_mut(class as usize) {
            *count += 1;
        }
    }

    /// Of one file, of which `evicted` chunks were forgotten.
    pub(super) fn of(&self, file: &FileKey, evicted: u64) -> ChunkIntervals {
        let by_class = self.files.get(&hash_key(file));
        let by_class = by_class.copied().unwrap_or_default();
        let mut chunks = (0..).zip(by_class).map(|(class, chunks)| IntervalClass {
            at_least: Duration::from_nanos(chunk::class_start_ns(class)),
            below: class_end(class),
            chunks,
        });
        ChunkIntervals {
            chunk_bytes: 1 << CHUNK_SHIFT,
            written_once: chunks.next().map_or(0, |once| once.chunks),
            classes: chunks.collect(),
            evicted,
        }
    }
}

const fn hash_key(file: &FileKey) -> (u64, u64, u64) {
    (file.inode, file.super_block, file.generation)
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

/// The table, in this process' memory until it is dropped.
struct Mapping {
    chunks: NonNull<Chunk>,
}

impl Mapping {
    const BYTES: usize = CHUNKS_IN_ALL * size_of::<Chunk>();

    fn of(map: &MapData) -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a new mapping, at a place of the kernel's choice, of a map that
        // was made for it and has that size.
        let address = unsafe {
            mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                ProtFlags::READ,
                MapFlags::SHARED,
                map.fd(),
                0,
            )
        };
        Some(Self {
            chunks: NonNull::new(address.ok()?.cast())?,
        })
    }

    /// Copies. One that a program is changing may be half old, half new: an
    /// interval is then counted in the wrong class, once.
    fn chunks(&self) -> impl Iterator<Item = Chunk> {
        (0..CHUNKS_IN_ALL).map(|index| {
            // SAFETY: within the mapping, whose bytes are a valid chunk whatever
            // they are; volatile, since the programs change it.
            unsafe { self.chunks.add(index).read_volatile() }
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `of`, and nobody has a reference into it.
        let _ = unsafe { rustix::mm::munmap(self.chunks.as_ptr().cast(), Self::BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileKey = FileKey {
        inode: 7,
        super_block: 2,
        generation: 1,
    };

    fn chunk(written_at_ns: u64, interval_ns: u64) -> Chunk {
        Chunk {
            file: FILE,
            number: 3,
            written_at_ns,
            interval_ns,
        }
    }

    #[test]
    fn chunks_are_in_the_class_of_their_interval() {
        let mut table = ChunkTable::default();
        let second = 1_000_000_000;
        for chunk in [
            chunk(0, 0),
            chunk(9, 0),
            chunk(9, 1),
            chunk(9, second),
            chunk(9, u64::MAX),
        ] {
            table.add(&chunk);
        }
        let seen = table.of(&FILE, 4);
        assert_eq!((seen.written_once, seen.evicted), (1, 4));
        assert_eq!(seen.classes.len(), CLASSES - 1);
        let with_chunks: Vec<_> = seen
            .classes
            .iter()
            .filter(|class| class.chunks > 0)
            .collect();
        assert_eq!(with_chunks.len(), 3);
        let middle = with_chunks[1];
        let one = Duration::from_secs(1);
        assert!(middle.at_least <= one && one < middle.below, "{middle:?}");
        assert_eq!(with_chunks[2].below, Duration::MAX);
        let other = FileKey {
            generation: 2,
            ..FILE
        };
        assert_eq!(table.of(&other, 0).written_once, 0);
    }
}
