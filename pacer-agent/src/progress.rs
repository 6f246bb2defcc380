//! What a person sees while a migration runs.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::pacing::forecast::Percentiles;
use crate::pacing::session::Phase;
use crate::pacing::time::Time;
use crate::units::{from_f64, show_rate, show_seconds};

/// Without a terminal: a log line this often.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// One moment of a migration, as shown.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// How far it is.
    pub phase: Phase,
    /// Percent of the forecast work that is done.
    pub percent: f64,
    /// Since t0.
    pub elapsed_seconds: f64,
    /// From t0.
    pub deadline_seconds: Option<f64>,
    /// The forecast finish, from t0.
    pub finish_seconds: Percentiles,
    /// The commanded rate; `u64::MAX` is no limit.
    pub commanded: Option<u64>,
    /// The achieved rate.
    pub achieved: Option<f64>,
    /// The verdict.
    pub verdict: &'static str,
}

/// A live line on a terminal, log lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    next_log: Time,
}

impl Progress {
    /// On standard error, if that is a terminal.
    #[must_use]
    pub fn new(now: Time) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{bar:24} {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, next_log: now }
    }

    /// Shows `view`.
    pub fn show(&mut self, view: &View, now: Time) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(from_f64(view.percent * 10.0));
                bar.set_message(line(view));
            }
            None if now >= self.next_log => {
                self.next_log = now + LOG_EVERY;
                tracing::info!("{}", line(view));
            }
            None => {}
        }
    }

    /// Writes `text` above the live line, or logs it.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => tracing::info!("{text}"),
        }
    }

    /// Takes the live line away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn line(view: &View) -> String {
    let phase = match view.phase {
        Phase::Waiting => "measuring".to_owned(),
        Phase::Copying { pass } => format!("pass {pass}"),
        Phase::Switchover => "switchover".to_owned(),
        Phase::Arrived => "arrived".to_owned(),
    };
    let rate = match (view.achieved, view.commanded) {
        (Some(achieved), _) => show_rate(from_f64(achieved)),
        (None, Some(u64::MAX) | None) => "-".to_owned(),
        (None, Some(commanded)) => show_rate(commanded),
    };
    let finish = view.finish_seconds;
    let eta = match (finish.p05, finish.p50, finish.p95) {
        (Some(early), Some(likely), Some(late)) => format!(
            "arrives at {} ({early:.1} to {late:.1})",
            show_seconds(likely)
        ),
        _ => "arrival not known yet".to_owned(),
    };
    let left = view.deadline_seconds.map_or_else(String::new, |deadline| {
        format!(
            ", {} to the deadline",
            show_seconds(deadline - view.elapsed_seconds)
        )
    });
    format!(
        "{:3.0} %  {phase}, {rate}, {eta}{left}, {}",
        view.percent.floor(),
        view.verdict
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        let mut view = View {
            phase: Phase::Copying { pass: 2 },
            percent: 41.9,
            elapsed_seconds: 12.0,
            deadline_seconds: Some(30.0),
            finish_seconds: Percentiles::new(29.5, 30.0, 30.6),
            commanded: Some(10_000_000),
            achieved: Some(9_900_000.0),
            verdict: "feasible",
        };
        assert_eq!(
            line(&view),
            " 41 %  pass 2, 9.9 MB/s, arrives at 30.0 s (29.5 to 30.6), 18.0 s to the deadline, \
             feasible"
        );
        view.finish_seconds = Percentiles::default();
        assert!(line(&view).contains("not known yet"));
    }
}
