//! What an agent must remember if it dies: how far the handover went.
//!
//! One small file per QEMU, in `/run`, so that it dies with the host the QEMU
//! runs on. It is written before the step it speaks of is taken.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::identity::Fingerprint;
use crate::process::ProcessId;
use crate::relay::frame::Handover;

/// How far the handover went, as this side knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Source: a migration was begun (P1).
    Start,
    /// Source: the destination may run the guest; the source never will (P4).
    Committing,
    /// Source: the destination runs the guest (P6).
    Done,
    /// Source: the guest stays here.
    Returned,
    /// Destination: prepared (P0).
    Ready,
    /// Destination: the guest is this side's (P5).
    Committed,
    /// Destination: the guest runs here.
    Running,
    /// Destination: the guest will not run here.
    Aborted,
}

/// How to reach the other agent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Source: the other agent's address. Destination: the own one.
    pub address: String,
    /// The directory of the own identity.
    pub identity: PathBuf,
    /// The other agent's fingerprint, as text.
    peer: String,
}

impl Reach {
    /// As given on the command line.
    #[must_use]
    pub fn new(address: &str, identity: &Path, peer: Fingerprint) -> Self {
        Self {
            address: address.to_owned(),
            identity: std::path::absolute(identity).unwrap_or_else(|_| identity.to_owned()),
            peer: peer.to_string(),
        }
    }

    /// The other agent's fingerprint; `None` if the file was tampered with.
    #[must_use]
    pub fn peer(&self) -> Option<Fingerprint> {
        self.peer.parse().ok()
    }
}

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The attempt, known to both sides.
    pub attempt: Uuid,
    /// How far it went.
    pub step: Step,
    /// The QEMU it speaks of.
    pub qemu: ProcessId,
    /// How to reach the other agent.
    pub reach: Reach,
    /// Who continues the guest at the destination.
    pub handover: Handover,
    /// Whether the guest is to run at the destination: false if it was paused.
    pub continue_guest: bool,
    /// QEMU's settings as they were before Pacer changed them.
    pub saved: Value,
}

/// Why nothing can be remembered. A handover is not begun without.
#[derive(Debug, thiserror::Error)]
#[error("the journal {path} cannot be {what}", path = .path.display())]
pub struct JournalError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: std::io::Error,
}

/// The journal of one QEMU.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

/// Where journals are: `/run/pacer` as root, else below XDG_RUNTIME_DIR.
#[must_use]
pub fn directory() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/run/pacer".into();
    }
    std::env::var_os("XDG_RUNTIME_DIR")
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join("pacer")
}

/// Forgets the QEMUs that are gone.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if process_of(&path).is_some_and(|qemu| !qemu.is_alive()) {
            // A leftover is never read again: the next process has another name.
            let _ = fs::remove_file(&path);
        }
    }
}

/// The process that a journal's name speaks of.
fn process_of(path: &Path) -> Option<ProcessId> {
    let (pid, start_ticks) = path.file_stem()?.to_str()?.split_once('-')?;
    Some(ProcessId {
        pid: pid.parse().ok()?,
        start_ticks: start_ticks.parse().ok()?,
    })
}

impl Journal {
    /// The journal of `qemu` in `directory`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// If the directory cannot be made.
    pub fn of(directory: &Path, qemu: ProcessId) -> Result<Self, JournalError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| JournalError {
                path: directory.to_owned(),
                what: "made",
                source,
            })?;
        let name = format!("{}-{}.json", qemu.pid, qemu.start_ticks);
        Ok(Self {
            path: directory.join(name),
        })
    }

    /// Remembers `entry` instead of what was remembered: either wholly or not.
    ///
    /// # Errors
    ///
    /// If it cannot be written; then the step must not be taken.
    pub fn write(&self, entry: &Entry) -> Result<(), JournalError> {
        let failed = |source| JournalError {
            path: self.path.clone(),
            what: "written",
            source,
        };
        let text = serde_json::to_vec_pretty(entry).map_err(|error| failed(error.into()))?;
        let draft = self.path.with_extension("new");
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .map_err(failed)?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&draft, &self.path))
            .map_err(failed)
    }

    /// What is remembered, if anything.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be read.
    pub fn read(&self) -> Result<Option<Entry>, JournalError> {
        let failed = |source| JournalError {
            path: self.path.clone(),
            what: "read",
            source,
        };
        match fs::read(&self.path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| failed(error.into())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let qemu = ProcessId {
            pid: 7,
            start_ticks: 9,
        };
        let journal = Journal::of(&home.path().join("pacer"), qemu).unwrap();
        assert_eq!(journal.read().unwrap(), None);
        let mut entry = Entry {
            attempt: Uuid::from_u128(1),
            step: Step::Start,
            qemu,
            reach: Reach {
                address: "[::1]:4433".to_owned(),
                identity: "/etc/pacer".into(),
                peer: "sha256:".to_owned(),
            },
            handover: Handover::Pacer,
            continue_guest: true,
            saved: Value::Null,
        };
        for step in [Step::Start, Step::Committing, Step::Done] {
            entry.step = step;
            journal.write(&entry).unwrap();
            assert_eq!(journal.read().unwrap(), Some(entry.clone()));
        }
    }

    #[test]
    fn only_the_journals_of_the_dead_are_swept() {
        let home = tempfile::tempdir().unwrap();
        let own = ProcessId::of(std::process::id()).unwrap();
        let dead = ProcessId {
            start_ticks: own.start_ticks + 1,
            ..own
        };
        let paths = [own, dead].map(|qemu| Journal::of(home.path(), qemu).unwrap().path);
        for path in &paths {
            fs::write(path, "{}").unwrap();
        }
        sweep(home.path());
        assert_eq!(paths.map(|path| path.exists()), [true, false]);
    }

    #[test]
    fn a_journal_that_is_none_is_an_error() {
        let home = tempfile::tempdir().unwrap();
        let qemu = ProcessId {
            pid: 7,
            start_ticks: 9,
        };
        let journal = Journal::of(home.path(), qemu).unwrap();
        fs::write(&journal.path, "{").unwrap();
        assert!(journal.read().is_err());
    }
}
