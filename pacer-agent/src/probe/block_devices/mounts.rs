//! `/proc/self/mountinfo`. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{DeviceId, parse_numbers};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    device: DeviceId,
    /// Where it is mounted.
    point: PathBuf,
    /// Kind of file system.
    pub(super) kind: String,
    /// What it was mounted from: a path in `/dev`, or what the kind makes of it.
    pub(super) source: String,
}

/// All mounts that this process sees, in the order in which they were made.
#[derive(Clone, Debug, Default)]
pub(super) struct Mounts(Vec<Mount>);

impl Mounts {
    pub(super) fn parse(mountinfo: &str) -> Self {
        Self(mountinfo.lines().filter_map(parse_line).collect())
    }

    /// A mount of this device.
    pub(super) fn find(&self, device: DeviceId) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.device == device)
    }

    /// The device of the file system that `path` is on.
    pub(super) fn device_of(&self, path: &Path) -> Option<DeviceId> {
        // Of two at one place, the later covers the earlier.
        let depth = |mount: &&Mount| mount.point.components().count();
        let mounts = self.0.iter().filter(|mount| path.starts_with(&mount.point));
        mounts.max_by_key(depth).map(|mount| mount.device)
    }
}

/// <https://docs.kernel.org/filesystems/proc.html#proc-pid-mountinfo>
fn parse_line(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ');
    let mut back = back.split(' ');
    let device = parse_numbers(front.nth(2)?)?;
    let point = unescape(front.nth(1)?);
    Some(Mount {
        device,
        point: PathBuf::from(OsString::from_vec(point)),
        kind: back.next()?.to_owned(),
        source: String::from_utf8_lossy(&unescape(back.next()?)).into_owned(),
    })
}

/// Blanks and the like are written as `\040`.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 /images /srv/my\\040images rw shared:7 master:2 - btrfs /dev/disk/by\\040x rw
41 27 8:1 / /srv rw - xfs /dev/sda1 rw
broken
43 27 8:2 / /srv rw - xfs /dev/sda2 rw
";

    fn device(major: u32, minor: u32) -> DeviceId {
        DeviceId { major, minor }
    }

    #[test]
    fn a_mount_is_found_by_its_device() {
        let mounts = Mounts::parse(MOUNTS);
        let mount = mounts.find(device(0, 40)).expect("it is there");
        assert_eq!(mount.kind, "btrfs");
        assert_eq!(mount.source, "/dev/disk/by x");
        assert_eq!(mount.point, Path::new("/srv/my images"));
        assert_eq!(mounts.find(device(9, 9)), None);
    }

    #[test]
    fn a_path_is_on_the_deepest_mount_and_the_last() {
        let check = |path: &str, expected| {
            let found = Mounts::parse(MOUNTS).device_of(Path::new(path));
            assert_eq!(found, expected, "{path}");
        };
        check("/srv/my images/a", Some(device(0, 40)));
        check("/srv/my imagesX", Some(device(8, 2)));
        check("/home/a", Some(device(254, 0)));
        check("home", None);
    }

    #[test]
    fn odd_backslashes_stay() {
        assert_eq!(unescape("a\\134b\\9zz\\04"), b"a\\b\\9zz\\04");
    }
}
