//! The file a trace is written to.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use super::{Encoder, Entry, Header};
use crate::pacing::time::Time;

/// Writes one trace. If the file takes no more, that is logged once and the
/// migration goes on without.
#[derive(Debug)]
pub struct TraceWriter {
    path: PathBuf,
    /// `None` once it took no more.
    file: Option<BufWriter<File>>,
    encoder: Option<Encoder>,
    buffer: Vec<u8>,
}

impl TraceWriter {
    /// Makes the file, in place of any that is there.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Some(BufWriter::new(File::create(path)?)),
            encoder: None,
            buffer: Vec::new(),
        })
    }

    /// Times count from `t0`; nothing before this is kept.
    pub fn begin(&mut self, header: &Header, t0: Time) {
        self.encoder = Some(Encoder::new(header, t0, &mut self.buffer));
        self.write();
    }

    /// Keeps one entry.
    pub fn entry(&mut self, at: Time, entry: &Entry) {
        if let (Some(encoder), true) = (&mut self.encoder, self.file.is_some()) {
            encoder.entry(at, entry, &mut self.buffer);
            self.write();
        }
    }

    /// Everything so far is in the file when this returns.
    pub fn flush(&mut self) {
        let flushed = self.file.as_mut().map_or(Ok(()), BufWriter::flush);
        self.check(flushed);
    }

    fn write(&mut self) {
        let written = match &mut self.file {
            Some(file) => file.write_all(&self.buffer),
            None => Ok(()),
        };
        self.buffer.clear();
        self.check(written);
    }

    fn check(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            tracing::warn!(
                "the trace {} ends here: it cannot be written ({error}); the migration goes on",
                self.path.display()
            );
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::super::Trace;
    use super::*;
    use crate::pacing::objective::{Limits, Objective};
    use crate::pacing::sample::Sample;

    fn header() -> Header {
        Header {
            pacer_version: String::new(),
            started_at: String::new(),
            qemu_version: None,
            accelerator: None,
            objective: Objective::Fastest,
            limits: Limits {
                max_rate: Some(1),
                downtime_limit: Duration::from_secs(1),
            },
            switchover_overhead: Duration::ZERO,
        }
    }

    fn write(path: &Path) -> TraceWriter {
        let mut writer = TraceWriter::create(path).expect("it can be made");
        let started = Entry::Sample(Sample::StreamStarted);
        writer.entry(Time::ZERO, &started);
        writer.begin(&header(), Time::ZERO);
        writer.entry(Time::from_nanos(7), &started);
        writer.flush();
        writer
    }

    #[test]
    fn a_file_has_what_came_since_t0() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("trace");
        write(&path);
        let trace = Trace::parse(&fs::read(&path).expect("written")).expect("whole");
        assert_eq!(trace.entries.len(), 1);
    }

    #[test]
    fn a_full_disk_ends_the_trace_alone() {
        let mut writer = write(Path::new("/dev/full"));
        assert!(writer.file.is_none());
        writer.entry(Time::from_nanos(9), &Entry::Objective(Objective::Fastest));
        writer.flush();
    }
}
