//! What one session was told and decided, kept so that it can be looked at and
//! replayed: `pacer source --trace`, `pacer simulate`.
//!
//! A file is [`MAGIC`], a byte with the [`VERSION`], and records. A record is its
//! length in bytes (16 bits, little endian) and so many bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format): the [`Header`] in the
//! first, then the nanoseconds since the record before (signed; the first counts
//! from t0) and an [`Entry`]. Any change of these types is a new version, and what is
//! added to an enum is added at its end. Traces of version 1 are read as well.
//! `docs/trace.md` has it for readers in other languages.

mod codec;
mod version_1;
mod writer;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::pacing::objective::{Limits, Objective};
use crate::pacing::sample::Sample;
use crate::pacing::time::Time;

pub use codec::{DecodeError, Decoder, Encoder};
pub use writer::TraceWriter;

/// How a trace begins.
pub const MAGIC: &[u8] = b"pacer-trace\n";
/// The format's version.
pub const VERSION: u8 = 2;

/// What a migration was to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of Pacer that wrote it.
    pub pacer_version: String,
    /// t0 by the wall's clock, RFC 3339.
    pub started_at: String,
    /// The source's QEMU, where QMP says.
    pub qemu_version: Option<String>,
    /// `kvm` or `tcg`, where it is known.
    pub accelerator: Option<String>,
    /// What was asked for.
    pub objective: Objective,
    /// What must not be exceeded.
    pub limits: Limits,
    /// What a switchover was taken for besides copying.
    pub switchover_overhead: Duration,
    /// From t0: it was held until then.
    pub not_before: Option<Duration>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Entry {
    /// An observation.
    Sample(Sample),
    /// The operator asked for something else.
    Objective(Objective),
    /// The rate was set.
    Rate {
        /// Bytes a second; `u64::MAX` is no limit.
        bytes_per_second: u64,
        /// Why.
        reason: String,
    },
    /// The migration ended.
    Ended {
        /// The report's word for how.
        outcome: String,
    },
    /// The operator set other limits.
    Limits(Limits),
    /// The operator held it, or released it.
    Held(bool),
    /// QEMU's `max-cpu-throttle` was set, in percent.
    Throttle(u8),
}

/// A whole trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it was to be.
    pub header: Header,
    /// t0 of the times below: not the time it had on its host.
    pub t0: Time,
    /// What happened, and when. Not always in order: some is learned late.
    pub entries: Vec<(Time, Entry)>,
    /// The file ends within a record: its writer was killed.
    pub is_cut: bool,
}

/// t0 of a trace that is read: so late that nothing is before the clock's zero.
const T0: Time = Time::from_nanos(1 << 43);

impl Trace {
    /// Reads a trace from the bytes of its file.
    ///
    /// # Errors
    ///
    /// If they are none, of another version, or damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut decoder, header) = Decoder::new(bytes, T0)?;
        let mut entries = Vec::new();
        while let Some(entry) = decoder.next_entry()? {
            entries.push(entry);
        }
        Ok(Self {
            header,
            t0: T0,
            entries,
            is_cut: decoder.is_cut(),
        })
    }

    /// The samples, in the order of their times.
    #[must_use]
    pub fn samples(&self) -> Vec<(Time, Sample)> {
        let samples = self.entries.iter().filter_map(|(at, entry)| match entry {
            Entry::Sample(sample) => Some((*at, *sample)),
            _ => None,
        });
        let mut samples: Vec<_> = samples.collect();
        samples.sort_by_key(|&(at, _)| at);
        samples
    }
}
