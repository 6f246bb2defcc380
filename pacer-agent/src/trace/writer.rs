//! The file a trace is written to.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::{Encoder, Entry, Header};
use crate::pacing::time::Time;

/// Writes one trace, on a thread of its own: a disk that is slow keeps no migration
/// waiting. If the file takes no more, that is logged once and the migration goes on
/// without.
#[derive(Debug)]
pub struct TraceWriter {
    /// What is to be written. Gone, the thread ends.
    out: Option<Sender<Vec<u8>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
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
        let file = File::create(path)?;
        let (out, parts) = channel();
        let path = path.to_owned();
        let thread = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || write(file, &path, &parts))?;
        Ok(Self {
            out: Some(out),
            thread: Some(thread),
            encoder: None,
            buffer: Vec::new(),
        })
    }

    /// Times count from `t0`; nothing before this is kept.
    pub fn begin(&mut self, header: &Header, t0: Time) {
        self.encoder = Some(Encoder::new(header, t0, &mut self.buffer));
    }

    /// Keeps one entry.
    pub fn entry(&mut self, at: Time, entry: &Entry) {
        if let Some(encoder) = &mut self.encoder {
            encoder.entry(at, entry, &mut self.buffer);
        }
    }

    /// Everything so far will be in the file, whatever becomes of this.
    pub fn flush(&mut self) {
        let part = std::mem::take(&mut self.buffer);
        // Gone if the file takes no more, which was said.
        let _ = self.out.as_ref().map(|out| out.send(part));
    }

    /// Everything is in the file when this returns, or is not to be had.
    ///
    /// # Errors
    ///
    /// If something could not be written.
    pub fn finish(&mut self) -> io::Result<()> {
        self.flush();
        self.out = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

fn write(mut file: File, path: &Path, parts: &Receiver<Vec<u8>>) -> io::Result<()> {
    parts.iter().try_for_each(|part| {
        file.write_all(&part).inspect_err(|error| {
            tracing::warn!(
                "the trace {} ends here: it cannot be written ({error}); the migration goes on",
                path.display()
            );
        })
    })
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
                ..Limits::default()
            },
            switchover_overhead: Duration::ZERO,
            not_before: None,
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
        write(&path).finish().expect("written");
        let trace = Trace::parse(&fs::read(&path).expect("written")).expect("whole");
        assert_eq!(trace.entries.len(), 1);
    }

    #[test]
    fn a_full_disk_ends_the_trace_alone() {
        let mut writer = write(Path::new("/dev/full"));
        writer.entry(Time::from_nanos(9), &Entry::Objective(Objective::Fastest));
        writer.flush();
        let full = writer.finish().expect_err("full");
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
