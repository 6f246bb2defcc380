//! What is asked for, what is answered, and why.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the operator asked for. Times count from t0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Objective {
    /// The guest runs at the destination at this time.
    At(Duration),
    /// The same, or at any time before.
    By(Duration),
    /// This many bytes a second.
    Fixed(u64),
    /// As fast as allowed.
    Fastest,
}

impl Objective {
    /// The deadline, from t0, if there is one.
    #[must_use]
    pub const fn deadline(self) -> Option<Duration> {
        match self {
            Self::At(deadline) | Self::By(deadline) => Some(deadline),
            Self::Fixed(_) | Self::Fastest => None,
        }
    }
}

/// What must not be exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes a second; `None` is as much as the link takes.
    pub max_rate: Option<u64>,
    /// QEMU's `downtime-limit`.
    pub downtime_limit: Duration,
    /// How long the guest's disk may take for a request on average; `None` is as long as
    /// it does.
    pub disk_latency_limit: Option<Duration>,
    /// Whether the guest's processors may be slowed so that a deadline can be met.
    pub converge: bool,
}

impl Default for Limits {
    /// As much as the link takes, and the `downtime-limit` that QEMU itself has.
    fn default() -> Self {
        Self {
            max_rate: None,
            downtime_limit: Duration::from_millis(300),
            disk_latency_limit: None,
            converge: false,
        }
    }
}

/// Whether it can be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough seen yet.
    #[default]
    Unknown,
    /// It can.
    Feasible,
    /// It cannot; see the earliest feasible finish.
    Infeasible,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Feasible => "feasible",
            Self::Infeasible => "infeasible",
        })
    }
}

/// Why a rate was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The operator fixed it.
    Fixed,
    /// No deadline: as fast as allowed.
    Fastest,
    /// Neither the guest's memory nor its size is known yet.
    Sizing,
    /// How the guest dirties memory is unknown: time is kept in reserve.
    Reserve,
    /// The lowest rate that meets the deadline with a sprint at the end.
    Steady,
    /// The last seconds: the lowest rate that meets the deadline.
    Sprint,
    /// Held back: the sprint would arrive early.
    Waiting,
    /// The deadline cannot be met: as fast as possible.
    BestEffort,
    /// Kept from completing until it is released.
    Held,
    /// The guest's disk is slower than it may be.
    DiskLatency,
    /// The deadline is met only if the guest's processors are slowed.
    Converge,
    /// The guest is stopped: every byte is downtime.
    Switchover,
}

impl Reason {
    /// All there are.
    pub const ALL: [Self; 12] = [
        Self::Fixed,
        Self::Fastest,
        Self::Sizing,
        Self::Reserve,
        Self::Steady,
        Self::Sprint,
        Self::Waiting,
        Self::BestEffort,
        Self::Held,
        Self::DiskLatency,
        Self::Converge,
        Self::Switchover,
    ];

    /// One word for it, as metrics have it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Fastest => "fastest",
            Self::Sizing => "sizing",
            Self::Reserve => "reserve",
            Self::Steady => "steady",
            Self::Sprint => "sprint",
            Self::Waiting => "waiting",
            Self::BestEffort => "best-effort",
            Self::Held => "held",
            Self::DiskLatency => "disk-latency",
            Self::Converge => "converge",
            Self::Switchover => "switchover",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed by the operator",
            Self::Fastest => "no deadline, as fast as allowed",
            Self::Sizing => "size of the memory not known yet",
            Self::Reserve => "dirtying of the memory not known yet, keeping time in reserve",
            Self::Steady => "lowest rate that meets the deadline",
            Self::Sprint => "sprint to the deadline",
            Self::Waiting => "held back so as not to be early",
            Self::BestEffort => "deadline out of reach, as fast as possible",
            Self::Held => "held at the brink until released",
            Self::DiskLatency => "held back for the sake of the guest's disk",
            Self::Converge => "the guest is slowed so that the deadline can be met",
            Self::Switchover => "guest stopped, bucket open",
        })
    }
}
