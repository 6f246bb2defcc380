//! Which files a process has open that may be a guest's disks: regular files
//! and block devices on file systems that are mounted. (A memfd, a pipe or a
//! socket is none, nor are the standard streams.)
//!
//! `/proc/PID/fdinfo` may be read with CAP_SYS_PTRACE; `/proc/PID/fd` of another
//! user not even then. Where it may not, the descriptor is duplicated for a
//! moment to see what it leads to, once for each file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use crate::probe::activity::{DeviceId, FileId};

/// `O_DIRECT` in the flags of `fdinfo`, on x86-64.
const O_DIRECT: u32 = 0o40_000;
/// The bits that say for what a file was opened.
const O_ACCMODE: u32 = 0o3;
/// The highest descriptor of a standard stream.
const STDERR: i32 = 2;

/// A file that is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Which.
    pub id: FileId,
    /// Its name, as the observed process sees it.
    pub path: String,
    /// Some descriptor has it open with O_DIRECT.
    pub direct: bool,
    /// Some descriptor has it open for writing.
    pub writable: bool,
    /// The block device that it is, or the device of its file system, which is
    /// none of its own where that is on several, or on none.
    pub on: DeviceId,
}

/// A descriptor, told from others that had its number before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Descriptor {
    fd: i32,
    inode: u64,
    mount: u64,
}

/// Looks at one process' open files.
#[derive(Debug)]
pub struct Images<P> {
    pid: u32,
    pidfd: P,
    /// What descriptors lead to; `None`: to no image.
    seen: BTreeMap<Descriptor, Option<Image>>,
}

impl<P: AsFd> Images<P> {
    /// Of the process `pid`, which `pidfd` is of.
    pub const fn new(pid: u32, pidfd: P) -> Self {
        Self {
            pid,
            pidfd,
            seen: BTreeMap::new(),
        }
    }

    /// The images that are open now, each once.
    ///
    /// # Errors
    ///
    /// If the process may not be looked at, or has ended.
    pub fn open(&mut self) -> io::Result<Vec<Image>> {
        let mounts = mounts(self.pid)?;
        let mut images: BTreeMap<FileId, Image> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let mut refused = None;
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid))? {
            let Some((descriptor, flags)) = entry.ok().and_then(|entry| describe(&entry.path()))
            else {
                continue;
            };
            if descriptor.fd <= STDERR || !mounts.contains(&descriptor.mount) {
                continue;
            }
            let found = match self.seen.remove(&descriptor) {
                Some(found) => found,
                None => match self.resolve(descriptor) {
                    Ok(found) => found,
                    Err(error) => {
                        // Closed meanwhile, or not for us to see.
                        if error.kind() == io::ErrorKind::PermissionDenied {
                            refused = Some(error);
                        }
                        continue;
                    }
                },
            };
            if let Some(image) = &found {
                let image = images.entry(image.id).or_insert_with(|| image.clone());
                image.direct |= flags & O_DIRECT != 0;
                image.writable |= flags & O_ACCMODE != 0;
            }
            seen.insert(descriptor, found);
        }
        self.seen = seen;
        match refused {
            Some(error) if images.is_empty() => Err(error),
            _ => Ok(images.into_values().collect()),
        }
    }

    fn resolve(&self, descriptor: Descriptor) -> io::Result<Option<Image>> {
        let link = format!("/proc/{}/fd/{}", self.pid, descriptor.fd);
        let (metadata, path) = match fs::metadata(&link) {
            Ok(metadata) => (metadata, fs::read_link(&link)?),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let own = pidfd_getfd(&self.pidfd, descriptor.fd, PidfdGetfdFlags::empty())?;
                let link = format!("/proc/self/fd/{}", own.as_raw_fd());
                (fs::metadata(&link)?, fs::read_link(&link)?)
            }
            Err(error) => return Err(error),
        };
        let file_type = metadata.file_type();
        if !(file_type.is_file() || file_type.is_block_device()) {
            return Ok(None);
        }
        Ok(Some(Image {
            id: FileId {
                device: DeviceId::from_stat(metadata.dev()),
                inode: metadata.ino(),
            },
            path: path.to_string_lossy().into_owned(),
            direct: false,
            writable: false,
            on: device_on(&metadata),
        }))
    }
}

fn device_on(metadata: &Metadata) -> DeviceId {
    DeviceId::from_stat(if metadata.file_type().is_block_device() {
        metadata.rdev()
    } else {
        metadata.dev()
    })
}

/// What a file of `fdinfo` says: the descriptor and its flags.
fn describe(path: &Path) -> Option<(Descriptor, u32)> {
    let fd = path.file_name()?.to_str()?.parse().ok()?;
    parse(fd, &fs::read_to_string(path).ok()?)
}

fn parse(fd: i32, text: &str) -> Option<(Descriptor, u32)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let descriptor = Descriptor {
        fd,
        inode: field("ino")?.parse().ok()?,
        mount: field("mnt_id")?.parse().ok()?,
    };
    let flags = u32::from_str_radix(field("flags")?, 8).ok()?;
    Some((descriptor, flags))
}

/// The mounts that the process sees, by number.
fn mounts(pid: u32) -> io::Result<BTreeSet<u64>> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    #[test]
    fn fdinfo_is_read() {
        let text = "pos:\t0\nflags:\t0140002\nmnt_id:\t27\nino:\t737\n";
        let descriptor = Descriptor {
            fd: 9,
            inode: 737,
            mount: 27,
        };
        assert_eq!(parse(9, text), Some((descriptor, 0o140_002)));
        assert_eq!(parse(9, "pos:\t0\n"), None);
    }

    fn own() -> Images<OwnedFd> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        Images::new(std::process::id(), pidfd)
    }

    #[test]
    fn an_open_file_is_found_once_and_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        let written = fs::File::create(&path).unwrap();
        let read = fs::File::open(&path).unwrap();
        let inode = written.metadata().unwrap().ino();
        let mut images = own();
        let find = |images: &mut Images<OwnedFd>| {
            let open = images.open().unwrap();
            let mut alike = open.into_iter().filter(|image| image.id.inode == inode);
            let found = alike.next();
            assert_eq!(alike.next(), None);
            found
        };
        let image = find(&mut images).expect("it is open");
        assert_eq!(image.path, path.to_string_lossy());
        assert!(image.writable && !image.direct);
        drop(written);
        let image = find(&mut images).expect("it is still open");
        assert!(!image.writable, "to be read only");
        drop(read);
        assert_eq!(find(&mut images), None);
    }
}
