//! `pacer ctl`: a migration is asked, changed, held and taken back while it runs.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pacer_tests::agent::pacer_binary;
use pacer_tests::disk::DiskOptions;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, VmOptions};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(120);
const BARE: BareGuest = BareGuest {
    ram_mib: 256,
    fill_mib: 128,
    working_set_pages: 2000,
    pages_per_second: 1500,
    ..BareGuest::PLAIN
};

fn start(flags: &[&str]) -> Result<Pair> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let vm = VmOptions::new(Guest::Bare(BARE), qemu, Accel::detect()?);
    Pair::start(&PairOptions::new(vm).source_flags(flags))
}

/// What `pacer ctl` says of this migration, and its exit code.
fn ctl(pair: &Pair, words: &[&str]) -> Result<(i32, String)> {
    let pid = pair.source_agent.pid().to_string();
    let output = Command::new(pacer_binary()?)
        .arg("ctl")
        .args(words)
        .args(["--pid", &pid])
        .output()?;
    let text = String::from_utf8([output.stdout, output.stderr].concat())?;
    Ok((output.status.code().context("a code")?, text))
}

fn status(pair: &Pair) -> Result<Value> {
    let (code, text) = ctl(pair, &["status", "--json"])?;
    ensure!(code == 0, "{text}");
    serde_json::from_str(&text).context(text)
}

/// Waits until memory is copied, and the status says so.
fn wait_copying(pair: &Pair) -> Result<Value> {
    wait_until("memory is copied", TIMEOUT, || {
        let Ok(status) = status(pair) else {
            return Ok(None);
        };
        let sent = status["bytes_on_wire"].as_u64() > Some(1 << 20);
        Ok((status["phase"] == "copying" && sent).then_some(status))
    })
    .with_context(|| pair.source_agent.log_tail())
}

fn done(pair: &Pair, words: &[&str]) -> Result<String> {
    let (code, text) = ctl(pair, words)?;
    ensure!(code == 0, "{words:?}: {code} {text}");
    Ok(text)
}

#[test]
#[ignore = "needs QEMU"]
fn a_deadline_that_is_moved_is_met() -> Result<()> {
    let pair = start(&["--deadline", "120s"])?;
    let before = wait_copying(&pair)?;
    ensure!(before["deadline_seconds"] == 120.0, "{before:#}");
    ensure!(before["verdict"] == "feasible", "{before:#}");
    ensure!(before["held"] == false && before["percent"].as_f64() < Some(100.0));
    let socket = format!("/run/pacer/source-{}.ctl", pair.source_agent.pid());
    let mode = std::fs::metadata(&socket)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");

    let said = done(&pair, &["set", "--deadline", "18s"])?;
    ensure!(said.contains("18.0 s after the start"), "{said}");
    ensure!(status(&pair)?["deadline_seconds"] == 18.0);
    let (code, said) = ctl(&pair, &["set", "--finish-at", "2001-01-01T00:00:00Z"])?;
    ensure!(code == 2 && said.contains("is past"), "{code} {said}");

    let code = pair.source_agent.wait(TIMEOUT)?;
    let report = pair.report()?;
    let error = report["deadline_error_seconds"].as_f64().context("error")?;
    ensure!(error.abs() <= 1.0, "{error} s off\n{report:#}");
    ensure!(code == if error.abs() <= 0.5 { 0 } else { 3 });
    ensure!(report["deadline_seconds"] == 18.0);
    let changes = report["deadline_changes"].as_array().context("changes")?;
    ensure!(changes.len() == 1 && changes[0]["deadline_seconds"] == 18.0);
    pair.verify_destination()?;
    ensure!(!std::path::Path::new(&socket).exists());
    let (code, said) = ctl(&pair, &["status"])?;
    ensure!(
        code == 1 && said.contains("no `pacer source`"),
        "{code} {said}"
    );
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_rate_that_is_set_counts_within_a_tick_and_a_cancel_takes_it_back() -> Result<()> {
    let pair = start(&["--rate", "8MB/s"])?;
    wait_copying(&pair)?;
    let asked = Instant::now();
    done(&pair, &["set", "--rate", "16MB/s"])?;
    wait_until("the rate is another", TIMEOUT, || {
        let rate = &status(&pair)?["commanded_bytes_per_second"];
        Ok((*rate == 16_000_000).then_some(()))
    })?;
    let took = asked.elapsed();
    // Three programs were started meanwhile.
    ensure!(took < Duration::from_millis(500), "{took:?}");
    let (code, said) = ctl(&pair, &["set", "--max-rate", "9MB/s"])?;
    ensure!(code == 2 && said.contains("above --max-rate"), "{said}");
    let text = done(&pair, &["status"])?;
    ensure!(text.contains("16 MB/s commanded"), "{text}");
    let list = done(&pair, &["list"])?;
    ensure!(
        list.contains(&format!("QEMU {}", pair.source.pid())),
        "{list}"
    );

    done(&pair, &["cancel"])?;
    ensure!(pair.source_agent.wait(TIMEOUT)? == 4);
    let report = pair.report()?;
    ensure!(report["outcome"] == "cancelled", "{report:#}");
    ensure!(pair.source.status()? == "running");
    pair.source.verify_bare(&BARE)?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_held_migration_waits_at_the_brink_and_arrives_when_released() -> Result<()> {
    let pair = start(&["--max-rate", "60MB/s"])?;
    // While the guest is still looked at.
    wait_until("pacer ctl answers", TIMEOUT, || {
        Ok((ctl(&pair, &["hold"])?.0 == 0).then_some(()))
    })?;
    wait_copying(&pair)?;
    let brink = wait_until("it is at the brink", TIMEOUT, || {
        let status = status(&pair)?;
        let seconds = |value: &Value| value.as_f64().unwrap_or(f64::INFINITY);
        let left = seconds(&status["finish_seconds"][1]) - seconds(&status["elapsed_seconds"]);
        let is_still = status["commanded_bytes_per_second"].as_u64() < Some(1 << 20);
        Ok((left < 2.0 && is_still && status["held"] == true).then_some(status))
    })?;
    // Without the hold it would have arrived within a second or two.
    let until = Instant::now() + Duration::from_secs(6);
    wait_until("it is held for a while", TIMEOUT, || {
        ensure!(pair.source_agent.try_wait()?.is_none(), "it has ended");
        Ok((Instant::now() > until).then_some(()))
    })?;
    ensure!(pair.source.status()? == "running", "{brink:#}");
    let released = Instant::now();
    done(&pair, &["release"])?;
    ensure!(pair.source_agent.wait(TIMEOUT)? == 0);
    let took = released.elapsed();
    ensure!(took < Duration::from_secs(5), "{took:?}");
    let report = pair.report()?;
    ensure!(report["outcome"] == "completed", "{report:#}");
    pair.verify_destination()?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_does_not_arrive_before_it_may() -> Result<()> {
    let not_before = jiff::Timestamp::now() + Duration::from_secs(25);
    let flags = [
        "--max-rate",
        "60MB/s",
        "--not-before",
        &not_before.to_string(),
    ];
    let pair = start(&flags)?;
    ensure!(pair.source_agent.wait(TIMEOUT)? == 0);
    let report = pair.report()?;
    let finished = report["finished_at"].as_str().context("a time")?;
    let late = finished
        .parse::<jiff::Timestamp>()?
        .duration_since(not_before);
    ensure!(
        (0.0..5.0).contains(&late.as_secs_f64()),
        "{late:?} after it may\n{report:#}"
    );
    let reasons = report["rates"].as_array().context("rates")?;
    ensure!(reasons.iter().any(|rate| {
        rate["reason"]
            .as_str()
            .is_some_and(|why| why.contains("held"))
    }));
    pair.verify_destination()?;
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn the_guests_disk_comes_first() -> Result<()> {
    const DISK: BareDisk = BareDisk {
        per_second: 100,
        ..BareDisk::new(BareDirection::Write, 16 << 20)
    };
    let folder = tempfile::tempdir()?;
    let disk = DiskOptions::new("slow", folder.path().join("image"));
    disk.create_image(16 << 20)?;
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let guest = BareGuest {
        disk: Some(DISK),
        ..BARE
    };
    let mut vm = VmOptions::new(Guest::Bare(guest), qemu, Accel::detect()?);
    vm.disks = vec![disk];
    let flags = ["--max-rate", "8MB/s", "--disk-latency-limit", "30ms"];
    let pair = Pair::start(&PairOptions::new(vm).source_flags(flags))?;
    wait_copying(&pair)?;
    let throttle = |per_second: u32| {
        let arguments = serde_json::json!({
            "id": "/machine/peripheral/slow/virtio-backend",
            "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": per_second, "iops_rd": 0, "iops_wr": 0
        });
        pair.source.qmp("block_set_io_throttle", arguments)
    };
    throttle(10)?;
    wait_until("the migration gives way", TIMEOUT, || {
        let status = status(&pair)?;
        let rate = status["commanded_bytes_per_second"].as_u64();
        let reason = status["reason"].as_str().unwrap_or_default();
        Ok((rate < Some(4_000_000) && reason.contains("disk")).then_some(()))
    })?;
    throttle(0)?;
    wait_until("it goes on as before", TIMEOUT, || {
        let rate = status(&pair)?["commanded_bytes_per_second"].as_u64();
        Ok((rate > Some(7_000_000)).then_some(()))
    })?;
    done(&pair, &["cancel"])?;
    ensure!(pair.source_agent.wait(TIMEOUT)? == 4);
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_guest_that_writes_too_fast_is_slowed_as_far_as_needed() -> Result<()> {
    const FAST: BareGuest = BareGuest {
        ram_mib: 256,
        fill_mib: 64,
        working_set_pages: 20_000,
        pages_per_second: 15_000,
        ..BareGuest::PLAIN
    };
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let vm = VmOptions::new(Guest::Bare(FAST), qemu, Accel::detect()?);
    let flags = [
        "--deadline",
        "30s",
        "--max-rate",
        "40MB/s",
        "--on-infeasible",
        "converge",
    ];
    let pair = Pair::start(&PairOptions::new(vm).source_flags(flags))?;
    let code = pair.source_agent.wait(TIMEOUT)?;
    let report = pair.report()?;
    let tail = || pair.source_agent.log_tail();
    ensure!(report["outcome"] == "completed", "{code}\n{}", tail());
    let throttle = report["throttle"].as_array().context("throttle")?;
    let values: Vec<u64> = throttle
        .iter()
        .filter_map(|step| step["value"].as_u64())
        .collect();
    // This guest keeps its pace until its processor is all but taken from it.
    let is_gradual = values.first().is_some_and(|first| *first < 50) && values.is_sorted();
    ensure!(is_gradual && values.last() <= Some(&99), "{values:?}");
    pair.verify_destination()?;
    Ok(())
}
