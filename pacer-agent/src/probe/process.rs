//! Which process a number means.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use pacer_common::device::{DEFAULT_PIECES, MAX_PIECES, MAX_RANGES};
use pacer_common::dirty_log::PIECE_PAGES;
use pacer_common::settings::PidNamespace;
use pacer_common::slot::PAGE_SHIFT;

use super::ProbeError;

/// The inode of the initial PID namespace: `PROC_PID_INIT_INO`.
const INITIAL_NAMESPACE: u64 = 0xefff_fffc;

/// Pieces for memory that is plugged later, at least: 64 GiB, in 2 MiB.
const LATER_PIECES: u64 = 512;

/// The thread group (process) that `pid` belongs to.
pub(super) fn thread_group(pid: u32) -> Result<u32, ProbeError> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|source| ProbeError::NoSuchProcess { pid, source })?;
    tgid_in(&status).ok_or_else(|| ProbeError::NoSuchProcess {
        pid,
        source: io::Error::from(io::ErrorKind::InvalidData),
    })
}

/// The PID namespace that numbers in `/proc` are of: this process' own.
pub(super) fn pid_namespace() -> PidNamespace {
    match fs::metadata("/proc/self/ns/pid") {
        Ok(file) if file.ino() != INITIAL_NAMESPACE => PidNamespace {
            device: file.dev(),
            inode: file.ino(),
        },
        // Without namespaces in this kernel, all is the initial one.
        Ok(_) | Err(_) => PidNamespace::default(),
    }
}

/// How many pieces of bitmap suffice for all memory that the process can have
/// given to a guest. The default where it is not known which process, or its
/// mappings may not be read.
pub(super) fn device_pieces(pid: Option<u32>) -> u32 {
    pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).ok())
        .map_or(DEFAULT_PIECES, |maps| pieces_for(&maps))
}

/// For the mappings of at least a piece; smaller slots have a piece each. As
/// much again is for memory that is plugged later, and at least 64 GiB.
fn pieces_for(maps: &str) -> u32 {
    let large: u64 = maps
        .lines()
        .filter_map(mapping_bytes)
        .map(|bytes| bytes / (PIECE_PAGES << PAGE_SHIFT))
        .sum();
    let later = large.max(LATER_PIECES);
    let pieces = large
        .saturating_add(later)
        .saturating_add(u64::from(MAX_RANGES));
    u32::try_from(pieces).map_or(MAX_PIECES, |pieces| pieces.min(MAX_PIECES))
}

fn mapping_bytes(line: &str) -> Option<u64> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |digits| u64::from_str_radix(digits, 16).ok();
    address(end)?.checked_sub(address(start)?)
}

fn tgid_in(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_thread_group() {
        assert_eq!(tgid_in("Name:\tqemu\nTgid:\t42\nPid:\t43\n"), Some(42));
        assert_eq!(tgid_in("Name:\tqemu\n"), None);
        assert_eq!(tgid_in("Tgid:\tx\n"), None);
    }

    #[test]
    fn large_mappings_get_pieces() {
        let maps = "7f0000000000-7f0040000000 rw-p 00000000 00:00 0 \n\
                    7f1000000000-7f1000021000 rw-p 00000000 00:00 0 [heap]\n";
        assert_eq!(pieces_for(maps), 8 + 512 + MAX_RANGES);
        assert_eq!(pieces_for("nonsense\n"), 512 + MAX_RANGES);
        let large = "0-4000000000 rw-p\n";
        assert_eq!(pieces_for(large), 2048 + 2048 + MAX_RANGES);
        let huge = "0-ffffffffffffffff rw-p\n0-ffffffffffffffff rw-p\n";
        assert_eq!(pieces_for(huge), MAX_PIECES);
    }

    #[test]
    fn no_such_process_is_told() {
        let error = thread_group(u32::MAX).expect_err("beyond the largest pid");
        assert!(error.to_string().contains("4294967295"), "{error}");
    }
}
