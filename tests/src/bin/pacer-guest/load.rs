//! Does to every disk what disks are asked to do, each disk from a thread of
//! its own, and says for each what it did.

use std::fmt;
use std::io;

use crate::block_device::BlockDevice;
use crate::buffer::AlignedBuffer;
use crate::random::Random;

const LARGEST_BYTES: u64 = 256 << 10;
/// Discards and zeroes keep to this: a disk may leave out what is less.
const BLOCK_BYTES: u64 = 4096;

/// What is done.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    /// Requests to each disk.
    pub(crate) requests: u64,
    /// Offsets and lengths of reads and writes are multiples of this.
    pub(crate) granularity_bytes: u64,
    /// How many disks there are.
    pub(crate) disks: usize,
}

/// What one disk was asked.
#[derive(Default)]
struct Done {
    writes: u64,
    written_bytes: u64,
    zero_writes: u64,
    zero_written_bytes: u64,
    zeroes: u64,
    zeroed_bytes: u64,
    discards: u64,
    discarded_bytes: u64,
    reads: u64,
    read_bytes: u64,
    flushes: u64,
}

#[derive(Clone, Copy)]
enum Request {
    Write,
    WriteZeroes,
    Flush,
    Zero,
    Discard,
    Read,
}

/// Says `PACER DISKS n ready`, a line `PACER DISK name …` for each disk, and
/// `PACER DISKS done`.
///
/// # Errors
/// A disk is missing or fails.
pub(crate) fn run(seed: u64, settings: &Settings) -> io::Result<()> {
    let disks = BlockDevice::open_all(settings.disks)?;
    println!("PACER DISKS {} ready", disks.len());
    let all_done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(&disks)
            .map(|(number, disk)| {
                let random = Random::new(seed, number);
                scope.spawn(move || load(disk, random, settings))
            })
            .collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined
            .map(|outcome| outcome.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
            .collect::<io::Result<Vec<Done>>>()
    })?;
    for (disk, done) in disks.iter().zip(all_done) {
        println!("PACER DISK {} {done}", disk.name);
    }
    println!("PACER DISKS done");
    Ok(())
}

fn load(disk: &BlockDevice, mut random: Random, settings: &Settings) -> io::Result<Done> {
    let len = usize::try_from(LARGEST_BYTES).map_err(io::Error::other)?;
    let content = AlignedBuffer::filled(len, || random.next().to_le_bytes()[7]);
    let nothing = AlignedBuffer::zeroed(len);
    let mut scratch = AlignedBuffer::zeroed(len);
    let mut done = Done::default();
    for _ in 0..settings.requests {
        let request = draw(disk, &mut random);
        let granularity_bytes = match request {
            Request::Zero | Request::Discard => BLOCK_BYTES.max(settings.granularity_bytes),
            _ => settings.granularity_bytes,
        };
        let (offset, bytes) = range(&mut random, disk.bytes, granularity_bytes);
        let len = usize::try_from(bytes).map_err(io::Error::other)?;
        match request {
            Request::Write => disk.write(offset, content.first(len))?,
            Request::WriteZeroes => disk.write(offset, nothing.first(len))?,
            Request::Flush => disk.flush()?,
            Request::Zero => disk.zero(offset, bytes)?,
            Request::Discard => disk.discard(offset, bytes)?,
            Request::Read => disk.read(offset, scratch.first_mut(len))?,
        }
        done.count(request, bytes);
    }
    disk.flush()?;
    done.flushes += 1;
    Ok(done)
}

/// What comes next: of a hundred requests, 60 are writes.
fn draw(disk: &BlockDevice, random: &mut Random) -> Request {
    match random.below(100) {
        0..6 => Request::WriteZeroes,
        6..12 => Request::Flush,
        12..20 if disk.zeroes => Request::Zero,
        20..28 if disk.discards => Request::Discard,
        28..40 => Request::Read,
        _ => Request::Write,
    }
}

/// Offset and length: small and large ones alike often, anywhere on the disk.
fn range(random: &mut Random, disk_bytes: u64, granularity_bytes: u64) -> (u64, u64) {
    let granularity_bytes = granularity_bytes.max(512);
    let doublings = (LARGEST_BYTES / granularity_bytes).ilog2();
    let most = granularity_bytes << random.below(u64::from(doublings) + 1);
    // Between half of that power of two and the whole of it.
    let units = most / granularity_bytes;
    let bytes = (units - random.below(units / 2 + 1)) * granularity_bytes;
    let bytes = bytes.min(disk_bytes / granularity_bytes * granularity_bytes);
    let places = (disk_bytes - bytes) / granularity_bytes + 1;
    (random.below(places) * granularity_bytes, bytes)
}

impl Done {
    const fn count(&mut self, request: Request, bytes: u64) {
        match request {
            Request::Write | Request::WriteZeroes => {
                self.writes += 1;
                self.written_bytes += bytes;
                if matches!(request, Request::WriteZeroes) {
                    self.zero_writes += 1;
                    self.zero_written_bytes += bytes;
                }
            }
            Request::Flush => self.flushes += 1,
            Request::Zero => {
                self.zeroes += 1;
                self.zeroed_bytes += bytes;
            }
            Request::Discard => {
                self.discards += 1;
                self.discarded_bytes += bytes;
            }
            Request::Read => {
                self.reads += 1;
                self.read_bytes += bytes;
            }
        }
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = [
            ("writes", self.writes),
            ("written_bytes", self.written_bytes),
            ("zero_writes", self.zero_writes),
            ("zero_written_bytes", self.zero_written_bytes),
            ("zeroes", self.zeroes),
            ("zeroed_bytes", self.zeroed_bytes),
            ("discards", self.discards),
            ("discarded_bytes", self.discarded_bytes),
            ("reads", self.reads),
            ("read_bytes", self.read_bytes),
            ("flushes", self.flushes),
        ];
        for (name, value) in fields {
            write!(f, "{name}={value} ")?;
        }
        f.write_str("done")
    }
}
