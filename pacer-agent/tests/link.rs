//! The link between two agents, over the link model and real sockets of the loopback:
//! how soon bytes flow again after it was away, and what it is measured to take. It
//! takes as long as the cuts, hence it is ignored.

#![expect(clippy::disallowed_methods, reason = "it measures")]

use std::time::Duration;

use bytes::Bytes;
use pacer_agent::identity::Identity;
use pacer_agent::relay::control;
use pacer_agent::relay::endpoint;
use pacer_agent::relay::frame::Preface;
use pacer_agent::relay::link_model::LinkModel;
use pacer_agent::relay::padding::{self, LinkRate};
use pacer_agent::relay::tls::PinnedPeer;
use pacer_agent::units::to_f64;
use tokio::time::Instant;

/// Its end is no whole number of beats from the start.
const BEFORE: f64 = 1.03;
const TIMEOUT: Duration = Duration::from_secs(5);
const PIECE: usize = 64 * 1024;

/// Seconds from the end of a cut of so many seconds until bytes flow again, and the
/// bytes of the second after, if `rate` bytes a second are offered.
async fn recovery(cut: f64, rate: Option<u64>, link: &str) -> (f64, u64) {
    let folder = tempfile::tempdir().unwrap();
    let own = Identity::generate(&folder.path().join("own")).unwrap();
    let peer = Identity::generate(&folder.path().join("peer")).unwrap();
    let pinned = PinnedPeer::new(own.fingerprint);
    let server = endpoint::listen("127.0.0.1:0", &peer, &pinned)
        .await
        .unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let control = control::accept(&connection).await.unwrap();
        let (_send, mut recv) = connection.accept_bi().await.unwrap();
        let mut arrivals = Vec::new();
        while let Ok(Some(chunk)) = recv.read_chunk(PIECE, true).await {
            arrivals.push((Instant::now(), chunk.bytes.len()));
        }
        drop(control);
        arrivals
    });
    let began = Instant::now();
    let end = BEFORE + cut;
    let model = format!("0:{link},{BEFORE}:down,{end}:{link}");
    let model = LinkModel::new(model.parse().unwrap());
    let pinned = PinnedPeer::new(peer.fingerprint);
    let (_endpoint, connection) = endpoint::connect(&address, &own, &pinned, TIMEOUT, Some(&model))
        .await
        .unwrap();
    let control = control::open(&connection).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let piece = Bytes::from(vec![7; PIECE]);
    let (mut sent, until) = (0_u64, Duration::from_secs_f64(end + 6.0));
    let writing = async {
        while began.elapsed() < until {
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(to_f64(sent) / to_f64(rate));
                tokio::time::sleep_until(began + due).await;
            }
            send.write_chunk(piece.clone()).await.unwrap();
            sent += u64::try_from(PIECE).unwrap();
        }
    };
    let _ = tokio::time::timeout(until, writing).await;
    connection.close(0_u32.into(), b"done");
    drop(control);
    let arrivals = serving.await.unwrap();
    let up = began + Duration::from_secs_f64(end);
    // What was in the kernel's buffers before is none of it.
    let after: Vec<_> = arrivals.iter().filter(|arrival| arrival.0 > up).collect();
    let first = after.first().map_or(f64::INFINITY, |arrival| {
        arrival.0.duration_since(up).as_secs_f64()
    });
    let second = up + Duration::from_secs(2);
    let bytes = after
        .iter()
        .filter(|arrival| (up + Duration::from_secs(1)..second).contains(&arrival.0))
        .map(|arrival| u64::try_from(arrival.1).unwrap())
        .sum();
    (first, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes as long as the cuts"]
async fn bytes_flow_within_a_second_after_a_cut() {
    let mut firsts = Vec::new();
    for (cut, rate, link) in [
        (5.0, Some(5_000_000), "100MB/s"),
        (5.0, Some(30_000_000), "100MB/s"),
        (5.0, None, "50MB/s"),
        (5.0, None, "open"),
        (2.0, Some(30_000_000), "100MB/s"),
        (10.0, Some(30_000_000), "100MB/s"),
    ] {
        let (first, bytes) = recovery(cut, rate, link).await;
        println!(
            "cut {cut} s, offered {rate:?}, link {link}: {first:.3} s, then {} MB/s",
            bytes / 1_000_000
        );
        firsts.push(first);
    }
    assert!(firsts.iter().all(|&first| first < 1.0), "{firsts:?}");
}

/// What padding finds of a link, and how long that takes.
async fn measured(link: &str, most_rate: Option<u64>) -> (LinkRate, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let own = Identity::generate(&folder.path().join("own")).unwrap();
    let peer = Identity::generate(&folder.path().join("peer")).unwrap();
    let pinned = PinnedPeer::new(own.fingerprint);
    let server = endpoint::listen("127.0.0.1:0", &peer, &pinned)
        .await
        .unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (send, mut recv) = connection.accept_bi().await.unwrap();
        let preface = control::read_preface(&mut recv).await.unwrap();
        assert_eq!(preface, Some(Preface::Padding));
        padding::answer(send, recv).await;
        connection.closed().await;
    });
    let model = LinkModel::new(link.parse().unwrap());
    let pinned = PinnedPeer::new(peer.fingerprint);
    let (_endpoint, connection) = endpoint::connect(&address, &own, &pinned, TIMEOUT, Some(&model))
        .await
        .unwrap();
    let began = Instant::now();
    let rate = padding::measure(&connection, most_rate).await.unwrap();
    let took = began.elapsed();
    connection.close(0_u32.into(), b"done");
    serving.await.unwrap();
    (rate, took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seconds"]
async fn padding_finds_what_a_link_takes_within_a_second() {
    for (link, about) in [
        ("0:500kB/s", 0.5e6),
        ("0:5MB/s", 5e6),
        ("0:50MB/s", 50e6),
        ("0:200MB/s", 200e6),
    ] {
        let (rate, took) = measured(link, None).await;
        println!("{link}: {rate:?} in {took:?}");
        let LinkRate::About(rate) = rate else {
            panic!("{link}: {rate:?}")
        };
        let share = to_f64(rate) / about;
        assert!((0.85..1.1).contains(&share), "{link}: {rate}");
        assert!(took < Duration::from_millis(1500), "{link}: {took:?}");
    }
    let (rate, took) = measured("0:open", None).await;
    println!("open: {rate:?} in {took:?}");
    let (rate, took) = measured("0:open", Some(10_000_000)).await;
    println!("open, 10 MB/s allowed: {rate:?} in {took:?}");
    assert_eq!(rate, LinkRate::AtLeast(10_000_000));
}
