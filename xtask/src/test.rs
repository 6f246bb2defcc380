//! `cargo xtask test`: every test, those that need root, QEMU or eBPF too.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use pacer_tests::qemu::{QemuInstall, QemuVersion};

use crate::shell::cargo;
use crate::{build, setup};

/// Tests counted over all runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

/// Sets up, builds and runs all tests; the last line is `N passed, N failed`.
pub(crate) fn test() -> Result<ExitCode> {
    setup::setup(setup::Scope::All, false)?;
    let built = build::build()?;
    build::build_guest()?;
    let mut tally = Tally::default();
    for arguments in runs() {
        // As `pacer` is built: nothing is compiled twice.
        let mut command = cargo(["test", "--release", "--no-fail-fast"]);
        command
            .args(&arguments.cargo)
            .env("PACER_QEMU", arguments.qemu.to_string());
        command
            .env("PACER_BIN", &built.pacer)
            .env("PACER_EBPF_OBJECT", &built.ebpf_object);
        tally.add(run_counted(&mut command)?);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The end-to-end tests in which versions of QEMU differ: its migration and the
/// handover (where each agent dies at one point), its logs, its functions under
/// uprobes. Everything else runs on the system's QEMU alone.
const PER_VERSION: [&str; 20] = [
    "a_bare_guest_arrives_whole_and_goes_on",
    "a_bare_guest_moves_to_a_newer_qemu",
    "a_guest_arrives_at_its_deadline",
    "a_linux_guest_arrives_with_its_disk",
    "a_migration_without_a_return_path",
    "a_guest_that_can_arrive_does",
    "whatever_becomes_of_the_guest",
    "ctrl_c_leaves_the_guest_at_the_source",
    "the_sources_agent_may_die_in_the_handover",
    "the_destinations_agent_may_die_in_the_handover",
    "dirty_pages_are_those_the_guest_wrote",
    "pages_that_devices_write_are_counted_too",
    "disk_writes_are_those_qemu_counts",
    "windows_that_qemu_measures",
    "without_a_log_qemu_samples_pages",
    "pages_that_a_tcg_guest_writes",
    "what_a_kvm_guest_reads_from_its_disk",
    "a_migration_hands_over_what_arrives",
    "a_prediction_comes_true",
    "without_bpf_rights_the_migration_goes_on",
];

struct TestRun {
    cargo: Vec<&'static str>,
    qemu: QemuVersion,
}

/// What can run here; says what cannot.
fn runs() -> Vec<TestRun> {
    const KINDS: [&str; 3] = ["--lib", "--bins", "--tests"];
    // What is ignored by plain cargo needs the machine for itself.
    const PRIVILEGED: [&str; 3] = ["--", "--ignored", "--test-threads=1"];
    let end_to_end = [&["--package", "pacer-tests"][..], &KINDS, &PRIVILEGED].concat();
    let mut runs = vec![TestRun {
        cargo: Vec::new(),
        qemu: QemuVersion::System,
    }];
    if !Path::new("/dev/kvm").exists() {
        eprintln!("no /dev/kvm: guests run under TCG");
    }
    if setup::is_root() {
        let cargo = [&KINDS[..], &PRIVILEGED].concat();
        runs.push(TestRun {
            cargo,
            qemu: QemuVersion::System,
        });
    } else {
        eprintln!("skipped: the tests of the eBPF programs need root");
        runs.push(TestRun {
            cargo: end_to_end.clone(),
            qemu: QemuVersion::System,
        });
    }
    match QemuInstall::find(QemuVersion::V7_2) {
        Ok(_) => runs.push(TestRun {
            cargo: [&end_to_end[..], &PER_VERSION].concat(),
            qemu: QemuVersion::V7_2,
        }),
        Err(error) => eprintln!("skipped: the end-to-end tests on QEMU 7.2: {error:#}"),
    }
    runs
}

/// Runs cargo's tests, passing on what they print. A run that fails without a
/// failed test (it does not compile, it crashes) counts as one.
fn run_counted(command: &mut Command) -> Result<Tally> {
    eprintln!("cargo {:?}", command.get_args().collect::<Vec<_>>());
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let stdout = child.stdout.take().context("stdout is piped")?;
    let mut tally = Tally::default();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        tally.add(parse_result(&line));
        println!("{line}");
    }
    let succeeded = child.wait()?.success();
    tally.failed = tally.failed.max(u64::from(!succeeded));
    Ok(tally)
}

/// `test result: ok. 3 passed; 1 failed; …`; nothing for any other line.
fn parse_result(line: &str) -> Tally {
    let Some(result) = line.strip_prefix("test result: ") else {
        return Tally::default();
    };
    let count = |name: &str| {
        let words: Vec<&str> = result.split([' ', ';']).collect();
        let pair = words.windows(2).find(|pair| pair[1] == name);
        pair.and_then(|pair| pair[0].parse().ok()).unwrap_or(0)
    };
    Tally {
        passed: count("passed"),
        failed: count("failed"),
    }
}

impl Tally {
    const fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_are_named_are_there() -> Result<()> {
        let folder = crate::shell::workspace_root().join("tests/tests");
        let mut text = String::new();
        for entry in std::fs::read_dir(folder)? {
            text += &std::fs::read_to_string(entry?.path())?;
        }
        for name in PER_VERSION {
            assert!(text.contains(&format!("\nfn {name}")), "{name}");
        }
        Ok(())
    }

    #[test]
    fn results_are_counted() {
        let line =
            "test result: FAILED. 13 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            parse_result(line),
            Tally {
                passed: 13,
                failed: 2
            }
        );
        assert_eq!(parse_result("test a_test ... ok"), Tally::default());
    }
}
