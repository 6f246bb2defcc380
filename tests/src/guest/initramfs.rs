//! The Linux guest's initramfs: a cpio archive in the cache, named by what is
//! in it.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::program;
use crate::assets;

/// Modules in the order they are loaded, below `kernel/` of the modules'
/// folder; one that is built in is not there.
const MODULES: [&str; 12] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/scsi/scsi_common.ko",
    "drivers/scsi/scsi_mod.ko",
    "drivers/scsi/sd_mod.ko",
    "drivers/scsi/virtio_scsi.ko",
    "drivers/ata/libata.ko",
    "drivers/ata/ata_piix.ko",
];
/// Modules are numbered in their order. What the kernel passes behind `--`
/// becomes this script's arguments.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in /modules/*; do
  /bin/busybox insmod $module
done
if [ \"$1\" = program ]; then
  shift
  exec /bin/busybox sh /programs.sh \"$@\"
fi
exec /pacer-guest \"$@\"
";
const BUSYBOX: &str = "/bin/busybox";

/// What an initramfs holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// busybox and `pacer-guest`.
    Own,
    /// That, and the programs of [`program`].
    Programs,
}

/// The kernel and the initramfs, which is built if what is in it has changed.
///
/// # Errors
/// The kernel, busybox, `pacer-guest` or a program is not there.
pub(super) fn find_or_build(contents: Contents) -> Result<(PathBuf, PathBuf)> {
    let cache = assets::cache_folder()?;
    let root = cache.join(assets::KERNEL_FOLDER);
    let kernel = only_entry(&root.join("boot"), "vmlinuz-")?;
    // None where everything is built in: Ubuntu's kernel package has no modules.
    let modules = only_entry(&root.join("lib/modules"), "").ok();
    let archive = archive(modules.as_deref(), contents)?;
    let mut hasher = DefaultHasher::new();
    archive.hash(&mut hasher);
    let initramfs = cache.join(format!("initramfs-{:016x}", hasher.finish()));
    if !initramfs.exists() {
        // Renamed when whole: another test may look for it at the same time.
        let mut file = tempfile::NamedTempFile::new_in(&cache)?;
        std::io::Write::write_all(&mut file, &archive)?;
        file.persist(&initramfs)?;
    }
    Ok((kernel, initramfs))
}

fn archive(modules: Option<&Path>, contents: Contents) -> Result<Vec<u8>> {
    let program = guest_program()?;
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "sys"] {
        archive.add(folder, 0o040_755, &[]);
    }
    archive.add("bin/busybox", 0o100_755, &read(Path::new(BUSYBOX))?);
    archive.add("pacer-guest", 0o100_755, &read(&program)?);
    archive.add("init", 0o100_755, INIT.as_bytes());
    for (number, module) in MODULES.into_iter().enumerate() {
        let path = modules.map(|folder| folder.join("kernel").join(module));
        if let Some(Ok(bytes)) = path.map(fs::read) {
            archive.add(&format!("modules/{number:02}.ko"), 0o100_644, &bytes);
        }
    }
    if contents == Contents::Programs {
        add_programs(&mut archive)?;
    }
    Ok(archive.finish())
}

fn add_programs(archive: &mut Archive) -> Result<()> {
    archive.add("programs.sh", 0o100_644, program::SCRIPT.as_bytes());
    let files = program::files()?;
    let parents = files.iter().flat_map(|(path, _)| path.ancestors().skip(1));
    // A folder sorts before what is in it.
    let folders: BTreeSet<&Path> = parents.collect();
    for folder in folders {
        // Some are there already, which the kernel does not mind.
        if let Some(name) = relative(folder) {
            archive.add(name, 0o040_755, &[]);
        }
    }
    for (path, content) in &files {
        let name = relative(path).with_context(|| path.display().to_string())?;
        archive.add(name, 0o100_755, content);
    }
    Ok(())
}

/// The path below the root; `None` of the root itself.
fn relative(path: &Path) -> Option<&str> {
    let below = path.strip_prefix("/").ok()?.to_str()?;
    (!below.is_empty()).then_some(below)
}

/// `PACER_GUEST_PROGRAM`, else where `cargo xtask build` puts it.
fn guest_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("PACER_GUEST_PROGRAM") {
        return Ok(path.into());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(assets::GUEST_PROGRAM);
    path.canonicalize()
        .with_context(|| format!("{}: run cargo xtask build", path.display()))
}

fn only_entry(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let context = || format!("no kernel in {}: run cargo xtask setup", folder.display());
    let entries = fs::read_dir(folder).with_context(context)?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(context)
}

/// A cpio archive in the format "newc", the one the kernel unpacks.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.files += 1;
        let (inode, size, name_size) = (self.files, content.len(), name.len() + 1);
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}\
             {0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
