//! Records to bytes and back. Pure.

use thiserror::Error;

use super::{Entry, Header, MAGIC, VERSION, version_1};
use crate::pacing::time::Time;

/// Bytes of a record's length.
const LENGTH_BYTES: usize = 2;

/// Why bytes are no trace that can be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// They begin otherwise.
    #[error("this is no trace of pacer's")]
    NotTrace,
    /// A format that is not known.
    #[error(
        "this trace has version {0}, and this pacer reads versions 1 to {VERSION}; use the pacer that wrote it, or a newer one"
    )]
    Version(u8),
    /// A record that makes no sense.
    #[error("this trace is damaged at byte {at}")]
    Damaged {
        /// Where the record begins.
        at: usize,
    },
}

/// Turns entries into bytes.
#[derive(Debug)]
pub struct Encoder {
    before: Time,
}

impl Encoder {
    /// Writes the front of a trace whose times count from `t0` to `out`.
    pub fn new(header: &Header, t0: Time, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(MAGIC);
        out.push(VERSION);
        put(header, out);
        Self { before: t0 }
    }

    /// Writes one entry to `out`; one too long for a record is left out.
    pub fn entry(&mut self, at: Time, entry: &Entry, out: &mut Vec<u8>) {
        let nanos = i128::from(at.as_nanos()) - i128::from(self.before.as_nanos());
        // More than 292 years is no time of a migration.
        let Ok(nanos) = i64::try_from(nanos) else {
            return;
        };
        if put(&(nanos, entry), out) {
            self.before = at;
        }
    }
}

/// Whether it was short enough.
fn put<T: serde::Serialize>(value: &T, out: &mut Vec<u8>) -> bool {
    let Ok(bytes) = postcard::to_stdvec(value) else {
        return false;
    };
    let Ok(length) = u16::try_from(bytes.len()) else {
        return false;
    };
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&bytes);
    true
}

/// Turns bytes into entries.
#[derive(Debug)]
pub struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    before: Time,
    is_cut: bool,
}

impl<'a> Decoder<'a> {
    /// Reads the front of a trace; its times are to count from `t0`.
    ///
    /// # Errors
    ///
    /// If it is none, or of another version.
    pub fn new(bytes: &'a [u8], t0: Time) -> Result<(Self, Header), DecodeError> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(DecodeError::NotTrace)?;
        let version = match rest.first() {
            Some(&version @ (version_1::VERSION | VERSION)) => version,
            Some(&version) => return Err(DecodeError::Version(version)),
            None => return Err(DecodeError::NotTrace),
        };
        let mut decoder = Self {
            bytes,
            at: MAGIC.len() + 1,
            before: t0,
            is_cut: false,
        };
        let at = decoder.at;
        let header = decoder.record().ok_or(DecodeError::Damaged { at })?;
        let header = match version {
            version_1::VERSION => {
                postcard::from_bytes::<version_1::Header>(header).map(Header::from)
            }
            _ => postcard::from_bytes(header),
        };
        let header = header.map_err(|_| DecodeError::Damaged { at })?;
        Ok((decoder, header))
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    ///
    /// If it is damaged.
    pub fn next_entry(&mut self) -> Result<Option<(Time, Entry)>, DecodeError> {
        let at = self.at;
        let Some(record) = self.record() else {
            return Ok(None);
        };
        let damaged = DecodeError::Damaged { at };
        let (nanos, entry): (i64, Entry) =
            postcard::from_bytes(record).map_err(|_| damaged.clone())?;
        let time = self.before.as_nanos().checked_add_signed(nanos);
        self.before = Time::from_nanos(time.ok_or(damaged)?);
        Ok(Some((self.before, entry)))
    }

    /// Whether the bytes ended within a record.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.is_cut
    }

    fn record(&mut self) -> Option<&'a [u8]> {
        let rest = self.bytes.get(self.at..)?;
        if rest.is_empty() {
            return None;
        }
        let record = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .and_then(|(length, rest)| rest.get(..usize::from(u16::from_le_bytes(*length))));
        match record {
            Some(record) => self.at += LENGTH_BYTES + record.len(),
            None => self.is_cut = true,
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::Trace;
    use super::*;
    use crate::pacing::objective::{Limits, Objective};
    use crate::pacing::sample::{DirtyWindow, Origin, Ram, Sample, StreamCounters};

    fn header() -> Header {
        Header {
            pacer_version: "0.1.0".to_owned(),
            started_at: "2026-01-02T03:04:05Z".to_owned(),
            qemu_version: Some("10.0.2".to_owned()),
            accelerator: None,
            objective: Objective::Fixed(1 << 20),
            limits: Limits {
                max_rate: None,
                downtime_limit: Duration::from_millis(300),
                disk_latency_limit: Some(Duration::from_millis(20)),
                converge: true,
            },
            switchover_overhead: Duration::from_millis(60),
            not_before: Some(Duration::from_secs(9)),
        }
    }

    fn entries() -> Vec<(u64, Entry)> {
        vec![
            (
                5,
                Entry::Sample(Sample::Ram(Ram {
                    total_bytes: 1 << 30,
                    content_bytes: None,
                    content_parts: None,
                })),
            ),
            (
                900,
                Entry::Rate {
                    bytes_per_second: u64::MAX,
                    reason: "no deadline".to_owned(),
                },
            ),
            // Learned late.
            (
                400,
                Entry::Sample(Sample::Dirty(DirtyWindow {
                    window: Duration::from_millis(50),
                    pages: 77,
                    device_pages: 1,
                    origin: Origin::DirtyLog,
                })),
            ),
            (
                1000,
                Entry::Sample(Sample::Stream(StreamCounters::default())),
            ),
            (1100, Entry::Held(true)),
            (1200, Entry::Limits(Limits::default())),
            (1300, Entry::Throttle(21)),
            (
                2000,
                Entry::Ended {
                    outcome: "completed".to_owned(),
                },
            ),
        ]
    }

    const T0: Time = Time::from_nanos(12_345);

    fn encoded() -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&header(), T0, &mut out);
        for (nanos, entry) in entries() {
            encoder.entry(T0 + Duration::from_nanos(nanos), &entry, &mut out);
        }
        out
    }

    #[test]
    fn what_was_written_is_read() {
        let trace = Trace::parse(&encoded()).expect("whole");
        assert_eq!(trace.header, header());
        assert!(!trace.is_cut);
        let read: Vec<_> = trace
            .entries
            .iter()
            .map(|(at, entry)| {
                let nanos = at.since(trace.t0).as_nanos();
                (u64::try_from(nanos).expect("small"), entry.clone())
            })
            .collect();
        assert_eq!(read, entries());
        let times: Vec<_> = trace.samples().iter().map(|&(at, _)| at).collect();
        assert!(times.is_sorted());
    }

    #[test]
    fn a_trace_of_version_1_is_read() {
        let header = version_1::Header {
            pacer_version: "0.1.0".to_owned(),
            started_at: String::new(),
            qemu_version: None,
            accelerator: Some("kvm".to_owned()),
            objective: Objective::Fastest,
            max_rate: Some(7),
            downtime_limit: Duration::from_millis(250),
            switchover_overhead: Duration::from_millis(60),
        };
        let mut out = [MAGIC, &[version_1::VERSION]].concat();
        put(&header, &mut out);
        put(&(5_i64, Entry::Sample(Sample::StreamStarted)), &mut out);
        let trace = Trace::parse(&out).expect("whole");
        let limits = trace.header.limits;
        assert_eq!(
            (limits.max_rate, limits.downtime_limit),
            (Some(7), Duration::from_millis(250))
        );
        assert_eq!(trace.header.switchover_overhead, Duration::from_millis(60));
        assert_eq!(trace.entries.len(), 1);
    }

    #[test]
    fn a_cut_trace_is_read_as_far_as_it_goes() {
        let bytes = encoded();
        let trace = Trace::parse(&bytes[..bytes.len() - 3]).expect("the rest is whole");
        assert!(trace.is_cut);
        assert_eq!(trace.entries.len(), entries().len() - 1);
    }

    #[test]
    fn what_is_no_trace_is_told_apart() {
        assert_eq!(Trace::parse(b"QEVM"), Err(DecodeError::NotTrace));
        let mut bytes = encoded();
        bytes[MAGIC.len()] = 9;
        assert_eq!(Trace::parse(&bytes), Err(DecodeError::Version(9)));
        let at = MAGIC.len() + 1;
        assert_eq!(
            Trace::parse(&bytes_with(at + LENGTH_BYTES, 0xff)),
            Err(DecodeError::Damaged { at })
        );
    }

    fn bytes_with(at: usize, byte: u8) -> Vec<u8> {
        let mut bytes = encoded();
        bytes[at] = byte;
        bytes
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_never_panics(
            at in 0_usize..400, garbage in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let mut bytes = encoded();
            let at = at.min(bytes.len());
            let end = (at + garbage.len()).min(bytes.len());
            bytes.splice(at..end, garbage);
            let _ = Trace::parse(&bytes);
        }
    }
}
