//! `pacer observe` as users run it, on this test's own process and on small
//! ones. `cargo xtask test` runs these as root.

mod observer;

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use observer::{Observer, OpenTracefs, PACER, Puncher, SharedPacer, bpf_ids, disk, wait_until};
use pacer_agent::probe::Probe;
use serde_json::Value;

/// `nobody`.
const OTHER_USER: u32 = 65_534;

/// A remark where an image with a format is open, and the process is no QEMU
/// whose build is known.
const NO_FORMATS: &str = "image formats are not watched";

fn observed_file() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().expect("a temporary file")
}

fn writes(line: &Value, file: &tempfile::NamedTempFile) -> Option<u64> {
    disk(line, file.as_file())?["writes"].as_u64()
}

#[test]
fn a_process_that_is_not_there_is_told() {
    let output = Command::new(PACER)
        .args(["observe", "--pid", "4194304"])
        .output()
        .expect("it can be started");
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("no process 4194304"), "{log}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn a_command_line_that_makes_no_sense_is_refused() {
    for arguments in [&["--pid", "1", "--interval", "1ms"][..], &[]] {
        let mut command = Command::new(PACER);
        let output = command.arg("observe").args(arguments).output();
        assert_eq!(output.expect("it can be started").status.code(), Some(2));
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn writes_are_told_and_a_signal_ends_it() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let file = observed_file();
        let (mut observer, first) = Observer::start(std::process::id());
        assert_eq!(first["schema"], 1);
        assert_eq!(first["pid"], std::process::id());
        assert_eq!(writes(&first, &file), Some(0), "open, and not written yet");
        for at in 0..5u64 {
            file.as_file()
                .write_all_at(&[1; 512], at * 512)
                .expect("it takes it");
        }
        let line = observer.wait("five writes", |line| writes(line, &file) == Some(5));
        let disk = disk(&line, file.as_file()).expect("it was there");
        assert_eq!(disk["written_bytes"], 5 * 512);
        assert_eq!(disk["path"], *file.path().to_string_lossy());
        assert_eq!(
            (&disk["writable"], &disk["direct"]),
            (&true.into(), &false.into())
        );
        assert_eq!(line["ram"]["known"], false);
        assert!(
            line["ram"]["why_not"]
                .as_str()
                .is_some_and(|why| why.contains("--qmp"))
        );
        assert!(
            line["probe"]["run_count"].as_u64() >= Some(5),
            "root sees the cost"
        );
        assert!(line["probe"]["memory_bytes"].as_u64() > Some(1 << 20));
        observer.signal(signal);
        let (last, status, log) = observer.end();
        assert_eq!(status.code(), Some(0), "{log}");
        let last = last.expect("a last line");
        assert_eq!(writes(&last, &file), Some(5));
        assert_eq!(last["ended"], false);
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn two_are_observed_at_once_and_their_ends_are_told() {
    let mut first = Puncher::start(8192);
    let mut second = Puncher::start(4096);
    let (first_observer, _) = Observer::start(first.pid());
    let (second_observer, _) = Observer::start(second.pid());
    first.punch();
    second.punch();
    let check = |observer: Observer, own: &Puncher, bytes: u64, other: &Puncher| {
        let (last, status, log) = observer.end();
        assert_eq!(status.code(), Some(0), "{log}");
        let last = last.expect("a last line");
        assert_eq!(last["ended"], true);
        let own = disk(&last, own.file.as_file()).expect("what it did");
        assert_eq!(
            (&own["discards"], &own["discarded_bytes"]),
            (&1.into(), &bytes.into())
        );
        assert_eq!(disk(&last, other.file.as_file()), None, "{last}");
    };
    check(first_observer, &first, 8192, &second);
    check(second_observer, &second, 4096, &first);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn two_probes_in_one_process_do_not_mix() {
    let mut punchers = [Puncher::start(8192), Puncher::start(4096)];
    let probes = punchers
        .each_ref()
        .map(|puncher| Probe::attach(puncher.pid()).expect("it attaches"));
    for puncher in &mut punchers {
        puncher.punch();
    }
    let discarded = probes.map(|mut probe| {
        let files = probe.activity().files;
        let bytes = files.iter().map(|file| file.discarded.bytes);
        (bytes.sum::<u64>(), probe.counters().map_full)
    });
    assert_eq!(discarded, [(8192, 0), (4096, 0)]);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn nothing_is_left_behind_by_one_that_is_killed() {
    let (observer, _) = Observer::start(std::process::id());
    let programs = bpf_ids(observer.pid(), "prog_id");
    let maps = bpf_ids(observer.pid(), "map_id");
    let program_is_there = || {
        aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .any(|program| programs.contains(&program.id()))
    };
    let map_is_there = || {
        aya::maps::loaded_maps()
            .filter_map(Result::ok)
            .any(|map| maps.contains(&map.id()))
    };
    assert!(programs.len() > 3 && maps.len() > 3);
    assert!(program_is_there() && map_is_there());
    observer.signal(libc::SIGKILL);
    let (_, status, _) = observer.end();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    wait_until("the kernel has forgotten its programs", || {
        !program_is_there()
    });
    wait_until("the kernel has forgotten its maps", || !map_is_there());
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn three_rights_are_enough_and_a_missing_one_is_named() {
    let pacer = SharedPacer::new();
    let _tracefs = OpenTracefs::to(OTHER_USER);
    let observe =
        |rights: &[&str]| Observer::spawn(pacer.with(OTHER_USER, rights), std::process::id());
    let file = observed_file();
    let mut observer = observe(&["bpf", "perfmon", "sys_ptrace"]);
    observer.wait("the file", |line| disk(line, file.as_file()).is_some());
    file.as_file().write_all_at(b"x", 0).expect("it takes it");
    let line = observer.wait("a write", |line| writes(line, &file) == Some(1));
    let named = disk(&line, file.as_file()).expect("it was there");
    assert_eq!(named["path"], *file.path().to_string_lossy());
    assert!(!warnings(&line).contains("CAP_"), "{}", warnings(&line));

    let mut observer = observe(&["bpf", "perfmon"]);
    observer.next().expect("it observes all the same");
    file.as_file().write_all_at(b"x", 0).expect("it takes it");
    let line = observer.wait("a write", |line| writes(line, &file) == Some(1));
    assert_eq!(
        disk(&line, file.as_file()).expect("it was there")["path"],
        Value::Null
    );
    let warnings = warnings(&line);
    assert!(warnings.contains("missing: CAP_SYS_PTRACE"), "{warnings}");
    assert!(warnings.contains("setcap"), "{warnings}");

    for (rights, missing) in [
        (["bpf", "sys_ptrace"], "CAP_PERFMON"),
        (["perfmon", "sys_ptrace"], "CAP_BPF"),
    ] {
        let (last, status, log) = observe(&rights).end();
        assert_eq!((last, status.code()), (None, Some(1)), "{log}");
        assert!(log.contains(&format!("missing: {missing}:")), "{log}");
        assert!(log.contains("setcap"), "{log}");
    }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn what_is_opened_later_is_watched_with_three_rights_too() {
    let pacer = SharedPacer::new();
    let _tracefs = OpenTracefs::to(OTHER_USER);
    let pacer = pacer.with(OTHER_USER, &["bpf", "perfmon", "sys_ptrace"]);
    let mut file = observed_file();
    file.write_all(&[1; 64]).expect("it takes it");
    let mut observer = Observer::spawn(pacer, std::process::id());
    let line = observer.next().expect("it observes");
    assert!(!warnings(&line).contains(NO_FORMATS), "{line}");

    let mut image = observed_file();
    image.write_all(b"QFI\xfb\0\0\0\x03").expect("it takes it");
    // This test is no QEMU: that it is not one is found on attaching.
    observer.wait("the format", |line| warnings(line).contains(NO_FORMATS));

    let read = |line: &Value| {
        let mut byte = [0];
        file.as_file()
            .read_exact(&mut byte)
            .expect("there are enough");
        disk(line, file.as_file()).map(|disk| disk["reads"] != 0)
    };
    file.as_file().rewind().expect("a file");
    for _ in 0..3 {
        let line = observer.next().expect("it observes");
        assert_eq!(read(&line), Some(false), "no tap is open: {line}");
    }
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .expect("this kernel has tap devices");
    observer.wait("a read", |line| read(line) == Some(true));
    drop(tap);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_format_that_is_open_at_the_attach_is_seen_with_three_rights() {
    let pacer = SharedPacer::new();
    let _tracefs = OpenTracefs::to(OTHER_USER);
    let mut image = observed_file();
    image.write_all(b"QFI\xfb").expect("it takes it");
    let observe = |rights: &[&str]| {
        let pacer = pacer.with(OTHER_USER, rights);
        let line = Observer::spawn(pacer, std::process::id()).next();
        warnings(&line.expect("it observes"))
    };
    let warnings = observe(&["bpf", "perfmon", "sys_ptrace"]);
    assert!(warnings.contains(NO_FORMATS), "{warnings}");
    let warnings = observe(&["bpf", "perfmon"]);
    assert!(warnings.contains("packets from tap devices"), "{warnings}");
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn tracefs_that_may_not_be_read_is_told_with_the_remedy() {
    let pacer = SharedPacer::new();
    let _tracefs = OpenTracefs::to(0);
    let pacer = pacer.with(OTHER_USER, &["bpf", "perfmon", "sys_ptrace"]);
    let (last, status, log) = Observer::spawn(pacer, std::process::id()).end();
    assert_eq!((last, status.code()), (None, Some(1)), "{log}");
    assert!(log.contains("mount -o remount"), "{log}");
}

fn warnings(line: &Value) -> String {
    let warnings = line["warnings"].as_array().expect("warnings").iter();
    let lines: Vec<&str> = warnings.filter_map(Value::as_str).collect();
    lines.join("\n")
}
