//! A path with a round trip: what goes through, UDP or TCP, comes out so much later,
//! each way, and in the order in which it came.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// How long an end may go unnoticed.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Packets, and pieces of a TCP stream, that may be under way.
const MOST_PACKETS: usize = 1 << 16;
const MOST_PIECES: usize = 256;
const PIECE_BYTES: usize = 64 << 10;
const PACKET_BYTES: usize = 1 << 16;
/// A packet that finds no room is lost: there must be room for a while.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Ends with the value.
#[derive(Debug)]
pub struct Delay {
    port: u16,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

type Piece = (Instant, Vec<u8>);

impl Delay {
    /// A UDP port of the loopback that leads to another, for one peer.
    ///
    /// # Errors
    /// There is no port.
    pub fn udp(to: u16, one_way: Duration) -> Result<Self> {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        far.connect((Ipv4Addr::LOCALHOST, to))?;
        let mut delay = Self::new(near.local_addr()?.port());
        let peer = Arc::new(Mutex::new(None::<SocketAddr>));
        for socket in [&near, &far] {
            make_room(socket)?;
            socket.set_read_timeout(Some(LOOK_EVERY))?;
        }

        let (there, gone) = sync_channel(MOST_PACKETS);
        let (receiver, seen) = (near.try_clone()?, Arc::clone(&peer));
        delay.receive(there, one_way, move |buffer| {
            let (count, from) = receiver.recv_from(buffer)?;
            *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            Ok(count)
        });
        let sender = far.try_clone()?;
        // What is not taken is lost, as packets are.
        delay.send(gone, move |packet| drop(sender.send(packet)));

        let (back, came) = sync_channel(MOST_PACKETS);
        delay.receive(back, one_way, move |buffer| far.recv(buffer));
        delay.send(came, move |packet| {
            if let Some(peer) = *peer.lock().unwrap_or_else(PoisonError::into_inner) {
                let _ = near.send_to(packet, peer);
            }
        });
        Ok(delay)
    }

    /// A TCP port of the loopback that leads to another, for one connection.
    ///
    /// # Errors
    /// There is no port.
    pub fn tcp(to: u16, one_way: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let mut delay = Self::new(listener.local_addr()?.port());
        let ended = Arc::clone(&delay.ended);
        delay.threads.push(std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                match listener.accept() {
                    // Either side ends it by closing.
                    Ok((near, _)) => drop(join(&near, to, one_way, &ended)),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        }));
        Ok(delay)
    }

    /// The port to connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    fn new(port: u16) -> Self {
        Self {
            port,
            ended: Arc::default(),
            threads: Vec::new(),
        }
    }

    fn receive(
        &mut self,
        pieces: SyncSender<Piece>,
        one_way: Duration,
        mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
    ) {
        let ended = Arc::clone(&self.ended);
        self.threads.push(std::thread::spawn(move || {
            let mut buffer = vec![0; PACKET_BYTES];
            while !ended.load(Ordering::Relaxed) {
                let Ok(count) = receive(&mut buffer) else {
                    continue;
                };
                let piece = (Instant::now() + one_way, buffer[..count].to_vec());
                if pieces.send(piece).is_err() {
                    break;
                }
            }
        }));
    }

    fn send(&mut self, pieces: Receiver<Piece>, mut send: impl FnMut(&[u8]) + Send + 'static) {
        self.threads.push(std::thread::spawn(move || {
            for (due, piece) in pieces {
                wait(due);
                send(&piece);
            }
        }));
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Passes on both directions until either side closes.
fn join(near: &TcpStream, to: u16, one_way: Duration, ended: &AtomicBool) -> Result<()> {
    let far = TcpStream::connect((Ipv4Addr::LOCALHOST, to))?;
    for stream in [near, &far] {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK_EVERY))?;
    }
    std::thread::scope(|scope| {
        for (from, to) in [(near, &far), (&far, near)] {
            let (pieces, came) = sync_channel::<Piece>(MOST_PIECES);
            scope.spawn(move || read(from, &pieces, one_way, ended));
            scope.spawn(move || {
                for (due, piece) in came {
                    wait(due);
                    if (&mut &*to).write_all(&piece).is_err() {
                        break;
                    }
                }
                // The other side may have closed it already.
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
    Ok(())
}

fn read(mut from: &TcpStream, pieces: &SyncSender<Piece>, one_way: Duration, ended: &AtomicBool) {
    let mut buffer = vec![0; PIECE_BYTES];
    while !ended.load(Ordering::Relaxed) {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => return,
        };
        let piece = (Instant::now() + one_way, buffer[..count].to_vec());
        if pieces.send(piece).is_err() {
            return;
        }
    }
}

fn wait(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

/// Beyond what is allowed to anybody, where we may.
fn make_room(socket: &UdpSocket) -> Result<()> {
    let bytes = RECEIVE_BUFFER;
    let set = |option| {
        // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the
        // value is an int whose size is told.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                libc::socklen_t::try_from(size_of_val(&bytes)).unwrap_or(4),
            )
        }
    };
    if set(libc::SO_RCVBUFFORCE) != 0 {
        ensure!(set(libc::SO_RCVBUF) == 0, "SO_RCVBUF");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_WAY: Duration = Duration::from_millis(30);

    #[test]
    fn packets_come_later_both_ways() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let delay = Delay::udp(server.local_addr().unwrap().port(), ONE_WAY).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let begun = Instant::now();
        client
            .send_to(b"there", (Ipv4Addr::LOCALHOST, delay.port()))
            .unwrap();
        let mut buffer = [0; 16];
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"there");
        assert!(begun.elapsed() >= ONE_WAY);
        server.send_to(b"back", from).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        assert!(begun.elapsed() >= ONE_WAY * 2);
    }

    #[test]
    fn a_stream_comes_later_and_whole() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let delay = Delay::tcp(listener.local_addr().unwrap().port(), ONE_WAY).unwrap();
        let begun = Instant::now();
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, delay.port())).unwrap();
        client.write_all(&[7; 300_000]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 300_000);
        assert!(begun.elapsed() >= ONE_WAY);
    }
}
