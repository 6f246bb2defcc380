//! The harness on its own: guests moved by plain QEMU, without Pacer, arrive
//! whole, and what is not whole is noticed.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Result;
use pacer_tests::disk::{DetectZeroes, DiskAio, DiskBus, DiskCache, DiskFormat, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk, BareWalk};
use pacer_tests::guest::bare::pattern::{BareOrder, BarePattern, BarePhase};
use pacer_tests::guest::disk_load::{DiskLoad, parse_disk_reports};
use pacer_tests::guest::linux::{LinuxGuest, LinuxWork, check_heartbeats};
use pacer_tests::guest::program::{Program, ProgramLoad, rounds};
use pacer_tests::process::{free_port, wait_until};
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Incoming, Vm, VmOptions};
use serde_json::json;

const TIMEOUT: Duration = Duration::from_secs(60);
const BARE: BareGuest = BareGuest {
    ram_mib: 128,
    fill_mib: 64,
    working_set_pages: 2000,
    pages_per_second: 2000,
    ..BareGuest::PLAIN
};

fn options(guest: Guest) -> Result<VmOptions> {
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    Ok(VmOptions::new(guest, qemu, Accel::detect()?))
}

/// QEMU to QEMU over TCP; returns the destination, running.
fn migrate(source: &Vm, options: &VmOptions) -> Result<Vm> {
    let port = free_port()?;
    let incoming = Incoming::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let destination = Vm::start(&options.destination(incoming))?;
    source.qmp("migrate", json!({"uri": format!("tcp:127.0.0.1:{port}")}))?;
    wait_until("the migration completes", TIMEOUT, || {
        let status = source.migration_status()?;
        anyhow::ensure!(status != "failed", "{}", destination.logs());
        Ok((status == "completed").then_some(()))
    })?;
    destination.wait_status("running", TIMEOUT)?;
    Ok(destination)
}

#[test]
#[ignore = "needs QEMU"]
fn a_bare_guest_arrives_whole_and_goes_on() -> Result<()> {
    let options = options(Guest::Bare(BARE))?;
    let source = Vm::start(&options)?;
    source.wait_started(TIMEOUT)?;
    let before = source.verify_bare(&BARE)?;
    let destination = migrate(&source, &options)?;
    let at_stop = BARE.verify(&source.pmemsave(BARE.used_bytes())?)?;
    let goes_on = || anyhow::Ok(BARE.state(&destination.pmemsave(BARE.used_bytes())?)?);
    wait_until("the guest writes at the destination", TIMEOUT, || {
        Ok((goes_on()?.total_writes > at_stop.total_writes + 1000).then_some(()))
    })?;
    let after = destination.verify_bare(&BARE)?;
    assert!(before.total_writes < at_stop.total_writes);
    assert!(at_stop.total_writes < after.total_writes);
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_byte_changed_behind_the_guests_back_is_noticed() -> Result<()> {
    let address = BARE.used_bytes() - 5;
    let mut options = options(Guest::Bare(BARE))?;
    let port = free_port()?;
    options.extra_args = ["-gdb", &format!("tcp:127.0.0.1:{port}")]
        .map(Into::into)
        .to_vec();
    let source = Vm::start(&options)?;
    source.wait_started(TIMEOUT)?;
    source.verify_bare(&BARE)?;
    source.qmp("stop", json!({}))?;
    gdb_write_zero(port, address)?;
    let fault = source.verify_bare(&BARE).unwrap_err();
    assert!(
        fault
            .to_string()
            .contains(&format!("{:#x}", address & !0xFFF)),
        "{fault:#}"
    );
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_bare_guest_moves_to_a_newer_qemu() -> Result<()> {
    let source_options = options(Guest::Bare(BARE))?;
    let mut destination_options = source_options.clone();
    destination_options.qemu = QemuInstall::find(QemuVersion::System)?;
    let source = Vm::start(&source_options)?;
    source.wait_started(TIMEOUT)?;
    let destination = migrate(&source, &destination_options)?;
    let at_stop = BARE.verify(&source.pmemsave(BARE.used_bytes())?)?;
    assert!(destination.verify_bare(&BARE)?.total_writes >= at_stop.total_writes);
    Ok(())
}

/// Writes a zero byte to guest memory by GDB's remote protocol.
fn gdb_write_zero(port: u16, address: u64) -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let packet = format!("M{address:x},1:00");
    let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
    write!(stream, "${packet}#{sum:02x}")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    anyhow::ensure!(
        &answer == b"+$OK#9a",
        "{}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn the_bare_guest_keeps_its_pace() -> Result<()> {
    const SECONDS: u32 = 3;
    let source = Vm::start(&options(Guest::Bare(BARE))?)?;
    source.wait_started(TIMEOUT)?;
    let writes = || {
        anyhow::Ok(
            BARE.state(&source.pmemsave(BareGuest::STATE_BYTES)?)?
                .total_writes,
        )
    };
    let start = std::time::Instant::now();
    let begun = writes()?;
    let due = u64::from(SECONDS * BARE.pages_per_second);
    wait_until("it has written its pages", TIMEOUT, || {
        Ok((writes()? - begun > due).then_some(()))
    })?;
    let seconds = start.elapsed().as_secs_f64();
    assert!(
        (seconds - f64::from(SECONDS)).abs() < 0.5,
        "{seconds} s for {SECONDS} s of pages"
    );
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_bare_guest_with_a_pattern_arrives_whole_and_goes_on() -> Result<()> {
    const SEED: NonZeroU32 = NonZeroU32::MIN;
    let phase = BarePhase {
        writes: u32::MAX,
        pages_per_second: 3000,
        first_page: 100,
        pages: 1500,
        order: BareOrder::Random,
    };
    let hot = BareOrder::HotAndCold {
        hot_pages: 150,
        hot_percent: 90,
    };
    let sweep = BarePhase {
        order: BareOrder::Sweep,
        first_page: 0,
        pages: 2000,
        ..phase
    };
    // Pages a second on average, and the pattern.
    for (pace, pattern) in [
        (3000, BarePattern::steady(SEED, phase)),
        (
            3000,
            BarePattern::steady(
                SEED,
                BarePhase {
                    order: hot,
                    ..phase
                },
            ),
        ),
        (1005, BarePattern::bursts(SEED, sweep, 200, 400)),
        (
            3000,
            BarePattern::alternating(SEED, [(phase, 30), (sweep, 70)]),
        ),
        (3000, BarePattern::changing(SEED, phase, 500, sweep)),
    ] {
        let guest = BareGuest {
            pattern: Some(pattern),
            ..BARE
        };
        let options = options(Guest::Bare(guest))?;
        let source = Vm::start(&options)?;
        source.wait_started(TIMEOUT)?;
        let begun = source.verify_bare(&guest)?;
        let start = std::time::Instant::now();
        let due = 3 * pace;
        wait_until("it has written its pages", TIMEOUT, || {
            let state = guest.state(&source.pmemsave(BareGuest::STATE_BYTES)?)?;
            Ok((state.total_writes - begun.total_writes > due).then_some(()))
        })?;
        let seconds = start.elapsed().as_secs_f64();
        assert!(
            (seconds - 3.0).abs() < 0.8,
            "{seconds} s for 3 s of pages: {pattern:?}"
        );
        let destination = migrate(&source, &options)?;
        let at_stop = guest.verify(&source.pmemsave(guest.used_bytes())?)?;
        wait_until("the guest writes at the destination", TIMEOUT, || {
            let state = guest.state(&destination.pmemsave(BareGuest::STATE_BYTES)?)?;
            Ok((state.total_writes > at_stop.total_writes + 500).then_some(()))
        })?;
        destination.verify_bare(&guest)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_bare_guest_has_a_disk_and_a_network_card() -> Result<()> {
    const SPAN_BYTES: u64 = 16 << 20;
    const REQUESTS: u32 = 300;
    let folder = tempfile::tempdir()?;
    let writes = BareDisk {
        limit: REQUESTS,
        per_second: 2000,
        queue_depth: 4,
        ..BareDisk::new(BareDirection::Write, SPAN_BYTES)
    };
    let reads = BareDisk {
        request_bytes: 16 << 10,
        limit: REQUESTS,
        walk: BareWalk::Random(NonZeroU32::MIN),
        ..BareDisk::new(BareDirection::Read, SPAN_BYTES)
    };
    for disk in [writes, reads] {
        let guest = BareGuest {
            disk: Some(disk),
            network: true,
            ..BARE
        };
        let mut options = options(Guest::Bare(guest))?;
        options.disks = vec![DiskOptions::new("disk", folder.path().join("disk"))];
        options.disks[0].create_image(SPAN_BYTES)?;
        let vm = Vm::start(&options)?;
        vm.wait_started(TIMEOUT)?;
        let before = vm.verify_bare(&guest)?;
        vm.send_frames(REQUESTS, 500)?;
        let done = wait_until("the devices have done their part", TIMEOUT, || {
            let counters = guest.counters(&vm.pmemsave(BareGuest::STATE_BYTES)?)?;
            let all = counters.requests_completed == REQUESTS && counters.frames == REQUESTS;
            Ok(all.then_some(counters))
        })?;
        assert!(vm.verify_bare(&guest)?.total_writes > before.total_writes);
        assert_eq!(
            (done.requests_submitted, done.requests_failed),
            (REQUESTS, 0)
        );
        assert_eq!(done.frame_bytes, u64::from(REQUESTS) * 500);
        let bytes = u64::from(REQUESTS) * u64::from(disk.request_bytes);
        let stats = vm.block_stats()?["disk"];
        let expected = match disk.direction {
            BareDirection::Write => (bytes, 0),
            BareDirection::Read => (0, bytes),
        };
        assert_eq!((stats.wr_bytes, stats.rd_bytes), expected);
    }
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_linux_guest_arrives_whole_and_goes_on() -> Result<()> {
    let work = LinuxWork {
        ram_mib: 256,
        fill_mib: 32,
        working_set_pages: 500,
        pages_per_second: 500,
        records_per_second: 50,
    };
    let folder = tempfile::tempdir()?;
    let guest = LinuxGuest::new(work, folder.path(), 16)?;
    let options = options(Guest::Linux(guest))?;
    let source = Vm::start(&options)?;
    source.wait_serial(|serial| serial.contains("PACER 5 "), TIMEOUT)?;
    let destination = migrate(&source, &options)?;
    destination.wait_serial(|serial| serial.matches("PACER ").count() > 10, TIMEOUT)?;
    let last = check_heartbeats(&source.serial(), &destination.serial())?;
    assert!(last > 15, "{last}");
    Ok(())
}

#[test]
#[ignore = "needs QEMU"]
fn a_real_program_goes_on_after_its_move() -> Result<()> {
    let load = ProgramLoad {
        program: Program::Sqlite,
        work_mib: 1,
        pause_ms: 100,
        fill_mib: 8,
    };
    let options = options(Guest::Linux(LinuxGuest::with_program(load, 320)?))?;
    let source = Vm::start(&options)?;
    source.wait_started(TIMEOUT)?;
    let destination = migrate(&source, &options)?;
    wait_until("it ends two rounds", TIMEOUT, || {
        Ok((rounds(&destination.serial())? >= 2).then_some(()))
    })
}

#[test]
#[ignore = "needs QEMU"]
fn a_disk_load_is_what_qemu_counts() -> Result<()> {
    const DISK_BYTES: u64 = 32 << 20;
    let load = DiskLoad {
        seed: 1,
        requests: 60,
        granularity_bytes: 512,
    };
    let folder = tempfile::tempdir()?;
    let disk = |id: &str| DiskOptions::new(id, folder.path().join(id));
    let mut options = options(Guest::Linux(LinuxGuest::with_disk_load(load, 192)?))?;
    options.disks = vec![
        DiskOptions {
            discard: true,
            detect_zeroes: DetectZeroes::Unmap,
            ..disk("plain")
        },
        DiskOptions {
            format: DiskFormat::Qcow2,
            aio: DiskAio::Native,
            cache: DiskCache::None,
            iothread: true,
            bus: DiskBus::VirtioScsi,
            ..disk("scsi")
        },
        DiskOptions {
            aio: DiskAio::IoUring,
            cache: DiskCache::Directsync,
            bus: DiskBus::Ide,
            ..disk("ata")
        },
    ];
    for disk in &options.disks {
        disk.create_image(DISK_BYTES)?;
    }
    let vm = Vm::start(&options)?;
    vm.wait_serial(
        |serial| parse_disk_reports(serial).map_or(true, |done| done.is_some()),
        TIMEOUT,
    )?;
    let reports = parse_disk_reports(&vm.serial())?.unwrap_or_default();
    assert_eq!(reports.len(), options.disks.len());
    let stats = vm.block_stats()?;
    for report in &reports {
        let stats = stats[&report.name];
        assert_eq!(
            stats.wr_bytes,
            report.written_bytes + report.zeroed_bytes,
            "{report:?} {stats:?}"
        );
        if report.name != "plain" {
            // virtio-blk does not count discards.
            assert_eq!(stats.unmap_bytes, report.discarded_bytes, "{report:?}");
        }
        assert!(stats.rd_bytes >= report.read_bytes, "{report:?}");
        assert_eq!(stats.failed_operations, 0, "{report:?}");
        assert!(report.writes > 20 && report.reads > 0 && report.flushes > 0);
    }
    Ok(())
}
