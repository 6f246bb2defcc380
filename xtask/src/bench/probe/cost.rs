//! What the kernel accounts to the programs: per disk write, and per GiB of
//! guest memory and sync.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pacer_tests::disk::DiskAio;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::observe::{ObserveOptions, Observer, ProbeFigures};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::{Value, json};

use super::image::{self, Image, Place};
use super::{Bencher, aio_name, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "cost";
/// Alone, where nothing is shared between writes, and many at a time.
const DEPTHS: [u32; 2] = [1, 64];
const WRITE_LIMIT_US: f64 = 2.0;
const SYNC_LIMIT_US_PER_GIB: f64 = 10.0;
/// The guest does not touch what is above 3 GiB; its log is as long as any.
const RAM_MIB: [u32; 3] = [4096, 8192, 16_384];
/// QEMU reads every log when it begins to measure and when it ends.
const LOGS_PER_MEASUREMENT: u32 = 2;
const MEASUREMENTS: u32 = 10;
const TIMEOUT: Duration = Duration::from_secs(20);

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let mut parts = writes(bencher)?;
    for ram_mib in RAM_MIB {
        parts.push(syncs(bencher, ram_mib)?);
    }
    Ok(parts)
}

fn writes(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let repeats = bencher.plan.repeats(8, 3);
    let mut parts = Vec::new();
    for aio in DiskAio::ALL {
        for depth in DEPTHS {
            let writes = 20_000;
            let parameters = json!({"aio": aio.name(), "depth": depth, "writes": writes});
            let pacer = bencher.plan.pacer.clone();
            let runs = (0..repeats)
                .map(|index| {
                    bencher.records.run(ROW, index, &parameters, || {
                        image::cost(&pacer, &Image::create(Place::Memory)?, (aio, depth, writes))
                    })
                })
                .collect::<Result<Vec<Value>>>()?;
            parts.push(write_part(&runs, aio, depth));
        }
    }
    Ok(parts)
}

fn write_part(runs: &[Value], aio: DiskAio, depth: u32) -> Part {
    let what = format!("per disk write, {}, {depth} at a time", aio_name(aio));
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    let costs = Bencher::figures(runs, "ns_per_write");
    let costs: Vec<f64> = costs.iter().map(|ns| ns / 1000.0).collect();
    Part::median(what, &costs, "µs").limit(Limit::AtMost(WRITE_LIMIT_US))
}

fn syncs(bencher: &mut Bencher<'_>, ram_mib: u32) -> Result<Part> {
    let what = format!(
        "per GiB of guest RAM and sync, {} GiB under KVM",
        ram_mib / 1024
    );
    let repeats = bencher.plan.repeats(5, 2);
    let parameters = json!({"ram_mib": ram_mib, "measurements": MEASUREMENTS});
    let pacer = bencher.plan.pacer.clone();
    let runs = (0..repeats)
        .map(|index| {
            bencher.records.run("cost-sync", index, &parameters, || {
                syncs_of_a_guest(&pacer, ram_mib)
            })
        })
        .collect::<Result<Vec<Value>>>()?;
    if let Some(part) = errors(&runs, &what) {
        return Ok(part);
    }
    let costs = Bencher::figures(&runs, "us_per_gib");
    Ok(Part::median(what, &costs, "µs").limit(Limit::AtMost(SYNC_LIMIT_US_PER_GIB)))
}

/// A guest that stands still, so that its calls are those about the logs.
fn syncs_of_a_guest(pacer: &Path, ram_mib: u32) -> Result<Value> {
    if Accel::detect()? != Accel::Kvm {
        bail!("no KVM: there is no dirty log");
    }
    let guest = BareGuest {
        ram_mib: 64,
        working_set_pages: 1000,
        pages_per_second: 1000,
        ..BareGuest::PLAIN
    };
    let qemu = QemuInstall::find(QemuVersion::System)?;
    let mut options = VmOptions::new(Guest::Bare(guest), qemu, Accel::Kvm);
    options.own_group = true;
    options.extra_args = vec!["-m".into(), ram_mib.to_string().into()];
    let vm = Vm::start(&options)?;
    vm.wait_started(TIMEOUT)?;
    vm.qmp("stop", json!({}))?;
    let mut observer = Observer::start(&ObserveOptions::new(pacer, vm.pid()))?;
    let before = observer.fresh()?.probe;
    for _ in 0..MEASUREMENTS {
        measure_dirty_rate(&vm)?;
    }
    let after = observer.fresh()?.probe;
    let run_ns = ioctl_ns(&before, &after).context("the kernel keeps no BPF statistics")?;
    let logs = f64::from(MEASUREMENTS * LOGS_PER_MEASUREMENT);
    let gib = f64::from(ram_mib) / 1024.0;
    Ok(json!({
        "run_ns": run_ns,
        "logs": logs,
        "us_per_gib": run_ns / 1000.0 / logs / gib,
    }))
}

/// Time in the programs that see system calls about logs.
fn ioctl_ns(before: &ProbeFigures, after: &ProbeFigures) -> Option<f64> {
    after.run_ns?;
    let costs = after.cost_since(before);
    let of_logs = costs
        .iter()
        .filter(|(name, _)| name.contains("ioctl") || name.contains("dirty"));
    let ns: u64 = of_logs.map(|(_, (ns, _))| ns).sum();
    u32::try_from(ns).ok().map(f64::from)
}

fn measure_dirty_rate(vm: &Vm) -> Result<()> {
    let arguments = json!({
        "calc-time": 50, "calc-time-unit": "millisecond", "mode": "dirty-bitmap",
    });
    vm.qmp("calc-dirty-rate", arguments)?;
    wait_until("QEMU has measured", TIMEOUT, || {
        let answer = vm.qmp("query-dirty-rate", json!({}))?;
        Ok((answer["status"] == "measured").then_some(()))
    })
}
