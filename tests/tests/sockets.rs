//! What `pacer observe` tells of a migration's connections, against what arrives
//! at the other end, and of the block device under a disk.

use std::collections::BTreeMap;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pacer_tests::agent::Agent;
use pacer_tests::disk::{DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(60);
const GUEST: BareGuest = BareGuest {
    ram_mib: 128,
    fill_mib: 64,
    working_set_pages: 500,
    pages_per_second: 500,
    ..BareGuest::PLAIN
};
/// What a stream has besides what QEMU counts as transferred.
const MOST_BESIDES_BYTES: u64 = 1 << 20;

fn options(guest: BareGuest) -> Result<VmOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    Ok(VmOptions::new(Guest::Bare(guest), qemu, Accel::detect()?))
}

/// `pacer observe`, which sees the machine already.
fn observe(vm: &Vm) -> Result<Agent> {
    let pid = vm.pid().to_string();
    let agent = Agent::start(["observe", "--json", "--interval", "200ms", "--pid", &pid])?;
    wait_until("pacer observes", TIMEOUT, || Ok(last_line(&agent)))?;
    Ok(agent)
}

/// What it said last.
fn last_line(agent: &Agent) -> Option<Value> {
    let log = agent.log();
    let whole = &log[..log.rfind('\n')?];
    let mut lines = whole.lines().rev();
    lines.find_map(|line| serde_json::from_str(line).ok())
}

/// Takes what comes, on `count` connections, and counts it by the sender's port.
fn receive(listener: TcpListener, count: usize) -> JoinHandle<Result<BTreeMap<u16, u64>>> {
    let drain = |mut end: TcpStream| -> Result<(u16, u64)> {
        let port = end.peer_addr()?.port();
        Ok((port, io::copy(&mut end, &mut io::sink())?))
    };
    thread::spawn(move || {
        let mut drains = Vec::new();
        for _ in 0..count {
            let (end, _) = listener.accept()?;
            drains.push(thread::spawn(move || drain(end)));
        }
        let join = |drain: JoinHandle<_>| drain.join().expect("it does not panic");
        drains.into_iter().map(join).collect()
    })
}

/// Bytes by QEMU's port, of the connections to `port`.
fn sent(line: &Value, port: u16) -> Result<BTreeMap<u16, u64>> {
    let port_of = |socket: &Value, end: &str| {
        let address = socket[end].as_str()?;
        address.rsplit(':').next()?.parse::<u16>().ok()
    };
    let sockets = line["sockets"].as_array().context("no sockets")?;
    let to_port = sockets
        .iter()
        .filter(|socket| port_of(socket, "peer") == Some(port));
    let bytes = |socket| Some((port_of(socket, "local")?, socket["sent_bytes"].as_u64()?));
    to_port
        .map(|socket| bytes(socket).context("no port"))
        .collect()
}

fn check(channels: u32) -> Result<()> {
    let vm = Vm::start(&options(GUEST)?)?;
    vm.wait_started(TIMEOUT)?;
    let agent = observe(&vm)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    if channels > 0 {
        let capability = json!({"capability": "multifd", "state": true});
        vm.qmp(
            "migrate-set-capabilities",
            json!({"capabilities": [capability]}),
        )?;
        vm.qmp(
            "migrate-set-parameters",
            json!({"multifd-channels": channels}),
        )?;
    }
    let received = receive(listener, 1 + usize::try_from(channels)?);
    vm.qmp("migrate", json!({"uri": format!("tcp:127.0.0.1:{port}")}))?;
    wait_until("the migration completes", TIMEOUT, || {
        let status = vm.migration_status()?;
        ensure!(status != "failed", "it failed");
        Ok((status == "completed").then_some(()))
    })?;
    let received = received.join().expect("it does not panic")?;
    wait_until("pacer has seen all of it", TIMEOUT, || {
        let seen = sent(&last_line(&agent).context("it said something")?, port)?;
        Ok((seen == received).then_some(()))
    })
    .with_context(|| format!("arrived, by port: {received:?}\n{}", agent.log_tail()))?;
    let all: u64 = received.values().sum();
    let transferred = vm.qmp("query-migrate", json!({}))?["ram"]["transferred"]
        .as_u64()
        .context("QEMU has counted")?;
    println!(
        "{all} bytes on {} connections, {transferred} by QEMU",
        received.len()
    );
    let besides = all.checked_sub(transferred).context("QEMU counts more")?;
    assert!(besides < MOST_BESIDES_BYTES, "{besides}");
    Ok(())
}

#[test]
#[ignore = "needs QEMU, root and eBPF"]
fn a_migration_hands_over_what_arrives() -> Result<()> {
    check(0)
}

#[test]
#[ignore = "needs QEMU, root and eBPF"]
fn each_of_several_channels_hands_over_what_arrives() -> Result<()> {
    check(3)
}

#[test]
#[ignore = "needs QEMU, root and eBPF"]
fn the_device_under_a_disk_is_watched() -> Result<()> {
    const SPAN_BYTES: u64 = 16 << 20;
    const WRITTEN_BYTES: u64 = 1 << 20;
    // Not in /tmp, which may be in memory.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let guest = BareGuest {
        disk: Some(BareDisk {
            per_second: 1000,
            ..BareDisk::new(BareDirection::Write, SPAN_BYTES)
        }),
        ..GUEST
    };
    let mut options = options(guest)?;
    let mut disk = DiskOptions::new("disk", folder.path().join("disk"));
    disk.cache = DiskCache::None;
    disk.create_image(SPAN_BYTES)?;
    options.disks = vec![disk];
    let vm = Vm::start(&options)?;
    vm.wait_started(TIMEOUT)?;
    let agent = observe(&vm)?;
    wait_until("the device gets the guest's writes", TIMEOUT, || {
        let line = last_line(&agent).context("it said something")?;
        let devices = line["devices"].as_array().context("no devices")?;
        let has_written = devices.iter().any(|device| {
            let write = &device["write"];
            let latency = write["mean_seconds"].as_f64();
            write["bytes"].as_u64() > Some(WRITTEN_BYTES) && latency > Some(0.0)
        });
        Ok(has_written.then_some(()))
    })
    .with_context(|| agent.log_tail())
}
