//! How often the chunks of a file are written.

use std::time::Duration;

use super::{file, pwrite, seen};
use crate::{alone, attach};

const CHUNK: u64 = 1 << 20;

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn intervals_are_by_chunk() {
    let _alone = alone();
    let probe = attach();
    let file = file();
    for _ in 0..50 {
        // Two bytes on each side: two chunks with one write.
        pwrite(&file, CHUNK - 2, &[1; 4]);
    }
    pwrite(&file, 7 * CHUNK, b"x");
    let chunks = seen(&probe, &file).chunks;
    assert_eq!(chunks.chunk_bytes, CHUNK);
    assert_eq!(chunks.written_once, 1);
    let often: u64 = chunks
        .classes
        .iter()
        .filter(|class| class.below <= Duration::from_secs(1))
        .map(|class| class.chunks)
        .sum();
    assert_eq!(often, 2, "{chunks:?}");
    assert_eq!(chunks.evicted, 0);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn no_chunk_is_forgotten_uncounted() {
    // More than there is room for.
    const WRITTEN: u64 = 80_000;
    let _alone = alone();
    let probe = attach();
    let file = file();
    for chunk in 0..WRITTEN {
        // A hole of a mebibyte between two bytes.
        pwrite(&file, chunk * CHUNK, b"x");
    }
    let mut probe = probe;
    let c = probe.counters();
    eprintln!(
        "COST {:?} per run {}",
        c,
        c.run_ns.unwrap() / c.run_count.unwrap()
    );
    let chunks = seen(&probe, &file).chunks;
    assert!(chunks.evicted > 0, "{chunks:?}");
    assert_eq!(chunks.written_once + chunks.evicted, WRITTEN, "{chunks:?}");
}
