//! One TCP connection of QEMU's over one QUIC stream, both directions.
//!
//! How it ends matters more than how it runs. An end that QEMU did not mean
//! must never look to the other QEMU like one that it did: until `SHUT` has
//! passed on the return path, the end of either direction resets both.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use crate::address::Stream;
use crate::pacing::sample::StreamCounters;
use crate::stream::reader::{Pages, Reader, Seen};
use crate::stream::return_path::ReturnPath;

const READ_BYTES: usize = 64 * 1024;
/// QEMU writes its header at once; who stays silent is not QEMU.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream whose header is longer than this without RAM is none of QEMU's.
const MOST_HEAD_BYTES: usize = 64 * 1024;
/// The code both directions of a channel are reset with.
const RESET: VarInt = VarInt::from_u32(1);

/// Why a connection to the relay is not relayed.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// It is not QEMU's migration stream.
    #[error("it is not a migration stream of QEMU's")]
    NotMigration,
    /// It said nothing, or too little.
    #[error("it sent no migration stream within {HEAD_TIMEOUT:?}")]
    Silent,
    /// It ended at once.
    #[error("it was closed before a migration stream began")]
    Closed,
}

/// A connection whose stream is known to be a migration, up to its first RAM.
#[derive(Debug)]
pub struct Inspected {
    stream: Stream,
    head: Bytes,
    reader: Reader,
    /// The source expects a return path.
    pub return_path: bool,
}

impl Inspected {
    /// Reads just enough of `stream` to know what it is.
    ///
    /// # Errors
    ///
    /// If it is not a migration; `stream` is closed.
    pub async fn read(stream: Stream) -> Result<Self, Rejected> {
        tokio::time::timeout(HEAD_TIMEOUT, Self::read_head(stream))
            .await
            .unwrap_or(Err(Rejected::Silent))
    }

    async fn read_head(mut stream: Stream) -> Result<Self, Rejected> {
        let mut reader = Reader::new();
        let mut head = BytesMut::new();
        while head.len() < MOST_HEAD_BYTES {
            let before = head.len();
            match stream.read_buf(&mut head).await {
                Ok(0) | Err(_) => return Err(Rejected::Closed),
                Ok(_) => reader.feed(&head[before..]),
            }
            while let Some(seen) = reader.poll_seen() {
                let return_path = match seen {
                    Seen::NotMigration => return Err(Rejected::NotMigration),
                    Seen::Header => continue,
                    Seen::ReturnPath => true,
                    // RAM or something unknown: the command would stand before it.
                    _ => false,
                };
                // What follows was read but not looked at yet: read it again.
                let mut reader = Reader::new();
                reader.feed(&head);
                return Ok(Self {
                    stream,
                    head: head.freeze(),
                    reader,
                    return_path,
                });
            }
        }
        Err(Rejected::NotMigration)
    }

    /// Resets the connection: QEMU's migration fails, the guest runs on.
    pub fn reset(self) {
        self.stream.reset_on_close();
    }

    /// The process at the other end, where the socket says so.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        self.stream.peer_pid()
    }
}

/// What happened on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something passed in the stream.
    Seen(Seen),
    /// `SHUT` came from the destination's QEMU; at the source: and was written
    /// to the source's QEMU.
    Shut {
        /// 0: the guest was loaded.
        value: u32,
    },
    /// Both directions ended in order.
    Finished,
    /// The channel was reset.
    Reset {
        /// Why, for people.
        reason: String,
    },
}

/// What a channel did so far, read by the driver.
#[derive(Debug, Default)]
pub struct Counters {
    from_qemu: AtomicU64,
    on_wire: AtomicU64,
    pages: Mutex<Pages>,
}

impl Counters {
    /// The counters now.
    #[must_use]
    pub fn snapshot(&self) -> StreamCounters {
        let pages = *self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        StreamCounters {
            bytes_from_qemu: self.from_qemu.load(Ordering::Relaxed),
            bytes_on_wire: self.on_wire.load(Ordering::Relaxed),
            normal_pages: pages.normal,
            zero_pages: pages.zero,
            passes: pages.passes,
        }
    }
}

/// What the channels of a migration share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// The bucket.
    pub gate: Arc<Gate>,
    /// The counters.
    pub counters: Arc<Counters>,
    /// Cancelled to reset every channel.
    pub abort: CancellationToken,
    /// Where events go. Few: never one per page.
    pub events: UnboundedSender<Event>,
}

/// Why a direction ended other than in order.
type Fault = String;

/// Runs the source's end of a channel until both directions have ended.
pub async fn run_source(inspected: Inspected, quic: (SendStream, RecvStream), shared: Shared) {
    let Inspected {
        stream,
        head,
        mut reader,
        return_path,
    } = inspected;
    let counters = Arc::clone(&shared.counters);
    let events = shared.events.clone();
    let mut saw = move |bytes: &[u8], fresh: bool| {
        if fresh {
            reader.feed(bytes);
        }
        while let Some(seen) = reader.poll_seen() {
            // The driver is gone only when the channel is no longer wanted.
            let _ = events.send(Event::Seen(seen));
        }
        *counters
            .pages
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = reader.pages();
    };
    saw(&head, false);
    // Without a return path there is no SHUT to wait for.
    let ends = Ends::new(!return_path);
    // From here on any end but an orderly one is a reset, this process's death
    // included.
    stream.reset_on_close();
    let events = shared.events.clone();
    let (recv, send) = (quic.1, quic.0);
    let (tcp_read, tcp_write) = tokio::io::split(stream);
    let out = ToQuic {
        tcp: tcp_read,
        quic: send,
        gate: Some(Arc::clone(&shared.gate)),
        counters: Some(Arc::clone(&shared.counters)),
    };
    let back = ToTcp {
        quic: recv,
        tcp: tcp_write,
    };
    let mut path = ReturnPath::new();
    let outcome = run(
        out,
        back,
        head,
        &ends,
        |bytes| saw(bytes, true),
        |bytes, written| {
            if !written {
                path.feed(bytes);
                if path.shut().is_some() {
                    ends.set_orderly();
                }
            } else if let Some(value) = path.shut() {
                let _ = events.send(Event::Shut { value });
            }
        },
        &shared.abort,
    )
    .await;
    let _ = shared.events.send(outcome);
}

/// Runs the destination's end of a channel until both directions have ended.
pub async fn run_destination(stream: Stream, quic: (SendStream, RecvStream), shared: Shared) {
    let ends = Ends::new(false);
    stream.reset_on_close();
    let (tcp_read, tcp_write) = tokio::io::split(stream);
    let back = ToQuic {
        tcp: tcp_read,
        quic: quic.0,
        gate: None,
        counters: None,
    };
    let out = ToTcp {
        quic: quic.1,
        tcp: tcp_write,
    };
    let mut path = ReturnPath::new();
    let counters = Arc::clone(&shared.counters);
    let events = shared.events.clone();
    let outcome = run(
        back,
        out,
        Bytes::new(),
        &ends,
        |bytes| {
            path.feed(bytes);
            if let Some(value) = path.shut() {
                ends.set_orderly();
                let _ = events.send(Event::Shut { value });
            }
        },
        |bytes, written| {
            if written {
                add(&counters.on_wire, bytes.len());
            }
        },
        &shared.abort,
    )
    .await;
    let _ = shared.events.send(outcome);
}

/// Whether an end of a direction may be passed on.
#[derive(Debug)]
struct Ends {
    orderly: AtomicBool,
}

impl Ends {
    const fn new(orderly: bool) -> Self {
        Self {
            orderly: AtomicBool::new(orderly),
        }
    }

    fn set_orderly(&self) {
        self.orderly.store(true, Ordering::Release);
    }

    fn orderly(&self) -> bool {
        self.orderly.load(Ordering::Acquire)
    }
}

struct ToQuic {
    tcp: ReadHalf<Stream>,
    quic: SendStream,
    gate: Option<Arc<Gate>>,
    counters: Option<Arc<Counters>>,
}

struct ToTcp {
    quic: RecvStream,
    tcp: WriteHalf<Stream>,
}

async fn run(
    mut to_quic: ToQuic,
    mut to_tcp: ToTcp,
    head: Bytes,
    ends: &Ends,
    from_qemu: impl FnMut(&[u8]),
    to_qemu: impl FnMut(&[u8], bool),
    abort: &CancellationToken,
) -> Event {
    let both = async {
        tokio::try_join!(
            to_quic.pump(head, ends, from_qemu),
            to_tcp.pump(ends, to_qemu)
        )
    };
    let ended = tokio::select! {
        ended = both => ended.map(|_| ()),
        () = abort.cancelled() => Err("Pacer ended it".to_owned()),
    };
    match ended {
        Ok(()) => {
            to_quic.tcp.unsplit(to_tcp.tcp).close_in_order();
            Event::Finished
        }
        Err(reason) => {
            // Either fails only if that half is closed already.
            let _ = to_quic.quic.reset(RESET);
            let _ = to_tcp.quic.stop(RESET);
            Event::Reset { reason }
        }
    }
}

impl ToQuic {
    async fn pump(
        &mut self,
        head: Bytes,
        ends: &Ends,
        mut saw: impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        if let Some(counters) = &self.counters {
            add(&counters.from_qemu, head.len());
        }
        self.give(head).await?;
        let mut buffer = BytesMut::with_capacity(READ_BYTES);
        loop {
            buffer.reserve(READ_BYTES);
            let read = match self.tcp.read_buf(&mut buffer).await {
                Ok(read) => read,
                // A socket closed with something unread is reset by the kernel.
                Err(_) if ends.orderly() => 0,
                Err(error) => return Err(format!("QEMU's connection broke ({error})")),
            };
            if read == 0 {
                if !ends.orderly() {
                    return Err("QEMU closed its connection before the end".to_owned());
                }
                // It fails only if the peer has stopped the stream, which is an end too.
                let _ = self.quic.finish();
                return Ok(());
            }
            if let Some(counters) = &self.counters {
                add(&counters.from_qemu, read);
            }
            let bytes = buffer.split().freeze();
            saw(&bytes);
            self.give(bytes).await?;
        }
    }

    /// Gives `bytes` to QUIC, at the gate's pace.
    async fn give(&mut self, mut bytes: Bytes) -> Result<(), Fault> {
        while !bytes.is_empty() {
            let piece = match &self.gate {
                Some(gate) => {
                    let piece = bytes.split_to(gate.piece_bytes().min(bytes.len()));
                    gate.pass(piece.len()).await;
                    piece
                }
                None => bytes.split_to(bytes.len()),
            };
            let length = piece.len();
            self.quic
                .write_chunk(piece)
                .await
                .map_err(|error| format!("the link to the other agent broke ({error})"))?;
            if let Some(counters) = &self.counters {
                add(&counters.on_wire, length);
            }
        }
        Ok(())
    }
}

impl ToTcp {
    /// `saw` is told of all bytes twice: before and after they are written.
    async fn pump(&mut self, ends: &Ends, mut saw: impl FnMut(&[u8], bool)) -> Result<(), Fault> {
        loop {
            match self.quic.read_chunk(READ_BYTES, true).await {
                Ok(Some(chunk)) => {
                    saw(&chunk.bytes, false);
                    if let Err(error) = self.tcp.write_all(&chunk.bytes).await {
                        return Err(format!("QEMU took no more ({error})"));
                    }
                    saw(&chunk.bytes, true);
                }
                Ok(None) => {
                    // The other agent ends a direction only where it may, so
                    // this is an order, and what follows is orderly.
                    ends.set_orderly();
                    // QEMU may have closed already, having all it needs.
                    let _ = self.tcp.shutdown().await;
                    return Ok(());
                }
                Err(quinn::ReadError::Reset(_)) => {
                    return Err("the other side's connection broke".to_owned());
                }
                Err(error) => {
                    return Err(format!("the link to the other agent broke ({error})"));
                }
            }
        }
    }
}

fn add(counter: &AtomicU64, bytes: usize) {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    counter.fetch_add(bytes, Ordering::Relaxed);
}
