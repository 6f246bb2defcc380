//! What a process has open that matters here: files that may be a guest's disks
//! (regular files and block devices on file systems that are mounted; a memfd,
//! a pipe or a socket is none, nor are the standard streams), and tap devices.
//!
//! `/proc/PID/fdinfo` may be read with CAP_SYS_PTRACE; `/proc/PID/fd` of another
//! user not even then. Where it may not, the descriptor is duplicated for a
//! moment to see what it leads to, once for each file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::activity::{DeviceId, FileId};

/// `O_DIRECT` in the flags of `fdinfo`, on x86-64.
const O_DIRECT: u32 = 0o40_000;
/// The bits that say for what a file was opened.
const O_ACCMODE: u32 = 0o3;
/// The highest descriptor of a standard stream.
const STDERR: i32 = 2;

/// How the image formats that QEMU writes begin.
const MAGICS: [&[u8]; 7] = [
    b"QFI\xfb",
    b"QED\0",
    b"KDMV",
    b"COWD",
    b"vhdxfile",
    b"conectix",
    b"LUKS\xba\xbe",
];

/// A line of this name is in the `fdinfo` of every `/dev/net/tun`, which is what
/// every tap device is opened by.
const TAP_FIELD: &str = "iff";

/// The most that O_DIRECT asks for: of the address, of the length.
const ALIGNED_BYTES: usize = 4096;

/// Where a file that is open with O_DIRECT may be read to.
#[repr(align(4096))]
struct Aligned([u8; ALIGNED_BYTES]);

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
    /// It begins like an image with a format of its own. What may not be read
    /// counts as raw.
    pub formatted: bool,
}

/// What is open now.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// The images, each once.
    pub(super) images: Vec<Image>,
    /// A tap device is among the rest.
    pub(super) has_tap: bool,
    /// Why not every descriptor could be followed.
    pub(super) refused: Option<io::Error>,
}

/// A descriptor, told from others that had its number before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Descriptor {
    fd: i32,
    inode: u64,
    mount: u64,
}

/// What a descriptor's `fdinfo` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Description {
    descriptor: Descriptor,
    flags: u32,
    is_tap: bool,
}

/// Looks at one process' open files.
#[derive(Debug)]
pub(super) struct OpenFiles<P> {
    pid: u32,
    pidfd: P,
    /// What descriptors lead to; `None`: to no image.
    seen: BTreeMap<Descriptor, Option<Image>>,
}

impl<P: AsFd> OpenFiles<P> {
    /// Of the process `pid`, which `pidfd` is of.
    pub(super) const fn new(pid: u32, pidfd: P) -> Self {
        Self {
            pid,
            pidfd,
            seen: BTreeMap::new(),
        }
    }

    /// What is open now. Only descriptors that are new are followed.
    ///
    /// # Errors
    ///
    /// If the process may not be looked at, or has ended.
    pub(super) fn look(&mut self) -> io::Result<Opened> {
        let mounts = mounts(self.pid)?;
        let mut opened = Opened::default();
        let mut images: BTreeMap<FileId, Image> = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid))? {
            let Some(description) = entry.ok().and_then(|entry| describe(&entry.path())) else {
                continue;
            };
            opened.has_tap |= description.is_tap;
            let descriptor = description.descriptor;
            if descriptor.fd <= STDERR || !mounts.contains(&descriptor.mount) {
                continue;
            }
            match self.follow(descriptor) {
                Ok(found) => {
                    if let Some(image) = &found {
                        let image = images.entry(image.id).or_insert_with(|| image.clone());
                        image.direct |= description.flags & O_DIRECT != 0;
                        image.writable |= description.flags & O_ACCMODE != 0;
                    }
                    seen.insert(descriptor, found);
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    opened.refused = Some(error);
                }
                // Closed meanwhile.
                Err(_) => {}
            }
        }
        self.seen = seen;
        opened.images = images.into_values().collect();
        Ok(opened)
    }

    /// The image that a descriptor leads to, if it is one.
    fn follow(&mut self, descriptor: Descriptor) -> io::Result<Option<Image>> {
        match self.seen.remove(&descriptor) {
            Some(found) => Ok(found),
            None => self.resolve(descriptor),
        }
    }

    fn resolve(&self, descriptor: Descriptor) -> io::Result<Option<Image>> {
        let link = format!("/proc/{}/fd/{}", self.pid, descriptor.fd);
        match fs::metadata(&link) {
            Ok(metadata) => image(&link, &metadata, || {
                File::open(&link).or_else(|_| self.duplicate(descriptor))
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let own = self.duplicate(descriptor)?;
                let link = format!("/proc/self/fd/{}", own.as_raw_fd());
                image(&link, &own.metadata()?, || Ok(own))
            }
            Err(error) => Err(error),
        }
    }

    fn duplicate(&self, descriptor: Descriptor) -> io::Result<File> {
        let own = pidfd_getfd(&self.pidfd, descriptor.fd, PidfdGetfdFlags::empty())?;
        Ok(File::from(own))
    }
}

/// The image that `link` leads to, if it is one. `open` is asked for nothing
/// else: opening a terminal or a pipe may do something.
fn image(
    link: &str,
    metadata: &Metadata,
    open: impl FnOnce() -> io::Result<File>,
) -> io::Result<Option<Image>> {
    let file_type = metadata.file_type();
    if !(file_type.is_file() || file_type.is_block_device()) {
        return Ok(None);
    }
    Ok(Some(Image {
        id: FileId {
            device: DeviceId::from_stat(metadata.dev()),
            inode: metadata.ino(),
        },
        path: fs::read_link(link)?.to_string_lossy().into_owned(),
        direct: false,
        writable: false,
        on: device_on(metadata),
        formatted: open().is_ok_and(|file| begins_with_magic(&file)),
    }))
}

fn begins_with_magic(file: &File) -> bool {
    let mut front = Aligned([0; ALIGNED_BYTES]);
    let read = file.read_at(&mut front.0, 0).unwrap_or(0);
    MAGICS
        .iter()
        .any(|magic| front.0[..read].starts_with(magic))
}

fn device_on(metadata: &Metadata) -> DeviceId {
    DeviceId::from_stat(if metadata.file_type().is_block_device() {
        metadata.rdev()
    } else {
        metadata.dev()
    })
}

/// What a file of `fdinfo` says.
fn describe(path: &Path) -> Option<Description> {
    let fd = path.file_name()?.to_str()?.parse().ok()?;
    parse(fd, &fs::read_to_string(path).ok()?)
}

fn parse(fd: i32, text: &str) -> Option<Description> {
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
    Some(Description {
        descriptor,
        flags: u32::from_str_radix(field("flags")?, 8).ok()?,
        is_tap: field(TAP_FIELD).is_some(),
    })
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
    use std::io::Write as _;
    use std::os::fd::OwnedFd;

    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::*;

    #[test]
    fn fdinfo_is_read() {
        let text = "pos:\t0\nflags:\t0140002\nmnt_id:\t27\nino:\t737\n";
        let file = Description {
            descriptor: Descriptor {
                fd: 9,
                inode: 737,
                mount: 27,
            },
            flags: 0o140_002,
            is_tap: false,
        };
        assert_eq!(parse(9, text), Some(file));
        let tap = Description {
            is_tap: true,
            ..file
        };
        assert_eq!(parse(9, &format!("{text}iff:\ttap0\n")), Some(tap));
        assert_eq!(parse(9, &format!("{text}iff:\t\n")), Some(tap));
        assert_eq!(parse(9, "pos:\t0\n"), None);
    }

    fn own() -> OpenFiles<OwnedFd> {
        let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        OpenFiles::new(std::process::id(), pidfd)
    }

    /// The image with this inode.
    fn find(files: &mut OpenFiles<OwnedFd>, inode: u64) -> Option<Image> {
        let opened = files.look().unwrap();
        assert!(opened.refused.is_none(), "{opened:?}");
        let mut alike = opened.images.into_iter();
        let found = alike.find(|image| image.id.inode == inode);
        assert_eq!(alike.find(|image| image.id.inode == inode), None);
        found
    }

    #[test]
    fn an_open_file_is_found_once_and_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.raw");
        let written = File::create(&path).unwrap();
        let read = File::open(&path).unwrap();
        let inode = written.metadata().unwrap().ino();
        let mut files = own();
        let image = find(&mut files, inode).expect("it is open");
        assert_eq!(image.path, path.to_string_lossy());
        assert!(image.writable && !image.direct && !image.formatted);
        drop(written);
        let image = find(&mut files, inode).expect("it is still open");
        assert!(!image.writable, "to be read only");
        drop(read);
        assert_eq!(find(&mut files, inode), None);
    }

    #[test]
    fn formats_are_told_from_raw() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        assert!(!begins_with_magic(&file), "empty");
        file.write_all(b"QFI\xfb\0\0\0\x03").expect("room");
        assert!(begins_with_magic(&file));
        let inode = file.metadata().unwrap().ino();
        assert!(find(&mut own(), inode).is_some_and(|image| image.formatted));
    }
}
