//! What reaches the destination's loop, and the small tasks that bring it.

use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::address::Address;
use crate::relay::channel::{self, Shared};
use crate::relay::control::{self, ControlError, Receiver, Sender};
use crate::relay::endpoint;
use crate::relay::frame::{Message, Preface, VERSION};
use crate::relay::padding;
use crate::relay::tls::PinnedPeer;

/// Handshakes under way at once; more are refused, so that strangers cannot
/// fill the memory.
const MOST_HANDSHAKES: usize = 16;

/// Something the loop must act on.
pub(super) enum Event {
    /// The pinned peer connected and said hello.
    Peer(Box<Peer>),
    /// A message on the connection of this number.
    Message(u64, Message),
    /// That connection is gone.
    Lost(u64, ControlError),
    /// Something happened on a channel.
    Channel(channel::Event),
    /// QEMU was connected to: the guest is on its way.
    Opened,
    /// QEMU could not be connected to.
    Unreachable(String),
    /// QEMU ended.
    QemuEnded,
}

/// A connection from the source.
pub(super) struct Peer {
    pub(super) connection: Connection,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) attempt: Uuid,
    pub(super) resume: bool,
}

pub(super) async fn accept_peers(
    endpoint: Endpoint,
    pinned: Arc<PinnedPeer>,
    events: UnboundedSender<Event>,
) {
    let mut handshakes = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        while handshakes.try_join_next().is_some() {}
        if handshakes.len() >= MOST_HANDSHAKES {
            incoming.refuse();
            continue;
        }
        let (events, pinned) = (events.clone(), Arc::clone(&pinned));
        handshakes.spawn(async move {
            let from = incoming.remote_address();
            match greet(incoming).await {
                Ok(peer) => {
                    let _ = events.send(Event::Peer(Box::new(peer)));
                }
                Err(reason) => match pinned.refused() {
                    Some(shown) => tracing::warn!(
                        %from,
                        "a stranger was refused: its fingerprint is {shown}; if it is the \
                         source's agent, start again with --peer {shown}"
                    ),
                    None => tracing::warn!(%from, reason, "a connection was refused"),
                },
            }
        });
    }
}

async fn greet(incoming: quinn::Incoming) -> Result<Peer, String> {
    let connection = incoming.await.map_err(|error| endpoint::explain(&error))?;
    let (mut sender, mut receiver) = control::accept(&connection)
        .await
        .map_err(|error| error.to_string())?;
    let hello = receiver
        .next_within(control::PREFACE_TIMEOUT)
        .await
        .map_err(|error| error.to_string())?;
    match hello {
        Message::Hello {
            version: VERSION,
            attempt,
            resume,
        } => Ok(Peer {
            connection,
            sender,
            receiver,
            attempt,
            resume,
        }),
        Message::Hello { version, .. } => {
            let reason = format!(
                "the source's agent speaks version {version} of the protocol, this one version \
                 {VERSION}; bring both to the same release"
            );
            let refusal = Message::Refused {
                reason: reason.clone(),
            };
            let _ = sender.send(&refusal).await;
            sender.finish(Duration::from_secs(1)).await;
            Err(reason)
        }
        other => Err(format!("it began with {other:?}")),
    }
}

pub(super) async fn read_messages(
    number: u64,
    mut receiver: Receiver,
    events: UnboundedSender<Event>,
) {
    loop {
        let event = match receiver.next().await {
            Ok(message) => Event::Message(number, message),
            Err(error) => {
                let _ = events.send(Event::Lost(number, error));
                return;
            }
        };
        if events.send(event).is_err() {
            return;
        }
    }
}

pub(super) async fn forward_channel_events(
    mut inbox: UnboundedReceiver<channel::Event>,
    events: UnboundedSender<Event>,
) {
    while let Some(event) = inbox.recv().await {
        if events.send(Event::Channel(event)).is_err() {
            return;
        }
    }
}

/// Opens QEMU's connections one after another, in the order in which the
/// source accepted them: QEMU 7.2 takes the first it accepts for the main one.
pub(super) async fn accept_channels(
    connection: Connection,
    forward: Address,
    shared: Shared,
    events: UnboundedSender<Event>,
) {
    // Channels end with their connection: they are this task's children.
    let mut channels = JoinSet::new();
    let mut padded = false;
    while let Ok(quic) = connection.accept_bi().await {
        match open_channel(quic, &forward, &mut padded).await {
            Ok(None) => {}
            Ok(Some((stream, quic))) => {
                let _ = events.send(Event::Opened);
                channels.spawn(channel::run_destination(stream, quic, shared.clone()));
            }
            Err(reason) => {
                let _ = events.send(Event::Unreachable(reason));
                return;
            }
        }
    }
    while channels.join_next().await.is_some() {}
}

async fn open_channel(
    (send, mut recv): (SendStream, RecvStream),
    forward: &Address,
    padded: &mut bool,
) -> Result<Option<(crate::address::Stream, (SendStream, RecvStream))>, String> {
    let preface = tokio::time::timeout(control::PREFACE_TIMEOUT, control::read_preface(&mut recv))
        .await
        .map_err(|_| "a channel that says nothing".to_owned())?
        .map_err(|error| error.to_string())?;
    let index = match preface {
        Some(Preface::Channel(index)) => index,
        // Once: it takes as long as it may.
        Some(Preface::Padding) if !std::mem::replace(padded, true) => {
            padding::answer(send, recv).await;
            return Ok(None);
        }
        _ => return Err("a stream of an unknown kind".to_owned()),
    };
    let stream = forward.connect().await.map_err(|error| {
        format!(
            "the destination's QEMU does not listen at {forward} ({error}); is --forward the \
             address its -incoming has?"
        )
    })?;
    tracing::info!(index, %forward, "QEMU is connected");
    Ok(Some((stream, (send, recv))))
}
