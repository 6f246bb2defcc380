//! `pacer-synthetic`: the system calls of a QEMU far larger than this machine.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;

use crate::process::{OwnedChild, wait_until};

/// Where the file system is memory: it takes sparse files of any size.
const MEMORY_FOLDER: &str = "/dev/shm";

/// What it does.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    /// Size of the disk, in bytes.
    pub disk_bytes: u64,
    /// Writes of 4 KiB to it, at random offsets.
    pub writes: u64,
    /// Guest memory, in bytes.
    pub ram_bytes: u64,
    /// How often its dirty logs are read.
    pub syncs: u64,
    /// How many in a hundred pages each log has.
    pub dirty_percent: u64,
    /// Draws the offsets and the dirty pages.
    pub seed: u64,
}

/// What it has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SyntheticDone {
    /// Writes.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Reads of every slot's log.
    pub syncs: u64,
    /// How many slots the memory is in.
    pub slots: u64,
}

/// The process, killed and reaped on drop.
#[derive(Debug)]
pub struct SyntheticProcess {
    child: OwnedChild,
    input: ChildStdin,
    output: std::sync::mpsc::Receiver<String>,
    folder: TempDir,
}

impl Synthetic {
    /// Starts `program`; its disk is open and its memory mapped,
    /// then it waits, so that a probe can be attached.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ready(&self, program: &Path) -> Result<SyntheticProcess> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("pacer-synthetic-");
        let folder = match builder.tempdir_in(MEMORY_FOLDER) {
            Err(_) => builder.tempdir()?,
            folder => folder?,
        };
        let numbers = [
            self.disk_bytes,
            self.writes,
            self.ram_bytes,
            self.syncs,
            self.dirty_percent,
            self.seed,
        ];
        let mut command = Command::new(program);
        command
            .arg(folder.path())
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = OwnedChild::spawn(&mut command).with_context(|| format!("{command:?}"))?;
        let input = child.take_stdin().context("stdin is piped")?;
        let output = lines(child.take_stdout().context("stdout is piped")?);
        let mut process = SyntheticProcess {
            child,
            input,
            output,
            folder,
        };
        process.line(Duration::from_secs(10))?;
        Ok(process)
    }
}

impl SyntheticProcess {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The disk's image.
    #[must_use]
    pub fn disk(&self) -> std::path::PathBuf {
        self.folder.path().join("disk.raw")
    }

    /// Lets it do what it is for; it lives on afterwards.
    ///
    /// # Errors
    /// It fails, or takes longer than `timeout`.
    pub fn run(&mut self, timeout: Duration) -> Result<SyntheticDone> {
        self.input.write_all(b"go\n")?;
        let line = self.line(timeout)?;
        serde_json::from_str(&line).context(line)
    }

    fn line(&mut self, timeout: Duration) -> Result<String> {
        let (child, output) = (&mut self.child, &self.output);
        wait_until("pacer-synthetic answers", timeout, || {
            // Before the question whether it lives: it may have ended just now.
            let ended = child.try_wait()?;
            match (output.try_recv(), ended) {
                (Ok(line), _) => Ok(Some(line)),
                (Err(_), Some(status)) => bail!("pacer-synthetic has ended: {status}"),
                (Err(_), None) => Ok(None),
            }
        })
    }
}

fn lines(stdout: ChildStdout) -> std::sync::mpsc::Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
