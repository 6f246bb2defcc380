//! What QEMU's own dirty-rate measurements cost the guest: `pacer observe
//! --qmp` asks for them so that there is a dirty log to see before a migration.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::process::{pause, wait_until};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::{Value, json};

use super::{Bencher, errors};
use crate::bench::target::Part;

const ROW: &str = "measuring";
const TIMEOUT: Duration = Duration::from_secs(60);
const CONTROL_BYTES: u64 = 0x9000;
const GUEST: BareGuest = BareGuest {
    ram_mib: 512,
    working_set_pages: 100_000,
    ..BareGuest::PLAIN
};

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for version in [QemuVersion::System, QemuVersion::V7_2] {
        let runs = runs(bencher, version)?;
        let set = match version {
            QemuVersion::System => "50, 100, 200 and 500 ms",
            QemuVersion::V7_2 => "1 s",
        };
        let what = format!(
            "stated: guest time lost to one set of QEMU's own measurements ({set}) at full \
             dirtying speed, QEMU {version}"
        );
        match errors(&runs, &what) {
            Some(part) => parts.push(part),
            None => {
                parts.push(Part::median(
                    what,
                    &Bencher::figures(&runs, "lost_ms"),
                    "ms",
                ));
            }
        }
    }
    Ok(parts)
}

fn runs(bencher: &mut Bencher<'_>, version: QemuVersion) -> Result<Vec<Value>> {
    let repeats = bencher.plan.repeats(15, 3);
    let mut vm = None;
    let parameters =
        json!({"qemu": version.to_string(), "working_set_pages": GUEST.working_set_pages});
    (0..repeats)
        .map(|index| {
            bencher.records.run(ROW, index, &parameters, || {
                let vm = match &mut vm {
                    Some(vm) => vm,
                    none => none.insert(start(version)?),
                };
                lost(vm, version)
            })
        })
        .collect()
}

fn start(version: QemuVersion) -> Result<Vm> {
    let qemu = QemuInstall::find(version)?;
    let mut options = VmOptions::new(Guest::Bare(GUEST), qemu, Accel::Kvm);
    options.own_group = true;
    let vm = Vm::start(&options)?;
    vm.wait_started(TIMEOUT)?;
    Ok(vm)
}

/// A second without, a set of measurements, a second without.
fn lost(vm: &Vm, version: QemuVersion) -> Result<Value> {
    let alone = || speed(vm, || pause(Duration::from_secs(1)));
    let (before, _) = alone()?;
    let (with, seconds) = speed(vm, || {
        let windows: &[u32] = match version {
            QemuVersion::System => &[50, 100, 200, 500],
            QemuVersion::V7_2 => &[1000],
        };
        windows
            .iter()
            .try_for_each(|&ms| measure_once(vm, version, ms))
    })?;
    let (after, _) = alone()?;
    let without = f64::midpoint(before, after);
    Ok(json!({
        "before": before,
        "with": with,
        "after": after,
        "seconds": seconds,
        "lost_ms": seconds * (1.0 - with / without) * 1000.0,
    }))
}

/// Pages a second while `work` is done, and how long it took.
fn speed(vm: &Vm, work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (writes, start) = (count(vm)?, Instant::now());
    work()?;
    let (done, seconds) = (count(vm)? - writes, start.elapsed().as_secs_f64());
    Ok((f64::from(u32::try_from(done)?) / seconds, seconds))
}

fn count(vm: &Vm) -> Result<u64> {
    let state = GUEST.state(&vm.pmemsave(CONTROL_BYTES)?);
    Ok(state.context("the guest's control page")?.total_writes)
}

fn measure_once(vm: &Vm, version: QemuVersion, milliseconds: u32) -> Result<()> {
    let arguments = match version {
        QemuVersion::System => json!({
            "mode": "dirty-bitmap", "calc-time": milliseconds, "calc-time-unit": "millisecond",
        }),
        QemuVersion::V7_2 => json!({"mode": "dirty-bitmap", "calc-time": milliseconds / 1000}),
    };
    vm.qmp("calc-dirty-rate", arguments)?;
    wait_until("QEMU has measured", TIMEOUT, || {
        let answer = vm.qmp("query-dirty-rate", json!({}))?;
        Ok((answer["status"] == "measured").then_some(()))
    })
}
