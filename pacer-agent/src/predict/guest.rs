//! A running guest looked at: its size, what it writes, and what follows.

use std::path::Path;
use std::time::Duration;

use super::answer::{Answer, Facts, curve_points};
use crate::cli::PredictArgs;
use crate::clock;
use crate::config::SWITCHOVER_OVERHEAD;
use crate::exit::Failure;
use crate::measure::{self, Accelerator, Measurer};
use crate::pacing::forecast::Outlook;
use crate::pacing::measuring::Lead;
use crate::pacing::objective::{Limits, Objective};
use crate::pacing::prediction::{Question, predict};
use crate::pacing::sample::{DirtyWindow, Origin, Sample};
use crate::pacing::session::{Session, SessionConfig};
use crate::pacing::time::Time;
use crate::probe::Probe;
use crate::probe::windows::{BURST_GAP, DirtyWindows};
use crate::qmp::QmpError;
use crate::source::{self, Monitored};
use crate::units::{Rate, to_f64};

/// One guest being looked at.
struct Look {
    monitored: Monitored,
    probe: Option<Probe>,
    windows: DirtyWindows,
    session: Session,
    total_bytes: u64,
    /// The host tells how much of the RAM it had to back.
    is_zero_known: bool,
    measured: Vec<DirtyWindow>,
    /// Why the last window was not measured.
    refusal: Option<QmpError>,
    notes: Vec<String>,
}

/// Answers what `args` ask of the guest. Whoever has printed the answer drops the
/// probe, which takes a second.
///
/// # Errors
///
/// If QEMU cannot be asked, measures nothing, or cannot migrate this guest.
pub(super) async fn ask(args: &PredictArgs) -> Result<(Answer, Option<Probe>), Failure> {
    let mut look = Look::begin(&args.qmp, config(args)).await?;
    let lead = look.measure(args.measure_for).await?;
    let answer = look.answer(args, lead)?;
    Ok((answer, look.probe))
}

fn config(args: &PredictArgs) -> SessionConfig {
    SessionConfig {
        objective: Objective::Fastest,
        limits: Limits {
            max_rate: args.max_rate.map(Rate::bytes_per_second),
            downtime_limit: args.downtime_limit,
            ..Limits::default()
        },
        switchover_overhead: SWITCHOVER_OVERHEAD,
        not_before: None,
    }
}

impl Look {
    async fn begin(path: &Path, config: SessionConfig) -> Result<Self, Failure> {
        let monitored = source::inspect(path, None).await?;
        let mut notes = Vec::new();
        if !monitored.was_running {
            notes
                .push("the guest is paused: what it writes when it runs is not in this".to_owned());
        }
        let probe = match monitored.accelerator {
            Accelerator::Kvm => attach(&monitored, &mut notes),
            Accelerator::Tcg => {
                notes.push(
                    "under TCG there is no log of written pages: they are estimated from a \
                     sample"
                        .to_owned(),
                );
                None
            }
        };
        Ok(Self {
            monitored,
            probe,
            windows: DirtyWindows::new(),
            session: Session::new(config, clock::now()),
            total_bytes: 0,
            is_zero_known: false,
            measured: Vec::new(),
            refusal: None,
            notes,
        })
    }

    /// Sizes up the guest and how it dirties its memory, for `most` longer than
    /// usual. Returns how `pacer source` would do that.
    async fn measure(&mut self, most: Duration) -> Result<Lead, Failure> {
        self.size_up().await?;
        let Monitored {
            qmp,
            accelerator,
            qemu,
            ..
        } = &self.monitored;
        let measurer =
            Measurer::new(qmp.clone(), *accelerator, Some(*qemu), self.total_bytes).await;
        let lead = measurer
            .look(|measured| self.on_measured(measured).then_some(most))
            .await;
        match self.refusal.take() {
            Some(error) if self.measured.is_empty() => Err(Failure::NotStarted(
                anyhow::Error::new(error)
                    .context("nothing is known of how the guest writes its memory"),
            )),
            Some(error) => {
                self.notes
                    .push(format!("a window was not measured: {error}"));
                Ok(lead)
            }
            None => Ok(lead),
        }
    }

    async fn size_up(&mut self) -> Result<(), Failure> {
        self.total_bytes = measure::memory_bytes(&self.monitored.qmp)
            .await
            .map_err(anyhow::Error::new)?;
        self.windows.expect_ram(self.total_bytes);
        let qemu = Some(self.monitored.qemu);
        let ram = measure::ram(qemu, self.total_bytes, self.total_bytes).await;
        self.is_zero_known = ram.content_bytes.is_some();
        self.session.handle_sample(Sample::Ram(ram), clock::now());
        Ok(())
    }

    /// What the probe counts meanwhile is better than QEMU's own figure. Whether
    /// longer windows may find more.
    fn on_measured(&mut self, measured: Result<DirtyWindow, QmpError>) -> bool {
        match measured {
            Ok(sampled) if sampled.origin == Origin::ContentSampling => {
                self.session
                    .handle_sample(Sample::Dirty(sampled), clock::now());
                self.measured.push(sampled);
            }
            Ok(own) => {
                let now = clock::now() + BURST_GAP;
                let measured = self.counted(now).unwrap_or(own);
                self.session.handle_sample(Sample::Dirty(measured), now);
                self.measured.push(measured);
            }
            Err(error) => self.refusal = Some(error),
        }
        self.session.dirty_curve().is_growing()
    }

    /// The newest window that the probe has seen end.
    fn counted(&mut self, now: Time) -> Option<DirtyWindow> {
        let events = self.probe.as_mut()?.drain();
        let mut samples: Vec<Sample> = events
            .iter()
            .filter_map(|event| self.windows.handle_event(event))
            .collect();
        samples.extend(self.windows.flush(now));
        samples.into_iter().rev().find_map(|sample| match sample {
            Sample::Dirty(window) if sample.is_point() => Some(window),
            _ => None,
        })
    }

    fn answer(&self, args: &PredictArgs, lead: Lead) -> Result<Answer, Failure> {
        let now = clock::now();
        let Some(base) = self.session.outlook_at(1.0, now) else {
            return Err(Failure::not_started(
                "QEMU says that the guest has no memory",
            ));
        };
        let outlook_at =
            |rate| -> Outlook<'_> { self.session.outlook_at(rate, now).unwrap_or(base) };
        let per_second = |rate: Rate| to_f64(rate.bytes_per_second());
        let question = Question {
            rates: args.rate.iter().copied().map(per_second).collect(),
            highest_rate: args.max_rate.map_or(self.session.link(), per_second),
            lead,
            deadline_seconds: args.deadline.map(|deadline| deadline.as_secs_f64()),
        };
        let prediction = predict(outlook_at, &question);
        let zero_ratio = base.state.zero_pages / base.state.total_pages;
        Ok(Answer {
            curve: curve_points(self.session.dirty_curve(), &self.measured),
            downtime_limit: args.downtime_limit,
            is_rate_limited: args.max_rate.is_some(),
            prediction,
            facts: Facts {
                pid: self.monitored.qemu.pid,
                version: self.monitored.qmp.version(),
                accelerator: self.monitored.accelerator.word(),
                is_running: self.monitored.was_running,
                total_bytes: self.total_bytes,
                zero_ratio: self.is_zero_known.then_some(zero_ratio),
                windows: self.measured.clone(),
                notes: self.notes.clone(),
            },
        })
    }
}

/// The probe on this QEMU. Without it QEMU's own figures serve.
fn attach(monitored: &Monitored, notes: &mut Vec<String>) -> Option<Probe> {
    match Probe::attach(monitored.qemu.pid) {
        Ok(probe) => {
            for warning in probe.warnings() {
                tracing::debug!("probe: {warning}");
            }
            Some(probe)
        }
        Err(error) => {
            let error = anyhow::Error::new(error);
            notes.push(format!(
                "without eBPF, from QEMU's own figures, in steps of 1 MiB/s: {error:#}"
            ));
            None
        }
    }
}
