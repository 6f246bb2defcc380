//! What the link takes, found by sending what nobody needs, before the migration.
//!
//! A stream of its own kind carries padding from the source for at most `LONGEST` and
//! at most `MOST_BYTES`; the destination discards it and says how it came. Both ends
//! hold these bounds, so that neither can be made to do more.

use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use serde::{Deserialize, Serialize};

use super::control::ControlError;
use super::endpoint::explain;
use super::frame::Preface;
use super::gate::Gate;
use crate::clock;
use crate::pacing::time::Time;
use crate::pacing::token_bucket::Rate;
use crate::units::{from_f64, to_f64};

/// How long padding is sent.
const LONGEST: Duration = Duration::from_secs(1);
/// How much of it at most, on links so fast that this takes less.
const MOST_BYTES: u64 = 16 << 20;
/// What is on its way after the last byte was sent, and the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// The destination reads for so long at most.
const MOST_READING: Duration = Duration::from_secs(3);
const PIECE_BYTES: usize = 64 * 1024;
/// The rate is the best over so long a part of it: QUIC begins slowly, and what is on
/// its way is longer than this on no ordinary link.
const PART: Duration = Duration::from_millis(250);
/// As much of what was allowed, and it was not the link that limited it.
const ALL_BUT: f64 = 0.9;
/// The code that either end stops the padding with.
const ENOUGH: VarInt = VarInt::from_u32(2);
const LONGEST_ANSWER: usize = 256;

/// What the link was found to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkRate {
    /// About so many bytes a second of stream data.
    About(u64),
    /// At least so many: as much as was sent.
    AtLeast(u64),
}

/// How the padding came, as the destination answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    bytes: u64,
    bytes_per_second: u64,
}

/// Measures what the link to the peer takes, with no more than `most_rate` bytes a
/// second.
///
/// # Errors
///
/// If the link is down, or the peer does not answer.
pub async fn measure(
    connection: &Connection,
    most_rate: Option<u64>,
) -> Result<LinkRate, ControlError> {
    let lost = |error: quinn::ConnectionError| ControlError::Link(explain(&error));
    let broken = |error: &dyn std::error::Error| ControlError::Link(error.to_string());
    let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
    let mut answered = std::pin::pin!(recv.read_to_end(LONGEST_ANSWER));
    let answer = {
        let whole = async {
            send_padding(&mut send, most_rate).await?;
            // It fails only if the peer has had enough, and says so.
            let _ = send.finish();
            Ok::<_, quinn::WriteError>(answered.as_mut().await)
        };
        tokio::time::timeout(LONGEST, whole).await
    };
    let answer = match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(quinn::WriteError::Stopped(_))) | Err(_) => {
            // What still waits to be sent is not to be.
            let _ = send.reset(ENOUGH);
            tokio::time::timeout(ANSWER_TIMEOUT, answered)
                .await
                .map_err(|_| ControlError::Silent(ANSWER_TIMEOUT))?
        }
        Ok(Err(error)) => return Err(broken(&error)),
    };
    let answer = answer.map_err(|error| broken(&error))?;
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|error| ControlError::Frame(error.into()))?;
    Ok(judge(answer.bytes_per_second, most_rate))
}

async fn send_padding(
    send: &mut SendStream,
    most_rate: Option<u64>,
) -> Result<(), quinn::WriteError> {
    send.write_all(&Preface::Padding.encode()).await?;
    let gate = Gate::new(most_rate.map_or(Rate::Open, Rate::BytesPerSecond));
    let padding = Bytes::from(vec![0; PIECE_BYTES]);
    let mut left = MOST_BYTES;
    while left > 0 {
        let piece = gate
            .piece_bytes()
            .min(usize::try_from(left).unwrap_or(PIECE_BYTES));
        gate.pass(piece).await;
        send.write_chunk(padding.slice(..piece)).await?;
        left -= u64::try_from(piece).unwrap_or(left);
    }
    Ok(())
}

/// A rate that is all that was allowed says nothing about the link's.
fn judge(bytes_per_second: u64, most_rate: Option<u64>) -> LinkRate {
    match most_rate {
        Some(most) if to_f64(bytes_per_second) >= ALL_BUT * to_f64(most) => LinkRate::AtLeast(most),
        _ => LinkRate::About(bytes_per_second),
    }
}

/// Reads and discards the padding of a stream whose preface was read, and answers.
pub async fn answer(mut send: SendStream, mut recv: RecvStream) {
    let mut arrivals = Arrivals::default();
    let reading = async {
        while let Ok(Some(chunk)) = recv.read_chunk(PIECE_BYTES, true).await {
            let bytes = u64::try_from(chunk.bytes.len()).unwrap_or(u64::MAX);
            arrivals.add(bytes, clock::now());
            if arrivals.bytes() > MOST_BYTES {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(MOST_READING, reading).await;
    // It is over, whatever the peer still has.
    let _ = recv.stop(ENOUGH);
    let answer = Answer {
        bytes: arrivals.bytes(),
        bytes_per_second: arrivals.rate().map_or(0, from_f64),
    };
    // The source goes on without an answer.
    if let Ok(bytes) = serde_json::to_vec(&answer)
        && send.write_all(&bytes).await.is_ok()
    {
        let _ = send.finish();
    }
}

/// What came when.
#[derive(Clone, Debug, Default)]
struct Arrivals {
    /// The time, and the bytes up to then.
    points: Vec<(Time, u64)>,
}

impl Arrivals {
    fn add(&mut self, bytes: u64, now: Time) {
        let before = self.bytes();
        match self.points.last_mut() {
            // Bounded: one a millisecond.
            Some((at, all)) if now.since(*at) < Duration::from_millis(1) => *all += bytes,
            _ => self.points.push((now, before + bytes)),
        }
    }

    fn bytes(&self) -> u64 {
        self.points.last().map_or(0, |point| point.1)
    }

    /// Bytes a second, the best over [`PART`] or over all of it where that is shorter;
    /// `None` if all came at once.
    fn rate(&self) -> Option<f64> {
        let (first, last) = (self.points.first()?, self.points.last()?);
        let part = last.0.since(first.0).min(PART);
        let mut begin = 0;
        let mut best = None::<f64>;
        for (end, &(at, bytes)) in self.points.iter().enumerate() {
            // The shortest span up to here that is long enough.
            while begin + 1 < end && at.since(self.points[begin + 1].0) >= part {
                begin += 1;
            }
            let (from, before) = self.points[begin];
            let span = at.since(from);
            if span >= part && !span.is_zero() {
                let rate = to_f64(bytes - before) / span.as_secs_f64();
                best = Some(best.map_or(rate, |best| best.max(rate)));
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(each: impl IntoIterator<Item = (u64, u64)>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        for (milliseconds, bytes) in each {
            arrivals.add(bytes, Time::from_nanos(milliseconds * 1_000_000));
        }
        arrivals
    }

    #[test]
    fn a_slow_start_is_not_the_rate() {
        // Doubles each 100 ms until it is 10 MB/s.
        let bytes = |at: u64| 10_000_u64.min(500 << (at / 100).min(10));
        let rate = arrivals((0..1000).map(|at| (at, bytes(at)))).rate();
        let rate = rate.expect("it came over a second");
        assert!((9.9e6..10.2e6).contains(&rate), "{rate}");
    }

    #[test]
    fn a_fast_link_takes_all_in_a_moment() {
        let rate = arrivals((0..20).map(|at| (at, 400_000))).rate();
        assert!((3.9e8..4.1e8).contains(&rate.unwrap()), "{rate:?}");
    }

    #[test]
    fn what_came_at_once_or_not_at_all_has_no_rate() {
        assert_eq!(arrivals([]).rate(), None);
        assert_eq!(arrivals([(5, 1 << 20)]).rate(), None);
    }

    #[test]
    fn a_rate_that_was_not_the_links_is_a_bound() {
        assert_eq!(judge(47, Some(50)), LinkRate::AtLeast(50));
        assert_eq!(judge(20, Some(50)), LinkRate::About(20));
        assert_eq!(judge(20, None), LinkRate::About(20));
    }
}
