//! What a process has open that decides which programs are worth attaching.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

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

/// Longest of [`MAGICS`].
const MAGIC_BYTES: usize = 8;

/// What every tap device is opened by.
const TUN: &str = "/dev/net/tun";

/// Whether one of the files that process `tgid` has open is an image with a
/// format of its own. What may not be looked at counts as raw.
pub(super) fn has_formatted_image(tgid: u32) -> bool {
    descriptors(tgid).any(|path| {
        // Asked first: opening a terminal or a pipe may do something.
        let is_storage = fs::metadata(&path).is_ok_and(|metadata| {
            metadata.file_type().is_file() || metadata.file_type().is_block_device()
        });
        is_storage && File::open(&path).is_ok_and(|file| begins_with_magic(&file))
    })
}

/// Whether process `tgid` has a tap device open.
pub(super) fn has_tap(tgid: u32) -> bool {
    descriptors(tgid).any(|path| fs::read_link(path).is_ok_and(|target| target == Path::new(TUN)))
}

/// The links to what the process has open; none where they may not be seen.
fn descriptors(tgid: u32) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(format!("/proc/{tgid}/fd"));
    entries
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
}

fn begins_with_magic(file: &File) -> bool {
    let mut front = [0; MAGIC_BYTES];
    let read = file.read_at(&mut front, 0).unwrap_or(0);
    MAGICS.iter().any(|magic| front[..read].starts_with(magic))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn formats_are_told_from_raw() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        assert!(!begins_with_magic(&file), "empty");
        file.write_all(b"QFI\xfb\0\0\0\x03").expect("room");
        assert!(begins_with_magic(&file));
        assert!(has_formatted_image(std::process::id()));
        assert!(!has_tap(std::process::id()));
    }
}
