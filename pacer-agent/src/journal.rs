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
use crate::pacing::time::Time;
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
    /// What the agent that is started after this one has died goes on with.
    #[serde(default)]
    pub recovery: Recovery,
}

/// What the next agent of the same supervisor must know beside the handover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recovery {
    /// The supervisor of the agent that wrote this, if it had one.
    pub supervisor: Option<ProcessId>,
    /// Source: t0, in ns of the monotonic clock.
    pub t0_ns: u64,
    /// Source: the steps so far, by the same clock.
    pub steps: Vec<(u64, String)>,
}

impl Recovery {
    /// Of this process, whose migration began at `t0`.
    #[must_use]
    pub fn own(t0: Time) -> Self {
        Self {
            supervisor: crate::supervisor::process(),
            t0_ns: t0.as_nanos(),
            steps: Vec::new(),
        }
    }

    /// Adds a step, if it is not the last one already.
    pub fn step(&mut self, name: &str, at: Time) {
        if self.steps.last().is_none_or(|(_, last)| last != name) {
            self.steps.push((at.as_nanos(), name.to_owned()));
        }
    }
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

/// Forgets the QEMUs that are gone, and the control sockets of agents that are.
pub fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let is_stale = match process_of(&path) {
            Some(qemu) => !qemu.is_alive(),
            None => control_socket_of(&path).is_some_and(|pid| ProcessId::of(pid).is_err()),
        };
        if is_stale {
            // A leftover is never read again: the next process has another name.
            let _ = fs::remove_file(&path);
        }
    }
}

/// The agent whose control socket (`source-PID.ctl`) this is.
fn control_socket_of(path: &Path) -> Option<u32> {
    if path.extension()? != "ctl" {
        return None;
    }
    path.file_stem()?.to_str()?.rsplit_once('-')?.1.parse().ok()
}

/// The journals of QEMUs that were in the hands of agents of `supervisor`.
#[must_use]
pub fn of_supervisor(directory: &Path, supervisor: ProcessId) -> Vec<(Journal, Entry)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .filter_map(|path| {
            let journal = Journal { path };
            // What cannot be read was not written by such an agent.
            let entry = journal.read().ok().flatten()?;
            (entry.recovery.supervisor == Some(supervisor)).then_some((journal, entry))
        })
        .collect()
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

    /// Forgets what is remembered.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be removed.
    pub fn remove(&self) -> Result<(), JournalError> {
        let _ = fs::remove_file(self.report_path());
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(JournalError {
                path: self.path.clone(),
                what: "removed",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Where the report as far as it goes is kept, beside the journal.
    #[must_use]
    pub fn report_path(&self) -> PathBuf {
        self.path.with_extension("report")
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
            recovery: Recovery::default(),
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
    fn control_sockets_of_dead_agents_are_swept() {
        let home = tempfile::tempdir().unwrap();
        let own = home
            .path()
            .join(format!("source-{}.ctl", std::process::id()));
        let dead = home.path().join("source-4194304.ctl");
        let other = home.path().join("source-x.ctl");
        for path in [&own, &dead, &other] {
            fs::write(path, "").unwrap();
        }
        sweep(home.path());
        assert!(own.exists() && other.exists() && !dead.exists());
    }

    #[test]
    fn the_journals_of_a_supervisor_are_found_and_forgotten() {
        let home = tempfile::tempdir().unwrap();
        let mut entry = Entry {
            attempt: Uuid::from_u128(1),
            step: Step::Start,
            qemu: ProcessId {
                pid: 7,
                start_ticks: 9,
            },
            reach: Reach {
                address: "[::1]:4433".to_owned(),
                identity: "/etc/pacer".into(),
                peer: "sha256:".to_owned(),
            },
            handover: Handover::Pacer,
            continue_guest: true,
            saved: Value::Null,
            recovery: Recovery::default(),
        };
        let supervisor = |pid| ProcessId {
            pid,
            start_ticks: 1,
        };
        for (pid, parent) in [(7, Some(70)), (8, None), (9, Some(90))] {
            entry.qemu.pid = pid;
            entry.recovery.supervisor = parent.map(supervisor);
            let journal = Journal::of(home.path(), entry.qemu).unwrap();
            journal.write(&entry).unwrap();
        }
        let found = of_supervisor(home.path(), supervisor(90));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.qemu.pid, 9);
        found[0].0.remove().unwrap();
        found[0].0.remove().unwrap();
        assert!(of_supervisor(home.path(), supervisor(90)).is_empty());
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
