//! What `pacer source` was told, as resolved: flags checked against the clock.

use std::time::Duration;

use crate::cli::{OnInfeasible, SourceArgs};
use crate::exit::Failure;
use crate::pacing::controller::{Limits, Objective};
use crate::units::Rate;

/// What a switchover takes besides copying: a round trip or two, the devices'
/// state and `cont`. An estimate until the first is measured.
pub const SWITCHOVER_OVERHEAD: Duration = Duration::from_millis(35);

/// When the guest is to arrive, as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// This long after t0.
    After(Duration),
    /// At this time.
    At(jiff::Timestamp),
    /// Any time before this.
    By(jiff::Timestamp),
    /// At this rate.
    Rate(Rate),
    /// As fast as allowed.
    Fastest,
}

impl Wish {
    /// Reads the flags.
    ///
    /// # Errors
    ///
    /// A time that is past, an arrival before the earliest, or a fixed rate above the
    /// highest allowed.
    pub fn resolve(args: &SourceArgs, now: jiff::Timestamp) -> Result<Self, Failure> {
        let objective = &args.objective;
        let wish = if let Some(deadline) = objective.deadline {
            Self::After(deadline)
        } else if let Some(time) = objective.finish_at {
            Self::At(time)
        } else if let Some(time) = objective.by {
            Self::By(time)
        } else if let Some(rate) = objective.rate {
            Self::Rate(rate)
        } else {
            Self::Fastest
        };
        if let Some(begin) = args.not_before {
            let latest = match wish {
                Self::At(time) | Self::By(time) => Some(time),
                Self::After(deadline) => now.checked_add(deadline).ok(),
                Self::Rate(_) | Self::Fastest => None,
            };
            if let Some(latest) = latest.filter(|&latest| latest <= begin) {
                return Err(Failure::refused(format!(
                    "--not-before {begin} is not before the guest is to arrive, {latest:.0}; give \
                     an earlier one, or a later arrival"
                )));
            }
        }
        match (wish, args.max_rate) {
            (Self::At(time) | Self::By(time), _) if time <= now => Err(Failure::refused(format!(
                "{time} is past (it is {now:.0}); give a time that is to come, or a --deadline \
                 from now"
            ))),
            (Self::Rate(rate), Some(most)) if rate > most => Err(Failure::refused(format!(
                "--rate {rate} is above --max-rate {most}"
            ))),
            _ => Ok(wish),
        }
    }

    /// What that is for a session that began, by the wall, at `t0`. A time that
    /// is past by then is a deadline of nothing.
    #[must_use]
    pub fn objective(self, t0: jiff::Timestamp) -> Objective {
        let after = |time: jiff::Timestamp| {
            Duration::try_from(time.duration_since(t0)).unwrap_or(Duration::ZERO)
        };
        match self {
            Self::After(deadline) => Objective::At(deadline),
            Self::At(time) => Objective::At(after(time)),
            Self::By(time) => Objective::By(after(time)),
            Self::Rate(rate) => Objective::Fixed(rate.bytes_per_second()),
            Self::Fastest => Objective::Fastest,
        }
    }

    /// Whether arriving early is as good as on time.
    #[must_use]
    pub const fn early_is_fine(self) -> bool {
        matches!(self, Self::By(_))
    }

    /// Whether it depends on the wall clock.
    #[must_use]
    pub const fn is_wall_clock(self) -> bool {
        matches!(self, Self::At(_) | Self::By(_))
    }
}

/// How long after `t0`, by the wall, the guest may arrive at the earliest.
#[must_use]
pub fn not_before(args: &SourceArgs, t0: jiff::Timestamp) -> Option<Duration> {
    let span = Duration::try_from(args.not_before?.duration_since(t0));
    // A time that is past holds nothing back.
    span.ok()
}

/// What must not be exceeded.
#[must_use]
pub fn limits(args: &SourceArgs) -> Limits {
    Limits {
        max_rate: args.max_rate.map(Rate::bytes_per_second),
        downtime_limit: args.downtime_limit,
        disk_latency_limit: args.disk_latency_limit,
        converge: args.on_infeasible == OnInfeasible::Converge,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(flags: &[&str]) -> SourceArgs {
        let peer = format!("sha256:{}", "0".repeat(64));
        let mut line = vec!["pacer", "source", "--listen", "localhost:4444"];
        line.extend([
            "--connect",
            "host:4433",
            "--identity",
            "/id",
            "--peer",
            &peer,
        ]);
        line.extend(flags);
        let Command::Source(args) = Cli::try_parse_from(line).unwrap().command else {
            unreachable!("`source` was asked for")
        };
        *args
    }

    fn resolve(flags: &[&str]) -> Result<Wish, Failure> {
        Wish::resolve(&args(flags), "2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[test]
    fn it_may_not_be_kept_until_after_its_arrival() {
        let begin = "2026-01-01T00:10:00Z";
        for (flag, value, is_fine) in [
            ("--finish-at", "2026-01-01T00:10:00Z", false),
            ("--by", "2026-01-01T00:09:00Z", false),
            ("--deadline", "10m", false),
            ("--by", "2026-01-01T00:11:00Z", true),
            ("--deadline", "11m", true),
            ("--rate", "1MB/s", true),
        ] {
            let wish = resolve(&["--not-before", begin, flag, value]);
            assert_eq!(wish.is_ok(), is_fine, "{flag} {value}");
            if let Err(failure) = wish {
                assert_eq!(failure.exit().code(), 2);
            }
        }
        let args = args(&["--not-before", begin]);
        let after = |t0: &str| not_before(&args, t0.parse().unwrap());
        assert_eq!(after("2026-01-01T00:09:30Z"), Some(Duration::from_secs(30)));
        assert_eq!(after("2026-01-01T00:11:00Z"), None);
    }

    #[test]
    fn a_deadline_in_the_past_is_refused() {
        for flag in ["--finish-at", "--by"] {
            let failure = resolve(&[flag, "2025-12-31T23:59:59Z"]).unwrap_err();
            assert!(failure.to_string().contains("is past"), "{failure}");
            assert_eq!(failure.exit().code(), 2);
        }
    }

    #[test]
    fn a_time_becomes_a_span_from_t0() {
        let wish = resolve(&["--finish-at", "2026-01-01T00:01:00Z"]).unwrap();
        let t0 = "2026-01-01T00:00:10Z".parse().unwrap();
        assert_eq!(wish.objective(t0), Objective::At(Duration::from_secs(50)));
        let late = "2026-01-01T00:02:00Z".parse().unwrap();
        assert_eq!(wish.objective(late), Objective::At(Duration::ZERO));
    }

    #[test]
    fn a_rate_above_the_highest_is_refused() {
        assert!(resolve(&["--rate", "2MB/s", "--max-rate", "1MB/s"]).is_err());
        assert!(resolve(&["--rate", "1MB/s", "--max-rate", "1MB/s"]).is_ok());
    }
}
