//! Which process a number means.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;

use pacer_common::settings::PidNamespace;

use super::ProbeError;

/// The inode of the initial PID namespace: `PROC_PID_INIT_INO`.
const INITIAL_NAMESPACE: u64 = 0xefff_fffc;

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
    fn no_such_process_is_told() {
        let error = thread_group(u32::MAX).expect_err("beyond the largest pid");
        assert!(error.to_string().contains("4294967295"), "{error}");
    }
}
