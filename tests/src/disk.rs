//! The disks of a machine: what QEMU is told, which of it QEMU refuses, and
//! the images behind them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// How the image is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskFormat {
    /// The guest's bytes and nothing else.
    Raw,
    /// QEMU's own, with tables of clusters.
    Qcow2,
}

/// How QEMU asks the kernel for reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskAio {
    /// Blocking calls in threads of their own.
    Threads,
    /// Linux AIO; only past the page cache.
    Native,
    /// io_uring.
    IoUring,
}

/// QEMU's five names for what is cached where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskCache {
    /// The host's page cache, flushed when the guest flushes.
    Writeback,
    /// O_DIRECT, flushed when the guest flushes.
    None,
    /// The host's page cache, flushed after each write.
    Writethrough,
    /// O_DIRECT, flushed after each write.
    Directsync,
    /// The host's page cache, never flushed.
    Unsafe,
}

/// What QEMU makes of zeroes that the guest writes as bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DetectZeroes {
    /// Bytes.
    Off,
    /// A request to zero the range.
    On,
    /// The same, and the range may become a hole.
    Unmap,
}

/// How the guest sees the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskBus {
    /// A PCI device each, of which a machine has room for about 28.
    VirtioBlk,
    /// A LUN at a controller that all of them share.
    VirtioScsi,
    /// An ATA disk, of which a machine has four.
    Ide,
}

/// A disk to add to a machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DiskOptions {
    /// Names the block node, the device and its serial number, by which the
    /// guest calls it; at most 20 characters.
    pub id: String,
    /// The image file, or the block device.
    pub path: PathBuf,
    /// Its layout.
    pub format: DiskFormat,
    /// How it is read and written.
    pub aio: DiskAio,
    /// What is cached.
    pub cache: DiskCache,
    /// Whether the guest's discards reach the image.
    pub discard: bool,
    /// What becomes of zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Whether its requests have a thread of their own. SCSI disks that have
    /// share one thread.
    pub iothread: bool,
    /// How the guest sees it.
    pub bus: DiskBus,
    /// Whether `path` is a block device.
    pub block_device: bool,
}

impl DiskOptions {
    /// A raw image file behind virtio-blk, with QEMU's defaults: threads,
    /// writeback, discards ignored.
    #[must_use]
    pub fn new(id: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            id: id.into(),
            path: path.into(),
            format: DiskFormat::Raw,
            aio: DiskAio::Threads,
            cache: DiskCache::Writeback,
            discard: false,
            detect_zeroes: DetectZeroes::Off,
            iothread: false,
            bus: DiskBus::VirtioBlk,
            block_device: false,
        }
    }

    /// Whether QEMU, of any version that is tested, takes this together. An IDE
    /// disk can have no thread: there is no way to tell QEMU.
    #[must_use]
    pub const fn accepts(&self) -> bool {
        let native_is_direct = !matches!(self.aio, DiskAio::Native) || self.cache.is_direct();
        let unmap_discards = !matches!(self.detect_zeroes, DetectZeroes::Unmap) || self.discard;
        let ide_has_no_thread = !matches!(self.bus, DiskBus::Ide) || !self.iothread;
        native_is_direct && unmap_discards && ide_has_no_thread
    }

    /// Makes the image, of `bytes`, in place of any that is there; on a block
    /// device only what qcow2 needs.
    ///
    /// # Errors
    /// It cannot be written, or qemu-img failed.
    pub fn create_image(&self, bytes: u64) -> Result<()> {
        match self.format {
            DiskFormat::Raw if self.block_device => Ok(()),
            DiskFormat::Raw => {
                let file = File::create(&self.path);
                let sized = file.and_then(|file| file.set_len(bytes));
                sized.with_context(|| self.path.display().to_string())
            }
            DiskFormat::Qcow2 => {
                let mut command = Command::new("qemu-img");
                command.args(["create", "-q", "-f", "qcow2"]);
                command.arg(&self.path).arg(bytes.to_string());
                output(&mut command).map(drop)
            }
        }
    }

    fn blockdev(&self) -> String {
        let cache = json!({
            "direct": self.cache.is_direct(),
            "no-flush": self.cache == DiskCache::Unsafe,
        });
        let discard = if self.discard { "unmap" } else { "ignore" };
        let blockdev = json!({
            "node-name": self.id,
            "driver": self.format.name(),
            "cache": cache,
            "discard": discard,
            "detect-zeroes": self.detect_zeroes.name(),
            "file": {
                "driver": if self.block_device { "host_device" } else { "file" },
                "filename": self.path,
                "aio": self.aio.name(),
                "cache": cache,
                "discard": discard,
            },
        });
        blockdev.to_string()
    }

    fn device(&self, legacy: bool) -> String {
        let Self { id, bus, .. } = self;
        let mut device = match bus {
            DiskBus::VirtioBlk => "virtio-blk-pci".to_owned(),
            DiskBus::VirtioScsi => format!("scsi-hd,bus={}.0", controller(self.iothread)),
            DiskBus::Ide => "ide-hd".to_owned(),
        };
        let write_cache = if self.cache.is_flushed_each() {
            "off"
        } else {
            "on"
        };
        device += &format!(",drive={id},id={id},serial={id},write-cache={write_cache}");
        if *bus == DiskBus::VirtioBlk && legacy {
            device += ",disable-modern=on,queue-size=256,num-queues=1";
        }
        if *bus == DiskBus::VirtioBlk && self.iothread {
            device += &format!(",iothread={}", iothread(id));
        }
        device
    }
}

/// Adds what QEMU must be told for these disks. `legacy` are virtio-blk
/// devices as they were before virtio 1.0.
pub(crate) fn add_args(command: &mut Command, disks: &[DiskOptions], legacy: bool) {
    for with_thread in [false, true] {
        let is_here =
            |disk: &&DiskOptions| disk.bus == DiskBus::VirtioScsi && disk.iothread == with_thread;
        if !disks.iter().any(|disk| is_here(&disk)) {
            continue;
        }
        let controller = controller(with_thread);
        let mut device = format!("virtio-scsi-pci,id={controller}");
        if with_thread {
            command
                .arg("-object")
                .arg(format!("iothread,id={}", iothread(controller)));
            device += &format!(",iothread={}", iothread(controller));
        }
        command.arg("-device").arg(device);
    }
    for disk in disks {
        if disk.iothread && disk.bus == DiskBus::VirtioBlk {
            command
                .arg("-object")
                .arg(format!("iothread,id={}", iothread(&disk.id)));
        }
        command.arg("-blockdev").arg(disk.blockdev());
        command.arg("-device").arg(disk.device(legacy));
    }
}

/// The SCSI controller's id.
const fn controller(with_thread: bool) -> &'static str {
    if with_thread { "scsi-threaded" } else { "scsi" }
}

fn iothread(of: &str) -> String {
    format!("{of}-thread")
}

impl DiskFormat {
    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl DiskAio {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Threads, Self::Native, Self::IoUring];

    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

impl DiskCache {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Writeback,
        Self::None,
        Self::Writethrough,
        Self::Directsync,
        Self::Unsafe,
    ];

    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::None => "none",
            Self::Writethrough => "writethrough",
            Self::Directsync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Whether it goes past the page cache.
    #[must_use]
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    const fn is_flushed_each(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

impl DetectZeroes {
    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Unmap => "unmap",
        }
    }
}

/// A block device whose content is a file, until it is dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device of the size of `file`; needs root.
    ///
    /// # Errors
    /// There is none left, or losetup failed.
    pub fn attach(file: &Path) -> Result<Self> {
        let mut command = Command::new("losetup");
        let path = output(command.args(["--find", "--show"]).arg(file))?;
        Ok(Self {
            path: path.trim().into(),
        })
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // If somebody still has it open, the kernel does it afterwards.
        if let Err(error) = output(Command::new("losetup").arg("--detach").arg(&self.path)) {
            eprintln!("{error:#}");
        }
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(disks: &[DiskOptions]) -> Vec<String> {
        let mut command = Command::new("qemu");
        add_args(&mut command, disks, false);
        let args = command.get_args();
        args.map(|arg| arg.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn disks_of_one_bus_share_a_controller() {
        let scsi = |id: &str, iothread| DiskOptions {
            bus: DiskBus::VirtioScsi,
            iothread,
            ..DiskOptions::new(id, "/a,b")
        };
        let args = args(&[scsi("a", false), scsi("b", true), scsi("c", false)]);
        let count = |text: &str| args.iter().filter(|arg| arg.contains(text)).count();
        assert_eq!(count("virtio-scsi-pci"), 2);
        assert_eq!(count("bus=scsi.0"), 2);
        assert_eq!(count("bus=scsi-threaded.0"), 1);
        assert_eq!(count("iothread,id="), 1);
        assert_eq!(count(r#""filename":"/a,b""#), 3);
    }

    #[test]
    fn what_qemu_refuses_is_known() {
        let disk = DiskOptions::new("a", "/a");
        assert!(disk.accepts());
        let accepted = |change: fn(&mut DiskOptions)| {
            let mut disk = disk.clone();
            change(&mut disk);
            disk.accepts()
        };
        assert!(!accepted(|disk| disk.aio = DiskAio::Native));
        assert!(!accepted(|disk| disk.detect_zeroes = DetectZeroes::Unmap));
        assert!(accepted(|disk| {
            disk.detect_zeroes = DetectZeroes::Unmap;
            disk.discard = true;
        }));
    }
}
