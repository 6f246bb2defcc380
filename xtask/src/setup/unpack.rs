//! Packages that are unpacked in the cache and not installed: what must stand
//! beside the system's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use pacer_tests::assets;
use pacer_tests::qemu::QemuInstall;

use super::apt::{self, Apt};
use crate::shell::{output, run};

/// QEMU 7.2 with its modules and firmware.
pub(super) fn old_qemu(apt: &mut Apt) -> Result<()> {
    const OF_THAT_VERSION: [&str; 3] =
        ["qemu-system-x86", "qemu-system-common", "qemu-system-data"];
    let mut packages = Vec::new();
    for package in OF_THAT_VERSION {
        let version = version(apt, package)?;
        packages.push(format!("{package}={version}"));
    }
    // Firmware is part of the guest's memory: any version does on both sides.
    packages.push("seabios".to_owned());
    unpack(apt, &packages, assets::QEMU_7_2_FOLDER, |apt, folder| {
        if libraries_are_missing(folder) {
            install_libraries(apt, &packages)?;
        }
        QemuInstall::unpacked(folder)?.version()?;
        Ok(())
    })
}

fn version(apt: &mut Apt, package: &str) -> Result<String> {
    let find = || {
        apt::versions(package)
            .into_iter()
            .find(|version| version.starts_with("1:7.2"))
    };
    if find().is_none() {
        apt.update()?;
    }
    find().with_context(|| format!("no package source has {package} 7.2"))
}

fn libraries_are_missing(folder: &Path) -> bool {
    let program = folder.join("usr/bin/qemu-system-x86_64");
    let libraries = output("ldd", &[&program.display().to_string()]).unwrap_or_default();
    libraries.contains("not found")
}

/// The libraries that version depends on go into the system: they are the
/// distribution's own, and stand beside newer ones.
fn install_libraries(apt: &mut Apt, packages: &[String]) -> Result<()> {
    let dependencies = packages
        .iter()
        .filter_map(|package| package.split_once('='));
    let all = dependencies.flat_map(|(package, version)| apt::dependencies(package, version));
    let libraries: Vec<String> = all.filter(|name| name.starts_with("lib")).collect();
    let names: Vec<&str> = libraries.iter().map(String::as_str).collect();
    apt.install(&names, None)
}

/// The kernel that the distribution's package for virtual machines stands for.
pub(super) fn kernel(apt: &mut Apt) -> Result<()> {
    if kernel_package().is_none() {
        apt.update()?;
    }
    let package =
        kernel_package().context("no package source has a kernel for virtual machines")?;
    unpack(apt, &[package], assets::KERNEL_FOLDER, unpack_modules)
}

/// The name of that package; `None` if apt knows of none.
pub(super) fn kernel_package() -> Option<String> {
    const NEWEST: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-virtual"];
    NEWEST.into_iter().find_map(|package| {
        let depends = apt::dependencies(package, &apt::candidate(package)?);
        depends
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
    })
}

/// Modules may be compressed, which busybox does not read.
fn unpack_modules(_: &mut Apt, folder: &Path) -> Result<()> {
    let modules = folder.join("lib/modules");
    let find = |name: &str| {
        let pattern = format!("{name}.ko.xz");
        output("find", &[&modules.display().to_string(), "-name", &pattern]).unwrap_or_default()
    };
    // What the guest's initramfs loads.
    let wanted = ["virtio*", "scsi_*", "sd_mod", "libata", "ata_piix"];
    let compressed = wanted.map(find).concat();
    if compressed.is_empty() {
        return Ok(());
    }
    run(Command::new("xz")
        .arg("--decompress")
        .args(compressed.lines()))
}

/// Downloads packages, unpacks them into a folder of the cache, finishes that
/// folder, and only then gives it its name: one that is there is whole.
fn unpack(
    apt: &mut Apt,
    packages: &[String],
    name: &str,
    finish: impl FnOnce(&mut Apt, &Path) -> Result<()>,
) -> Result<()> {
    let cache = assets::cache_folder()?;
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let downloads = tempfile::tempdir_in(&cache)?;
    let root = tempfile::tempdir_in(&cache)?;
    apt.download(packages, downloads.path())?;
    for package in files(downloads.path())? {
        run(Command::new("dpkg").arg("-x").arg(package).arg(root.path()))?;
    }
    finish(apt, root.path())?;
    let folder = cache.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let unpacked = root.keep();
    fs::rename(&unpacked, &folder).with_context(|| folder.display().to_string())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?;
    let files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    if files.is_empty() {
        bail!("nothing was downloaded to {}", folder.display());
    }
    Ok(files)
}
