//! Guests that could not arrive: nothing is begun, and the message says why and what
//! to do. And one that can: all is said, and QEMU's settings are as they were.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::disk::DiskOptions;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, VmOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

const TIMEOUT: Duration = Duration::from_secs(90);
const BARE: BareGuest = BareGuest {
    ram_mib: 128,
    fill_mib: 64,
    working_set_pages: 500,
    pages_per_second: 500,
    ..BareGuest::PLAIN
};
const MIB: u64 = 1 << 20;

fn bare() -> Result<VmOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    Ok(VmOptions::new(Guest::Bare(BARE), qemu, Accel::detect()?))
}

fn args(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(OsString::from).collect()
}

/// `pacer source` refuses, saying all of `words`, and nothing has happened.
fn check_refused(options: &PairOptions, words: &[&str]) -> Result<()> {
    let pair = Pair::start(options)?;
    let code = pair.source_agent.wait(TIMEOUT)?;
    let log = pair.source_agent.log();
    ensure!(code == 2, "exit code {code}\n{log}");
    for word in words {
        ensure!(log.contains(word), "no `{word}` in\n{log}");
    }
    ensure!(pair.source.status()? == "running");
    ensure!(pair.source.migration_status()? == "none");
    // It waits for the next.
    ensure!(pair.destination.status()? == "inmigrate");
    ensure!(pair.destination_agent.try_wait()?.is_none());
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn another_size_of_ram_is_refused() -> Result<()> {
    let mut options = PairOptions::new(bare()?);
    options.change_destination = Some(|vm| {
        vm.guest = Guest::Bare(BareGuest {
            ram_mib: 256,
            ..BARE
        });
    });
    let words = [
        "128 MiB at the source",
        "256 MiB at the destination",
        "-m 128M",
    ];
    check_refused(&options, &words)
}

#[test]
#[ignore = "needs QEMU"]
fn another_machine_type_is_refused() -> Result<()> {
    let mut options = PairOptions::new(bare()?);
    options.change_destination = Some(|vm| vm.extra_args = args("-machine pc-i440fx-7.1"));
    let words = ["machine type", "pc-i440fx-7.1", "-machine pc-i440fx-7.2"];
    check_refused(&options, &words)
}

#[test]
#[ignore = "needs QEMU"]
fn a_device_that_is_missing_is_refused() -> Result<()> {
    let mut vm = bare()?;
    vm.extra_args = args("-device e1000,romfile=");
    let mut options = PairOptions::new(vm);
    options.change_destination = Some(|vm| vm.extra_args.clear());
    check_refused(&options, &["devices", "8086:100e", "not there"])
}

/// A guest with a disk of 8 MiB.
fn with_disk(folder: &TempDir) -> Result<PairOptions> {
    let disk = DiskOptions::new("data", folder.path().join("source.img"));
    disk.create_image(8 * MIB)?;
    let mut vm = bare()?;
    vm.disks.push(disk);
    Ok(PairOptions::new(vm))
}

#[test]
#[ignore = "needs QEMU"]
fn a_disk_that_is_missing_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let mut options = with_disk(&folder)?;
    options.change_destination = Some(|vm| vm.disks.clear());
    check_refused(
        &options,
        &["disk", "8 MiB", "is not there at the destination"],
    )
}

#[test]
#[ignore = "needs QEMU"]
fn a_smaller_disk_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    let mut options = with_disk(&folder)?;
    DiskOptions::new("data", folder.path().join("destination.img")).create_image(4 * MIB)?;
    options.change_destination = Some(|vm| vm.disks[0].path.set_file_name("destination.img"));
    check_refused(&options, &["8 MiB at the source, only 4 MiB", "as large"])
}

#[test]
#[ignore = "needs QEMU"]
fn a_device_that_blocks_migration_is_refused() -> Result<()> {
    let mut vm = bare()?;
    vm.extra_args = args(
        "-blockdev driver=null-co,node-name=null,size=1048576,read-zeroes=on \
         -device nvme,serial=none,drive=null",
    );
    check_refused(
        &PairOptions::new(vm),
        &["cannot migrate this guest", "nvme"],
    )
}

fn parameters(pair: &Pair) -> Result<Value> {
    pair.source.qmp("query-migrate-parameters", json!({}))
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_that_can_arrive_does_and_settings_are_put_back() -> Result<()> {
    let mut options = PairOptions::new(bare()?);
    options.source.flags = args("--deadline 8s --source-after leave --on-infeasible converge");
    let mut before = Value::Null;
    let pair = Pair::start_after(&options, |vm| {
        before = vm.qmp("query-migrate-parameters", json!({}))?;
        Ok(())
    })?;
    let code = pair.source_agent.wait(TIMEOUT)?;
    let report = pair.report()?;
    ensure!(
        code == 0,
        "exit code {code}\n{report:#}\n{}",
        pair.source_agent.log()
    );
    let findings = report["preflight"].as_array().context("preflight")?;
    ensure!(findings.len() >= 10, "{findings:#?}");
    for finding in findings {
        ensure!(finding["verdict"] == "supported", "{finding:#}");
    }
    ensure!(pair.source_agent.log().contains("the link takes about"));
    let after = parameters(&pair)?;
    ensure!(before == after, "{before:#}\n{after:#}");
    let capabilities = pair.source.qmp("query-migrate-capabilities", json!({}))?;
    let on: Vec<&Value> = capabilities
        .as_array()
        .into_iter()
        .flatten()
        .filter(|capability| capability["capability"] == "auto-converge")
        .collect();
    ensure!(
        on.iter().all(|capability| capability["state"] == false),
        "{on:?}"
    );
    pair.verify_destination()?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_arrives_on_time_over_a_link_that_was_away() -> Result<()> {
    let mut options = PairOptions::new(bare()?);
    options.source.flags = args("--deadline 20s");
    let model = "0:20MB/s,7:down,12:20MB/s";
    options.source.environment = vec![("PACER_LINK_MODEL".into(), model.into())];
    let pair = Pair::start(&options)?;
    let code = pair.source_agent.wait(TIMEOUT)?;
    let report = pair.report()?;
    let log = pair.source_agent.log();
    ensure!(report["outcome"] == "completed", "{report:#}\n{log}");
    ensure!(code == 0, "exit code {code}\n{report:#}\n{log}");
    ensure!(log.contains("THE LINK IS MODELLED"), "{log}");
    pair.verify_destination()?;
    Ok(())
}
