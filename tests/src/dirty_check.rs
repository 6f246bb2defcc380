//! The pages that the probe counts at each sync, beside what is known of them:
//! by the guest itself, or by QEMU in a migration.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::dirty_count::{DirtyCount, NewlyDirty, Pace};
use crate::guest::bare::{BareGuest, BareState};
use crate::observe::{ObserveOptions, Observer, Sync};
use crate::process::{pause, wait_until};
use crate::qemu::{Accel, QemuInstall, QemuVersion};
use crate::vm::{Guest, Vm, VmOptions};

const TIMEOUT: Duration = Duration::from_secs(60);
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);
/// How long QEMU takes, at most, until its dirty log is switched on and empty.
const LEAD: Duration = Duration::from_millis(250);
/// From the guest's stop to the end of QEMU's measurement, at least.
const MARGIN: Duration = Duration::from_millis(50);

/// A bare guest under KVM with `pacer observe` looking on.
#[derive(Debug)]
pub struct DirtyCheck {
    guest: BareGuest,
    version: QemuVersion,
    // Dropped before the machine.
    observer: Observer,
    vm: Vm,
}

/// One window in which the guest ran and then stood still.
#[derive(Clone, Debug)]
pub struct WindowCheck {
    /// Distinct pages that the guest wrote, by its own word.
    pub guest_pages: u64,
    /// What the probe made of QEMU's look at the log.
    pub sync: Sync,
    /// How long the guest ran.
    pub ran: Duration,
}

/// One sync of a migration.
#[derive(Clone, Debug)]
pub struct SyncCheck {
    /// What QEMU counted.
    pub qemu: NewlyDirty,
    /// What the probe did.
    pub sync: Sync,
}

impl DirtyCheck {
    /// Starts the guest and attaches.
    ///
    /// # Errors
    /// Either fails.
    pub fn start(pacer: &Path, version: QemuVersion, options: VmOptions) -> Result<Self> {
        let Guest::Bare(guest) = options.guest else {
            anyhow::bail!("only the bare guest knows what it wrote");
        };
        ensure!(options.accel == Accel::Kvm, "only KVM has a dirty log");
        let vm = Vm::start(&options)?;
        vm.wait_started(TIMEOUT)?;
        let observe = ObserveOptions {
            interval: Duration::from_millis(100),
            ..ObserveOptions::new(pacer, vm.pid())
        };
        Ok(Self {
            observer: Observer::start(&observe)?,
            guest,
            version,
            vm,
        })
    }

    /// A machine for the guest, under KVM.
    ///
    /// # Errors
    /// That QEMU is not there.
    pub fn options(guest: BareGuest, version: QemuVersion) -> Result<VmOptions> {
        let qemu = QemuInstall::find(version)?;
        let mut options = VmOptions::new(Guest::Bare(guest), qemu, Accel::Kvm);
        options.own_group = true;
        Ok(options)
    }

    /// The machine.
    #[must_use]
    pub const fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Lets the guest run for `run` (at most 500 ms) within a measurement of
    /// QEMU's, and stand still before and after. `None` if this machine was too
    /// slow for it.
    ///
    /// # Errors
    /// QEMU's own; the probe saw no sync; the guest has devices.
    pub fn window(&mut self, run: Duration) -> Result<Option<WindowCheck>> {
        self.vm.qmp("stop", json!({}))?;
        let from = self.state()?;
        let seen = self.observer.syncs().len();
        let length = self.measurement(LEAD + run + 2 * MARGIN);
        let start = Instant::now();
        self.calc_dirty_rate(length)?;
        pause(LEAD)?;
        let begun = Instant::now();
        self.vm.qmp("cont", json!({}))?;
        pause(run)?;
        self.vm.qmp("stop", json!({}))?;
        let (ran, late) = (begun.elapsed(), start.elapsed() + MARGIN > length);
        let to = self.state()?;
        wait_until("QEMU has measured", TIMEOUT, || {
            let answer = self.vm.qmp("query-dirty-rate", json!({}))?;
            Ok((answer["status"] == "measured").then_some(()))
        })?;
        let sync = self.last_sync(seen)?;
        let guest_pages = self.guest.pages_written(from, to);
        let Some(guest_pages) = guest_pages.filter(|_| !late) else {
            return Ok(None);
        };
        Ok(Some(WindowCheck {
            guest_pages,
            sync,
            ran,
        }))
    }

    /// Migrates to nowhere at this speed until QEMU has synced `syncs` times
    /// (2 or more) after the first pass began.
    ///
    /// # Errors
    /// QEMU's own; the probe and QEMU do not agree how many syncs there were.
    pub fn migrate(&self, bytes_per_second: u64, syncs: u64) -> Result<Vec<SyncCheck>> {
        let seen = self.observer.syncs().len();
        let pace = Pace {
            bytes_per_second,
            switchover_bandwidth: self.version == QemuVersion::System,
        };
        self.vm.qmp("cont", json!({}))?;
        let mut count = DirtyCount::start(&self.vm, pace)?;
        count.watch(syncs + 1, TIMEOUT)?;
        count.cancel()?;
        let found = count.newly_dirty();
        let wanted = usize::try_from(syncs)?;
        // The sync number 1 begins the first pass, and all pages are dirty.
        wait_until("the probe has seen the syncs", SYNC_TIMEOUT, || {
            Ok((self.observer.syncs().len() >= seen + wanted).then_some(()))
        })
        .with_context(|| self.observer.log())?;
        let syncs = self.observer.syncs();
        let by_number = |number: u64| {
            let index = seen + usize::try_from(number.checked_sub(2)?).ok()?;
            syncs.get(index).cloned()
        };
        let checks = found.into_iter().filter_map(|qemu| {
            Some(SyncCheck {
                sync: by_number(qemu.sync)?,
                qemu,
            })
        });
        Ok(checks.collect())
    }

    /// Ends it; what the probe missed.
    ///
    /// # Errors
    /// `pacer observe` does not end as it should.
    pub fn finish(self) -> Result<u64> {
        let observed = self.observer.stop()?;
        Ok(observed.last().probe.missed())
    }

    fn state(&self) -> Result<BareState> {
        let memory = self.vm.pmemsave(self.guest.used_bytes())?;
        Ok(self.guest.state(&memory)?)
    }

    /// A length that this QEMU can measure.
    const fn measurement(&self, at_least: Duration) -> Duration {
        match self.version {
            QemuVersion::System => at_least,
            QemuVersion::V7_2 => Duration::from_secs(at_least.as_secs() + 1),
        }
    }

    fn calc_dirty_rate(&self, length: Duration) -> Result<()> {
        let mut arguments = json!({"mode": "dirty-bitmap", "calc-time": length.as_secs()});
        if self.version == QemuVersion::System {
            arguments["calc-time"] = json!(length.as_millis());
            arguments["calc-time-unit"] = json!("millisecond");
        }
        self.vm.qmp("calc-dirty-rate", arguments)?;
        Ok(())
    }

    /// The last sync since there were `seen`. With the guest stopped QEMU does
    /// not switch the log off after a measurement, so that the next one begins
    /// with a sync of its own, of the pages known already.
    fn last_sync(&mut self, seen: usize) -> Result<Sync> {
        self.observer.fresh()?;
        let syncs = self.observer.syncs();
        let last = syncs.get(seen..).and_then(<[Sync]>::last).cloned();
        last.with_context(|| format!("the probe saw no sync\n{}", self.observer.log()))
    }
}
