//! A running QEMU, owned by a value.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::block_stats::{self, BlockStats};
use crate::disk::{self, DiskBus, DiskOptions};
use crate::guest::bare::{BareGuest, BareState};
use crate::guest::linux::LinuxGuest;
use crate::guest::memory::GuestMemory;
use crate::monitor::{self, Qmp};
use crate::process::{OwnedChild, log_tail, read_log, wait_until};
use crate::qemu::{Accel, QemuInstall};

/// Known to QEMU 7.2 and to all later ones the tests are for; it must be the
/// same on both sides of a migration.
const MACHINE: &str = "pc-i440fx-7.2";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const FRAME_TIMEOUT: Duration = Duration::from_secs(10);

/// What runs in a machine.
#[derive(Clone, Debug)]
pub enum Guest {
    /// Our own firmware.
    Bare(BareGuest),
    /// Debian's kernel with a program of ours.
    Linux(LinuxGuest),
}

/// How a destination waits for its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// Until QMP `migrate-incoming` says where.
    Defer,
    /// At a TCP port of this host.
    Tcp {
        /// As QEMU takes it: `127.0.0.1`, `[::1]`, `localhost`.
        host: String,
        /// The port.
        port: u16,
    },
}

/// How to start a machine.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// What runs in it; the same at both sides of a migration.
    pub guest: Guest,
    /// What runs it.
    pub qemu: QemuInstall,
    /// On what; a Linux guest always runs under TCG.
    pub accel: Accel,
    /// `Some` for a destination.
    pub incoming: Option<Incoming>,
    /// `-S`: do not start the CPU.
    pub paused: bool,
    /// In a process group of its own, so that Ctrl-C does not reach it.
    pub own_group: bool,
    /// Disks beside those the guest has of its own; their images are made by
    /// [`DiskOptions::create_image`].
    pub disks: Vec<DiskOptions>,
    /// Appended to QEMU's command line.
    pub extra_args: Vec<OsString>,
}

impl VmOptions {
    /// A running source without anything special.
    #[must_use]
    pub const fn new(guest: Guest, qemu: QemuInstall, accel: Accel) -> Self {
        Self {
            guest,
            qemu,
            accel,
            incoming: None,
            paused: false,
            own_group: false,
            disks: Vec::new(),
            extra_args: Vec::new(),
        }
    }

    /// The destination for this source.
    #[must_use]
    pub fn destination(&self, incoming: Incoming) -> Self {
        Self {
            incoming: Some(incoming),
            ..self.clone()
        }
    }
}

/// A QEMU process with its sockets and logs, which end with the value. If the
/// thread panics, what QEMU and the guest said last is printed.
#[derive(Debug)]
pub struct Vm {
    // Dropped in this order: the process, then its folder.
    child: Mutex<OwnedChild>,
    qmp: Mutex<Qmp>,
    guest: Guest,
    folder: TempDir,
}

impl Vm {
    /// Starts QEMU and waits until it answers QMP.
    ///
    /// # Errors
    /// It does not; with what it said on stderr.
    pub fn start(options: &VmOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pacer-vm-").tempdir()?;
        let mut command = command(options, folder.path())?;
        let child = OwnedChild::spawn(&mut command).with_context(|| format!("{command:?}"))?;
        let log = log_path(folder.path());
        let qmp = Qmp::connect(&folder.path().join("test.qmp"), START_TIMEOUT)
            .with_context(|| format!("{command:?}\n{}", log_tail(&log)))?;
        let guest = options.guest.clone();
        Ok(Self {
            child: Mutex::new(child),
            qmp: Mutex::new(qmp),
            guest,
            folder,
        })
    }

    /// The QMP socket that is left to `pacer`.
    #[must_use]
    pub fn pacer_qmp(&self) -> PathBuf {
        self.folder.path().join("pacer.qmp")
    }

    /// The QMP socket that is left to who listens to its events
    /// ([`crate::events`]).
    #[must_use]
    pub fn events_qmp(&self) -> PathBuf {
        self.folder.path().join("events.qmp")
    }

    /// The human monitor's socket.
    #[must_use]
    pub fn hmp_path(&self) -> PathBuf {
        self.folder.path().join("hmp")
    }

    /// Runs a QMP command and returns its `return`.
    ///
    /// # Errors
    /// QEMU's own, or it is gone.
    pub fn qmp(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut qmp = self.qmp.lock().unwrap_or_else(PoisonError::into_inner);
        qmp.execute(command, arguments).with_context(|| self.logs())
    }

    /// Types a line into the human monitor and returns what it says.
    ///
    /// # Errors
    /// QEMU is gone, or does not answer in a minute.
    pub fn hmp(&self, line: &str) -> Result<String> {
        monitor::hmp(&self.hmp_path(), line).with_context(|| self.logs())
    }

    /// `running`, `paused`, `inmigrate`, `postmigrate` …
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn status(&self) -> Result<String> {
        string(&self.qmp("query-status", json!({}))?, "status")
    }

    /// The migration's status: `none`, `active`, `completed`, `failed` …
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn migration_status(&self) -> Result<String> {
        let answer = self.qmp("query-migrate", json!({}))?;
        Ok(string(&answer, "status").unwrap_or_else(|_| "none".to_owned()))
    }

    /// Waits until QEMU's status is `status`.
    ///
    /// # Errors
    /// It is another one when `timeout` is over.
    pub fn wait_status(&self, status: &str, timeout: Duration) -> Result<()> {
        let what = format!("the guest is {status}");
        wait_until(&what, timeout, || {
            Ok((self.status()? == status).then_some(()))
        })
        .with_context(|| self.logs())
    }

    /// Everything the guest has said on its serial port.
    #[must_use]
    pub fn serial(&self) -> String {
        read_log(&serial_path(self.folder.path()))
    }

    /// When the guest last said something on its serial port.
    ///
    /// # Errors
    /// The file it goes to is gone.
    pub fn serial_written_at(&self) -> Result<SystemTime> {
        let path = serial_path(self.folder.path());
        let metadata = path.metadata();
        Ok(metadata
            .with_context(|| path.display().to_string())?
            .modified()?)
    }

    /// Waits until `holds` of the serial output.
    ///
    /// # Errors
    /// It does not within `timeout`, or QEMU has ended.
    pub fn wait_serial(&self, holds: impl Fn(&str) -> bool, timeout: Duration) -> Result<()> {
        let condition = || {
            if holds(&self.serial()) {
                return Ok(Some(()));
            }
            if !self.is_alive() {
                bail!("QEMU has ended");
            }
            Ok(None)
        };
        wait_until("the guest says so on its serial port", timeout, condition)
            .with_context(|| self.logs())
    }

    /// Waits until the guest has filled its memory and begun to write.
    ///
    /// # Errors
    /// It has not within `timeout`, or QEMU has ended.
    pub fn wait_started(&self, timeout: Duration) -> Result<()> {
        match &self.guest {
            Guest::Bare(_) => self.wait_serial(|serial| serial.contains('R'), timeout),
            Guest::Linux(guest) => {
                let mark = guest.started_mark();
                let ended = |serial: &str| serial.contains(mark) || has_failed(serial);
                self.wait_serial(ended, timeout)?;
                ensure!(!has_failed(&self.serial()), "{}", self.serial());
                Ok(())
            }
        }
    }

    /// QEMU's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child().pid()
    }

    /// Whether QEMU still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Ends QEMU with SIGKILL, as a crash would.
    pub fn kill9(&self) {
        self.child().kill9();
    }

    /// Guest-physical memory from 0 to `bytes`, all from one moment only if
    /// the guest is stopped.
    ///
    /// # Errors
    /// QEMU is gone, or the file cannot be written.
    pub fn pmemsave(&self, bytes: u64) -> Result<GuestMemory> {
        let path = self.folder.path().join("memory");
        self.qmp(
            "pmemsave",
            json!({"val": 0, "size": bytes, "filename": path}),
        )?;
        let file = File::open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(GuestMemory::from_file(file))
    }

    /// What QEMU has counted for each of [`VmOptions::disks`], by its id.
    ///
    /// # Errors
    /// QEMU is gone.
    pub fn block_stats(&self) -> Result<BTreeMap<String, BlockStats>> {
        block_stats::parse(&self.qmp("query-blockstats", json!({}))?)
    }

    /// Sends Ethernet frames to the bare guest's network card, no faster than
    /// QEMU takes them: none is lost.
    ///
    /// # Errors
    /// QEMU takes none for 10 s (its guest may be stopped), or the guest has no
    /// network card.
    pub fn send_frames(&self, count: u32, frame_bytes: usize) -> Result<()> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(FRAME_TIMEOUT))?;
        let path = network_path(self.folder.path());
        // To all, from a locally administered address, of an experimental type.
        let mut frame = [[0xFF; 6], [2, 0, 0, 0, 0, 1]].concat();
        frame.extend([0x88, 0xB5]);
        frame.resize(frame_bytes, 0x5A);
        for _ in 0..count {
            let sent = socket.send_to(&frame, &path);
            sent.with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Compares all memory of the bare guest in this machine, which is stopped
    /// for it and goes on afterwards if it ran.
    ///
    /// # Errors
    /// Its memory is not what it wrote, or QEMU is gone.
    pub fn verify_bare(&self, guest: &BareGuest) -> Result<BareState> {
        let ran = self.status()? == "running";
        self.qmp("stop", json!({}))?;
        let state = guest.verify(&self.pmemsave(guest.used_bytes())?)?;
        if ran {
            self.qmp("cont", json!({}))?;
        }
        Ok(state)
    }

    /// QEMU's and the guest's last words, for an error.
    #[must_use]
    pub fn logs(&self) -> String {
        let folder = self.folder.path();
        format!(
            "{}\n{}",
            log_tail(&log_path(folder)),
            log_tail(&serial_path(folder))
        )
    }

    fn child(&self) -> std::sync::MutexGuard<'_, OwnedChild> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

fn string(answer: &Value, field: &str) -> Result<String> {
    let value = answer.get(field).and_then(Value::as_str);
    Ok(value
        .with_context(|| format!("no {field} in {answer}"))?
        .to_owned())
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("qemu.log")
}

fn serial_path(folder: &Path) -> PathBuf {
    folder.join("serial")
}

/// Where QEMU takes frames for the guest.
fn network_path(folder: &Path) -> PathBuf {
    folder.join("network")
}

fn command(options: &VmOptions, folder: &Path) -> Result<Command> {
    let log = File::create(log_path(folder))?;
    let mut command = options.qemu.command();
    command
        .args([
            "-machine",
            MACHINE,
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
        ])
        .arg("-serial")
        .arg(format!("file:{}", serial_path(folder).display()))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    for (name, mode) in [
        ("pacer.qmp", "control"),
        ("test.qmp", "control"),
        ("events.qmp", "control"),
        ("hmp", "readline"),
    ] {
        let path = folder.join(name).display().to_string();
        command
            .arg("-chardev")
            .arg(format!("socket,id={name},path={path},server=on,wait=off"));
        command
            .arg("-mon")
            .arg(format!("chardev={name},mode={mode}"));
    }
    match &options.guest {
        Guest::Bare(guest) => bare_args(&mut command, guest, options.accel, folder)?,
        Guest::Linux(guest) => guest.add_args(&mut command, options.disks.len()),
    }
    let legacy = matches!(options.guest, Guest::Bare(_));
    if let Guest::Bare(BareGuest { disk: Some(_), .. }) = options.guest {
        let mut buses = options.disks.iter().map(|disk| disk.bus);
        ensure!(
            buses.any(|bus| bus == DiskBus::VirtioBlk),
            "the bare guest's machine has no virtio-blk disk"
        );
    }
    disk::add_args(&mut command, &options.disks, legacy);
    match &options.incoming {
        None => {}
        Some(Incoming::Defer) => drop(command.args(["-incoming", "defer"])),
        Some(Incoming::Tcp { host, port }) => {
            command.arg("-incoming").arg(format!("tcp:{host}:{port}"));
        }
    }
    if options.paused {
        command.arg("-S");
    }
    if options.own_group {
        command.process_group(0);
    }
    command.args(&options.extra_args);
    Ok(command)
}

fn bare_args(command: &mut Command, guest: &BareGuest, accel: Accel, folder: &Path) -> Result<()> {
    let bios = folder.join("bios");
    let content = folder.join("content");
    std::fs::write(&bios, guest.bios()?)?;
    std::fs::write(&content, crate::guest::content::content())?;
    command.args(["-accel", accel.name(), "-cpu", "qemu64"]);
    command.arg("-m").arg(guest.ram_mib.to_string());
    command.arg("-bios").arg(bios);
    command
        .arg("-fw_cfg")
        .arg(format!("name=opt/pacer/fill,file={}", content.display()));
    if guest.network {
        let path = network_path(folder).display().to_string();
        command.arg("-netdev").arg(format!(
            "dgram,id=net0,local.type=unix,local.path={path},\
             remote.type=unix,remote.path={path}-peer"
        ));
        command
            .arg("-device")
            .arg("virtio-net-pci,netdev=net0,disable-modern=on,rx_queue_size=256,romfile=");
    }
    Ok(())
}
/// Whether the guest says that its program has ended where it should not.
fn has_failed(serial: &str) -> bool {
    serial
        .lines()
        .any(|line| line.starts_with("PACER PROGRAM ") && line.trim_end().ends_with(" failed"))
}
