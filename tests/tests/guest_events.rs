//! What becomes of a migration when something becomes of its guest, or of a QEMU: each
//! has an outcome, and the guest runs on one side at most.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::beside::run_beside;
use pacer_tests::disk::DiskOptions;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::process::{pause, wait_until};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(120);
/// As many at once as two cores take.
const AT_ONCE: usize = 4;
const BARE: BareGuest = BareGuest {
    ram_mib: 128,
    fill_mib: 64,
    working_set_pages: 1000,
    pages_per_second: 1000,
    ..BareGuest::PLAIN
};

struct Case {
    name: &'static str,
    run: fn() -> Result<()>,
}

/// They wait, mostly: several at once.
const CASES: [Case; 10] = [
    Case {
        name: "switches itself off",
        run: switches_itself_off,
    },
    Case {
        name: "panics",
        run: panics,
    },
    Case {
        name: "is reset",
        run: is_reset,
    },
    Case {
        name: "is paused",
        run: is_paused,
    },
    Case {
        name: "is paused before the first byte",
        run: is_paused_before_the_first_byte,
    },
    Case {
        name: "is stopped for a moment",
        run: is_stopped_for_a_moment,
    },
    Case {
        name: "has a full disk",
        run: has_a_full_disk,
    },
    Case {
        name: "loses its monitor",
        run: loses_its_monitor,
    },
    Case {
        name: "dies with the source's QEMU",
        run: source_qemu_dies,
    },
    Case {
        name: "survives the destination's QEMU",
        run: destination_qemu_dies,
    },
];

#[test]
#[ignore = "needs QEMU"]
fn whatever_becomes_of_the_guest_has_an_outcome() -> Result<()> {
    run_beside(&CASES, AT_ONCE, |case| case.name, |case| (case.run)())
}

fn vm(extra: &[&str]) -> Result<VmOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let mut vm = VmOptions::new(Guest::Bare(BARE), qemu, Accel::detect()?);
    vm.extra_args = extra.iter().map(Into::into).collect();
    Ok(vm)
}

fn start(vm: VmOptions, flags: &[&str]) -> Result<Pair> {
    Pair::start(&PairOptions::new(vm).source_flags(flags))
}

/// Started, and memory is copied.
fn copying(vm: VmOptions) -> Result<Pair> {
    let pair = start(vm, &["--rate", "6MB/s"])?;
    wait_until("memory is copied", TIMEOUT, || {
        Ok((pair.source.migration_status()? == "active").then_some(()))
    })
    .with_context(|| pair.source_agent.log_tail())?;
    pause(Duration::from_secs(1))?;
    Ok(pair)
}

/// How it ended, as exit code and report have it.
fn ended(pair: &Pair, code: i32, outcome: &str) -> Result<Value> {
    let found = pair.source_agent.wait(TIMEOUT)?;
    let report = pair.report()?;
    ensure!(
        found == code && report["outcome"] == outcome,
        "{found}, {}: {}\n{}",
        report["outcome"],
        report["reason"],
        pair.source_agent.log_tail()
    );
    Ok(report)
}

fn has_event(report: &Value, name: &str) -> bool {
    let events = report["guest_events"].as_array();
    events.is_some_and(|events| events.iter().any(|event| event["event"] == name))
}

/// QEMU's own limit is what it was: Pacer sets one a thousand times higher.
fn check_put_back(vm: &Vm) -> Result<()> {
    let parameters = vm.qmp("query-migrate-parameters", Value::Null)?;
    let most = parameters["max-bandwidth"].as_u64().context("a limit")?;
    ensure!(most < 1 << 32, "not put back: {parameters:#}");
    Ok(())
}

fn check_nobody_at_the_destination(pair: &Pair) -> Result<()> {
    let agent = &pair.destination_agent;
    agent.wait(TIMEOUT)?;
    let status = pair.destination.status();
    ensure!(!status.is_ok_and(|status| status == "running"), "it runs");
    Ok(())
}

fn switches_itself_off() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    pair.source.qmp("system_powerdown", Value::Null)?;
    let report = ended(&pair, 5, "guest-ended")?;
    ensure!(has_event(&report, "SHUTDOWN"), "{report:#}");
    check_nobody_at_the_destination(&pair)
}

fn panics() -> Result<()> {
    let pair = copying(vm(&["-device", "pvpanic", "-action", "panic=pause"])?)?;
    pair.source.qmp("system_powerdown", Value::Null)?;
    let report = ended(&pair, 5, "guest-ended")?;
    ensure!(has_event(&report, "GUEST_PANICKED"), "{report:#}");
    ensure!(
        pair.source.status()? == "guest-panicked",
        "it can be looked at"
    );
    check_put_back(&pair.source)?;
    check_nobody_at_the_destination(&pair)
}

fn is_reset() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    pair.source.qmp("set-action", json!({"reboot": "reset"}))?;
    pair.source.qmp("system_reset", Value::Null)?;
    let report = ended(&pair, 0, "completed")?;
    ensure!(has_event(&report, "RESET"), "{report:#}");
    pair.destination.wait_status("running", TIMEOUT)
}

fn is_paused() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    pair.source.qmp("stop", Value::Null)?;
    ended(&pair, 0, "completed")?;
    pair.destination_agent.wait(TIMEOUT)?;
    ensure!(pair.destination.status()? == "paused");
    pair.verify_destination()?;
    Ok(())
}

fn is_paused_before_the_first_byte() -> Result<()> {
    let pair = start(vm(&[])?, &["--rate", "30MB/s"])?;
    pair.source_agent.wait_log("the guest's memory", TIMEOUT)?;
    pair.source.qmp("stop", Value::Null)?;
    ended(&pair, 0, "completed")?;
    pair.destination_agent.wait(TIMEOUT)?;
    ensure!(pair.destination.status()? == "paused");
    Ok(())
}

fn is_stopped_for_a_moment() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    for _ in 0..3 {
        pair.source.qmp("stop", Value::Null)?;
        pair.source.qmp("cont", Value::Null)?;
    }
    let report = ended(&pair, 0, "completed")?;
    // The bucket was not left open: 64 MiB and more at 6 MB/s.
    ensure!(report["total_seconds"].as_f64() > Some(10.0), "{report:#}");
    pair.destination.wait_status("running", TIMEOUT)?;
    pair.verify_destination()?;
    Ok(())
}

/// A file system of 16 MiB.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pacer-small-").tempdir()?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "none"])
            .arg(folder.path())
            .status()?;
        ensure!(mounted.success(), "mount: {mounted}");
        Ok(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: QEMU may not have let go of the image yet.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

fn has_a_full_disk() -> Result<()> {
    const DISK: BareDisk = BareDisk {
        per_second: 300,
        ..BareDisk::new(BareDirection::Write, 64 << 20)
    };
    let small = Small::mount()?;
    let disk = DiskOptions::new("small", small.0.path().join("image"));
    disk.create_image(64 << 20)?;
    let mut vm = vm(&[])?;
    vm.guest = Guest::Bare(BareGuest {
        disk: Some(DISK),
        ..BARE
    });
    vm.disks = vec![disk];
    let pair = start(vm, &["--rate", "2MB/s"])?;
    let report = ended(&pair, 6, "stopped")?;
    let reason = report["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("no space is left"), "{reason}");
    ensure!(reason.contains("type `cont`"), "{reason}");
    ensure!(pair.source.status()? == "io-error");
    check_put_back(&pair.source)?;
    check_nobody_at_the_destination(&pair)
}

/// Cuts QEMU's end of the monitor that `pacer source` has.
fn cut_monitor(vm: &Vm) -> Result<()> {
    let path = vm.pacer_qmp().display().to_string();
    let table = fs::read_to_string("/proc/net/unix")?;
    let connected =
        |line: &&str| line.ends_with(&path) && line.split_whitespace().nth(5) == Some("03");
    let line = table
        .lines()
        .find(connected)
        .context("nobody is connected")?;
    let inode = line.split_whitespace().nth(6).context("an inode")?;
    let socket = Path::new("socket:").with_file_name(format!("socket:[{inode}]"));
    let folder = format!("/proc/{}/fd", vm.pid());
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if fs::read_link(entry.path()).is_ok_and(|link| link == socket) {
            let number: i32 = entry.file_name().to_string_lossy().parse()?;
            let pid = Pid::from_raw(i32::try_from(vm.pid())?).context("a pid")?;
            let qemu = pidfd_open(pid, PidfdFlags::empty())?;
            let end = pidfd_getfd(&qemu, number, PidfdGetfdFlags::empty())?;
            rustix::net::shutdown(&end, rustix::net::Shutdown::Both)?;
            return Ok(());
        }
    }
    anyhow::bail!("QEMU has no such socket")
}

fn loses_its_monitor() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    cut_monitor(&pair.source)?;
    pair.source_agent.wait_log("is there again", TIMEOUT)?;
    ended(&pair, 0, "completed")?;
    pair.verify_destination()?;
    Ok(())
}

fn source_qemu_dies() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    pair.source.kill9();
    ended(&pair, 5, "lost")?;
    check_nobody_at_the_destination(&pair)
}

fn destination_qemu_dies() -> Result<()> {
    let pair = copying(vm(&[])?)?;
    pair.destination.kill9();
    ended(&pair, 4, "returned")?;
    ensure!(pair.source.status()? == "running");
    check_put_back(&pair.source)?;
    pair.source.verify_bare(&BARE)?;
    Ok(())
}
