//! What a forecast costs: `forecast-cost GIB DISK_GIB` drives a session of a guest
//! with so much RAM through its first pass towards a deadline, its curve full of
//! counted and sampled windows, forecasts the copy of so much disk beside each of its
//! decisions, and prints, as one JSON object, how long both together took, with what
//! the session was told just before, and how much they allocated. `cargo xtask bench forecast` runs it.
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
/// Pages that the guest writes in a second, and in any time at most.
const PAGES_PER_SECOND: u64 = 100_000;
const PAGES: u64 = 300_000;
/// As many windows as a session keeps, and more.
const OBSERVATIONS: usize = 128;

fn main() -> Result<()> {
    let gib: u64 = std::env::args()
        .nth(1)
        .context("how many GiB of RAM")?
        .parse()?;
    let disk_gib: u64 = std::env::args()
        .nth(2)
        .context("how many GiB of disk")?
        .parse()?;
    let bytes = [gib << 30, disk_gib << 30];
    let fixed = Cost::of(bytes, Objective::Fixed(RATE));
    // Later than the rate needs, so that one has to be found.
    let deadline = Cost::of(bytes, Objective::At(Duration::from_secs(2 * FORECASTS)));
    let figures = serde_json::json!({
        "ram_gib": gib,
        "disk_gib": disk_gib,
        "forecasts": fixed.seconds.len(),
        "median_seconds": fixed.percentile(50),
        "p99_seconds": fixed.percentile(99),
        "largest_allocated_bytes": fixed.largest_allocated_bytes,
        "deadline_median_seconds": deadline.percentile(50),
        "deadline_p99_seconds": deadline.percentile(99),
    });
    println!("{figures}");
    Ok(())
}

/// What forecasts cost, each with what was told just before it and the decision.
struct Cost {
    /// In order.
    seconds: Vec<f64>,
    largest_allocated_bytes: u64,
}

impl Cost {
    fn of([ram_bytes, disk_bytes]: [u64; 2], objective: Objective) -> Self {
        let mut guest = Guest::new(ram_bytes, disk_bytes, objective);
        let mut cost = Self {
            seconds: Vec::new(),
            largest_allocated_bytes: 0,
        };
        for second in 1..=FORECASTS {
            let begun = Instant::now();
            let mut has_forecast = false;
            // Counting allocations costs next to nothing where there are few.
            let allocated = measure(|| {
                guest.advance(second);
                has_forecast = guest.decide(second);
            });
            if has_forecast {
                cost.seconds.push(begun.elapsed().as_secs_f64());
                let most = cost.largest_allocated_bytes.max(allocated.bytes_total);
                cost.largest_allocated_bytes = most;
            }
        }
        cost.seconds.sort_by(f64::total_cmp);
        cost
    }

    fn percentile(&self, percent: usize) -> Option<f64> {
        let index = self.seconds.len() * percent / 100;
        self.seconds.get(index).copied()
    }
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

fn window(milliseconds: u64, origin: Origin) -> DirtyWindow {
    DirtyWindow {
        window: Duration::from_millis(milliseconds),
        pages: (PAGES_PER_SECOND * milliseconds / 1000).min(PAGES),
        device_pages: 0,
        origin,
    }
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
    fn new(total_bytes: u64, disk_bytes: u64, objective: Objective) -> Self {
        let config = SessionConfig {
            objective,
            limits: Limits::default(),
            switchover_overhead: Duration::from_millis(50),
            not_before: None,
        };
        let mut session = Session::new(config, Time::ZERO);
        let ram = Ram {
            total_bytes,
            content_bytes: Some(total_bytes / 4 * 3),
            content_parts: Some(std::array::from_fn(
                |part| if part % 4 == 3 { 0 } else { 255 },
            )),
        };
        session.handle_sample(Sample::Ram(ram), Time::ZERO);
        for number in 0..OBSERVATIONS {
            let milliseconds = [50, 100, 200, 500, 1000, 2000, 4000, 8000][number % 8];
            let origin = [Origin::DirtyLog, Origin::ContentSampling][number / 8 % 2];
            session.handle_sample(Sample::Dirty(window(milliseconds, origin)), Time::ZERO);
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
        let compared = window(1000 * second, Origin::ContentSampling);
        self.session.handle_sample(Sample::Dirty(compared), at);
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
