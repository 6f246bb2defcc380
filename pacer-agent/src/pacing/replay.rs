//! A recorded migration as a guest: what it did to its memory then, under
//! another rate, deadline or policy.
//!
//! The guest is what a session that was told the same would have learned of it:
//! the dirty curve as it was after each sync. Pages written from one moment to
//! another are those of the first curve that had seen both.

use super::action::{Action, ForecastRecord};
use super::dirty_curve::DirtyCurve;
use super::number::to_f64;
use super::objective::Objective;
use super::sample::Sample;
use super::session::{Session, SessionConfig};
use super::simulation::{Guest, Scenario, Sight, steady};
use super::time::Time;

/// What the link is taken for that was not measured: 10 Gbit/s.
const LINK_RATE: f64 = 1.25e9;
/// What a switchover takes besides copying, where none was seen, in seconds.
const OVERHEAD: f64 = 0.06;
/// A simulation is given up after this many seconds of its clock.
const GIVE_UP: f64 = 7200.0;

/// What was recorded: samples in the order of their times.
#[derive(Clone, Copy, Debug)]
pub struct Recording<'a> {
    /// The samples.
    pub samples: &'a [(Time, Sample)],
    /// t0.
    pub t0: Time,
    /// What the session was to do.
    pub config: SessionConfig,
}

/// The guest of a recording.
#[derive(Clone, Debug)]
pub struct ReplayGuest {
    total_pages: f64,
    normal_pages: f64,
    /// Each with the seconds from t0 from which on it is known, in order.
    curves: Vec<(f64, DirtyCurve)>,
}

/// How the recorded migration really ended, in seconds from t0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ending {
    /// When the guest was stopped.
    pub stopped: Option<f64>,
    /// When it ran at the destination.
    pub running: Option<f64>,
}

impl Recording<'_> {
    /// How it ended.
    #[must_use]
    pub fn ending(&self) -> Ending {
        let at = |wanted: Sample| {
            let found = self.samples.iter().rfind(|(_, sample)| *sample == wanted);
            found.map(|&(at, _)| self.seconds(at))
        };
        Ending {
            stopped: at(Sample::Stopped),
            running: at(Sample::Running),
        }
    }

    /// The guest; `None` if the size of its memory is not in the recording.
    #[must_use]
    pub fn guest(&self) -> Option<ReplayGuest> {
        let mut curves = Vec::new();
        let session = self.retell(|session, at, sample, actions| {
            let is_start = sample == Some(Sample::StreamStarted);
            let is_sync = |action: &Action| matches!(action, Action::PassEnded(_));
            if is_start || actions.iter().any(is_sync) {
                curves.push((self.seconds(at), session.dirty_curve().clone()));
            }
        });
        curves.push((f64::INFINITY, session.dirty_curve().clone()));
        let total_pages = self.total_pages()?;
        Some(ReplayGuest {
            total_pages,
            normal_pages: self.normal_pages(total_pages),
            curves,
        })
    }

    /// What a session forecasts that is told all of it now.
    #[must_use]
    pub fn forecasts(&self) -> Vec<ForecastRecord> {
        let mut forecasts = Vec::new();
        self.retell(|_, _, _, actions| {
            forecasts.extend(actions.iter().filter_map(|action| match action {
                Action::Forecast(record) => Some(*record),
                _ => None,
            }));
        });
        forecasts
    }

    /// Tells a new session all of it, and `heard` of each step what it did. It
    /// decides nothing before the guest has been measured, as the driver has it.
    pub fn retell(
        &self,
        mut heard: impl FnMut(&Session, Time, Option<Sample>, &[Action]),
    ) -> Session {
        let mut session = Session::new(self.config, self.t0);
        let measured_at = self.measured_at();
        let mut actions = Vec::new();
        for &(at, sample) in self.samples {
            while let Some(due) = session.poll_timeout() {
                let due = due.max(measured_at);
                // What ends the measuring is still told before.
                if due > at || at == measured_at {
                    break;
                }
                session.handle_timeout(due);
                actions.extend(std::iter::from_fn(|| session.poll_action()));
                heard(&session, due, None, &actions);
                actions.clear();
            }
            session.handle_sample(sample, at);
            actions.extend(std::iter::from_fn(|| session.poll_action()));
            heard(&session, at, Some(sample), &actions);
            actions.clear();
        }
        session
    }

    /// When the last of what is known before the stream was told.
    fn measured_at(&self) -> Time {
        let before = self
            .samples
            .iter()
            .take_while(|(_, sample)| *sample != Sample::StreamStarted);
        let measured = before.filter(|(_, sample)| matches!(sample, Sample::Dirty(_)));
        measured.last().map_or(self.t0, |&(at, _)| at)
    }

    /// The migration, to be simulated with `objective`.
    #[must_use]
    pub fn scenario(&self, objective: Objective) -> Option<Scenario<ReplayGuest>> {
        let start = self.samples.iter().find_map(|&(at, sample)| {
            (sample == Sample::StreamStarted).then(|| self.seconds(at))
        })?;
        let before = self
            .samples
            .iter()
            .map(|&(at, sample)| (self.seconds(at), sample))
            .take_while(|&(at, _)| at < start)
            .collect();
        let link_rate = self.link_rate();
        Some(Scenario {
            guest: self.guest()?,
            objective,
            limits: self.config.limits,
            not_before: self.config.not_before,
            orders: Vec::new(),
            link: steady,
            outage: (0.0, 0.0, 1.0),
            link_rate,
            rtt: 0.0,
            sight: self.sight(),
            before,
            start,
            overhead: self.overhead(link_rate),
            expected_overhead: self.config.switchover_overhead,
            give_up: GIVE_UP,
        })
    }

    fn seconds(&self, at: Time) -> f64 {
        at.since(self.t0).as_secs_f64()
    }

    fn total_pages(&self) -> Option<f64> {
        self.samples.iter().find_map(|(_, sample)| {
            let bytes = match sample {
                Sample::Ram(ram) => ram.total_bytes,
                Sample::Qemu(qemu) => qemu.total_bytes,
                _ => 0,
            };
            (bytes > 0).then(|| to_f64(bytes / 4096))
        })
    }

    /// Those that are not zero by a sample; else those that the first pass did not
    /// announce as zero, or as far as that was not seen, those that the host had
    /// backed.
    fn normal_pages(&self, total_pages: f64) -> f64 {
        let counters = || {
            self.samples.iter().filter_map(|(_, sample)| match sample {
                Sample::Stream(counters) => Some(counters),
                _ => None,
            })
        };
        let ram = self.samples.iter().find_map(|(_, sample)| match sample {
            Sample::Ram(ram) => Some(ram),
            _ => None,
        });
        let content = ram.and_then(|ram| ram.content_bytes);
        let is_sampled = ram.is_some_and(|ram| ram.content_parts.is_some());
        let first = counters().rfind(|counters| counters.passes == 1);
        let ended = counters().any(|counters| counters.passes > 1);
        match (first, content) {
            (_, Some(content)) if is_sampled => to_f64(content / 4096).min(total_pages),
            (Some(first), _) if ended || content.is_none() => {
                (total_pages - to_f64(first.zero_pages)).max(0.0)
            }
            (_, Some(content)) => to_f64(content / 4096).min(total_pages),
            (_, None) => total_pages,
        }
    }

    fn sight(&self) -> Sight {
        let any = |is_it: fn(&Sample) -> bool| self.samples.iter().any(|(_, sample)| is_it(sample));
        let log =
            any(|sample| matches!(sample, Sample::Dirty(window) if window.origin.marks_sync()));
        let qmp = any(|sample| matches!(sample, Sample::Qemu(_)));
        match (log, qmp) {
            (true, true) => Sight::All,
            (false, true) => Sight::Qmp,
            (true, false) => Sight::Log,
            (false, false) => Sight::Stream,
        }
    }

    fn link_rate(&self) -> f64 {
        let told = self.samples.iter().find_map(|(_, sample)| match sample {
            Sample::LinkRate { bytes_per_second } => Some(to_f64(*bytes_per_second)),
            _ => None,
        });
        told.unwrap_or(LINK_RATE)
    }

    /// The switchover less its copying.
    fn overhead(&self, link_rate: f64) -> f64 {
        let Ending {
            stopped: Some(stopped),
            running: Some(running),
        } = self.ending()
        else {
            return OVERHEAD;
        };
        let wire = |until: f64| {
            let counters = self
                .samples
                .iter()
                .filter_map(|&(at, sample)| match sample {
                    Sample::Stream(counters) if self.seconds(at) <= until => Some(counters),
                    _ => None,
                });
            counters.map(|counters| counters.bytes_on_wire).max()
        };
        let rest = wire(f64::INFINITY).zip(wire(stopped));
        let rest = rest.map_or(0, |(all, before)| all - before);
        (running - stopped - to_f64(rest) / link_rate).max(0.01)
    }
}

impl Guest for ReplayGuest {
    fn total_pages(&self) -> f64 {
        self.total_pages
    }

    fn normal_pages(&self) -> f64 {
        self.normal_pages
    }

    fn dirtied(&self, from: f64, to: f64) -> f64 {
        let known = self.curves.iter().find(|(since, _)| *since >= to);
        let curve = known.or(self.curves.last()).map(|(_, curve)| curve);
        let span = to - from;
        curve.map_or(0.0, |curve| curve.pages_in(span).min(self.total_pages))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pacing::objective::Limits;
    use crate::pacing::sample::{DirtyWindow, Origin, Ram, StreamCounters};

    const CONFIG: SessionConfig = SessionConfig {
        objective: Objective::Fixed(10_000_000),
        limits: Limits {
            max_rate: None,
            downtime_limit: Duration::from_millis(300),
            disk_latency_limit: None,
            converge: false,
        },
        switchover_overhead: Duration::from_millis(60),
        not_before: None,
    };

    fn at(milliseconds: u64) -> Time {
        Time::from_nanos(milliseconds * 1_000_000)
    }

    fn dirty(milliseconds: u64, pages: u64) -> Sample {
        Sample::Dirty(DirtyWindow {
            window: Duration::from_millis(milliseconds),
            pages,
            device_pages: 0,
            origin: Origin::DirtyLog,
        })
    }

    fn stream(passes: u64, normal_pages: u64, zero_pages: u64) -> Sample {
        Sample::Stream(StreamCounters {
            bytes_from_qemu: normal_pages * 4104,
            bytes_on_wire: normal_pages * 4104,
            normal_pages,
            zero_pages,
            passes,
        })
    }

    /// 64 MiB, half of it zero, of which 50 pages are written over and over.
    fn samples() -> Vec<(Time, Sample)> {
        let ram = Ram {
            total_bytes: 64 << 20,
            content_bytes: None,
            content_parts: None,
        };
        vec![
            (at(100), Sample::Ram(ram)),
            (at(200), dirty(50, 50)),
            (at(400), dirty(200, 50)),
            (at(1000), Sample::StreamStarted),
            (at(3000), stream(1, 4000, 4000)),
            (at(4400), stream(1, 8192, 8192)),
            (at(4500), dirty(3500, 50)),
            (at(4550), stream(2, 8200, 8192)),
            (at(4600), Sample::Stopped),
            (at(4650), stream(2, 8300, 8192)),
            (at(4700), Sample::Running),
        ]
    }

    #[test]
    fn the_guest_is_as_it_was() {
        let samples = samples();
        let recording = Recording {
            samples: &samples,
            t0: Time::ZERO,
            config: CONFIG,
        };
        let guest = recording.guest().expect("its size is known");
        assert_eq!(
            (guest.total_pages(), guest.normal_pages()),
            (16_384.0, 8192.0)
        );
        let pages = guest.dirtied(1.0, 4.0);
        assert!((45.0..60.0).contains(&pages), "{pages}");
        let ending = recording.ending();
        assert_eq!((ending.stopped, ending.running), (Some(4.6), Some(4.7)));
    }

    #[test]
    fn the_same_rate_gives_the_same_migration() {
        let samples = samples();
        let recording = Recording {
            samples: &samples,
            t0: Time::ZERO,
            config: CONFIG,
        };
        let scenario = recording.scenario(CONFIG.objective).expect("it began");
        let run = scenario.run();
        assert!((run.finish - 4.7).abs() < 0.7, "{}", run.finish);
        let slower = recording.scenario(Objective::Fixed(5_000_000));
        let slower = slower.expect("it began").run();
        assert!(slower.finish > run.finish + 2.0, "{}", slower.finish);
    }

    #[test]
    fn what_never_began_is_no_guest() {
        let recording = Recording {
            samples: &[],
            t0: Time::ZERO,
            config: CONFIG,
        };
        assert!(recording.guest().is_none());
        assert!(recording.scenario(CONFIG.objective).is_none());
    }
}
