//! The guest's disks: which there are, and what can be asked of one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::ioctl::{Setter, ioctl};

/// O_DIRECT: requests go to the disk and come from it, not from a cache.
const O_DIRECT: i32 = 0o40_000;
const BLKDISCARD: rustix::ioctl::Opcode = 0x1277;
const BLKZEROOUT: rustix::ioctl::Opcode = 0x127f;
/// Buses are scanned in the background.
const APPEAR_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const SYS_BLOCK: &str = "/sys/block";

/// An open disk.
pub(crate) struct BlockDevice {
    /// Its serial number, which the host gives it; the kernel's name where it
    /// has none.
    pub(crate) name: String,
    /// How large it is.
    pub(crate) bytes: u64,
    /// Whether it zeroes a range without being sent the zeroes.
    pub(crate) zeroes: bool,
    /// Whether it takes discards.
    pub(crate) discards: bool,
    file: File,
}

impl BlockDevice {
    /// Waits until there are `count` virtio, SCSI and ATA disks, and opens them
    /// in the order of their kernel names.
    ///
    /// # Errors
    /// There are fewer after a minute, or one cannot be opened.
    pub(crate) fn open_all(count: usize) -> io::Result<Vec<Self>> {
        let start = Instant::now();
        loop {
            let names = kernel_names()?;
            if names.len() >= count {
                return names.iter().map(|name| Self::open(name)).collect();
            }
            if start.elapsed() > APPEAR_TIMEOUT {
                let text = format!("{count} disks wanted, {names:?} are there");
                return Err(io::Error::other(text));
            }
            sleep(POLL_INTERVAL);
        }
    }

    fn open(kernel_name: &str) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open(format!("/dev/{kernel_name}"))?;
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        let offers = |limit: &str| {
            let path = format!("{SYS_BLOCK}/{kernel_name}/queue/{limit}");
            fs::read_to_string(path).is_ok_and(|text| text.trim() != "0")
        };
        Ok(Self {
            name: serial_number(kernel_name).unwrap_or_else(|| kernel_name.to_owned()),
            bytes,
            zeroes: offers("write_zeroes_max_bytes"),
            discards: offers("discard_max_bytes"),
            file,
        })
    }

    /// Writes all of `bytes`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// Fills all of `bytes`.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Has the disk bring what it holds in its cache to rest.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// BLKZEROOUT.
    pub(crate) fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: this request reads two u64, offset and length in bytes, and
        // changes nothing but the disk.
        let set = unsafe { Setter::<BLKZEROOUT, _>::new([offset, len]) };
        // SAFETY: the request belongs to block devices, of which this is one.
        Ok(unsafe { ioctl(&self.file, set) }?)
    }

    /// BLKDISCARD.
    pub(crate) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        // SAFETY: as for BLKZEROOUT.
        let set = unsafe { Setter::<BLKDISCARD, _>::new([offset, len]) };
        // SAFETY: as for BLKZEROOUT.
        Ok(unsafe { ioctl(&self.file, set) }?)
    }
}

/// `vda`, `sda` …, sorted.
fn kernel_names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(SYS_BLOCK)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // A node in /dev is made a moment after the entry here.
        let is_disk = name.starts_with("vd") || name.starts_with("sd");
        if is_disk && fs::exists(format!("/dev/{name}"))? {
            names.push(name);
        }
    }
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

fn serial_number(kernel_name: &str) -> Option<String> {
    // virtio-blk says it as text, SCSI in a page of its own behind a header.
    let folder = format!("{SYS_BLOCK}/{kernel_name}");
    let page = || {
        fs::read(format!("{folder}/device/vpd_pg80"))
            .ok()?
            .get(4..)
            .map(<[u8]>::to_vec)
    };
    let bytes = fs::read(format!("{folder}/serial")).ok().or_else(page)?;
    let text = String::from_utf8_lossy(&bytes);
    let serial =
        text.trim_matches(|character: char| character.is_whitespace() || character == '\0');
    (!serial.is_empty()).then(|| serial.replace(char::is_whitespace, "_"))
}
