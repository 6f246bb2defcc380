//! A guest under KVM that does one thing as fast as it can, and how fast that
//! is.
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: speeds are taken by the clock"
)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pacer_tests::disk::{DiskAio, DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};

use super::image::{Image, Place};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The control page and all before it.
const CONTROL_BYTES: u64 = 0x9000;

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// Writes its disk, whose image is in memory: no disk is faster, so that
    /// nothing hides what a write costs.
    Disk,
    /// Dirties its memory.
    Memory,
}

impl Load {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Disk => "writing its disk at full speed",
            Self::Memory => "dirtying memory at full speed under KVM",
        }
    }

    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    const fn guest(self) -> BareGuest {
        match self {
            Self::Disk => BareGuest {
                ram_mib: 64,
                working_set_pages: 1000,
                pages_per_second: 1000,
                disk: Some(BareDisk {
                    queue_depth: 32,
                    ..BareDisk::new(BareDirection::Write, Image::BYTES)
                }),
                ..BareGuest::PLAIN
            },
            Self::Memory => BareGuest {
                ram_mib: 512,
                working_set_pages: 100_000,
                ..BareGuest::PLAIN
            },
        }
    }
}

/// The guest.
pub(super) struct BusyGuest {
    load: Load,
    // Dropped before its image.
    vm: Vm,
    _image: Option<Image>,
}

impl BusyGuest {
    pub(super) fn start(load: Load, version: QemuVersion) -> Result<Self> {
        let image = match load {
            Load::Disk => Some(Image::create(Place::Memory)?),
            Load::Memory => None,
        };
        let qemu = QemuInstall::find(version)?;
        let mut options = VmOptions::new(Guest::Bare(load.guest()), qemu, Accel::Kvm);
        options.own_group = true;
        options
            .disks
            .extend(image.as_ref().map(|image| DiskOptions {
                aio: DiskAio::Native,
                cache: DiskCache::None,
                ..DiskOptions::new("disk", image.path())
            }));
        let vm = Vm::start(&options)?;
        vm.wait_started(START_TIMEOUT)?;
        Ok(Self {
            load,
            vm,
            _image: image,
        })
    }

    pub(super) const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Pages or requests a second while `work` is done, and how many seconds
    /// that took.
    pub(super) fn speed(&self, work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
        let (count, start) = (self.count()?, Instant::now());
        work()?;
        let (end_count, seconds) = (self.count()?, start.elapsed().as_secs_f64());
        // The guest's counters have 32 bits.
        let done = u32::try_from(end_count.wrapping_sub(count) & u64::from(u32::MAX))?;
        ensure!(done > 0, "the guest stood still");
        Ok((f64::from(done) / seconds, seconds))
    }

    fn count(&self) -> Result<u64> {
        let memory = self.vm.pmemsave(CONTROL_BYTES)?;
        let guest = self.load.guest();
        let count = match self.load {
            Load::Disk => guest
                .counters(&memory)
                .map(|counters| counters.requests_completed.into()),
            Load::Memory => guest.state(&memory).map(|state| state.total_writes),
        };
        count.context("the guest's control page")
    }
}
