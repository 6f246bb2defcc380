//! A guest's physical memory, as QEMU wrote it to a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of one page of guest memory.
pub const PAGE_BYTES: usize = 4096;

/// Guest-physical memory from address 0 up.
#[derive(Debug)]
pub struct GuestMemory {
    file: File,
}

impl GuestMemory {
    /// Memory that stands in `file`, the byte of address 0 first.
    #[must_use]
    pub const fn from_file(file: File) -> Self {
        Self { file }
    }

    /// Reads whole pages, as many as `pages` has room for, from a
    /// guest-physical address (in bytes).
    ///
    /// # Errors
    /// The file ends before, or cannot be read.
    pub fn read(&self, address: u64, pages: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(pages, address)
    }
}
