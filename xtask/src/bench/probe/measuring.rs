//! What QEMU's own dirty-rate measurements cost the guest: `pacer observe
//! --qmp` asks for them so that there is a dirty log to see before a migration.

use std::time::Duration;

use anyhow::Result;
use pacer_tests::process::{pause, wait_until};
use pacer_tests::qemu::QemuVersion;
use pacer_tests::vm::Vm;
use serde_json::{Value, json};

use super::busy::{BusyGuest, Load};
use super::{Bencher, errors};
use crate::bench::target::Part;

const ROW: &str = "measuring";
const TIMEOUT: Duration = Duration::from_secs(60);
/// Without a measurement, before and after one.
const ALONE: Duration = Duration::from_secs(1);

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
    let repeats = bencher.plan.repeats(10, 1);
    let mut guest = None;
    let parameters = json!({"qemu": version.to_string()});
    (0..repeats)
        .map(|index| {
            bencher.records.run(ROW, index, &parameters, || {
                let guest = match &mut guest {
                    Some(guest) => guest,
                    none => none.insert(BusyGuest::start(Load::Memory, version)?),
                };
                lost(guest, version)
            })
        })
        .collect()
}

/// A second without, a set of measurements, a second without.
fn lost(guest: &BusyGuest, version: QemuVersion) -> Result<Value> {
    let windows: &[u32] = match version {
        QemuVersion::System => &[50, 100, 200, 500],
        QemuVersion::V7_2 => &[1000],
    };
    let before = guest.during(|| pause(ALONE))?.per_second();
    let done = guest.during(|| {
        let mut windows = windows.iter();
        windows.try_for_each(|&milliseconds| measure_once(guest.vm(), version, milliseconds))
    })?;
    let after = guest.during(|| pause(ALONE))?.per_second();
    let (with, seconds) = (done.per_second(), done.seconds);
    let without = f64::midpoint(before, after);
    Ok(json!({
        "before": before,
        "with": with,
        "after": after,
        "seconds": seconds,
        "lost_ms": seconds * (1.0 - with / without) * 1000.0,
    }))
}

/// One measurement of QEMU's, until it is done.
pub(super) fn measure_once(vm: &Vm, version: QemuVersion, milliseconds: u32) -> Result<()> {
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
