//! `pacer predict` of real guests: what it says comes true, and what cannot be
//! is said.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::predict::{predict, predict_json};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(120);
const CALM: BareGuest = BareGuest {
    ram_mib: 256,
    fill_mib: 128,
    working_set_pages: 2000,
    pages_per_second: 1500,
    ..BareGuest::PLAIN
};
/// 61 MB/s over 82 MB.
const BUSY: BareGuest = BareGuest {
    working_set_pages: 20_000,
    pages_per_second: 15_000,
    ..CALM
};
const RATE: &str = "20MB/s";

fn options(guest: BareGuest, accel: Accel) -> Result<VmOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    Ok(VmOptions::new(Guest::Bare(guest), qemu, accel))
}

fn start(guest: BareGuest, accel: Accel) -> Result<Vm> {
    let vm = Vm::start(&options(guest, accel)?)?;
    vm.wait_started(TIMEOUT)?;
    Ok(vm)
}

/// Whether there is KVM; without it pages are but estimated.
fn has_kvm() -> Result<bool> {
    let has_kvm = Accel::detect()? == Accel::Kvm;
    if !has_kvm {
        eprintln!("skipped: no KVM");
    }
    Ok(has_kvm)
}

fn number(value: &Value) -> Result<f64> {
    value
        .as_f64()
        .with_context(|| format!("{value} is no number"))
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn a_prediction_comes_true() -> Result<()> {
    if !has_kvm()? {
        return Ok(());
    }
    let mut predicted = Value::Null;
    let migration = PairOptions::new(options(CALM, Accel::Kvm)?).source_flags(["--rate", RATE]);
    let pair = Pair::start_after(&migration, |source| {
        let flags = ["--rate", RATE, "--deadline", "20s"];
        predicted = predict_json(&source.pacer_qmp(), &flags)?;
        Ok(())
    })?;
    ensure!(
        pair.source_agent.wait(TIMEOUT)? == 0,
        "{}",
        pair.source_agent.log_tail()
    );
    let report = pair.report()?;
    let row = &predicted["rates"][0];
    let [p05, p50, p95] = finish(row)?;
    let total = number(&report["total_seconds"])?;
    let error = (p50 - total) / total;
    eprintln!(
        "predicted {p50:.2} s ({p05:.2} to {p95:.2}), it took {total:.2} s: {:+.1} %",
        error * 100.0
    );
    ensure!(
        (p50 - total).abs() <= (total * 0.15).max(1.0),
        "{predicted:#}\n{report:#}"
    );
    let bytes = number(&report["bytes_on_wire"])?;
    let ratio = number(&row["bytes"]["p50"])? / bytes;
    ensure!(
        (0.85..1.15).contains(&ratio),
        "{ratio} of the bytes\n{predicted:#}"
    );
    let windows = predicted["windows"].as_array().context("windows")?;
    ensure!(
        windows.iter().any(|window| window["origin"] == "dirty-log")
            && windows.iter().all(|window| window["origin"] != "qemu"),
        "{predicted:#}"
    );
    // It is in time at the rate that the deadline asks for: a little less.
    let deadline = &predicted["deadline"];
    ensure!(deadline["verdict"] == "feasible", "{predicted:#}");
    ensure!(
        number(&deadline["rate_bytes_per_second"]["p95"])? < 20e6,
        "{predicted:#}"
    );
    pair.verify_destination()?;
    Ok(())
}

fn finish(row: &Value) -> Result<[f64; 3]> {
    let finish = &row["finish_seconds"];
    let point = |name: &str| number(&finish[name]).with_context(|| format!("{row:#}"));
    Ok([point("p05")?, point("p50")?, point("p95")?])
}

#[test]
#[ignore = "needs QEMU, root and a kernel with BPF"]
fn a_guest_that_writes_faster_than_the_rate_is_said_not_to_converge() -> Result<()> {
    if !has_kvm()? {
        return Ok(());
    }
    let vm = start(BUSY, Accel::Kvm)?;
    let flags = ["--rate", RATE, "--rate", "400MB/s", "--deadline", "1s"];
    let object = predict_json(&vm.pacer_qmp(), &flags)?;
    ensure!(object["rates"][0]["converges"] == false, "{object:#}");
    ensure!(
        object["rates"][0]["finish_seconds"]["p50"].is_null(),
        "{object:#}"
    );
    ensure!(object["rates"][1]["converges"] == true, "{object:#}");
    let knee = number(&object["knee_bytes_per_second"]["p50"])?;
    ensure!((40e6..100e6).contains(&knee), "{object:#}");
    let text = predict(
        &vm.pacer_qmp(),
        &["--max-rate", "30MB/s", "--deadline", "1s"],
    )?;
    ensure!(text.code == Some(0), "{text:?}");
    for words in [
        "QEMU ",
        "(kvm)  268 MB of RAM",
        "pages/s over 0.1 s",
        "will not converge",
        "<- the knee",
        "does not converge at any rate up to 30 MB/s",
        "cannot arrive within 1.0 s",
    ] {
        ensure!(
            text.output.contains(words),
            "no `{words}` in\n{}",
            text.output
        );
    }
    // Not a terminal: nothing is drawn.
    ensure!(
        !text
            .output
            .contains(|c: char| c == '\u{1b}' || ('\u{2800}'..='\u{28ff}').contains(&c)),
        "{}",
        text.output
    );
    ensure!(vm.status()? == "running");
    Ok(())
}

/// The fields that `docs/predict.md` names are those that are there.
#[test]
#[ignore = "needs QEMU"]
fn a_sampled_guest_is_doubtful_and_its_fields_are_documented() -> Result<()> {
    let vm = start(CALM, Accel::Tcg)?;
    let object = predict_json(&vm.pacer_qmp(), &["--deadline", "1h"])?;
    ensure!(object["qemu"]["accelerator"] == "tcg", "{object:#}");
    ensure!(
        object["windows"][0]["origin"] == "content-sampling",
        "{object:#}"
    );
    ensure!(object["notes"].to_string().contains("sample"), "{object:#}");
    let knee = &object["knee_bytes_per_second"];
    ensure!(
        number(&knee["p95"])? > number(&knee["p05"])? * 2.0,
        "{object:#}"
    );
    ensure!(
        object["rates"].as_array().map(Vec::len) >= Some(8),
        "{object:#}"
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/predict.md");
    let page = std::fs::read_to_string(path)?;
    for field in fields(&object) {
        ensure!(
            page.contains(&format!("`{field}`")),
            "no `{field}` in docs/predict.md"
        );
    }
    Ok(())
}

/// The names of all fields, but those of percentiles.
fn fields(value: &Value) -> Vec<String> {
    match value {
        Value::Object(object) => object
            .iter()
            .filter(|(name, _)| !["p05", "p50", "p95"].contains(&name.as_str()))
            .flat_map(|(name, value)| std::iter::once(name.clone()).chain(fields(value)))
            .collect(),
        Value::Array(array) => array.iter().flat_map(fields).collect(),
        _ => Vec::new(),
    }
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_that_migrates_is_not_predicted() -> Result<()> {
    let mut migration =
        PairOptions::new(options(CALM, Accel::detect()?)?).source_flags(["--rate", "1MB/s"]);
    migration.source.qmp = false;
    let pair = Pair::start(&migration)?;
    pair.type_migrate()?;
    wait_until("memory is sent", TIMEOUT, || {
        Ok((pair.source.migration_status()? == "active").then_some(()))
    })?;
    let refused = predict(&pair.source.pacer_qmp(), &[])?;
    ensure!(refused.code == Some(2), "{refused:?}");
    ensure!(refused.log.contains("under way already"), "{refused:?}");
    ensure!(refused.output.is_empty(), "{refused:?}");
    pair.source_agent.sigint()?;
    pair.source_agent.wait(TIMEOUT)?;
    Ok(())
}

#[test]
#[ignore = "needs pacer"]
fn a_wrong_socket_is_named_with_the_remedy() -> Result<()> {
    let absent = predict(Path::new("/nonexistent/qmp"), &[])?;
    ensure!(absent.code == Some(1), "{absent:?}");
    ensure!(absent.log.contains("/nonexistent/qmp"), "{absent:?}");
    ensure!(absent.log.contains("-qmp unix:"), "{absent:?}");
    let flags = ["--rate", "2MB/s", "--max-rate", "1MB/s"];
    let usage = predict(Path::new("/nonexistent/qmp"), &flags)?;
    ensure!(usage.code == Some(2), "{usage:?}");
    Ok(())
}
