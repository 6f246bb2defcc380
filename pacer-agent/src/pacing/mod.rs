//! The pure part: what decides. No I/O, no clock, no async; `now` is always a
//! parameter, so that simulations drive the same code as reality.
#![deny(clippy::disallowed_methods)]

pub mod sample;
pub mod time;
