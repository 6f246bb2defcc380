//! How a migration goes, as `pacer ctl status` has it.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::units::{show_bytes, show_rate, show_seconds};

/// One moment of a migration. Seconds are from t0; what is unknown is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The agent's process, its supervisor's where it has one.
    pub pid: u32,
    /// The QEMU whose guest moves.
    pub qemu_pid: Option<u32>,
    /// The attempt.
    pub attempt: String,
    /// `waiting` for QEMU, `measuring`, `copying`, `switchover` or `ending`.
    pub phase: String,
    /// From 1, while copying.
    pub pass: Option<u64>,
    /// Percent of the forecast work that is done.
    pub percent: f64,
    /// Since t0.
    pub elapsed_seconds: f64,
    /// What is aimed at, in words.
    pub objective: String,
    /// When the guest is to arrive.
    pub deadline_seconds: Option<f64>,
    /// Until then; negative past it.
    pub time_left_seconds: Option<f64>,
    /// When the guest is expected to arrive: one in twenty before, the median, one in
    /// twenty after.
    pub finish_seconds: [Option<f64>; 3],
    /// The downtime expected, in the median.
    pub downtime_seconds: Option<f64>,
    /// `feasible`, `infeasible` or `unknown`.
    pub verdict: String,
    /// When it could arrive at the earliest.
    pub earliest_feasible_seconds: Option<f64>,
    /// What the bucket lets through; null is no limit.
    pub commanded_bytes_per_second: Option<u64>,
    /// What went over the last seconds.
    pub achieved_bytes_per_second: Option<u64>,
    /// Why that rate.
    pub reason: String,
    /// The highest rate allowed; null is none.
    pub max_rate_bytes_per_second: Option<u64>,
    /// It waits at the brink for a release.
    pub held: bool,
    /// What the present pass has left.
    pub pending_bytes: Option<u64>,
    /// What went so far.
    pub bytes_on_wire: u64,
}

impl Status {
    /// Whether nothing can be changed any more, and the word why.
    #[must_use]
    pub fn is_final(&self) -> Option<&'static str> {
        match self.phase.as_str() {
            "switchover" => Some("the guest is stopped for the switchover"),
            "ending" => Some("the migration ends"),
            _ => None,
        }
    }

    /// One line.
    #[must_use]
    pub fn line(&self) -> String {
        let eta = self.finish_seconds[1].map_or_else(|| "unknown".to_owned(), show_seconds);
        let deadline = self
            .deadline_seconds
            .map_or_else(|| self.objective.clone(), show_seconds);
        let qemu = self
            .qemu_pid
            .map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        format!(
            "{}  QEMU {qemu}  {} {:.0} %  arrives {eta}, asked for {deadline}  {}{}",
            self.pid,
            self.phase,
            self.percent,
            self.verdict,
            if self.held { "  held" } else { "" }
        )
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut say = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<12}{value}");
        };
        let pass = self
            .pass
            .map_or_else(String::new, |pass| format!(", pass {pass}"));
        say(
            "phase",
            format!("{}{pass}, {:.0} % done", self.phase, self.percent),
        );
        say("elapsed", show_seconds(self.elapsed_seconds));
        say("objective", self.objective.clone());
        if let (Some(deadline), Some(left)) = (self.deadline_seconds, self.time_left_seconds) {
            let left = match left >= 0.0 {
                true => format!("in {}", show_seconds(left)),
                false => format!("{} ago", show_seconds(-left)),
            };
            say(
                "deadline",
                format!("{} after the start, {left}", show_seconds(deadline)),
            );
        }
        say("arrives", self.arrival());
        let earliest = self
            .earliest_feasible_seconds
            .filter(|_| self.verdict == "infeasible");
        say(
            "verdict",
            match earliest {
                Some(earliest) => format!("{}; earliest {}", self.verdict, show_seconds(earliest)),
                None => self.verdict.clone(),
            },
        );
        if self.held {
            say("held", "until `pacer ctl release`".to_owned());
        }
        let limit = |rate: Option<u64>| rate.map_or_else(|| "no limit".to_owned(), show_rate);
        let achieved = self
            .achieved_bytes_per_second
            .map_or_else(|| "unknown".to_owned(), show_rate);
        say(
            "rate",
            format!(
                "{} commanded ({}), {achieved} achieved, at most {}",
                limit(self.commanded_bytes_per_second),
                self.reason,
                limit(self.max_rate_bytes_per_second)
            ),
        );
        if let Some(pending) = self.pending_bytes {
            say("left", format!("{} in this pass", show_bytes(pending)));
        }
        say("sent", show_bytes(self.bytes_on_wire));
        if let Some(downtime) = self.downtime_seconds {
            say("downtime", format!("{:.0} ms expected", downtime * 1000.0));
        }
        text
    }

    fn arrival(&self) -> String {
        match self.finish_seconds {
            [early, Some(middle), late] => {
                let end =
                    |seconds: Option<f64>| seconds.map_or_else(|| "never".to_owned(), show_seconds);
                format!(
                    "{} after the start ({} to {})",
                    show_seconds(middle),
                    end(early),
                    end(late)
                )
            }
            _ => "not known".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_is_said_to_be() {
        let status = Status {
            phase: "measuring".to_owned(),
            verdict: "unknown".to_owned(),
            ..Status::default()
        };
        let text = status.text();
        assert!(text.contains("arrives     not known"), "{text}");
        assert!(text.contains("no limit commanded"), "{text}");
        assert!(status.line().contains("arrives unknown"));
    }

    #[test]
    fn a_deadline_that_is_past_is_said_to_be() {
        let status = Status {
            deadline_seconds: Some(10.0),
            time_left_seconds: Some(-2.0),
            ..Status::default()
        };
        assert!(status.text().contains("10.0 s after the start, 2.0 s ago"));
    }

    #[test]
    fn a_field_of_a_later_version_is_passed_over() {
        let status: Status = serde_json::from_str(r#"{"phase":"copying","new":1}"#).unwrap();
        assert_eq!(status.phase, "copying");
    }
}
