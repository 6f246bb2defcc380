//! A sparse file that is as large as it says and holds next to nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of one write.
pub(crate) const WRITE_BYTES: u64 = 4096;
/// What is written is forgotten after so many writes (200 MB).
const KEPT_WRITES: u64 = 50_000;

/// The file.
pub(crate) struct Disk {
    file: File,
    bytes: u64,
}

impl Disk {
    /// Makes it in `folder`, of `bytes`.
    ///
    /// # Errors
    /// The file system has no files that large.
    pub(crate) fn create(folder: &Path, bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(folder.join("disk.raw"))?;
        file.set_len(bytes)?;
        Ok(Self { file, bytes })
    }

    /// Writes 4 KiB `count` times, anywhere.
    ///
    /// # Errors
    /// A write failed.
    pub(crate) fn write(&self, count: u64, random: &mut fastrand::Rng) -> io::Result<()> {
        let content = [0x5a; 4096];
        for number in 1..=count {
            let offset = random.u64(..self.bytes / WRITE_BYTES) * WRITE_BYTES;
            self.file.write_all_at(&content, offset)?;
            if number.is_multiple_of(KEPT_WRITES) {
                self.file.set_len(0)?;
                self.file.set_len(self.bytes)?;
            }
        }
        Ok(())
    }
}
