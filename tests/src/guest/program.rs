//! Real programs that the Linux guest runs, for ever, for the sake of what they
//! do to its memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What the guest's shell is told to do.
pub(super) const SCRIPT: &str = include_str!("programs.sh");

/// A program of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// redis-server, which redis-benchmark makes set keys at random.
    Redis,
    /// stress-ng's stressor of virtual memory.
    StressNg,
    /// cp, over the same file each time.
    Copy,
    /// sqlite3: every 50th row of a table is updated.
    Sqlite,
    /// gzip of a text.
    Gzip,
    /// sort of a text's lines.
    Sort,
}

/// A program and how much it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramLoad {
    /// Which.
    pub program: Program,
    /// What it works on, in MiB: keys, a file, a table.
    pub work_mib: u32,
    /// It rests between two rounds for so many milliseconds.
    pub pause_ms: u32,
    /// Filled beside and left alone, in MiB.
    pub fill_mib: u32,
}

impl Program {
    /// The word the guest knows.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::StressNg => "stress-ng",
            Self::Copy => "copy",
            Self::Sqlite => "sqlite",
            Self::Gzip => "gzip",
            Self::Sort => "sort",
        }
    }
}

impl ProgramLoad {
    /// What comes behind `--` on the kernel's command line.
    pub(super) fn arguments(&self) -> String {
        let Self {
            program,
            work_mib,
            pause_ms,
            fill_mib,
        } = self;
        let (seconds, rest) = (pause_ms / 1000, pause_ms % 1000);
        format!(
            "program {} {work_mib} {seconds}.{rest:03} {fill_mib}",
            program.name()
        )
    }
}

/// Rounds that the program has ended, by what the guest said on its serial
/// port.
///
/// # Errors
/// The program failed.
pub fn rounds(serial: &str) -> Result<u64> {
    let lines = serial
        .lines()
        .filter(|line| line.contains("PACER PROGRAM "));
    let mut rounds = 0;
    for line in lines {
        ensure!(!line.contains(" failed"), "{line}");
        rounds += u64::from(line.contains(" round "));
    }
    Ok(rounds)
}

/// The programs' files and the libraries they need, as they are to be in the
/// guest: path and content.
///
/// # Errors
/// A program is not there.
pub(super) fn files() -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    for (name, also) in NAMES {
        let path = find(name).or_else(|| find(also?));
        let path = path.with_context(|| format!("no {name} on PATH: run cargo xtask setup"))?;
        libraries.extend(libraries_of(&path)?);
        files.push((Path::new("/usr/bin").join(name), read(&path)?));
    }
    for library in libraries {
        let content = read(&library)?;
        files.push((library, content));
    }
    Ok(files)
}

/// What [`SCRIPT`] runs that busybox does not have, or not as it is; the second
/// name is that of the same program elsewhere: Debian's redis-tools has the
/// server under that of the checker that it also is, and no service.
const NAMES: [(&str, Option<&str>); 7] = [
    ("redis-server", Some("redis-check-rdb")),
    ("redis-benchmark", None),
    ("stress-ng", None),
    ("sqlite3", None),
    ("gzip", None),
    ("sort", None),
    ("cp", None),
];

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// The absolute paths among what ldd prints.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("not found"),
        "ldd {}: {text}",
        program.display()
    );
    Ok(absolute_paths(&text))
}

fn absolute_paths(ldd: &str) -> Vec<PathBuf> {
    let words = ldd
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_says() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x2)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(
            absolute_paths(text),
            ["/lib/x/libz.so.1", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
    }

    #[test]
    fn rounds_are_counted_until_one_fails() {
        let serial = "boot\nPACER PROGRAM sort ready\r\nPACER PROGRAM sort round 1\r\n\
                      PACER PROGRAM sort round 2\r\n";
        assert_eq!(rounds(serial).unwrap(), 2);
        assert_eq!(rounds("boot\n").unwrap(), 0);
        assert!(rounds(&format!("{serial}PACER PROGRAM sort failed\r\n")).is_err());
    }

    #[test]
    fn the_guest_knows_every_program() {
        for program in [
            Program::Redis,
            Program::StressNg,
            Program::Copy,
            Program::Sqlite,
            Program::Gzip,
            Program::Sort,
        ] {
            assert!(SCRIPT.contains(&format!("\n{})\n", program.name())));
        }
        let load = ProgramLoad {
            program: Program::Sort,
            work_mib: 3,
            pause_ms: 1050,
            fill_mib: 40,
        };
        assert_eq!(load.arguments(), "program sort 3 1.050 40");
    }
}
