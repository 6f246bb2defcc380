//! End-to-end tests of Pacer on real QEMU, and what they stand on: guests that
//! know what their memory must hold, QEMU processes and agents that end with
//! the value that owns them.
#![expect(clippy::disallowed_methods, reason = "the edge: real time passes here")]

pub mod agent;
pub mod assets;
pub mod beside;
pub mod block_stats;
pub mod bpftrace;
pub mod delay;
pub mod dirty_check;
pub mod dirty_count;
pub mod disk;
pub mod disk_check;
pub mod events;
pub mod guest;
pub mod image_bench;
pub mod monitor;
pub mod observe;
pub mod pair;
pub mod predict;
pub mod process;
pub mod qemu;
pub mod scenario;
pub mod synthetic;
pub mod vm;
