//! The QUIC endpoints, and what a connection between two agents is set to.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, Runtime as _,
    ServerConfig, TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::beats;
use super::link_model::LinkModel;
use super::tls::PinnedPeer;
use crate::address::first_address;
use crate::identity::{Fingerprint, Identity};

/// With the kernel's default a burst loses packets on loopback at once; 8 MB
/// did not. The kernel may grant less (`net.core.rmem_max`), which is slower
/// and not wrong.
const UDP_BUFFER_BYTES: usize = 8 << 20;
/// What may be on its way and unconfirmed, which bounds either agent's memory:
/// about 1 Gbit/s at 100 ms.
const WINDOW_BYTES: u32 = 16 << 20;
/// After this much silence the link is taken as gone: some routes take ten seconds to
/// find another way. From the guest's stop on the switchover timeout, which is shorter,
/// holds instead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// TLS needs some name; a peer is its key, whatever name it goes by.
const SERVER_NAME: &str = "pacer";

/// Why there is no connection to the peer.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address cannot be looked up or bound.
    #[error("{what} {address}")]
    Address {
        /// What was tried.
        what: &'static str,
        /// On which address.
        address: String,
        #[source]
        /// What the system says.
        source: std::io::Error,
    },
    /// The identity's key does not serve.
    #[error("the identity cannot be used")]
    Identity(#[from] rustls::Error),
    /// The peer showed a key that is not pinned.
    #[error(
        "the agent at {address} has the fingerprint {shown}, not the one given with --peer; \
         if it is the right host, start again with --peer {shown}"
    )]
    UnknownPeer {
        /// Where it was met.
        address: String,
        /// What it showed.
        shown: Fingerprint,
    },
    /// Nothing answers, or not in QUIC.
    #[error(
        "no Pacer agent answers at {address} ({reason}); is `pacer dest` running there, \
         and does UDP reach it?"
    )]
    NoPeer {
        /// Where one was looked for.
        address: String,
        /// What happened.
        reason: String,
    },
}

/// Listens for the pinned peer.
///
/// # Errors
///
/// If the address cannot be bound or the identity does not serve.
pub async fn listen(
    address: &str,
    identity: &Identity,
    peer: &Arc<PinnedPeer>,
) -> Result<Endpoint, EndpointError> {
    let failed = |source| EndpointError::Address {
        what: "cannot listen on",
        address: address.to_owned(),
        source,
    };
    let bound = first_address(address).await.map_err(failed)?;
    let socket = udp_socket(bound).map_err(failed)?;
    let mut config = ServerConfig::with_crypto(Arc::new(peer.server_config(identity)?));
    config.transport_config(Arc::new(transport()));
    endpoint(socket, Some(config), None).map_err(failed)
}

/// Connects to the pinned peer at `address`, over a link as `model` has it.
///
/// # Errors
///
/// If nothing answers there within `timeout`, or somebody else does.
pub async fn connect(
    address: &str,
    identity: &Identity,
    peer: &Arc<PinnedPeer>,
    timeout: Duration,
    model: Option<&LinkModel>,
) -> Result<(Endpoint, Connection), EndpointError> {
    let failed = |source| EndpointError::Address {
        what: "cannot connect to",
        address: address.to_owned(),
        source,
    };
    let remote = first_address(address).await.map_err(failed)?;
    let local: SocketAddr = match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = udp_socket(local).map_err(failed)?;
    let endpoint = endpoint(socket, None, model).map_err(failed)?;
    let mut config = ClientConfig::new(Arc::new(peer.client_config(identity)?));
    config.transport_config(Arc::new(transport()));
    let no_peer = |reason: String| EndpointError::NoPeer {
        address: address.to_owned(),
        reason,
    };
    let connecting = endpoint
        .connect_with(config, remote, SERVER_NAME)
        .map_err(|error| no_peer(error.to_string()))?;
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(connection)) => Ok((endpoint, connection)),
        Ok(Err(error)) => Err(match peer.refused() {
            Some(shown) => EndpointError::UnknownPeer {
                address: address.to_owned(),
                shown,
            },
            None => no_peer(explain(&error)),
        }),
        Err(_) => Err(no_peer(format!("nothing within {timeout:?}"))),
    }
}

/// Why a connection ended, for people.
#[must_use]
pub fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::TimedOut => format!("silent for {IDLE_TIMEOUT:?}"),
        ConnectionError::ConnectionClosed(close) if is_refusal(close) => {
            "it refused this agent's key: is this agent's fingerprint the one it was given \
             with --peer?"
                .to_owned()
        }
        other => other.to_string(),
    }
}

/// TLS alerts travel as QUIC codes 0x100 + alert; 42 to 49 and 116 speak of
/// the certificate that was shown.
fn is_refusal(close: &quinn::ConnectionClose) -> bool {
    let code = u64::from(close.error_code);
    matches!(code, 0x12a..=0x131 | 0x174)
}

fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .send_window(u64::from(WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(beats::KEPT_BYTES))
        .congestion_controller_factory(Arc::new(beats::ControlFactory::default()))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_concurrent_bidi_streams(VarInt::from_u32(64));
    config
}

fn udp_socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_send_buffer_size(UDP_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn endpoint(
    socket: UdpSocket,
    server: Option<ServerConfig>,
    model: Option<&LinkModel>,
) -> std::io::Result<Endpoint> {
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = runtime.wrap_udp_socket(socket)?;
    let socket = match model {
        Some(model) => model.wrap(socket),
        None => socket,
    };
    Endpoint::new_with_abstract_socket(EndpointConfig::default(), server, socket, runtime)
}
