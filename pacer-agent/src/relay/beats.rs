//! Beats: what makes a connection go on soon after the link was away.
//!
//! QUIC finds out that a link is back by a probe, and after each probe that is lost it
//! waits twice as long: after a cut of 5 s up to 4 s more. So while nothing is heard from
//! the peer, a datagram goes every [`EVERY`]. The first that is confirmed shows QUIC
//! what was lost before it, and all of it is sent again.
//!
//! A beat must go even where as much is unconfirmed as congestion control allows, which
//! is the ordinary case when a busy link is cut: [`Control`] lets it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Connection;
use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use tokio::task::JoinHandle;

/// How long nothing may be heard before a beat is sent, and the next.
const EVERY: Duration = Duration::from_millis(100);
/// A window so large that neither it nor QUIC's pacing holds a packet back.
const NO_LIMIT_BYTES: u64 = 1 << 40;
/// What is kept of the peer's beats, which nobody reads.
pub(super) const KEPT_BYTES: usize = 64;

/// The beats of one connection; they end with the value.
#[derive(Debug)]
pub(super) struct Beats(JoinHandle<()>);

impl Beats {
    /// Sends beats over `connection` whenever its peer is silent.
    pub(super) fn start(connection: &Connection) -> Self {
        Self(tokio::spawn(beat(connection.clone())))
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn beat(connection: Connection) {
    let allowed = connection
        .congestion_state()
        .into_any()
        .downcast::<Control>()
        .map(|control| control.beat)
        .unwrap_or_default();
    let mut heard = 0;
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let received = connection.stats().udp_rx.datagrams;
        if received == heard {
            allowed.store(true, Ordering::Relaxed);
            // It fails where the peer takes no datagrams, or the connection is gone.
            if connection.send_datagram(Bytes::from_static(b"b")).is_err() {
                return;
            }
        }
        heard = received;
    }
}

/// QUIC's usual congestion control, but for a beat.
pub(super) struct Control {
    inner: Box<dyn Controller>,
    /// One packet may go whatever is unconfirmed.
    beat: Arc<AtomicBool>,
}

/// Makes a [`Control`] for each connection.
#[derive(Debug, Default)]
pub(super) struct ControlFactory(Arc<CubicConfig>);

impl ControllerFactory for ControlFactory {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Control {
            inner: Arc::clone(&self.0).build(now, current_mtu),
            beat: Arc::default(),
        })
    }
}

impl Controller for Control {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.beat.store(false, Ordering::Relaxed);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        app_limited: bool,
        rtt: &quinn_proto::RttEstimator,
    ) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
        largest_packet_num_acked: Option<u64>,
    ) {
        self.inner
            .on_end_acks(now, in_flight, app_limited, largest_packet_num_acked);
    }

    fn on_congestion_event(
        &mut self,
        now: Instant,
        sent: Instant,
        is_persistent_congestion: bool,
        lost_bytes: u64,
    ) {
        self.inner
            .on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        if self.beat.load(Ordering::Relaxed) {
            NO_LIMIT_BYTES
        } else {
            self.inner.window()
        }
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            inner: self.inner.clone_box(),
            beat: Arc::clone(&self.beat),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_lets_one_packet_go() {
        let factory = Arc::new(ControlFactory::default());
        #[expect(clippy::disallowed_methods, reason = "QUIC's trait takes a time")]
        let now = Instant::now();
        let mut control = factory.build(now, 1200);
        let window = control.window();
        assert!(window < 1 << 20);
        let copy = control.clone_box().into_any().downcast::<Control>();
        let Ok(copy) = copy else {
            unreachable!("the factory makes no other")
        };
        copy.beat.store(true, Ordering::Relaxed);
        assert_eq!(control.window(), NO_LIMIT_BYTES);
        control.on_sent(now, 1200, 1);
        assert_eq!(control.window(), window);
    }
}
