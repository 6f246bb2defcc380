//! Bytes through sockets.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

use pacer_agent::probe::Probe;
use pacer_agent::probe::activity::SocketFamily;

use crate::{alone, attach};

/// More than a socket takes at once.
const MANY: usize = 20_000_017;

fn pair(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((address, 0)).expect("the loopback device is up");
    let client = TcpStream::connect(listener.local_addr().expect("it listens")).expect("connects");
    let (server, _) = listener.accept().expect("it is accepted");
    (client, server)
}

/// Bytes sent by this end of a connection.
fn sent(probe: &Probe, end: &TcpStream) -> u64 {
    let port = |address: std::io::Result<SocketAddr>| address.expect("it is connected").port();
    let (local, peer) = (port(end.local_addr()), port(end.peer_addr()));
    let is_ip6 = end.local_addr().is_ok_and(|address| address.is_ipv6());
    let family = if is_ip6 {
        SocketFamily::Ip6
    } else {
        SocketFamily::Ip4
    };
    let sockets = probe.activity().sockets;
    let mut ends = sockets.iter().filter(|socket| {
        (socket.family, socket.local_port, socket.peer_port) == (family, local, peer)
    });
    let bytes = ends.next().map_or(0, |socket| socket.sent_bytes);
    assert_eq!(ends.next(), None, "a connection is there twice");
    bytes
}

fn drain(mut end: TcpStream) -> thread::JoinHandle<u64> {
    thread::spawn(move || std::io::copy(&mut end, &mut std::io::sink()).expect("it is read"))
}

fn check_one_connection(probe: &Probe, address: &str) {
    let sent_before = probe.activity().sent_bytes;
    let (mut client, mut server) = pair(address);
    let bytes = vec![7; MANY];
    let drained = drain(server.try_clone().expect("a second handle"));
    client.write_all(&bytes).expect("it is taken");
    let parts = [IoSlice::new(&bytes[..1000]), IoSlice::new(&bytes[..333])];
    let vectored = client.write_vectored(&parts).expect("it is taken");
    assert_eq!(vectored, 1333);
    server.write_all(b"an answer").expect("it is taken");
    let expected = MANY as u64 + 1333;
    assert_eq!(sent(probe, &client), expected);
    assert_eq!(sent(probe, &server), 9);
    assert_eq!(probe.activity().sent_bytes - sent_before, expected + 9);
    client.shutdown(std::net::Shutdown::Write).expect("it ends");
    assert_eq!(drained.join().expect("it reads"), expected);
}

fn check_shared_connection(probe: &Probe) {
    const THREADS: u64 = 4;
    const SENDS: u64 = 3000;
    let (client, server) = pair("127.0.0.1");
    let drained = drain(server);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..SENDS {
                    (&client).write_all(&[3; 100]).expect("it is taken");
                }
            });
        }
    });
    assert_eq!(sent(probe, &client), THREADS * SENDS * 100);
    client.shutdown(std::net::Shutdown::Write).expect("it ends");
    assert_eq!(drained.join().expect("it reads"), THREADS * SENDS * 100);
}

/// Several are counted together.
fn check_unix(probe: &Probe) {
    for bytes in [1000, 234] {
        let (mut one, _other) = UnixStream::pair().expect("a pair");
        one.write_all(&vec![1; bytes]).expect("it is taken");
    }
    let sockets = probe.activity().sockets;
    let mut unix = sockets
        .iter()
        .filter(|socket| socket.family == SocketFamily::Unix);
    let socket = unix.next().expect("they are there");
    assert_eq!((socket.local_port, socket.peer_port), (0, 0));
    assert_eq!(socket.sent_bytes, 1234);
    assert_eq!(unix.next(), None);
}

/// What comes in is counted once.
fn check_received(probe: &Probe) {
    let (mut client, mut server) = pair("127.0.0.1");
    client.write_all(&[5; 3000]).expect("it is taken");
    let before = probe.activity().device_reads.other_bytes;
    let mut buffer = [0; 1000];
    assert_eq!(server.peek(&mut buffer).expect("it looks"), 1000);
    // std receives by `recv`.
    server.read_exact(&mut buffer).expect("it is there");
    // SAFETY: the buffer has room for what is asked for.
    let read = unsafe { libc::read(server.as_raw_fd(), buffer.as_mut_ptr().cast(), 700) };
    assert_eq!(read, 700);
    let after = probe.activity().device_reads.other_bytes;
    assert_eq!(after - before, 1700);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn bytes_are_counted_by_connection() {
    let _alone = alone();
    let probe = attach();
    check_one_connection(&probe, "127.0.0.1");
    check_one_connection(&probe, "::1");
    check_shared_connection(&probe);
    check_unix(&probe);
    check_received(&probe);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_full_map_forgets_and_says_so() {
    const CONNECTIONS: u64 = 9000;
    let _alone = alone();
    let probe = attach();
    // The kernel soon gives a client's port again: to another server, that is another
    // connection.
    let listeners = [(); 3].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("loopback is up"));
    for _ in 0..CONNECTIONS / 3 {
        for listener in &listeners {
            let address = listener.local_addr().expect("it listens");
            let mut client = TcpStream::connect(address).expect("connects");
            client.write_all(b"x").expect("it is taken");
            drop(listener.accept().expect("it is accepted"));
        }
    }
    let (mut client, _server) = pair("127.0.0.1");
    client.write_all(b"yyy").expect("it is taken");
    assert_eq!(sent(&probe, &client), 3);
    let activity = probe.activity();
    assert_eq!(activity.sent_bytes, CONNECTIONS + 3);
    let known: u64 = activity.sockets.iter().map(|one| one.sent_bytes).sum();
    assert!(known < activity.sent_bytes, "{known}");
    assert!(activity.sockets.len() <= 4096);
    assert!(known > 3000, "{known}");
}
