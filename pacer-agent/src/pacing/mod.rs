//! The pure part: what decides. No I/O, no clock, no async; `now` is always a
//! parameter, so that simulations drive the same code as reality.
#![deny(clippy::disallowed_methods)]

pub mod action;
pub mod baseline;
pub mod controller;
pub mod dirty_curve;
pub mod disk_guard;
pub mod disk_history;
pub mod forecast;
mod hold;
pub mod ledger;
pub mod link_cap;
pub mod measuring;
mod non_negative;
mod number;
pub mod objective;
pub mod passes;
pub mod prediction;
pub mod replay;
pub mod sample;
pub mod session;
pub mod simulation;
mod surprise;
pub mod throttle;
pub mod time;
pub mod token_bucket;
mod write_class;
