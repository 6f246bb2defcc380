//! The source's link to the destination's agent.

use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::identity::Identity;
use crate::journal::Reach;
use crate::preflight::Facts;
use crate::relay::control::{self, ControlError, Sender};
use crate::relay::endpoint::{self, EndpointError};
use crate::relay::frame::{Handover, Message, Preface, VERSION};
use crate::relay::link_model::{LinkModel, ModelError};
use crate::relay::padding::{self, LinkRate};
use crate::relay::tls::PinnedPeer;

/// The handshake and the destination's preparations.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The conversation broke.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The destination will not serve.
    #[error("the destination's agent refuses: {0}")]
    Refused(String),
    /// The destination said something that does not belong there.
    #[error("the destination's agent answered {0:?}")]
    Unexpected(Box<Message>),
    /// The link is to be modelled, and not like that.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The own identity is of no use.
    #[error("{0}")]
    Identity(String),
}

/// What the destination said when it was ready.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Its QEMU's version.
    pub qemu_version: Option<String>,
    /// Who continues the guest there.
    pub handover: Handover,
    /// Its QEMU's machine, where it could be asked.
    pub facts: Option<Facts>,
}

/// A connection to the destination's agent. Dropping it closes the connection.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    connection: Connection,
    sender: Sender,
    messages: UnboundedReceiver<Result<Message, ControlError>>,
    reader: JoinHandle<()>,
}

impl Link {
    /// Connects for `attempt`; `resume` if it was begun on another connection.
    ///
    /// # Errors
    ///
    /// If nobody, or somebody else, is there, or the destination refuses.
    pub async fn connect(
        reach: &Reach,
        attempt: Uuid,
        resume: bool,
    ) -> Result<(Self, Ready), LinkError> {
        let identity = Identity::load(&reach.identity)
            .map_err(|error| LinkError::Identity(error.to_string()))?;
        let peer = reach
            .peer()
            .ok_or_else(|| LinkError::Identity("the journal names no peer".to_owned()))?;
        let pinned = PinnedPeer::new(peer);
        let model = LinkModel::from_environment()?;
        let (endpoint, connection) = endpoint::connect(
            &reach.address,
            &identity,
            &pinned,
            CONNECT_TIMEOUT,
            model.as_ref(),
        )
        .await?;
        let (mut sender, mut receiver) = control::open(&connection).await?;
        sender
            .send(&Message::Hello {
                version: VERSION,
                attempt,
                resume,
            })
            .await?;
        let ready = match receiver.next_within(CONNECT_TIMEOUT).await? {
            Message::Ready {
                qemu_version,
                handover,
                facts,
                ..
            } => Ready {
                qemu_version,
                handover,
                facts: facts.map(|facts| facts.bounded()),
            },
            Message::Refused { reason } => return Err(LinkError::Refused(reason)),
            other => return Err(LinkError::Unexpected(Box::new(other))),
        };
        let (inbox, messages) = unbounded_channel();
        let reader = tokio::spawn(async move {
            loop {
                let message = receiver.next().await;
                let last = message.is_err();
                if inbox.send(message).is_err() || last {
                    return;
                }
            }
        });
        let link = Self {
            endpoint,
            connection,
            sender,
            messages,
            reader,
        };
        Ok((link, ready))
    }

    /// Opens the stream of QEMU's connection number `index`.
    ///
    /// # Errors
    ///
    /// If the link is down.
    pub async fn open_channel(&self, index: u16) -> Result<(SendStream, RecvStream), ControlError> {
        let (mut send, recv) = self
            .connection
            .open_bi()
            .await
            .map_err(|error| ControlError::Link(endpoint::explain(&error)))?;
        send.write_all(&Preface::Channel(index).encode())
            .await
            .map_err(|error| ControlError::Link(error.to_string()))?;
        Ok((send, recv))
    }

    /// Measures what the link takes, with no more than `most_rate` bytes a second. Once
    /// a connection.
    ///
    /// # Errors
    ///
    /// If the link is down.
    pub async fn measure(&self, most_rate: Option<u64>) -> Result<LinkRate, ControlError> {
        padding::measure(&self.connection, most_rate).await
    }

    /// Sends `message`.
    ///
    /// # Errors
    ///
    /// If the link is down.
    pub async fn send(&mut self, message: &Message) -> Result<(), ControlError> {
        self.sender.send(message).await
    }

    /// The next message. Cancel safe.
    ///
    /// # Errors
    ///
    /// If the link is down.
    pub async fn next(&mut self) -> Result<Message, ControlError> {
        self.messages
            .recv()
            .await
            .unwrap_or(Err(ControlError::Closed))
    }

    /// Sends `message` and waits for what is said next.
    ///
    /// # Errors
    ///
    /// If the link is down or nothing comes within `timeout`.
    pub async fn ask(
        &mut self,
        message: &Message,
        timeout: Duration,
    ) -> Result<Message, ControlError> {
        self.send(message).await?;
        self.next_within(timeout).await
    }

    /// The next message, if it comes within `timeout`.
    ///
    /// # Errors
    ///
    /// As [`Link::next`], and if none comes.
    pub async fn next_within(&mut self, timeout: Duration) -> Result<Message, ControlError> {
        tokio::time::timeout(timeout, self.next())
            .await
            .unwrap_or(Err(ControlError::Silent(timeout)))
    }

    /// Bytes the peer has confirmed and the round trip, as QUIC knows them.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Says goodbye and waits a moment until the peer has heard it.
    pub async fn close(self) {
        self.connection.close(0_u32.into(), b"done");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.connection.close(0_u32.into(), b"");
    }
}
