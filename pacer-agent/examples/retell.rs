//! What today's model makes of recorded migrations: `retell [--longest SECONDS]
//! TRACE…` tells a new session all that each trace has, and prints how far its
//! forecasts were off at the start, at half and at three quarters of the time.
//! Windows measured before the start that are longer than `--longest` are left out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use pacer_agent::pacing::action::{Action, ForecastRecord};
use pacer_agent::pacing::replay::Recording;
use pacer_agent::pacing::sample::{Origin, Sample};
use pacer_agent::pacing::session::SessionConfig;
use pacer_agent::trace::Trace;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = f64::INFINITY)]
    longest: f64,
    /// Print what the curve was told, too
    #[arg(long)]
    windows: bool,
    /// Print the curve and the forecast of each second, too
    #[arg(long)]
    curve: bool,
    #[arg(required = true)]
    traces: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!(
        "{:<28} {:>7} {:>7} {:>16} {:>7} {:>7} {:>7} {:>3} {:>6} {:>6}",
        "trace", "real", "start", "interval", "e0 %", "e50 %", "e75 %", "in", "down", "real"
    );
    let (mut starts, mut inside) = (Vec::new(), 0);
    for path in &arguments.traces {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let trace = Trace::parse(&bytes).with_context(|| path.display().to_string())?;
        let name = path
            .file_stem()
            .map_or_else(String::new, |name| name.to_string_lossy().into());
        let Some(told) = Told::of(&trace, arguments.longest, arguments.curve) else {
            println!("{name:<28} no migration");
            continue;
        };
        told.print(&name);
        if arguments.windows {
            print_windows(&trace);
        }
        if let (Some(error), Some(is_inside)) = (told.error(0.0), told.is_inside()) {
            starts.push(error.abs());
            inside += usize::from(is_inside);
        }
    }
    starts.sort_by(f64::total_cmp);
    let at = |percent: usize| starts.get(starts.len() * percent / 100).copied();
    println!(
        "{} arrived: median {:?}, 90th percentile {:?}, inside {inside}",
        starts.len(),
        at(50),
        at(90)
    );
    Ok(())
}

struct Told {
    forecasts: Vec<ForecastRecord>,
    stopped: Option<f64>,
    running: Option<f64>,
}

impl Told {
    fn of(trace: &Trace, longest: f64, print_curve: bool) -> Option<Self> {
        let mut samples = trace.samples();
        let start = samples
            .iter()
            .position(|(_, sample)| *sample == Sample::StreamStarted)?;
        let has_log = samples.iter().any(
            |(_, sample)| matches!(sample, Sample::Dirty(window) if window.origin == Origin::DirtyLog),
        );
        let mut index = 0;
        samples.retain(|(_, sample)| {
            index += 1;
            let Sample::Dirty(window) = sample else {
                return true;
            };
            let is_before = index <= start;
            let doubled = is_before && has_log && window.origin == Origin::Qemu;
            !(doubled || is_before && window.window.as_secs_f64() > longest * 1.3)
        });
        let recording = Recording {
            samples: &samples,
            t0: trace.t0,
            config: SessionConfig {
                objective: trace.header.objective,
                limits: trace.header.limits,
                switchover_overhead: trace.header.switchover_overhead,
                not_before: trace.header.not_before,
            },
        };
        if print_curve {
            recording.retell(|session, _, _, actions| {
                for action in actions {
                    let Action::Forecast(record) = action else {
                        continue;
                    };
                    let pages = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0].map(|seconds| {
                        let window = Duration::from_secs_f64(seconds);
                        session.dirty_curve().pages(window).unwrap_or(0.0).round()
                    });
                    println!(
                        "    {:6.2} {:.2?} {pages:?} {}",
                        record.at_seconds,
                        record.finish_seconds.p50,
                        if record.change { "CHANGE" } else { "" }
                    );
                }
            });
        }
        let ending = recording.ending();
        Some(Self {
            forecasts: recording.forecasts(),
            stopped: ending.stopped,
            running: ending.running,
        })
    }

    fn first(&self) -> Option<&ForecastRecord> {
        self.forecasts.iter().find(|forecast| {
            forecast.verdict.word() != "unknown" || forecast.finish_seconds.p50.is_some()
        })
    }

    /// The forecast that held when this share of the time had passed.
    fn at(&self, share: f64) -> Option<&ForecastRecord> {
        if share <= 0.0 {
            return self.first();
        }
        let at = self.running? * share;
        self.forecasts
            .iter()
            .rev()
            .find(|forecast| forecast.at_seconds <= at)
    }

    /// Percent by which it was too late.
    fn error(&self, share: f64) -> Option<f64> {
        let real = self.running?;
        let said = self.at(share)?.finish_seconds.p50;
        Some(said.map_or(100.0, |said| (said / real - 1.0) * 100.0))
    }

    fn is_inside(&self) -> Option<bool> {
        let real = self.running?;
        let said = self.first()?.finish_seconds;
        let (low, high) = (
            said.p05.unwrap_or(f64::INFINITY),
            said.p95.unwrap_or(f64::INFINITY),
        );
        Some((low..=high).contains(&real))
    }

    fn print(&self, name: &str) {
        let show = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
        };
        let first = self
            .first()
            .map(|first| first.finish_seconds)
            .unwrap_or_default();
        let last = self.forecasts.iter().rev().find(|forecast| {
            self.stopped
                .is_some_and(|stopped| forecast.at_seconds <= stopped)
        });
        let downtime = self
            .running
            .zip(self.stopped)
            .map(|(running, stopped)| running - stopped);
        println!(
            "{name:<28} {:>7} {:>7} {:>16} {:>7} {:>7} {:>7} {:>3} {:>6} {:>6}",
            show(self.running),
            show(first.p50),
            format!("{}-{}", show(first.p05), show(first.p95)),
            show(self.error(0.0)),
            show(self.error(0.5)),
            show(self.error(0.75)),
            self.is_inside()
                .map_or("-", |is_inside| if is_inside { "yes" } else { "NO" }),
            show(last.and_then(|last| last.downtime_seconds.p50)),
            show(downtime),
        );
    }
}

fn print_windows(trace: &Trace) {
    for (at, sample) in trace.samples() {
        let at = at.since(trace.t0).as_secs_f64();
        match sample {
            Sample::Dirty(window) => println!(
                "    {at:7.2} {:7.3} s {:>7} + {} pages {:?}",
                window.window.as_secs_f64(),
                window.pages,
                window.device_pages,
                window.origin
            ),
            Sample::Ram(ram) => println!("    {at:7.2} {ram:?}"),
            Sample::StreamStarted | Sample::Stopped | Sample::Running => {
                println!("    {at:7.2} {sample:?}");
            }
            _ => {}
        }
    }
}
