//! Pacer moves a running guest between hosts so that it arrives when the
//! operator asked.
//!
//! [`pacing`] and [`stream`] are the pure middle: no I/O, no clock, no async.
//! Everything else is the edge that feeds them and acts on what they decide.

pub mod address;
pub mod cli;
pub mod clock;
pub mod config;
pub mod content;
pub mod ctl;
pub mod dest;
pub mod driver;
pub mod exit;
pub mod fault;
pub mod handover;
pub mod http;
pub mod identity;
pub mod journal;
pub mod link;
pub mod measure;
pub mod metrics;
pub mod observe;
pub mod pacing;
pub mod predict;
pub mod preflight;
pub mod probe;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod relay;
pub mod report;
pub mod settings;
pub mod shutdown;
pub mod simulate;
pub mod source;
pub mod stream;
pub mod supervisor;
pub mod trace;
pub mod units;
