//! The control stream: frames over the first QUIC stream of a connection.

use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream};

use super::beats::Beats;
use super::endpoint::explain;
use super::frame::{Decoder, FrameError, Message, Preface, encode};

/// How long a peer has to say the first thing on a stream it opened.
pub const PREFACE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the peer can no longer be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection is gone.
    #[error("the link to the other agent is down ({0})")]
    Link(String),
    /// The peer closed the control stream.
    #[error("the other agent ended the conversation")]
    Closed,
    /// The peer says nothing.
    #[error("the other agent did not answer within {0:?}")]
    Silent(Duration),
    /// What the peer says is not the protocol.
    #[error("the other agent does not speak this protocol")]
    Frame(#[from] FrameError),
}

/// The writing half. Beats go for as long as there is one.
#[derive(Debug)]
pub struct Sender {
    stream: SendStream,
    _beats: Beats,
}

/// The reading half.
#[derive(Debug)]
pub struct Receiver {
    stream: RecvStream,
    decoder: Decoder,
}

/// Opens the control stream of a fresh connection.
///
/// # Errors
///
/// If the connection is gone.
pub async fn open(connection: &Connection) -> Result<(Sender, Receiver), ControlError> {
    let (mut send, recv) = connection
        .open_bi()
        .await
        .map_err(|error| ControlError::Link(explain(&error)))?;
    send.write_all(&Preface::Control.encode())
        .await
        .map_err(|error| unwritable(&error))?;
    Ok((Sender::new(send, connection), Receiver::new(recv)))
}

/// Accepts the control stream of a fresh connection.
///
/// # Errors
///
/// If the connection is gone, or its first stream is another.
pub async fn accept(connection: &Connection) -> Result<(Sender, Receiver), ControlError> {
    let opened = async {
        let (send, mut recv) = connection
            .accept_bi()
            .await
            .map_err(|error| ControlError::Link(explain(&error)))?;
        let preface = read_preface(&mut recv).await?;
        match preface {
            Some(Preface::Control) => Ok((Sender::new(send, connection), Receiver::new(recv))),
            _ => Err(ControlError::Closed),
        }
    };
    tokio::time::timeout(PREFACE_TIMEOUT, opened)
        .await
        .unwrap_or(Err(ControlError::Silent(PREFACE_TIMEOUT)))
}

/// Reads what a stream that the peer opened carries.
///
/// # Errors
///
/// If the stream ends before.
pub async fn read_preface(recv: &mut RecvStream) -> Result<Option<Preface>, ControlError> {
    let mut bytes = [0; Preface::BYTES];
    recv.read_exact(&mut bytes)
        .await
        .map_err(|error| ControlError::Link(error.to_string()))?;
    Ok(Preface::decode(bytes))
}

impl Sender {
    fn new(stream: SendStream, connection: &Connection) -> Self {
        Self {
            stream,
            _beats: Beats::start(connection),
        }
    }

    /// Sends `message`.
    ///
    /// # Errors
    ///
    /// If the link is down.
    pub async fn send(&mut self, message: &Message) -> Result<(), ControlError> {
        let frame = encode(message)?;
        self.stream
            .write_all(&frame)
            .await
            .map_err(|error| unwritable(&error))
    }

    /// Ends the stream and waits, at most `timeout`, until the peer has it all.
    pub async fn finish(mut self, timeout: Duration) {
        if self.stream.finish().is_ok() {
            // Best effort: the peer does without if it is gone.
            let _ = tokio::time::timeout(timeout, self.stream.stopped()).await;
        }
    }
}

impl Receiver {
    fn new(stream: RecvStream) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the link is down, the stream ends, or it is not the protocol.
    pub async fn next(&mut self) -> Result<Message, ControlError> {
        loop {
            if let Some(message) = self.decoder.poll()? {
                return Ok(message);
            }
            match self.stream.read_chunk(4096, true).await {
                Ok(Some(chunk)) => self.decoder.feed(&chunk.bytes),
                Ok(None) => return Err(ControlError::Closed),
                Err(quinn::ReadError::ConnectionLost(error)) => {
                    return Err(ControlError::Link(explain(&error)));
                }
                Err(error) => return Err(ControlError::Link(error.to_string())),
            }
        }
    }

    /// The next message, if it comes within `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Receiver::next`], and if none comes.
    pub async fn next_within(&mut self, timeout: Duration) -> Result<Message, ControlError> {
        tokio::time::timeout(timeout, self.next())
            .await
            .unwrap_or(Err(ControlError::Silent(timeout)))
    }
}

/// A peer that does not know this one says so after its own handshake is done:
/// often the first to learn of it is a write.
fn unwritable(error: &quinn::WriteError) -> ControlError {
    ControlError::Link(match error {
        quinn::WriteError::ConnectionLost(lost) => explain(lost),
        other => other.to_string(),
    })
}
