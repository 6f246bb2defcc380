//! `pacer` processes, owned by values.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{OwnedChild, exit_code, log_tail, read_log, wait_until};

/// The `pacer` to test: `PACER_BIN`, else the release build of this
/// workspace, else the debug one.
///
/// # Errors
/// There is none.
pub fn pacer_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PACER_BIN") {
        return Ok(path.into());
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    ["release", "debug"]
        .map(|profile| target.join(profile).join("pacer"))
        .into_iter()
        .find(|path| path.is_file())
        .context("no pacer: run cargo xtask build")
}

/// A key made by `pacer keygen`.
#[derive(Debug)]
pub struct Identity {
    folder: TempDir,
    fingerprint: String,
}

impl Identity {
    /// Makes a new one with the program `pacer`.
    ///
    /// # Errors
    /// `pacer keygen` failed.
    pub fn generate(pacer: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pacer-key-").tempdir()?;
        let mut command = Command::new(pacer);
        command.args(["keygen", "--out"]).arg(folder.path());
        let output = command.output().with_context(|| format!("{command:?}"))?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {error}");
        let text = String::from_utf8_lossy(&output.stdout);
        let fingerprint = text
            .split_whitespace()
            .last()
            .context("keygen printed nothing")?;
        Ok(Self {
            fingerprint: fingerprint.to_owned(),
            folder,
        })
    }

    /// For `--identity`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// For the other side's `--peer`.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Where an agent's stderr goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// To its log, as stdout does.
    Log,
    /// To our own stderr, for a person who watches.
    Inherit,
}

/// A running `pacer`, killed and reaped on drop. If the thread panics, the end
/// of its log is printed.
#[derive(Debug)]
pub struct Agent {
    child: Mutex<OwnedChild>,
    folder: TempDir,
}

impl Agent {
    /// Starts `pacer` with these arguments, its output in a log.
    ///
    /// # Errors
    /// There is no `pacer`, or it cannot be started.
    pub fn start(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self> {
        let mut command = Command::new(pacer_binary()?);
        command.args(arguments);
        Self::spawn(command, Output::Log, false)
    }

    /// Starts `command`. In a process group of its own Ctrl-C does not reach
    /// it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(mut command: Command, output: Output, own_group: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pacer-agent-").tempdir()?;
        let log = File::create(folder.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        if output == Output::Log {
            command.stderr(log);
        }
        if own_group {
            command.process_group(0);
        }
        let child = OwnedChild::spawn(&mut command).with_context(|| format!("{command:?}"))?;
        Ok(Self {
            child: Mutex::new(child),
            folder,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().pid()
    }

    /// Its exit code, 128 and more for a signal; `None` while it runs.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn try_wait(&self) -> Result<Option<i32>> {
        Ok(self.child().try_wait()?.map(exit_code))
    }

    /// Waits for its exit code.
    ///
    /// # Errors
    /// It still runs when `timeout` is over; with the end of its log.
    pub fn wait(&self, timeout: Duration) -> Result<i32> {
        wait_until("pacer ends", timeout, || self.try_wait()).with_context(|| self.log_tail())
    }

    /// Ends it as a crash would.
    pub fn kill9(&self) {
        self.child().kill9();
    }

    /// Asks it to end, as Ctrl-C does.
    ///
    /// # Errors
    /// It has ended.
    pub fn sigint(&self) -> Result<()> {
        self.child().sigint()
    }

    /// What it has said.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.log_path())
    }

    /// Waits until its log contains `text`.
    ///
    /// # Errors
    /// It does not within `timeout`, or ended before.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> Result<()> {
        let condition = || {
            // Asked first: what it said before it ended counts.
            let ended = self.try_wait()?;
            match (self.log().contains(text), ended) {
                (true, _) => Ok(Some(())),
                (false, Some(code)) => bail!("pacer ended with {code}"),
                (false, None) => Ok(None),
            }
        };
        wait_until(&format!("pacer says {text:?}"), timeout, condition)
            .with_context(|| self.log_tail())
    }

    /// The end of what it has said, for an error.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn child(&self) -> MutexGuard<'_, OwnedChild> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
    }
}
