//! `cargo xtask run demo`: a guest moves between two QEMUs on this machine and
//! arrives at a deadline.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use pacer_tests::agent::Output;
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::linux::{LinuxGuest, LinuxWork, check_heartbeats};
use pacer_tests::pair::{Pair, PairOptions};
use pacer_tests::process::wait_until;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, VmOptions};
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{build, setup};

/// How long a cancelled migration has before everything is ended.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(20);
const VERIFY_TIMEOUT: Duration = Duration::from_secs(20);
const BARE: BareGuest = BareGuest {
    ram_mib: 512,
    fill_mib: 256,
    working_set_pages: 2000,
    pages_per_second: 1500,
    ..BareGuest::PLAIN
};
const LINUX: LinuxWork = LinuxWork {
    ram_mib: 384,
    fill_mib: 128,
    working_set_pages: 1000,
    pages_per_second: 500,
    records_per_second: 20,
};
/// MiB.
const LINUX_DISK: u32 = 64;

/// How to run the demo.
#[derive(Args)]
pub(crate) struct Demo {
    /// What is moved
    #[arg(long, value_enum, default_value = "bare")]
    guest: DemoGuest,
    /// When the guest is to run at the destination, counted from the start
    #[arg(long, default_value = "30s")]
    deadline: String,
    /// Print the report, and nothing else, to standard output
    #[arg(long)]
    json: bool,
    /// Flags for `pacer source`
    #[arg(last = true)]
    source_flags: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DemoGuest {
    /// Firmware that fills and dirties memory
    Bare,
    /// A Debian kernel with a program that writes memory and a disk
    Linux,
}

/// Runs the demo; the exit code is that of `pacer source`.
pub(crate) fn demo(demo: &Demo) -> Result<ExitCode> {
    let linux = demo.guest == DemoGuest::Linux;
    setup::setup(setup::Scope::Demo { linux }, false)?;
    let pacer = build::build()?.pacer;
    if linux {
        build::build_guest()?;
    }
    let signals = Signals::register()?;
    let folder = tempfile::Builder::new().prefix("pacer-demo-").tempdir()?;
    let options = options(demo, &pacer, folder.path())?;
    eprintln!("starting two QEMUs and the guest …");
    let pair = Pair::start(&options)?;
    let code = wait(&pair, &signals)?;
    finish(demo, &pair, code)?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn options(demo: &Demo, pacer: &Path, folder: &Path) -> Result<PairOptions> {
    let guest = match demo.guest {
        DemoGuest::Bare => Guest::Bare(BARE),
        DemoGuest::Linux => Guest::Linux(LinuxGuest::new(LINUX, folder, LINUX_DISK)?),
    };
    let qemu = QemuInstall::find(QemuVersion::from_env()?)?;
    let mut vm = VmOptions::new(guest, qemu, Accel::detect()?);
    // Ctrl-C goes to us alone, and we end the rest in order.
    vm.own_group = true;
    let deadline = ["--deadline".into(), demo.deadline.clone().into()];
    let flags = deadline
        .into_iter()
        .chain(demo.source_flags.iter().cloned());
    let mut options = PairOptions::new(vm).source_flags(flags);
    options.pacer = Some(pacer.to_owned());
    options.output = if demo.json {
        Output::Log
    } else {
        Output::Inherit
    };
    Ok(options)
}

/// How often we were asked to end.
struct Signals(Arc<AtomicUsize>);

impl Signals {
    fn register() -> Result<Self> {
        let asked = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_usize(signal, Arc::clone(&asked), 1)?;
        }
        Ok(Self(asked))
    }

    fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// Waits for `pacer source`. A first signal cancels the migration, a second
/// one ends everything.
fn wait(pair: &Pair, signals: &Signals) -> Result<i32> {
    let ended = wait_until("pacer source ends", Duration::MAX, || {
        if signals.asked() {
            return Ok(Some(None));
        }
        Ok(pair.source_agent.try_wait()?.map(Some))
    })?;
    if let Some(code) = ended {
        return Ok(code);
    }
    signals.reset();
    pair.source_agent.sigint()?;
    wait_until("the migration is cancelled", CANCEL_TIMEOUT, || {
        if signals.asked() {
            bail!("ended by a second signal");
        }
        pair.source_agent.try_wait()
    })
}

fn finish(demo: &Demo, pair: &Pair, code: i32) -> Result<()> {
    let report = pair.report();
    if demo.json {
        let text = std::fs::read_to_string(pair.report_path())
            .with_context(|| format!("no report\n{}", pair.source_agent.log_tail()))?;
        print!("{text}");
    }
    // 0: completed; 3: completed, but not at the deadline.
    if !matches!(code, 0 | 3) {
        eprintln!("the guest did not arrive: pacer source ended with {code}");
        return Ok(());
    }
    let verified = verify(demo, pair).context("THE GUEST DID NOT ARRIVE WHOLE")?;
    if !demo.json {
        summarise(&report?);
        println!("verified:  {verified}");
    }
    Ok(())
}

fn verify(demo: &Demo, pair: &Pair) -> Result<String> {
    match demo.guest {
        DemoGuest::Bare => {
            let state = pair.verify_destination()?;
            let mib = BARE.used_bytes() >> 20;
            Ok(format!(
                "{mib} MiB to the last byte, after {} page writes",
                state.total_writes
            ))
        }
        DemoGuest::Linux => {
            let beats = |serial: &str| serial.matches("PACER ").count() > 10;
            pair.destination.wait_serial(beats, VERIFY_TIMEOUT)?;
            // The source's QEMU has quit; what its guest said is still there.
            let (source, destination) = (pair.source.serial(), pair.destination.serial());
            let last = check_heartbeats(&source, &destination)?;
            Ok(format!(
                "{last} heartbeats without a gap, memory and disk as written"
            ))
        }
    }
}

fn summarise(report: &Value) {
    let number = |field: &str| report.get(field).and_then(Value::as_f64);
    let seconds =
        |field| number(field).map_or("unknown".to_owned(), |value| format!("{value:.2} s"));
    let mib = |field: &str| {
        let bytes = report.get(field).and_then(Value::as_u64);
        bytes.map_or("unknown".to_owned(), |bytes| format!("{} MiB", bytes >> 20))
    };
    let error = number("deadline_error_seconds")
        .map_or("unknown".to_owned(), |value| format!("{value:+.2} s"));
    println!("arrived:   after {}", seconds("total_seconds"));
    println!("asked:     {} (error {error})", seconds("deadline_seconds"));
    println!("downtime:  {}", seconds("downtime_seconds"));
    println!(
        "bytes:     {} from QEMU, {} on the wire",
        mib("bytes_from_qemu"),
        mib("bytes_on_wire")
    );
}
