//! Where QEMU connects and listens: `host:port` or `unix:PATH`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};

/// QEMU estimates its bandwidth from what its socket takes, and what stands in
/// the buffer at the switchover is downtime: 64 KiB instead of the kernel's
/// megabytes brought a paced switchover from 564 to 399 ms.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// An address as written: `host:port`, `[::1]:4444` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP host and port, not yet looked up.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path {
                "" => Err("unix: needs a path".to_owned()),
                path => Ok(Self::Unix(path.into())),
            };
        }
        parse_host_port(text).map(Self::Tcp)
    }
}

/// Checks that `text` has the shape `host:port` and returns it.
///
/// # Errors
///
/// A text that says what such an address looks like.
pub fn parse_host_port(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not host:port (for IPv6: [::1]:4444)");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_v6 || port.parse::<u16>().is_err() {
        return Err(wrong());
    }
    Ok(text.to_owned())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(text) => f.write_str(text),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Address {
    /// Connects, as QEMU's client would.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub async fn connect(&self) -> std::io::Result<Stream> {
        match self {
            Self::Tcp(text) => {
                let stream = TcpStream::connect(text).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Self::Unix(path) => Ok(Stream::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// Listens for QEMU, with a small receive buffer.
    ///
    /// # Errors
    ///
    /// What the system says: the port is in use, the name has no address.
    pub async fn listen(&self) -> std::io::Result<Listener> {
        match self {
            Self::Tcp(text) => {
                let address = first_address(text).await?;
                let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
                socket.set_reuse_address(true)?;
                socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
                socket.set_nonblocking(true)?;
                socket.bind(&address.into())?;
                socket.listen(64)?;
                Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
            }
            Self::Unix(path) => Ok(Listener::Unix(UnixListener::bind(path)?, path.clone())),
        }
    }
}

/// The first address that `host:port` has.
///
/// # Errors
///
/// The look-up's, or that there is none.
pub async fn first_address(host_port: &str) -> std::io::Result<SocketAddr> {
    lookup_host(host_port).await?.next().ok_or_else(|| {
        std::io::Error::new(
            std::io::ErrorKind::NotFound,
            format!("{host_port} has no address"),
        )
    })
}

/// A socket that listens for QEMU. A unix socket's path is removed with it.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix, and the path it is bound to.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// The next connection, and who made it where TCP says so.
    ///
    /// # Errors
    ///
    /// What the system says, for instance out of file descriptors.
    pub async fn accept(&self) -> std::io::Result<(Stream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Some(peer)))
            }
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), None))
            }
        }
    }

    /// What QEMU on this host gives to `migrate` to reach this listener.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn migrate_uri(&self) -> std::io::Result<String> {
        match self {
            Self::Tcp(listener) => {
                let address = listener.local_addr()?;
                let host = match address {
                    SocketAddr::V4(v4) if v4.ip().is_unspecified() => "127.0.0.1".to_owned(),
                    SocketAddr::V6(v6) if v6.ip().is_unspecified() => "[::1]".to_owned(),
                    SocketAddr::V4(v4) => v4.ip().to_string(),
                    SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
                };
                Ok(format!("tcp:{host}:{}", address.port()))
            }
            Self::Unix(_, path) => Ok(format!("unix:{}", path.display())),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // Nothing depends on it any more; a leftover only costs the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One connection of QEMU's.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

impl Stream {
    /// Makes the close that follows a reset (RST) rather than an orderly end,
    /// so that QEMU cannot take it for one. On a unix socket a close with the
    /// peer's data unread is the nearest there is.
    pub fn reset_on_close(&self) {
        self.set_linger(Some(Duration::ZERO));
    }

    /// Makes the close that follows an orderly end again.
    pub fn close_in_order(&self) {
        self.set_linger(None);
    }

    fn set_linger(&self, linger: Option<Duration>) {
        if let Self::Tcp(stream) = self {
            // It fails only on a socket that is already gone.
            let _ = socket2::SockRef::from(stream).set_linger(linger);
        }
    }

    /// The process at the other end of a unix socket, as the kernel noted it.
    #[must_use]
    pub fn peer_pid(&self) -> Option<u32> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(stream) => {
                let pid = stream.peer_cred().ok()?.pid()?;
                u32::try_from(pid).ok()
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_written() {
        for text in ["localhost:4444", "[::1]:4444", "0.0.0.0:0", "unix:/run/x"] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        for text in [
            "localhost",
            ":4444",
            "::1:4444",
            "host:port",
            "host:70000",
            "unix:",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
