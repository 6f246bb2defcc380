//! What is in a guest's memory, by a sample of its pages: how much of it is not
//! zero, since QEMU sends a page of zeroes in 9 bytes, and how much of it changes
//! in a while.
//!
//! Pages spread over the whole of it are looked at in QEMU's memory. One that the
//! host never had to back is zero, and is not read, which would back it.

use std::fs::File;
use std::hash::Hasher as _;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustc_hash::FxHasher;

use crate::pacing::sample::{PARTS, SAMPLED_PAGES};
use crate::process::ProcessId;

const PAGE_BYTES: usize = 4096;
const PAGE: u64 = 4096;
/// Bytes of an entry of `/proc/PID/pagemap`.
const ENTRY_BYTES: u64 = 8;
/// Bits of an entry: the page is in memory; it is swapped out.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// In place of the hash of a page of zeroes.
const ZERO: u64 = 0;
/// And of one that is swapped out: not zero, the kernel keeps no such page, and not
/// written since.
const AWAY: u64 = 1;

/// How much of the guest's memory is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// In bytes.
    pub bytes: u64,
    /// The share of each part, in 255ths; `None` where it may not be read.
    pub parts: Option<[u8; PARTS]>,
}

/// What is not zero of the guest's RAM, `ram_bytes` large. Where it may not be read,
/// what the host had to back with memory, which is no less. `None` if no mapping can
/// be taken for it. Takes some ten milliseconds: not on a thread that has something
/// waiting.
#[must_use]
pub fn content(qemu: ProcessId, ram_bytes: u64) -> Option<Content> {
    let mapping = qemu.guest_ram(ram_bytes)?;
    let hashes =
        Memory::at(qemu.pid, mapping.address, ram_bytes).and_then(|memory| memory.hashes());
    Some(match hashes {
        Ok(hashes) => Content {
            bytes: share_of(ram_bytes, &hashes, |&hash| hash != ZERO),
            parts: Some(parts(&hashes)),
        },
        Err(error) => {
            tracing::debug!(%error, "the guest's memory is not looked into");
            Content {
                bytes: mapping.resident_bytes,
                parts: None,
            }
        }
    })
}

/// The share of each part of a sample that is not zero, in 255ths.
fn parts(hashes: &[u64]) -> [u8; PARTS] {
    std::array::from_fn(|part| {
        let range = hashes.len() * part / PARTS..hashes.len() * (part + 1) / PARTS;
        let share = share_of(255, &hashes[range], |&hash| hash != ZERO);
        u8::try_from(share).unwrap_or(u8::MAX)
    })
}

/// A sample of a guest's pages as they once were.
#[derive(Debug)]
pub struct Snapshot {
    memory: Memory,
    hashes: Vec<u64>,
}

impl Snapshot {
    /// As they are now, of RAM of `ram_bytes`. Takes some ten milliseconds.
    ///
    /// # Errors
    ///
    /// If the memory cannot be found or read.
    pub fn take(qemu: ProcessId, ram_bytes: u64) -> io::Result<Self> {
        let mapping = qemu
            .guest_ram(ram_bytes)
            .ok_or_else(|| io::Error::other("no mapping is the guest's memory"))?;
        let memory = Memory::at(qemu.pid, mapping.address, ram_bytes)?;
        let hashes = memory.hashes()?;
        Ok(Self { memory, hashes })
    }

    /// Pages of the whole RAM whose content is another now, as far as the sample
    /// tells. Takes as long as [`Self::take`], so that each page is compared over
    /// the same time.
    ///
    /// # Errors
    ///
    /// If the memory cannot be read.
    pub fn changed_pages(&self) -> io::Result<u64> {
        let now = self.memory.hashes()?;
        let pairs: Vec<(u64, u64)> = self.hashes.iter().copied().zip(now).collect();
        let pages = self.memory.bytes / PAGE;
        Ok(share_of(pages, &pairs, |(then, now)| {
            // Out or back in says nothing of what is in it.
            then != now && *then != AWAY && *now != AWAY
        }))
    }
}

/// A guest's RAM in its QEMU.
#[derive(Debug)]
struct Memory {
    pagemap: File,
    content: File,
    address: u64,
    bytes: u64,
}

impl Memory {
    fn at(pid: u32, address: u64, bytes: u64) -> io::Result<Self> {
        Ok(Self {
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            content: File::open(format!("/proc/{pid}/mem"))?,
            address,
            bytes,
        })
    }

    /// Hashes of the pages of the sample, always the same pages.
    fn hashes(&self) -> io::Result<Vec<u64>> {
        spread(self.bytes / PAGE)
            .map(|page| self.hash(self.address + page * PAGE))
            .collect()
    }

    fn hash(&self, at: u64) -> io::Result<u64> {
        let mut entry = [0; 8];
        self.pagemap
            .read_exact_at(&mut entry, at / PAGE * ENTRY_BYTES)?;
        match u64::from_ne_bytes(entry) & (PRESENT | SWAPPED) {
            0 => return Ok(ZERO),
            // Reading it would have it brought back.
            SWAPPED => return Ok(AWAY),
            _ => {}
        }
        let mut page = [0; PAGE_BYTES];
        self.content.read_exact_at(&mut page, at)?;
        if page.iter().all(|&byte| byte == 0) {
            return Ok(ZERO);
        }
        let mut hasher = FxHasher::default();
        hasher.write(&page);
        Ok(hasher.finish().max(AWAY + 1))
    }
}

/// That share of `all` that those of `sample` are that are `counted`.
fn share_of<T>(all: u64, sample: &[T], counted: impl Fn(&T) -> bool) -> u64 {
    let wide = |count: usize| u128::try_from(count).unwrap_or(u128::MAX);
    let counted = sample.iter().filter(|item| counted(item)).count();
    let share = u128::from(all) * wide(counted) / wide(sample.len().max(1));
    u64::try_from(share).unwrap_or(all)
}

/// At most [`SAMPLED_PAGES`] numbers below `pages`, one somewhere in each of as many
/// equal parts: evenly spaced, they might keep step with what is in the memory.
fn spread(pages: u64) -> impl Iterator<Item = u64> {
    let samples = pages.min(SAMPLED_PAGES);
    (0..samples).map(move |number| {
        let start = number * pages / samples;
        let end = (number + 1) * pages / samples;
        // Fibonacci hashing, as good as chance here.
        let mixed = (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        start + mixed % (end - start)
    })
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn samples_are_spread_and_each_is_another() {
        for pages in [
            1,
            7,
            SAMPLED_PAGES,
            SAMPLED_PAGES + 1,
            10 * SAMPLED_PAGES + 3,
        ] {
            let samples: Vec<u64> = spread(pages).collect();
            assert!(samples.is_sorted_by(|one, other| one < other), "{pages}");
            assert!(samples.iter().all(|&sample| sample < pages));
            assert_eq!(samples.len() as u64, pages.min(SAMPLED_PAGES));
        }
        assert_eq!(spread(0).count(), 0);
    }

    #[test]
    fn what_is_zero_is_told_from_what_is_not_and_what_changes_from_what_stays() {
        const PAGES: usize = 8192;
        let mut memory = vec![0_u8; (PAGES + 1) * PAGE_BYTES];
        let first = memory.as_ptr().align_offset(PAGE_BYTES);
        // A quarter has content, a quarter was written zeroes, half is untouched.
        for page in 0..PAGES / 2 {
            let value = u8::try_from(page % 2).expect("a bit");
            memory[first + page * PAGE_BYTES] = black_box(value);
        }
        let address = memory[first..].as_ptr().addr() as u64;
        let bytes = (PAGES * PAGE_BYTES) as u64;
        let own = Memory::at(std::process::id(), address, bytes).expect("its own memory");
        let hashes = own.hashes().expect("its own memory");
        let content = share_of(bytes, &hashes, |&hash| hash != ZERO);
        assert_eq!(content, bytes / 4, "all of it is looked at");
        let parts = parts(&hashes);
        assert_eq!(
            (parts[0], parts[15], parts[16], parts[31]),
            (127, 127, 0, 0)
        );
        let snapshot = Snapshot {
            memory: own,
            hashes,
        };
        assert_eq!(snapshot.changed_pages().expect("as before"), 0);
        // From nothing, from zeroes, and to zeroes.
        for page in [PAGES - 1, 0, 1] {
            let byte = &mut memory[first + page * PAGE_BYTES];
            *byte = black_box(u8::from(*byte == 0));
        }
        assert_eq!(snapshot.changed_pages().expect("as before"), 3);
        drop(memory);
    }
}
