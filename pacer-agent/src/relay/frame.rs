//! What the two agents say to each other, and how it stands on the wire.
//!
//! Every QUIC stream begins with a preface of four bytes that says what it is.
//! On the control stream, frames follow: a length of 32 bits, big endian, and
//! that many bytes of JSON. Pure: no I/O.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::preflight::Facts;

/// The version of the messages. A peer with another one is refused with a
/// message for people.
pub const VERSION: u32 = 2;

/// The longest frame; a longer length is refused before anything is allocated.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;

const LENGTH_BYTES: usize = 4;

/// What a QUIC stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// Frames: the first stream of a connection.
    Control,
    /// One TCP connection of QEMU's, counted from 0 in the order of acceptance.
    Channel(u16),
    /// What nobody needs, to measure the link: one a connection.
    Padding,
}

impl Preface {
    /// Its length on the wire.
    pub const BYTES: usize = 4;

    /// As it stands on the wire.
    #[must_use]
    pub const fn encode(self) -> [u8; Self::BYTES] {
        match self {
            Self::Control => [b'P', b'c', 0, 0],
            Self::Channel(index) => {
                let [high, low] = index.to_be_bytes();
                [b'P', b'd', high, low]
            }
            Self::Padding => [b'P', b'p', 0, 0],
        }
    }

    /// Reads it back; `None` for anything else.
    #[must_use]
    pub const fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        match bytes {
            [b'P', b'c', 0, 0] => Some(Self::Control),
            [b'P', b'p', 0, 0] => Some(Self::Padding),
            [b'P', b'd', high, low] => Some(Self::Channel(u16::from_be_bytes([high, low]))),
            _ => None,
        }
    }
}

/// Who continues the guest at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Handover {
    /// Pacer, through the destination's QMP.
    Pacer,
    /// libvirt or a person.
    External,
    /// QEMU by itself, as soon as it has loaded: a fault between load and
    /// acknowledgement lets the guest run twice.
    Qemu,
}

/// Where the destination stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum DestinationState {
    /// QEMU has not loaded the whole guest.
    Loading,
    /// Loaded and paused: it may be continued.
    Loaded,
    /// The guest runs there.
    Running,
    /// It will not run there in this attempt.
    Failed {
        /// Why.
        reason: String,
    },
}

/// One message. All but the first two carry the attempt they belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// Source: first on every connection.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The attempt.
        attempt: Uuid,
        /// The attempt was begun on an earlier connection.
        resume: bool,
    },
    /// Destination: cannot serve; the connection ends.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// Destination: prepared (P0).
    Ready {
        /// The attempt.
        attempt: Uuid,
        /// Its QEMU, where QMP said.
        qemu_version: Option<String>,
        /// Who continues the guest.
        handover: Handover,
        /// Its QEMU's machine, where QMP said.
        facts: Option<Box<Facts>>,
    },
    /// Source: where does the destination stand?
    Status {
        /// The attempt.
        attempt: Uuid,
    },
    /// Destination: there.
    State {
        /// The attempt.
        attempt: Uuid,
        /// Where.
        #[serde(flatten)]
        state: DestinationState,
    },
    /// Source: continue the guest (P4). The source will not run it again.
    Commit {
        /// The attempt.
        attempt: Uuid,
        /// False for a guest that was paused at the source: it stays paused.
        continue_guest: bool,
    },
    /// Destination: the guest runs (P5), or is as paused as it was.
    Running {
        /// The attempt.
        attempt: Uuid,
    },
    /// Destination: it could not be continued, its QEMU is gone and the guest
    /// never ran there.
    NeverRan {
        /// The attempt.
        attempt: Uuid,
        /// Why.
        reason: String,
    },
    /// Source: the guest stays at the source.
    Abort {
        /// The attempt.
        attempt: Uuid,
        /// Why.
        reason: String,
    },
    /// Destination: will not run it.
    Aborted {
        /// The attempt.
        attempt: Uuid,
    },
    /// Source: nothing more will come.
    Done {
        /// The attempt.
        attempt: Uuid,
    },
}

/// Why bytes are not frames.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length that no message has.
    #[error("a frame of {0} bytes, more than the {MAX_FRAME_BYTES} allowed")]
    TooLong(usize),
    /// Not a message of this version.
    #[error("a frame that is not a message of this version")]
    Unreadable(#[from] serde_json::Error),
}

/// The frame of `message`.
///
/// # Errors
///
/// If it is longer than [`MAX_FRAME_BYTES`].
pub fn encode(message: &Message) -> Result<Vec<u8>, FrameError> {
    let body = serde_json::to_vec(message)?;
    match u32::try_from(body.len()) {
        Ok(length) if body.len() <= MAX_FRAME_BYTES => {
            Ok([&length.to_be_bytes()[..], &body].concat())
        }
        _ => Err(FrameError::TooLong(body.len())),
    }
}

/// Puts frames together from bytes that are cut anywhere.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes; ask [`Decoder::poll`] after it until it has none.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one.
    ///
    /// # Errors
    ///
    /// If what is held is not a frame; the connection is of no more use.
    pub fn poll(&mut self) -> Result<Option<Message>, FrameError> {
        let Some((length, rest)) = self.held.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body)?;
        self.held.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> Vec<Message> {
        let attempt = Uuid::from_u128(7);
        vec![
            Message::Hello {
                version: VERSION,
                attempt,
                resume: false,
            },
            Message::Ready {
                attempt,
                qemu_version: None,
                handover: Handover::Pacer,
                facts: Some(Box::default()),
            },
            Message::State {
                attempt,
                state: DestinationState::Failed {
                    reason: "näh".to_owned(),
                },
            },
            Message::Commit {
                attempt,
                continue_guest: true,
            },
        ]
    }

    #[test]
    fn messages_come_back_wherever_they_are_cut() {
        let bytes: Vec<u8> = messages()
            .iter()
            .flat_map(|message| encode(message).unwrap())
            .collect();
        for cut in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut read = Vec::new();
            for piece in [&bytes[..cut], &bytes[cut..]] {
                decoder.feed(piece);
                while let Some(message) = decoder.poll().unwrap() {
                    read.push(message);
                }
            }
            assert_eq!(read, messages());
        }
    }

    #[test]
    fn a_length_that_no_message_has_is_refused() {
        let mut decoder = Decoder::default();
        decoder.feed(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.poll(), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn prefaces_come_back() {
        for preface in [
            Preface::Control,
            Preface::Channel(0),
            Preface::Channel(300),
            Preface::Padding,
        ] {
            assert_eq!(Preface::decode(preface.encode()), Some(preface));
        }
        assert_eq!(Preface::decode(*b"QEVM"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while let Ok(Some(_)) = decoder.poll() {}
        }
    }
}
