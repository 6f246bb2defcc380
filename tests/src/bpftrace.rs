//! A running `bpftrace`, owned by a value, and what its programs cost.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::process::{OwnedChild, log_tail, pause, wait_until};

const ATTACH_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_TRIES: u32 = 4;
/// From the last program loaded until its probe is attached.
const ATTACH_PAUSE: Duration = Duration::from_millis(200);

/// What the kernel accounted to the programs of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunCost {
    /// Time in them.
    pub run_ns: u64,
    /// Their runs.
    pub run_count: u64,
}

/// A running `bpftrace`, killed and reaped on drop.
#[derive(Debug)]
pub struct Bpftrace {
    child: OwnedChild,
    folder: TempDir,
}

impl Bpftrace {
    /// Runs a script and returns once its `probes` probes are attached.
    ///
    /// # Errors
    /// There is no bpftrace, or it refuses the script.
    pub fn start(script: &str, probes: usize) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("pacer-bpftrace-")
            .tempdir()?;
        let log_path = folder.path().join("log");
        let log = File::create(&log_path)?;
        let mut command = Command::new("bpftrace");
        command
            .args(["-e", script])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = OwnedChild::spawn(&mut command).context("bpftrace")?;
        let mut bpftrace = Self { child, folder };
        let pid = bpftrace.child.pid();
        let child = &mut bpftrace.child;
        wait_until("bpftrace attaches", ATTACH_TIMEOUT, || {
            if let Some(status) = child.try_wait()? {
                bail!("bpftrace has ended: {status}\n{}", log_tail(&log_path));
            }
            Ok((programs(pid).len() >= probes).then_some(()))
        })?;
        pause(ATTACH_PAUSE)?;
        Ok(bpftrace)
    }

    /// What its programs have cost so far; zeroes unless
    /// [`RunStatistics`] is on.
    #[must_use]
    pub fn cost(&self) -> RunCost {
        let mut sum = RunCost::default();
        for program in programs(self.child.pid()) {
            sum.run_ns += field(&program, "run_time_ns");
            sum.run_count += field(&program, "run_cnt");
        }
        sum
    }

    /// Ends it as Ctrl-C does; what it printed.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<String> {
        // Version 0.17 now and then does not hear the first.
        let ended = (0..STOP_TRIES)
            .any(|_| self.child.sigint().is_ok() && self.child.wait(STOP_TIMEOUT).is_ok());
        ensure!(ended, "bpftrace does not end");
        Ok(crate::process::read_log(&self.folder.path().join("log")))
    }
}

/// `/proc/PID/fdinfo` of every BPF program that a process holds.
fn programs(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .filter(|info| info.contains("prog_id:") && info.contains("run_cnt:"))
        .collect()
}

fn field(info: &str, name: &str) -> u64 {
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

/// The kernel's accounting of BPF run times, on for as long as the value lives.
#[derive(Debug)]
pub struct RunStatistics {
    before: String,
}

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl RunStatistics {
    /// Switches it on; needs root.
    ///
    /// # Errors
    /// It is not allowed, or this kernel has none.
    pub fn enable() -> Result<Self> {
        let before = fs::read_to_string(STATISTICS).context(STATISTICS)?;
        fs::write(STATISTICS, "1").context(STATISTICS)?;
        Ok(Self { before })
    }
}

impl Drop for RunStatistics {
    fn drop(&mut self) {
        // It was writable a moment ago.
        let _ = fs::write(STATISTICS, self.before.trim());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read() {
        let info = "prog_type:\t5\nprog_id:\t7\nrun_time_ns:\t1234\nrun_cnt:\t5\n";
        assert_eq!(field(info, "run_time_ns"), 1234);
        assert_eq!(field(info, "run_cnt"), 5);
        assert_eq!(field(info, "verified_insns"), 0);
    }
}
