//! What the programs count of sockets and block devices, tried on this test's
//! own process and this machine's disk. `cargo xtask test` runs these as root.

mod block;
mod sockets;
mod stores;

use std::sync::{Mutex, MutexGuard, PoisonError};

use pacer_agent::probe::Probe;

/// One test at a time: each sees the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attach() -> Probe {
    Probe::attach(std::process::id()).expect("the probe attaches")
}
