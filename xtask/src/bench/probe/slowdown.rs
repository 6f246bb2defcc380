//! How much slower a guest is with the probe attached than without, and with
//! bpftrace counting the same tracepoints.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pacer_tests::bpftrace::Bpftrace;
use pacer_tests::disk::{DiskAio, DiskCache, DiskOptions};
use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::devices::{BareDirection, BareDisk};
use pacer_tests::observe::{ObserveOptions, Observer};
use pacer_tests::process::pause;
use pacer_tests::qemu::{Accel, QemuInstall, QemuVersion};
use pacer_tests::vm::{Guest, Vm, VmOptions};
use serde_json::{Value, json};

use super::against;
use super::image::{Image, Place};
use super::{Bencher, errors, measuring};
use crate::bench::target::{Limit, Part};

/// How long one window counts.
const WINDOW: Duration = Duration::from_secs(1);
/// From an attach or a detach until the window begins.
const SETTLE: Duration = Duration::from_millis(200);
const START_TIMEOUT: Duration = Duration::from_secs(60);
const LIMIT_PERCENT: f64 = 1.0;
/// The control page and all before it.
const CONTROL_BYTES: u64 = 0x9000;

/// What a guest does as fast as it can.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// Writes its disk.
    Disk,
    /// Dirties its memory.
    Memory,
}

/// Who looks on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Watcher {
    Pacer,
    Bpftrace,
}

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    if Accel::detect()? != Accel::Kvm {
        return Ok(vec![Part::missing("a guest at full speed", "no KVM")]);
    }
    let mut parts = Vec::new();
    for load in [Load::Disk, Load::Memory] {
        let runs = pairs(bencher, load)?;
        let what = format!("with pacer attached, {}", load.name());
        parts.push(part(&runs, what, Watcher::Pacer).limit(Limit::AtMost(LIMIT_PERCENT)));
        bencher.against_bpftrace.push(compare(&runs, load));
    }
    parts.extend(measuring::measure(bencher)?);
    Ok(parts)
}

impl Load {
    const fn name(self) -> &'static str {
        match self {
            Self::Disk => "writing its disk at full speed",
            Self::Memory => "dirtying memory at full speed under KVM",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

/// Percent by which a window with the watcher was slower than those beside it.
fn part(runs: &[Value], what: String, watcher: Watcher) -> Part {
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    Part::median(what, &Bencher::figures(runs, watcher.key()), "%")
}

/// Pacer's slowdown less bpftrace's, run by run.
fn compare(runs: &[Value], load: Load) -> Part {
    let what = format!("slowdown by pacer less that by bpftrace, {}", load.name());
    if let Some(part) = errors(runs, &what) {
        return part;
    }
    let less: Vec<f64> = Bencher::figures(runs, Watcher::Pacer.key())
        .iter()
        .zip(Bencher::figures(runs, Watcher::Bpftrace.key()))
        .map(|(pacer, bpftrace)| pacer - bpftrace)
        .collect();
    Part::median(what, &less, "% of the guest's speed")
}

impl Watcher {
    const fn key(self) -> &'static str {
        match self {
            Self::Pacer => "pacer_percent",
            Self::Bpftrace => "bpftrace_percent",
        }
    }
}

fn pairs(bencher: &mut Bencher<'_>, load: Load) -> Result<Vec<Value>> {
    let repeats = bencher.plan.repeats(30, 4);
    let pacer = bencher.plan.pacer.clone();
    // One guest for all of them, started when the first is measured.
    let mut guest = None;
    let mut runs = Vec::new();
    for index in 0..repeats {
        let mut watchers = [Watcher::Pacer, Watcher::Bpftrace];
        bencher.rng(load.key(), index).shuffle(&mut watchers);
        let parameters = json!({
            "load": load.key(),
            "first": watchers[0].key().trim_end_matches("_percent"),
            "window_seconds": WINDOW.as_secs_f64(),
        });
        runs.push(bencher.records.run("slowdown", index, &parameters, || {
            let guest = match &mut guest {
                Some(guest) => guest,
                none => none.insert(BusyGuest::start(load)?),
            };
            guest.compare(&pacer, watchers)
        })?);
    }
    Ok(runs)
}

/// A guest that does one thing as fast as it can.
struct BusyGuest {
    guest: BareGuest,
    load: Load,
    // Dropped before its image.
    vm: Vm,
    _image: Option<Image>,
}

impl BusyGuest {
    fn start(load: Load) -> Result<Self> {
        let image = match load {
            Load::Disk => Some(Image::create(Place::Disk)?),
            Load::Memory => None,
        };
        let guest = match load {
            Load::Disk => BareGuest {
                ram_mib: 64,
                working_set_pages: 1000,
                pages_per_second: 1000,
                disk: Some(BareDisk {
                    queue_depth: 32,
                    ..BareDisk::new(BareDirection::Write, Image::BYTES)
                }),
                ..BareGuest::PLAIN
            },
            Load::Memory => Self::dirtying(),
        };
        let qemu = QemuInstall::find(QemuVersion::System)?;
        let mut options = VmOptions::new(Guest::Bare(guest), qemu, Accel::Kvm);
        options.own_group = true;
        options
            .disks
            .extend(image.as_ref().map(|image| DiskOptions {
                aio: DiskAio::Native,
                cache: DiskCache::None,
                ..DiskOptions::new("disk", image.path())
            }));
        let vm = Vm::start(&options)?;
        vm.wait_started(START_TIMEOUT)?;
        Ok(Self {
            guest,
            load,
            vm,
            _image: image,
        })
    }

    const fn dirtying() -> BareGuest {
        BareGuest {
            ram_mib: 512,
            working_set_pages: 100_000,
            ..BareGuest::PLAIN
        }
    }

    /// A window without, one with the first watcher, one without, one with the
    /// second, one without: each with is held against those beside it.
    fn compare(&self, pacer: &Path, watchers: [Watcher; 2]) -> Result<Value> {
        let mut figures = json!({});
        let mut before = self.speed()?;
        for watcher in watchers {
            let with = match watcher {
                Watcher::Pacer => {
                    let options = ObserveOptions {
                        interval: Duration::from_secs(1),
                        ..ObserveOptions::new(pacer, self.vm.pid())
                    };
                    let observer = Observer::start(&options)?;
                    let speed = self.speed()?;
                    observer.stop()?;
                    speed
                }
                Watcher::Bpftrace => {
                    let script = against::hits(self.vm.pid());
                    let bpftrace = Bpftrace::start(&script.text, script.probes)?;
                    let speed = self.speed()?;
                    bpftrace.stop()?;
                    speed
                }
            };
            let after = self.speed()?;
            let without = f64::midpoint(before, after);
            ensure!(with > 0.0, "the guest stood still");
            figures[watcher.key()] = json!((without / with - 1.0) * 100.0);
            let name = watcher.key().trim_end_matches("_percent");
            figures[name] = json!({"before": before, "with": with, "after": after});
            before = after;
        }
        Ok(figures)
    }

    /// Pages or requests a second over one window.
    fn speed(&self) -> Result<f64> {
        pause(SETTLE)?;
        let (count, start) = (self.count()?, Instant::now());
        pause(WINDOW)?;
        let (end_count, seconds) = (self.count()?, start.elapsed().as_secs_f64());
        let done = u32::try_from(end_count.wrapping_sub(count) & u64::from(u32::MAX))?;
        Ok(f64::from(done) / seconds)
    }

    /// Wraps at 2^32.
    fn count(&self) -> Result<u64> {
        let memory = self.vm.pmemsave(CONTROL_BYTES)?;
        let count = match self.load {
            Load::Disk => self
                .guest
                .counters(&memory)
                .map(|counters| counters.requests_completed.into()),
            Load::Memory => self.guest.state(&memory).map(|state| state.total_writes),
        };
        count.context("the guest's control page")
    }
}
