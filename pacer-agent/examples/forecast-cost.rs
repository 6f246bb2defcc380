//! What a forecast costs: `forecast-cost GIB DISK_GIB` drives a session of a guest
//! with so much RAM through its first pass, forecasts the copy of so much disk
//! beside each of its decisions, and prints, as one JSON object, how long both
//! together took and how much they allocated. `cargo xtask bench forecast` runs it.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use allocation_counter::measure;
use anyhow::{Context as _, Result};
use pacer_agent::pacing::disk_history::{DiskHistory, DiskState};
use pacer_agent::pacing::objective::{Limits, Objective};
use pacer_agent::pacing::sample::{DirtyWindow, Origin, QemuProgress, Ram, Sample, StreamCounters};
use pacer_agent::pacing::session::{Action, Session, SessionConfig};
use pacer_agent::pacing::time::Time;

const PAGE_BYTES: u64 = 4096;
const RATE: u64 = 1_000_000_000;
/// The session makes a forecast a second.
const FORECASTS: u64 = 2000;
/// Pages that the guest writes in a second, over and over in any longer time
/// twice as many.
const PAGES_PER_SECOND: u64 = 100_000;

fn main() -> Result<()> {
    let gib: u64 = std::env::args()
        .nth(1)
        .context("how many GiB of RAM")?
        .parse()?;
    let disk_gib: u64 = std::env::args()
        .nth(2)
        .context("how many GiB of disk")?
        .parse()?;
    let mut guest = Guest::new(gib << 30, disk_gib << 30);
    let mut seconds = Vec::new();
    let mut largest_allocated_bytes = 0;
    for second in 1..=FORECASTS {
        guest.advance(second);
        let begun = Instant::now();
        let mut has_forecast = false;
        let allocated = measure(|| has_forecast = guest.decide(second));
        // Counting allocations costs next to nothing where there are few.
        if has_forecast {
            seconds.push(begun.elapsed().as_secs_f64());
            largest_allocated_bytes = largest_allocated_bytes.max(allocated.bytes_total);
        }
    }
    seconds.sort_by(f64::total_cmp);
    let at = |percent: usize| seconds.get(seconds.len() * percent / 100).copied();
    let figures = serde_json::json!({
        "ram_gib": gib,
        "disk_gib": disk_gib,
        "forecasts": seconds.len(),
        "median_seconds": at(50),
        "p99_seconds": at(99),
        "largest_allocated_bytes": largest_allocated_bytes,
    });
    println!("{figures}");
    Ok(())
}

/// A hundredth of all chunks is written, in all classes of intervals alike.
fn disk_history(bytes: u64) -> DiskHistory {
    const CHUNK_BYTES: u64 = 1 << 20;
    const CLASSES: u64 = 24;
    let mut history = DiskHistory::new(CHUNK_BYTES);
    let chunks = bytes / CHUNK_BYTES / 100 / CLASSES;
    for class in 0..24 {
        history.set(class, Duration::from_millis(2 << class), chunks);
    }
    history
}

fn to_f64(value: u64) -> f64 {
    Duration::from_secs(value).as_secs_f64()
}

struct Guest {
    session: Session,
    total_bytes: u64,
    disk: DiskHistory,
    disk_bytes: u64,
}

impl Guest {
    fn new(total_bytes: u64, disk_bytes: u64) -> Self {
        let config = SessionConfig {
            objective: Objective::Fixed(RATE),
            limits: Limits {
                max_rate: None,
                downtime_limit: Duration::from_millis(300),
            },
            switchover_overhead: Duration::from_millis(50),
        };
        let mut session = Session::new(config, Time::ZERO);
        let ram = Ram {
            total_bytes,
            content_bytes: None,
            content_parts: None,
        };
        session.handle_sample(Sample::Ram(ram), Time::ZERO);
        for milliseconds in [50, 100, 200, 500] {
            let window = Duration::from_millis(milliseconds);
            let dirty = Sample::Dirty(DirtyWindow {
                window,
                pages: PAGES_PER_SECOND * milliseconds / 1000,
                device_pages: 0,
                origin: Origin::DirtyLog,
            });
            session.handle_sample(dirty, Time::ZERO + window);
        }
        session.handle_sample(Sample::StreamStarted, Time::ZERO);
        Self {
            session,
            total_bytes,
            disk: disk_history(disk_bytes),
            disk_bytes,
        }
    }

    /// What comes in until `second`: of the first pass, which a small guest
    /// would have ended.
    fn advance(&mut self, second: u64) {
        let at = Time::ZERO + Duration::from_secs(second);
        let most = self.total_bytes / 2;
        let bytes = (RATE * second).min(most * second / FORECASTS);
        let counters = StreamCounters {
            bytes_from_qemu: bytes,
            bytes_on_wire: bytes,
            normal_pages: bytes / PAGE_BYTES,
            zero_pages: 0,
            passes: 1,
        };
        let progress = QemuProgress {
            remaining_bytes: self.total_bytes - bytes,
            total_bytes: self.total_bytes,
            dirty_sync_count: 1,
            normal_pages: bytes / PAGE_BYTES,
            zero_pages: 0,
        };
        self.session.handle_sample(Sample::Stream(counters), at);
        self.session.handle_sample(Sample::Qemu(progress), at);
        while self.session.poll_action().is_some() {}
    }

    /// Whether a forecast was made, of the disk too.
    fn decide(&mut self, second: u64) -> bool {
        let at = Time::ZERO + Duration::from_secs(second);
        let state = DiskState {
            left_bytes: to_f64(self.disk_bytes / FORECASTS * (FORECASTS - second)),
            sweep_seconds: to_f64(second),
            ..DiskState::default()
        };
        black_box(self.disk.copy(&state, to_f64(RATE)));
        self.session.handle_timeout(at);
        let mut has_forecast = false;
        while let Some(action) = self.session.poll_action() {
            has_forecast |= matches!(action, Action::Forecast(_));
        }
        has_forecast
    }
}
