//! `qemu-img bench`: QEMU's own block layer writing an image as fast as it
//! can, without a guest.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::disk::{DiskAio, DiskFormat};
use crate::process::{OwnedChild, exit_code, read_log};

/// What to write.
#[derive(Clone, Debug)]
pub struct ImageBench {
    /// The image; it exists.
    pub image: PathBuf,
    /// Its layout.
    pub format: DiskFormat,
    /// How it is written.
    pub aio: DiskAio,
    /// Whether past the page cache.
    pub direct: bool,
    /// Bytes of a write.
    pub request_bytes: u32,
    /// Writes under way at a time.
    pub depth: u32,
    /// How many writes, one behind the other and round again at the end.
    pub writes: u32,
}

/// A process that has not begun yet, so that a probe can be attached to it.
#[derive(Debug)]
pub struct ReadyImageBench {
    child: OwnedChild,
    go: ChildStdin,
    folder: TempDir,
}

impl ImageBench {
    /// 4 KiB writes past the page cache.
    #[must_use]
    pub fn new(image: &Path, aio: DiskAio, depth: u32, writes: u32) -> Self {
        Self {
            image: image.to_owned(),
            format: DiskFormat::Raw,
            aio,
            direct: true,
            request_bytes: 4096,
            depth,
            writes,
        }
    }

    /// The process, waiting.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ready(&self) -> Result<ReadyImageBench> {
        let folder = tempfile::Builder::new().prefix("pacer-bench-").tempdir()?;
        let log = File::create(folder.path().join("log"))?;
        let mut command = Command::new("sh");
        // The same process becomes qemu-img: its pid is known before it writes.
        command
            .args(["-c", "read go && exec qemu-img \"$@\"", "sh", "bench", "-w"])
            .args(["-t", if self.direct { "none" } else { "writeback" }])
            .args(["-i", self.aio.name(), "-f", self.format.name()])
            .args(["-s", &self.request_bytes.to_string()])
            .args(["-d", &self.depth.to_string()])
            .args(["-c", &self.writes.to_string()])
            .arg(&self.image)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = OwnedChild::spawn(&mut command).with_context(|| format!("{command:?}"))?;
        let go = child.take_stdin().context("stdin is piped")?;
        Ok(ReadyImageBench { child, go, folder })
    }

    /// Runs it; how long the writes took.
    ///
    /// # Errors
    /// It fails, or takes longer than `timeout`.
    pub fn run(&self, timeout: Duration) -> Result<Duration> {
        self.ready()?.run(timeout)
    }
}

impl ReadyImageBench {
    /// Its process id, now and while it writes.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Lets it write and waits for its end; how long the writes took.
    ///
    /// # Errors
    /// It fails, or takes longer than `timeout`.
    pub fn run(mut self, timeout: Duration) -> Result<Duration> {
        self.go.write_all(b"go\n")?;
        let status = self.child.wait(timeout)?;
        let log = read_log(&self.folder.path().join("log"));
        ensure!(exit_code(status) == 0, "qemu-img bench: {status}: {log}");
        let seconds = seconds(&log).with_context(|| format!("qemu-img bench: {log}"))?;
        Ok(Duration::try_from_secs_f64(seconds)?)
    }
}

/// From `Run completed in 0.427 seconds.`
fn seconds(log: &str) -> Option<f64> {
    let (_, rest) = log.split_once("Run completed in ")?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read() {
        let log = "Sending 50 write requests\nRun completed in 0.427 seconds.\n";
        assert_eq!(seconds(log), Some(0.427));
        assert_eq!(seconds("qemu-img: no such file"), None);
    }
}
