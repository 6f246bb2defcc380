//! What Pacer's eBPF programs and its user space share: the records that cross
//! between them, the names of the maps they cross in, and the small sums both
//! sides must agree on. Every record is plain old data: each byte pattern is a
//! valid value and every byte is written.
#![no_std]

pub mod block;
pub mod chunk;
pub mod counter;
pub mod device;
pub mod dirty_log;
pub mod event;
pub mod file;
pub mod kernel;
pub mod ring;
pub mod settings;
pub mod slot;
pub mod socket;
pub mod store;
pub mod tracepoint;
