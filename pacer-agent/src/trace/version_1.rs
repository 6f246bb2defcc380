//! The header of traces that Pacer 0.1.0 wrote. Entries have only been added to since.

use std::time::Duration;

use serde::Deserialize;
#[cfg(test)]
use serde::Serialize;

use crate::pacing::objective::{Limits, Objective};

/// How such a trace begins.
pub(super) const VERSION: u8 = 1;

#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(Serialize))]
pub(super) struct Header {
    pub(super) pacer_version: String,
    pub(super) started_at: String,
    pub(super) qemu_version: Option<String>,
    pub(super) accelerator: Option<String>,
    pub(super) objective: Objective,
    pub(super) max_rate: Option<u64>,
    pub(super) downtime_limit: Duration,
    pub(super) switchover_overhead: Duration,
}

impl From<Header> for super::Header {
    fn from(header: Header) -> Self {
        Self {
            pacer_version: header.pacer_version,
            started_at: header.started_at,
            qemu_version: header.qemu_version,
            accelerator: header.accelerator,
            objective: header.objective,
            limits: Limits {
                max_rate: header.max_rate,
                downtime_limit: header.downtime_limit,
                ..Limits::default()
            },
            switchover_overhead: header.switchover_overhead,
            not_before: None,
        }
    }
}
