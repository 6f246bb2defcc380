//! Which block devices lie under an image: those whose requests show what the
//! guest's disk gets of the host.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::activity::DeviceId;
use mounts::Mounts;

mod mounts;

/// What lies under an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// The devices that get its requests, for
    /// [`Probe::watch_devices`](super::Probe::watch_devices): whole disks, and
    /// loop devices on the way to them.
    pub devices: BTreeSet<DeviceId>,
    /// What could not be followed to a device, each with the reason.
    pub unknown: Vec<String>,
}

/// Where this host describes its devices: sysfs, `/dev` and its mounts.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/"),
        }
    }
}

impl Host {
    /// The devices under `image`: the device of its file system, as in
    /// [`FileId`](super::activity::FileId), or what `st_rdev` says where the
    /// image is a block device.
    #[must_use]
    pub fn devices_under(&self, image: DeviceId) -> Backing {
        let mut walk = Walk {
            host: self,
            mounts: Mounts::parse(&self.read("proc/self/mountinfo").unwrap_or_default()),
            seen: BTreeSet::new(),
            backing: Backing::default(),
        };
        walk.visit(image);
        walk.backing
    }

    /// What the kernel calls a block device, as `vda`.
    #[must_use]
    pub fn name(&self, device: DeviceId) -> Option<String> {
        file_name(&self.folder(device)?)
    }

    /// The device's own folder in sysfs.
    fn folder(&self, device: DeviceId) -> Option<PathBuf> {
        let numbers = format!("sys/dev/block/{}", numbers(device));
        fs::canonicalize(self.root.join(numbers)).ok()
    }

    /// The block device behind a path in `/dev`, which may be a link.
    fn device_at(&self, path: &Path) -> Option<DeviceId> {
        let node = fs::canonicalize(self.root.join(path.strip_prefix("/").ok()?)).ok()?;
        let name = node.strip_prefix(self.root.join("dev")).ok()?;
        device_of(&self.root.join("sys/class/block").join(name))
    }

    /// All devices of the btrfs that `device` is one of, as sysfs has them.
    fn btrfs_members(&self, device: DeviceId) -> Vec<DeviceId> {
        let members = |system: PathBuf| children(&system.join("devices"));
        let systems = children(&self.root.join("sys/fs/btrfs"));
        let of_one = |system| -> Vec<DeviceId> {
            members(system)
                .iter()
                .filter_map(|member| device_of(member))
                .collect()
        };
        let mut systems = systems.into_iter().map(of_one);
        systems
            .find(|members| members.contains(&device))
            .unwrap_or_else(|| vec![device])
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }
}

/// From one image down to disks.
struct Walk<'a> {
    host: &'a Host,
    mounts: Mounts,
    seen: BTreeSet<DeviceId>,
    backing: Backing,
}

impl Walk<'_> {
    fn visit(&mut self, device: DeviceId) {
        if !self.seen.insert(device) {
            return;
        }
        match self.host.folder(device) {
            Some(folder) => self.visit_block(device, &folder),
            None => self.visit_file_system(device),
        }
    }

    fn visit_block(&mut self, device: DeviceId, folder: &Path) {
        if folder.join("partition").exists() {
            match folder.parent().and_then(device_of) {
                Some(disk) => self.visit(disk),
                None => self.not_followed(device, "its disk is not in sysfs"),
            }
            return;
        }
        let slaves = children(&folder.join("slaves"));
        if !slaves.is_empty() {
            for slave in slaves {
                match device_of(&slave) {
                    Some(slave) => self.visit(slave),
                    None => self.not_followed(device, "a device under it has no number"),
                }
            }
            return;
        }
        if is_nvme_multipath(folder) {
            let reason = "its paths (NVMe multipath) have no numbers in sysfs";
            return self.not_followed(device, reason);
        }
        self.backing.devices.insert(device);
        if let Ok(file) = fs::read_to_string(folder.join("loop/backing_file")) {
            self.visit_backing_file(device, Path::new(file.trim_end_matches('\n')));
        }
    }

    /// The file under a loop device: its own file system's device, or a device.
    fn visit_backing_file(&mut self, device: DeviceId, file: &Path) {
        let below = self.host.device_at(file);
        match below.or_else(|| self.mounts.device_of(file)) {
            Some(below) => self.visit(below),
            None => self.not_followed(device, "its file is on no file system seen from here"),
        }
    }

    /// A file system whose device is only a number: what it was mounted from
    /// tells more.
    fn visit_file_system(&mut self, device: DeviceId) {
        let Some(mount) = self.mounts.find(device) else {
            return self.not_followed(device, "it is neither in sysfs nor mounted here");
        };
        let (kind, source) = (mount.kind.clone(), mount.source.clone());
        match self.host.device_at(Path::new(&source)) {
            Some(below) if kind == "btrfs" => {
                for member in self.host.btrfs_members(below) {
                    self.visit(member);
                }
            }
            Some(below) => self.visit(below),
            None if source.starts_with("/dev/") => {
                self.not_followed(device, &format!("{source} is not among the devices here"));
            }
            None => self.not_followed(device, &format!("{kind} is on no block device of its own")),
        }
    }

    fn not_followed(&mut self, device: DeviceId, reason: &str) {
        let name = self.host.name(device);
        let name = name.unwrap_or_else(|| format!("device {}", numbers(device)));
        self.backing.unknown.push(format!("{name}: {reason}"));
    }
}

/// A disk with several paths to it: the requests go to the paths.
fn is_nvme_multipath(folder: &Path) -> bool {
    folder
        .components()
        .any(|part| part.as_os_str() == "nvme-subsystem")
}

/// The number of the block device whose folder in sysfs this is.
fn device_of(folder: &Path) -> Option<DeviceId> {
    let text = fs::read_to_string(folder.join("dev")).ok()?;
    parse_numbers(text.trim())
}

fn parse_numbers(text: &str) -> Option<DeviceId> {
    let (major, minor) = text.split_once(':')?;
    Some(DeviceId {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

fn numbers(device: DeviceId) -> String {
    format!("{}:{}", device.major, device.minor)
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_string_lossy().into_owned())
}

/// What is in a folder; nothing if there is none.
fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

#[cfg(test)]
mod tests;
