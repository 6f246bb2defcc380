//! A guest under KVM that does one thing as fast as it can, and how fast that
//! is.
#![expect(
    clippy::disallowed_methods,
    reason = "the edge: speeds are taken by the clock"
)]

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pacer_tests::disk::{DiskAio, DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk, BareWalk};
use pacer_tests::process::pause;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};

use super::image::{Image, Place};
use super::measuring::measure_once;

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one window counts.
pub(super) const WINDOW: Duration = Duration::from_secs(2);
/// From an attach or a detach until the window begins.
const SETTLE: Duration = Duration::from_secs(1);
/// In one window of [`Load::LoggedMemory`]: measurements of QEMU's, each of which
/// ends with a sync, about as long as a pass of a migration is at its end.
pub(super) const SYNCS: u32 = 15;
const SYNC_MILLISECONDS: u32 = 100;
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
    /// Dirties its memory while QEMU logs that and reads the log, again and
    /// again, as in a migration.
    LoggedMemory,
}

impl Load {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Disk => "writing its disk at full speed",
            Self::Memory => "dirtying memory at full speed under KVM, no log",
            Self::LoggedMemory => {
                "dirtying memory at full speed under KVM while QEMU reads its dirty log"
            }
        }
    }

    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::LoggedMemory => "logged-memory",
        }
    }

    /// What the guest's speed is in.
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::Disk => "writes/s",
            Self::Memory | Self::LoggedMemory => "pages/s",
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
                    // QEMU would make one write of many that follow each other.
                    walk: BareWalk::Random(NonZeroU32::MIN),
                    ..BareDisk::new(BareDirection::Write, Image::BYTES)
                }),
                ..BareGuest::PLAIN
            },
            Self::Memory | Self::LoggedMemory => BareGuest {
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
    image: Option<Image>,
}

/// What the guest did meanwhile.
#[derive(Clone, Copy)]
pub(super) struct Done {
    /// Pages or requests.
    pub(super) count: u32,
    pub(super) seconds: f64,
}

impl Done {
    pub(super) fn per_second(self) -> f64 {
        f64::from(self.count) / self.seconds
    }
}

impl BusyGuest {
    pub(super) fn start(load: Load, version: QemuVersion) -> Result<Self> {
        let image = match load {
            Load::Disk => Some(Image::create(Place::Memory)?),
            Load::Memory | Load::LoggedMemory => None,
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
        Ok(Self { load, vm, image })
    }

    pub(super) const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Its disk's image, if it has one.
    pub(super) fn image(&self) -> Option<&Path> {
        self.image.as_ref().map(Image::path)
    }

    /// Bytes of one request to its disk.
    pub(super) fn request_bytes(&self) -> u64 {
        let disk = self.load.guest().disk;
        disk.map_or(0, |disk| disk.request_bytes.into())
    }

    /// What the guest does in one window.
    pub(super) fn window(&self) -> Result<Done> {
        pause(SETTLE)?;
        self.during(|| match self.load {
            Load::Disk | Load::Memory => pause(WINDOW),
            Load::LoggedMemory => (0..SYNCS)
                .try_for_each(|_| measure_once(&self.vm, QemuVersion::System, SYNC_MILLISECONDS)),
        })
    }

    /// What the guest does while `work` is done.
    pub(super) fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Done> {
        let (count, start) = (self.count()?, Instant::now());
        work()?;
        let (end_count, seconds) = (self.count()?, start.elapsed().as_secs_f64());
        // The guest's counters have 32 bits.
        let count = u32::try_from(end_count.wrapping_sub(count) & u64::from(u32::MAX))?;
        ensure!(count > 0, "the guest stood still");
        Ok(Done { count, seconds })
    }

    fn count(&self) -> Result<u64> {
        let memory = self.vm.pmemsave(CONTROL_BYTES)?;
        let guest = self.load.guest();
        let count = match self.load {
            Load::Disk => guest
                .counters(&memory)
                .map(|counters| counters.requests_completed.into()),
            Load::Memory | Load::LoggedMemory => {
                guest.state(&memory).map(|state| state.total_writes)
            }
        };
        count.context("the guest's control page")
    }
}
