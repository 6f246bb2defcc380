//! A running `pacer observe --json`, owned by a value, and what it says.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::process::{OwnedChild, exit_code, log_tail, wait_until};

const ATTACH_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// What to observe, and how.
#[derive(Clone, Debug)]
pub struct ObserveOptions {
    /// The program.
    pub pacer: PathBuf,
    /// The process.
    pub pid: u32,
    /// Its QMP socket, for `--qmp`.
    pub qmp: Option<PathBuf>,
    /// How often a line comes.
    pub interval: Duration,
}

impl ObserveOptions {
    /// Without QMP, a line every 200 ms.
    #[must_use]
    pub fn new(pacer: &Path, pid: u32) -> Self {
        Self {
            pacer: pacer.to_owned(),
            pid,
            qmp: None,
            interval: Duration::from_millis(200),
        }
    }
}

/// One line: totals since the attach, and the syncs new since the last line.
#[derive(Clone, Debug, Deserialize)]
pub struct Line {
    /// Since the attach.
    pub at_seconds: f64,
    /// Whether the process has ended.
    pub ended: bool,
    /// Memory.
    pub ram: Ram,
    /// Image files.
    pub disks: Vec<Disk>,
    /// Disks as the guest addresses them; empty where the build is not known.
    pub backends: Vec<Backend>,
    /// Reads that land in guest memory, and others.
    pub device_reads: DeviceReads,
    /// The probe itself.
    pub probe: ProbeFigures,
    /// What is missing.
    pub warnings: Vec<String>,
}

/// Memory.
#[derive(Clone, Debug, Deserialize)]
pub struct Ram {
    /// New since the last line.
    pub syncs: Vec<Sync>,
}

/// One sync of QEMU's dirty bitmap.
#[derive(Clone, Debug, Deserialize)]
pub struct Sync {
    /// Since the attach.
    pub at_seconds: f64,
    /// Length of the window.
    pub window_seconds: f64,
    /// Distinct pages that vCPUs wrote in it.
    pub pages: u64,
    /// Further pages that only devices wrote; `None` where they are not told
    /// apart.
    pub device_pages: Option<u64>,
    /// Pages of the logged memory, where it is known.
    pub total_pages: Option<u64>,
    /// `dirty-log`, `dirty-ring` …
    pub origin: String,
}

/// One image file.
#[derive(Clone, Debug, Deserialize)]
pub struct Disk {
    /// As the process opened it.
    pub path: Option<String>,
    /// Its inode.
    pub inode: u64,
    /// Requests that wrote content.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Requests that made a range zero.
    pub zeroes: u64,
    /// Their bytes.
    pub zeroed_bytes: u64,
    /// Requests that gave a range back.
    pub discards: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// Requests that read.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// How often its chunks are written.
    pub chunks: Chunks,
}

/// How often the chunks of a file are written.
#[derive(Clone, Debug, Deserialize)]
pub struct Chunks {
    /// Size of one.
    pub chunk_bytes: u64,
    /// Chunks written once.
    pub written_once: u64,
    /// Chunks written more than once.
    pub by_interval: Vec<IntervalClass>,
    /// Chunks that were forgotten to make room.
    pub evicted: u64,
}

/// Chunks that are written about as often.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct IntervalClass {
    /// How many.
    pub chunks: u64,
}

/// One disk as the guest addresses it.
#[derive(Clone, Debug, Deserialize)]
pub struct Backend {
    /// QEMU's name for the device, where it is known.
    pub name: Option<String>,
    /// Its topmost block node.
    pub node: Option<String>,
    /// Requests that wrote content.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Requests that made a range zero.
    pub zeroes: u64,
    /// Their bytes.
    pub zeroed_bytes: u64,
    /// Requests that gave a range back.
    pub discards: u64,
    /// Their bytes.
    pub discarded_bytes: u64,
    /// How often its chunks are written, by the guest's offsets.
    pub chunks: Chunks,
}

/// Bytes that QEMU read.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct DeviceReads {
    /// Into guest memory, by address.
    pub ram_bytes: u64,
    /// Elsewhere.
    pub other_bytes: u64,
}

/// What the probe says of itself.
#[derive(Clone, Debug, Deserialize)]
pub struct ProbeFigures {
    /// Put into the ring.
    pub events: u64,
    /// Lost because the ring was full.
    pub lost_events: u64,
    /// Dirty logs of slots that were not known.
    pub unknown_slots: u64,
    /// Arguments that could not be read.
    pub unreadable: u64,
    /// What found no room in a map.
    pub map_full: u64,
    /// Time in the programs; `None` where the kernel does not count it.
    pub run_ns: Option<u64>,
    /// Runs of the programs.
    pub run_count: Option<u64>,
    /// Each program.
    pub programs: Vec<Program>,
    /// Resident memory of `pacer` and of its maps.
    pub memory_bytes: u64,
}

/// One eBPF program.
#[derive(Clone, Debug, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Time in it; `None` where the kernel does not count it.
    pub run_ns: Option<u64>,
    /// Its runs, likewise.
    pub run_count: Option<u64>,
    /// How often the kernel left it out.
    pub missed: u64,
}

impl Line {
    /// The image at `path`, by its name or its inode.
    #[must_use]
    pub fn disk(&self, path: &Path) -> Option<&Disk> {
        use std::os::unix::fs::MetadataExt;
        let named = |disk: &&Disk| disk.path.as_deref().map(Path::new) == Some(path);
        let inode = std::fs::metadata(path).ok().map(|metadata| metadata.ino());
        let is_inode = |disk: &&Disk| Some(disk.inode) == inode;
        let find = |test: &dyn Fn(&&Disk) -> bool| self.disks.iter().find(|disk| test(disk));
        find(&named).or_else(|| find(&is_inode))
    }

    /// The disk whose device or node is called `id`.
    #[must_use]
    pub fn backend(&self, id: &str) -> Option<&Backend> {
        let is_named = |backend: &&Backend| {
            [&backend.name, &backend.node]
                .into_iter()
                .any(|name| name.as_deref() == Some(id))
        };
        self.backends.iter().find(is_named)
    }
}

impl ProbeFigures {
    /// Everything the probe knows it has missed.
    #[must_use]
    pub fn missed(&self) -> u64 {
        let left_out: u64 = self.programs.iter().map(|program| program.missed).sum();
        self.lost_events + self.unknown_slots + self.unreadable + self.map_full + left_out
    }

    /// Time and runs of each program since `before`, by name.
    #[must_use]
    pub fn cost_since(&self, before: &Self) -> BTreeMap<String, (u64, u64)> {
        let sums = |figures: &Self| {
            let mut sums = BTreeMap::<String, (u64, u64)>::new();
            for program in &figures.programs {
                let sum = sums.entry(program.name.clone()).or_default();
                sum.0 += program.run_ns.unwrap_or(0);
                sum.1 += program.run_count.unwrap_or(0);
            }
            sums
        };
        let before = sums(before);
        let mut costs = sums(self);
        for (name, cost) in &mut costs {
            let (run_ns, run_count) = before.get(name).copied().unwrap_or_default();
            cost.0 = cost.0.saturating_sub(run_ns);
            cost.1 = cost.1.saturating_sub(run_count);
        }
        costs
    }
}

/// All lines of an observation that has ended; at least one.
#[derive(Clone, Debug)]
pub struct Observed {
    lines: Vec<Line>,
}

impl Observed {
    /// In order.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// As it was when the probe had just been attached.
    #[must_use]
    pub fn first(&self) -> &Line {
        &self.lines[0]
    }

    /// The totals.
    #[must_use]
    pub fn last(&self) -> &Line {
        &self.lines[self.lines.len() - 1]
    }

    /// Every sync, in order.
    pub fn syncs(&self) -> impl Iterator<Item = &Sync> {
        self.lines.iter().flat_map(|line| &line.ram.syncs)
    }
}

/// A running `pacer observe`, killed and reaped on drop.
#[derive(Debug)]
pub struct Observer {
    // Dropped in this order: the process, then its folder.
    child: OwnedChild,
    lines: Arc<Mutex<Vec<Line>>>,
    reader: Option<JoinHandle<Result<()>>>,
    folder: TempDir,
}

impl Observer {
    /// Attaches to a process; returns once the probe sees it.
    ///
    /// # Errors
    /// It cannot be observed; with what `pacer` said.
    pub fn start(options: &ObserveOptions) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pacer-observe-")
            .tempdir()?;
        let mut command = Command::new(&options.pacer);
        command
            .args(["observe", "--json", "--pid", &options.pid.to_string()])
            .arg("--interval")
            .arg(format!("{}ms", options.interval.as_millis()));
        if let Some(qmp) = &options.qmp {
            command.arg("--qmp").arg(qmp);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("log"))?)
            // Ctrl-C is ours: whoever owns this value ends it.
            .process_group(0);
        let mut child = OwnedChild::spawn(&mut command).with_context(|| format!("{command:?}"))?;
        let stdout = child.take_stdout().context("stdout is piped")?;
        let lines = Arc::default();
        let reader = {
            let lines = Arc::clone(&lines);
            std::thread::spawn(move || read_lines(stdout, &lines))
        };
        let mut observer = Self {
            child,
            lines,
            reader: Some(reader),
            folder,
        };
        observer.wait_lines(1).with_context(|| observer.log())?;
        Ok(observer)
    }

    /// A line whose figures were read after this call.
    ///
    /// # Errors
    /// `pacer observe` has ended, or says nothing more.
    pub fn fresh(&mut self) -> Result<Line> {
        let count = self.lock().len();
        // The next one may have been in the making.
        self.wait_lines(count + 2)?;
        self.lock().last().cloned().context("no line")
    }

    /// Every sync so far, in order.
    #[must_use]
    pub fn syncs(&self) -> Vec<Sync> {
        let lines = self.lock();
        let syncs = lines.iter().flat_map(|line| &line.ram.syncs);
        syncs.cloned().collect()
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Errors
    /// It does not end, or not with exit code 0.
    pub fn stop(self) -> Result<Observed> {
        // It may have ended with the process it observes.
        let _ = self.child.sigint();
        self.wait_ended(STOP_TIMEOUT)
    }

    /// Waits until it has ended by itself, after the process it observes.
    ///
    /// # Errors
    /// It has not within `timeout`, or not with exit code 0.
    pub fn wait_ended(mut self, timeout: Duration) -> Result<Observed> {
        let log = self.log();
        let status = self.child.wait(timeout).with_context(|| log.clone())?;
        ensure!(
            exit_code(status) == 0,
            "pacer observe: {status}\n{}",
            self.log()
        );
        let reader = self.reader.take().context("joined once")?;
        match reader.join() {
            Ok(result) => result?,
            Err(_) => bail!("the reader of pacer observe panicked"),
        }
        let lines = std::mem::take(&mut *self.lock());
        ensure!(!lines.is_empty(), "pacer observe said nothing");
        Ok(Observed { lines })
    }

    /// What it said on stderr last.
    #[must_use]
    pub fn log(&self) -> String {
        log_tail(&self.folder.path().join("log"))
    }

    fn wait_lines(&mut self, count: usize) -> Result<()> {
        let (child, lines) = (&mut self.child, &self.lines);
        wait_until("pacer observe prints a line", ATTACH_TIMEOUT, || {
            let length = lines.lock().unwrap_or_else(PoisonError::into_inner).len();
            if length >= count {
                return Ok(Some(()));
            }
            match child.try_wait()? {
                Some(status) => bail!("pacer observe has ended: {status}"),
                None => Ok(None),
            }
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_lines(stdout: ChildStdout, lines: &Mutex<Vec<Line>>) -> Result<()> {
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        let line = serde_json::from_str(&text).with_context(|| text.clone())?;
        lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(programs: &[(&str, u64, u64)]) -> ProbeFigures {
        let programs = programs.iter().map(|&(name, run_ns, run_count)| Program {
            name: name.to_owned(),
            run_ns: Some(run_ns),
            run_count: Some(run_count),
            missed: 1,
        });
        ProbeFigures {
            events: 0,
            lost_events: 1,
            unknown_slots: 2,
            unreadable: 3,
            map_full: 4,
            run_ns: None,
            run_count: None,
            programs: programs.collect(),
            memory_bytes: 0,
        }
    }

    #[test]
    fn costs_are_differences_by_name() {
        let before = figures(&[("a", 10, 1), ("b", 5, 5)]);
        let after = figures(&[("a", 30, 4), ("b", 5, 5), ("c", 7, 2)]);
        let costs = after.cost_since(&before);
        let expected = [("a", (20, 3)), ("b", (0, 0)), ("c", (7, 2))];
        assert_eq!(
            costs,
            expected.map(|(name, cost)| (name.to_owned(), cost)).into()
        );
        assert_eq!(after.missed(), 13);
    }
}
