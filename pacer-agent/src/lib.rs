//! Pacer moves a running guest between hosts so that it arrives when the
//! operator asked.
//!
//! [`pacing`] and [`stream`] are the pure middle: no I/O, no clock, no async.
//! Everything else is the edge that feeds them and acts on what they decide.

pub mod pacing;
