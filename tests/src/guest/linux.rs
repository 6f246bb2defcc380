//! The Linux guest: Debian's cloud kernel with an initramfs of busybox and
//! `pacer-guest`, which either writes memory and a disk and says on the serial
//! console, about five times a second, whether both still hold what it wrote,
//! or is there for the machine's disks ([`super::disk_load`]), or for a real
//! program ([`super::program`]).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::disk_load::{DiskFlood, DiskLoad};
use super::initramfs::{self, Contents};
use super::program::ProgramLoad;

/// What the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinuxWork {
    /// Guest RAM, in MiB.
    pub ram_mib: u32,
    /// Filled at start, in MiB; a part is checked with each heartbeat.
    pub fill_mib: u32,
    /// Pages of 4 KiB written over and over, all checked with each heartbeat.
    pub working_set_pages: u32,
    /// Pages written in a second.
    pub pages_per_second: u32,
    /// Records of 4 KiB appended to the disk in a second.
    pub records_per_second: u32,
}

/// A Linux guest with its files; its disk is shared by both sides.
#[derive(Clone, Debug)]
pub struct LinuxGuest {
    task: Task,
    ram_mib: u32,
    kernel: PathBuf,
    initramfs: PathBuf,
    disk: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
enum Task {
    Work(LinuxWork),
    Load(DiskLoad),
    Flood(DiskFlood),
    Program(ProgramLoad),
}

impl LinuxGuest {
    /// A guest with a new, empty disk in `folder`, of `disk_mib` MiB.
    ///
    /// # Errors
    /// What `cargo xtask setup` leaves is not there, or `folder` cannot be
    /// written.
    pub fn new(work: LinuxWork, folder: &Path, disk_mib: u32) -> Result<Self> {
        let disk = folder.join("disk.raw");
        std::fs::File::create(&disk)?.set_len(u64::from(disk_mib) << 20)?;
        let guest = Self::find(Task::Work(work), work.ram_mib)?;
        Ok(Self {
            disk: Some(disk),
            ..guest
        })
    }

    /// A guest that does this to all disks of its machine, of which it has
    /// none of its own.
    ///
    /// # Errors
    /// What `cargo xtask setup` leaves is not there.
    pub fn with_disk_load(load: DiskLoad, ram_mib: u32) -> Result<Self> {
        Self::find(Task::Load(load), ram_mib)
    }

    /// A guest that does this to all disks of its machine, of which it has
    /// none of its own.
    ///
    /// # Errors
    /// What `cargo xtask setup` leaves is not there.
    pub fn with_disk_flood(flood: DiskFlood, ram_mib: u32) -> Result<Self> {
        Self::find(Task::Flood(flood), ram_mib)
    }

    /// A guest that runs this program for ever; it has no disk.
    ///
    /// # Errors
    /// What `cargo xtask setup` leaves is not there.
    pub fn with_program(load: ProgramLoad, ram_mib: u32) -> Result<Self> {
        Self::find(Task::Program(load), ram_mib)
    }

    fn find(task: Task, ram_mib: u32) -> Result<Self> {
        let contents = match task {
            Task::Program(_) => Contents::Programs,
            _ => Contents::Own,
        };
        let (kernel, initramfs) = initramfs::find_or_build(contents)?;
        Ok(Self {
            task,
            ram_mib,
            kernel,
            initramfs,
            disk: None,
        })
    }

    /// The image of the disk that the guest has of its own.
    #[must_use]
    pub fn disk(&self) -> Option<&Path> {
        self.disk.as_deref()
    }

    /// What the guest says when it has begun its task.
    pub(crate) const fn started_mark(&self) -> &'static str {
        match self.task {
            Task::Work(_) => "PACER 1 ",
            Task::Load(_) | Task::Flood(_) | Task::Program(_) => " ready",
        }
    }

    /// Adds what QEMU must be told for this guest, whose machine has `disks`
    /// disks beside its own.
    pub fn add_args(&self, command: &mut Command, disks: usize) {
        command.args(["-accel", "tcg", "-cpu", "max"]);
        command.arg("-m").arg(self.ram_mib.to_string());
        command
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initramfs);
        let task = self.task.arguments(disks);
        command.arg("-append").arg(format!(
            "console=ttyS0 quiet panic=-1 tsc=unstable -- {task}"
        ));
        if let Some(disk) = &self.disk {
            command.arg("-drive").arg(format!(
                "file={},format=raw,if=none,id=disk0,cache=none",
                disk.display()
            ));
            command.args(["-device", "virtio-blk-pci,drive=disk0"]);
        }
    }
}

impl Task {
    fn arguments(&self, disks: usize) -> String {
        match self {
            Self::Work(work) => format!(
                "{} {} {} {}",
                work.fill_mib,
                work.working_set_pages,
                work.pages_per_second,
                work.records_per_second
            ),
            Self::Load(load) => format!(
                "disks {} {} {} {disks}",
                load.seed, load.requests, load.granularity_bytes
            ),
            Self::Flood(flood) => format!(
                "flood {} {} {} {disks}",
                flood.seed, flood.seconds, flood.threads
            ),
            Self::Program(load) => load.arguments(),
        }
    }
}

/// Reads the heartbeats of a guest from what it said at the source and then at
/// the destination, and returns the last number.
///
/// # Errors
/// A heartbeat is missing, repeated or not `ok`, or there is none.
pub fn check_heartbeats(source: &str, destination: &str) -> Result<u64> {
    // The guest may be moved in the middle of a line.
    let serial = [source, destination].concat();
    let whole = &serial[..serial.rfind('\n').map_or(0, |at| at + 1)];
    let mut last = 0;
    for line in whole.lines() {
        let Some((_, heartbeat)) = line.split_once("PACER ") else {
            continue;
        };
        let mut words = heartbeat.split_whitespace();
        let number: u64 = words
            .next()
            .and_then(|word| word.parse().ok())
            .context(line.to_owned())?;
        ensure!(
            number == last + 1,
            "heartbeat {number} follows {last}: {line}"
        );
        ensure!(words.next() == Some("ok"), "{line}");
        last = number;
    }
    ensure!(last > 0, "no heartbeat");
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_go_on_over_the_move() {
        let source = "boot\nPACER 1 ok\r\nPACER 2 ok writes=5\r\nPAC";
        assert_eq!(check_heartbeats(source, "ER 3 ok\r\nPACER 4 o").unwrap(), 3);
    }

    #[test]
    fn a_wrong_heartbeat_is_an_error() {
        for (source, destination) in [
            ("PACER 1 ok\n", "PACER 1 ok\n"),
            ("PACER 1 ok\nPACER 2 ok\n", "PACER 2 ok\n"),
            ("PACER 1 ok\n", "PACER 3 ok\n"),
            ("PACER 1 ok\n", "PACER 2 CORRUPT disk\n"),
            ("PACER x ok\n", ""),
            ("", "nothing\n"),
        ] {
            assert!(
                check_heartbeats(source, destination).is_err(),
                "{source}{destination}"
            );
        }
    }
}
