//! End-to-end tests of Pacer on real QEMU, and what they stand on: guests that
//! know what their memory must hold, QEMU processes and agents that end with
//! the value that owns them.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

pub mod agent;
pub mod assets;
pub mod block_stats;
pub mod disk;
pub mod guest;
pub mod monitor;
pub mod pair;
pub mod process;
pub mod qemu;
pub mod vm;
