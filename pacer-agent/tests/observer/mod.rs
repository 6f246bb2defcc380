//! A running `pacer observe --json`, and a process that does something to a
//! file when it is told.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use pacer_agent::clock;
use serde_json::Value;

pub(crate) const PACER: &str = env!("CARGO_BIN_EXE_pacer");

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ended when dropped.
pub(crate) struct Observer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Observer {
    /// Observes `pid` with a line every 100 ms; has printed the first.
    pub(crate) fn start(pid: u32) -> (Self, Value) {
        let mut observer = Self::spawn(Command::new(PACER), pid);
        let first = observer.next().expect("a line once the probe is attached");
        (observer, first)
    }

    /// `pacer` is what runs `pacer`, as far as it is typed.
    pub(crate) fn spawn(mut pacer: Command, pid: u32) -> Self {
        let pid = pid.to_string();
        let mut child = pacer
            .args(["observe", "--json", "--interval", "100ms", "--pid", &pid])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it can be started");
        let stdout = child.stdout.take().expect("it is piped");
        Self {
            child,
            lines: BufReader::new(stdout),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line. `None`: there is none any more.
    pub(crate) fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        let length = self.lines.read_line(&mut line).expect("it is readable");
        (length > 0).then(|| serde_json::from_str(&line).expect("a JSON object a line"))
    }

    /// The first line for which `is_it` holds.
    pub(crate) fn wait(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let deadline = clock::now() + PATIENCE;
        let mut line = self.next().expect(what);
        while !is_it(&line) {
            assert!(clock::now() < deadline, "{what}: {line}");
            line = self.next().expect(what);
        }
        line
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: kill takes two numbers.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Waits for its end: the last line, how it ended, what it logged.
    pub(crate) fn end(mut self) -> (Option<Value>, ExitStatus, String) {
        let mut last = None;
        while let Some(line) = self.next() {
            last = Some(line);
        }
        let mut log = String::new();
        let mut stderr = self.child.stderr.take().expect("it is piped");
        stderr.read_to_string(&mut log).expect("it is text");
        let status = self.child.wait().expect("it is a child");
        (last, status, log)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        // Both do nothing if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that gives back a range of a file when told, and ends. Ended when
/// dropped.
pub(crate) struct Puncher {
    child: Child,
    pub(crate) file: tempfile::NamedTempFile,
}

impl Puncher {
    /// Will give back `bytes`.
    pub(crate) fn start(bytes: u64) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("it can grow");
        let child = Command::new("sh")
            .arg("-c")
            .arg("read line; exec fallocate --punch-hole --length \"$0\" \"$1\"")
            .arg(bytes.to_string())
            .arg(file.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        Self { child, file }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn punch(&mut self) {
        let mut stdin = self.child.stdin.take().expect("once only");
        stdin.write_all(b"now\n").expect("it waits for that");
        drop(stdin);
        let status = self.child.wait().expect("it is a child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Puncher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a line says of a file.
pub(crate) fn disk<'a>(line: &'a Value, file: &File) -> Option<&'a Value> {
    let inode = file.metadata().expect("it is open").ino();
    let disks = line["disks"].as_array().expect("disks");
    disks.iter().find(|disk| disk["inode"] == inode)
}

/// tracefs, readable by one group more until this is dropped.
pub(crate) struct OpenTracefs {
    mode: u32,
    gid: u32,
}

impl OpenTracefs {
    const PATH: &str = "/sys/kernel/tracing";

    pub(crate) fn to(gid: u32) -> Self {
        let before = fs::metadata(Self::PATH).expect("tracefs is mounted");
        remount(0o750, gid);
        Self {
            mode: before.mode() & 0o7777,
            gid: before.gid(),
        }
    }
}

impl Drop for OpenTracefs {
    fn drop(&mut self) {
        remount(self.mode, self.gid);
    }
}

fn remount(mode: u32, gid: u32) {
    let options = format!("remount,mode={mode:o},gid={gid}");
    run("mount", ["-o", &options, OpenTracefs::PATH]);
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let status = Command::new(program).args(arguments).status();
    assert!(status.is_ok_and(|status| status.success()), "{program}");
}

/// `pacer` where every user can start it.
pub(crate) struct SharedPacer {
    directory: tempfile::TempDir,
}

impl SharedPacer {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let everyone = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), everyone).expect("it is ours");
        fs::copy(PACER, directory.path().join("pacer")).expect("it is there");
        Self { directory }
    }

    /// As the user `uid`, with these capabilities (as setpriv names them) and
    /// no others.
    pub(crate) fn with(&self, uid: u32, capabilities: &[&str]) -> Command {
        let list: Vec<String> = std::iter::once("-all".to_owned())
            .chain(capabilities.iter().map(|name| format!("+{name}")))
            .collect();
        let list = list.join(",");
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .arg("--clear-groups")
            .arg(format!("--inh-caps={list}"))
            .arg(format!("--ambient-caps={list}"))
            .arg(format!("--bounding-set={list}"))
            .arg(self.path());
        command
    }

    fn path(&self) -> impl AsRef<OsStr> {
        self.directory.path().join("pacer")
    }
}

/// The numbers of a process' BPF objects of one kind: `prog_id` or `map_id`.
pub(crate) fn bpf_ids(pid: u32, kind: &str) -> Vec<u32> {
    let directory = format!("/proc/{pid}/fdinfo");
    let entries = fs::read_dir(Path::new(&directory)).expect("it runs");
    let id = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        line.strip_prefix(':')?.trim().parse().ok()
    };
    entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(id)
        .collect()
}

/// Waits until `is_so`.
pub(crate) fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = clock::now() + PATIENCE;
    while !is_so() {
        assert!(clock::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
