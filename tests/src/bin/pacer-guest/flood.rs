//! Writes 4 KiB at random offsets as fast as the disks take them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::block_device::BlockDevice;
use crate::buffer::AlignedBuffer;
use crate::random::Random;

const WRITE_BYTES: usize = 4096;

/// What is done.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// For how long.
    pub(crate) seconds: u64,
    /// Writes under way at a time, spread over the disks.
    pub(crate) threads: usize,
    /// How many disks there are.
    pub(crate) disks: usize,
}

/// Says `PACER DISKS n ready`, each second `PACER FLOOD seconds=… writes=…`
/// with the sum so far, and `PACER FLOOD done seconds=… writes=…` when the
/// last write has ended.
///
/// # Errors
/// A disk is missing or fails.
pub(crate) fn run(seed: u64, settings: &Settings) -> io::Result<()> {
    let disks = BlockDevice::open_all(settings.disks)?;
    if disks.is_empty() {
        return Err(io::Error::other("no disk"));
    }
    println!("PACER DISKS {} ready", disks.len());
    let (writes, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    std::thread::scope(|scope| {
        let (writes, over) = (&writes, &over);
        let threads: Vec<_> = (0..settings.threads.max(1))
            .zip(disks.iter().cycle())
            .map(|(number, disk)| {
                let random = Random::new(seed, number as u64);
                scope.spawn(move || flood(disk, random, writes, over))
            })
            .collect();
        for second in 1..=settings.seconds {
            sleep(Duration::from_secs(second).saturating_sub(start.elapsed()));
            println!("PACER FLOOD {}", progress(start, writes));
        }
        over.store(true, Ordering::Relaxed);
        let mut joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.try_for_each(|outcome| {
            outcome.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
        })
    })?;
    println!("PACER FLOOD done {}", progress(start, &writes));
    Ok(())
}

fn progress(start: Instant, writes: &AtomicU64) -> String {
    let seconds = start.elapsed().as_secs_f64();
    format!(
        "seconds={seconds:.3} writes={}",
        writes.load(Ordering::Relaxed)
    )
}

fn flood(
    disk: &BlockDevice,
    mut random: Random,
    writes: &AtomicU64,
    over: &AtomicBool,
) -> io::Result<()> {
    let content = AlignedBuffer::filled(WRITE_BYTES, || random.next().to_le_bytes()[7]);
    let places = disk.bytes / WRITE_BYTES as u64;
    while !over.load(Ordering::Relaxed) {
        let offset = random.below(places) * WRITE_BYTES as u64;
        disk.write(offset, content.first(WRITE_BYTES))?;
        writes.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
