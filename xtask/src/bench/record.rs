//! The runs of a benchmark, each appended to a file as it ends, so that one
//! that was cut off goes on where it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use pacer_tests::process::check_interrupt;
use serde_json::{Value, json};

use crate::shell::output;

/// What a run's figures are figures of. Runs of another build, or of other
/// parameters, are not mixed in.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Told with each run, and no part of what makes builds differ: a commit that
    /// changes no program, of documents, say, leaves their figures as they are.
    commit: String,
    /// A hash of the programs that were measured and that measured.
    programs: String,
    /// Of what they ran on and with.
    versions: String,
}

impl Identity {
    /// `programs` were built for it, besides our own.
    pub(super) fn of_this_build(programs: &[&PathBuf], versions: String) -> Result<Self> {
        let commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
        let own = std::env::current_exe()?;
        let mut hash = Fnv::new();
        for program in programs.iter().copied().chain([&own]) {
            let content = fs::read(program).with_context(|| program.display().to_string())?;
            hash.add(&content);
        }
        Ok(Self {
            commit: commit.map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned()),
            programs: format!("{:016x}", hash.0),
            versions,
        })
    }

    /// Whether a line of the file is of the same programs, run on the same.
    fn is_of(&self, line: &Value) -> bool {
        let build = &line["build"];
        build["programs"] == self.programs.as_str() && build["versions"] == self.versions.as_str()
    }

    fn to_json(&self) -> Value {
        json!({
            "commit": self.commit,
            "programs": self.programs,
            "versions": self.versions,
        })
    }
}

/// FNV-1a: the same in every build, which the standard library's need not be.
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The file of runs.
pub(super) struct Records {
    path: PathBuf,
    file: File,
    identity: Identity,
    /// From before, by key; those of them that this plan has are taken out.
    earlier: BTreeMap<String, Value>,
    kept: usize,
    /// Measurements that failed, by row, also those that were made again.
    failed: BTreeMap<String, usize>,
    runs: Vec<Value>,
}

impl Records {
    /// Opens the file and takes what is there of the same build's last
    /// benchmark, unless that one was finished.
    pub(super) fn open(path: &Path, identity: Identity) -> Result<Self> {
        let context = || path.display().to_string();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(context)?,
        };
        let (earlier, failed) = unfinished(&text, &identity);
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(context)?;
        // Whoever was cut off may have been within a line.
        if !text.is_empty() && !text.ends_with('\n') {
            writeln!(file)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            identity,
            kept: earlier.len(),
            earlier,
            failed,
            runs: Vec::new(),
        })
    }

    /// Figures of the run number `index` of `row` with these parameters: from
    /// the file, or measured now. A measurement that fails is a run with an
    /// `error` in place of figures; it is tried again when the benchmark is
    /// resumed.
    ///
    /// # Errors
    /// The file cannot be written, or a signal asked us to end.
    pub(super) fn run(
        &mut self,
        row: &str,
        index: u32,
        parameters: &Value,
        measure: impl FnOnce() -> Result<Value>,
    ) -> Result<Value> {
        check_interrupt()?;
        let run = match self.earlier.remove(&key(row, index, parameters)) {
            Some(run) => run,
            None => self.measure(row, index, parameters, measure)?,
        };
        self.runs.push(run.clone());
        Ok(run)
    }

    fn measure(
        &mut self,
        row: &str,
        index: u32,
        parameters: &Value,
        measure: impl FnOnce() -> Result<Value>,
    ) -> Result<Value> {
        let mut run = json!({"row": row, "run": index, "parameters": parameters});
        match measure() {
            Ok(figures) => run["figures"] = figures,
            Err(error) => {
                check_interrupt()?;
                let error = format!("{error:#}");
                eprintln!("{row} {index}: {error}");
                *self.failed.entry(row.to_owned()).or_default() += 1;
                run["error"] = error.into();
            }
        }
        self.append(&json!({"build": self.identity.to_json(), "run": run}))?;
        Ok(run)
    }

    /// The benchmark is complete: the next one starts anew.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.append(&json!({"build": self.identity.to_json(), "finished": true}))
    }

    /// Whether this run is in the file already.
    pub(super) fn has(&self, row: &str, index: u32, parameters: &Value) -> bool {
        self.earlier.contains_key(&key(row, index, parameters))
    }

    /// How many measurements of this row failed, in earlier starts too, whether or
    /// not they were made again since.
    pub(super) fn failed(&self, row: &str) -> usize {
        self.failed.get(row).copied().unwrap_or(0)
    }

    /// Runs found in the file.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// Every run of this benchmark.
    pub(super) fn runs(&self) -> &[Value] {
        &self.runs
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn append(&mut self, line: &Value) -> Result<()> {
        // One write a line: a cut leaves at most one incomplete line.
        let text = format!("{line}\n");
        let context = || self.path.display().to_string();
        self.file.write_all(text.as_bytes()).with_context(context)
    }
}

fn key(row: &str, index: u32, parameters: &Value) -> String {
    format!("{row} {index} {parameters}")
}

/// The good runs of this build since the last benchmark that was finished, by key, and
/// how many others failed, by row.
fn unfinished(
    text: &str,
    identity: &Identity,
) -> (BTreeMap<String, Value>, BTreeMap<String, usize>) {
    let mut runs = BTreeMap::new();
    let mut failed = BTreeMap::new();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for mut line in lines.filter(|line| identity.is_of(line)) {
        if line["finished"] == true {
            runs.clear();
            failed.clear();
            continue;
        }
        let run = line["run"].take();
        let index = run["run"].as_u64().and_then(|index| index.try_into().ok());
        let Some(row) = run["row"].as_str() else {
            continue;
        };
        match index {
            Some(index) if run.get("figures").is_some() => {
                runs.insert(key(row, index, &run["parameters"]), run);
            }
            _ => *failed.entry(row.to_owned()).or_default() += 1,
        }
    }
    (runs, failed)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn identity(programs: &str) -> Identity {
        Identity {
            commit: "c".to_owned(),
            programs: programs.to_owned(),
            versions: "QEMU 10".to_owned(),
        }
    }

    /// Runs `indexes` of one row; returns which of them were measured.
    fn bench(path: &Path, programs: &str, indexes: &[u32], finish: bool) -> Vec<u32> {
        let mut records = Records::open(path, identity(programs)).unwrap();
        let mut measured = Vec::new();
        for &index in indexes {
            let parameters = json!({"pages": index * 2});
            let had = records.has("row", index, &parameters);
            let run = records.run("row", index, &parameters, || {
                measured.push(index);
                Ok(json!({"value": index}))
            });
            assert_eq!(run.unwrap()["figures"]["value"], index);
            assert_eq!(had, !measured.contains(&index));
        }
        assert_eq!(records.runs().len(), indexes.len());
        if finish {
            records.finish().unwrap();
        }
        measured
    }

    #[test]
    fn a_benchmark_that_was_cut_off_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bench/probe-1.jsonl");
        assert_eq!(bench(&path, "a", &[0, 1], false), [0, 1]);
        assert_eq!(bench(&path, "a", &[0, 1, 2], false), [2]);
        assert_eq!(bench(&path, "b", &[0], false), [0], "another build");
        assert_eq!(bench(&path, "a", &[0, 1, 2], true), [0; 0]);
        assert_eq!(bench(&path, "a", &[0, 1], false), [0, 1], "finished before");
    }

    #[test]
    fn a_line_cut_in_two_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.jsonl");
        bench(&path, "a", &[0, 1], false);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, &text[..text.len() - 9]).unwrap();
        assert_eq!(bench(&path, "a", &[0, 1], false), [1]);
        assert_eq!(bench(&path, "a", &[0, 1], false), [0; 0]);
    }

    #[test]
    fn what_failed_is_kept_and_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.jsonl");
        let parameters = json!({"pages": 0});
        let mut records = Records::open(&path, identity("a")).unwrap();
        let run = records.run("row", 0, &parameters, || bail!("no guest"));
        assert_eq!(run.unwrap()["error"], "no guest");
        assert_eq!(records.failed("row"), 1);
        assert_eq!(bench(&path, "a", &[0], false), [0]);
        let records = Records::open(&path, identity("a")).unwrap();
        assert_eq!((records.failed("row"), records.kept()), (1, 1));
    }
}
