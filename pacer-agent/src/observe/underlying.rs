//! The block devices under the images, found and watched as images come.

use std::collections::{BTreeMap, BTreeSet};

use crate::probe::Probe;
use crate::probe::activity::DeviceId;
use crate::probe::block_devices::{Backing, Host};
use crate::probe::open_files::Image;

/// What lies under one process' images.
#[derive(Debug, Default)]
pub(super) struct Underlying {
    host: Host,
    /// By the device that an image is or is on. Found once: a disk is not put
    /// under another file system while it is in use.
    backings: BTreeMap<DeviceId, Backing>,
    watched: BTreeSet<DeviceId>,
    names: BTreeMap<DeviceId, String>,
    /// Why they are not watched.
    refused: Option<String>,
}

impl Underlying {
    /// Has the probe watch what lies under `images`.
    pub(super) fn watch(&mut self, probe: &mut Probe, images: &[Image]) {
        for image in images {
            let host = &self.host;
            self.backings
                .entry(image.on)
                .or_insert_with(|| host.devices_under(image.on));
        }
        let devices = self.backings.values().flat_map(|backing| &backing.devices);
        let devices: BTreeSet<DeviceId> = devices.copied().collect();
        if devices == self.watched {
            return;
        }
        let list: Vec<DeviceId> = devices.iter().copied().collect();
        self.refused = probe
            .watch_devices(&list)
            .map_err(|error| format!("block devices: {:#}", anyhow::Error::new(error)))
            .err();
        for &device in &devices {
            if let Some(name) = self.host.name(device) {
                self.names.insert(device, name);
            }
        }
        self.watched = devices;
    }

    /// What is not seen of them, and why.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let unknown = self.backings.values().flat_map(|backing| &backing.unknown);
        unknown.cloned().chain(self.refused.clone())
    }

    /// The one block device that holds what is on a device, where it is one.
    pub(super) fn block_devices(&self) -> BTreeMap<DeviceId, DeviceId> {
        let single = |(&on, backing): (&DeviceId, &Backing)| {
            if backing.devices.contains(&on) {
                return Some((on, on));
            }
            let mut devices = backing.devices.iter();
            let device = devices.next().filter(|_| devices.next().is_none())?;
            Some((on, *device))
        };
        self.backings.iter().filter_map(single).collect()
    }

    /// The devices' names.
    pub(super) const fn names(&self) -> &BTreeMap<DeviceId, String> {
        &self.names
    }
}
