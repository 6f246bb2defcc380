//! Points at which tests stop an agent, to kill it there.
//!
//! The promise of the handover is about agents that die at any moment, so its
//! tests need to choose the moment in the very program that is shipped. With
//! `PACER_STOP_AT=NAME` in its environment an agent stops itself (SIGSTOP) when
//! it first reaches the point of that name; whoever set it kills or continues
//! it.

use std::sync::OnceLock;

/// The environment variable.
pub const VARIABLE: &str = "PACER_STOP_AT";

/// The points of the source, in order.
pub const SOURCE: [&str; 8] = [
    "source-ready",
    "source-start",
    "source-stop",
    "source-completed",
    "source-status",
    "source-committing",
    "source-commit-sent",
    "source-done",
];

/// The points of the destination, in order.
pub const DESTINATION: [&str; 8] = [
    "destination-ready",
    "destination-channel",
    "destination-shut",
    "destination-status",
    "destination-commit",
    "destination-committed",
    "destination-continued",
    "destination-running",
];

/// Stops the process here if that was asked for.
pub fn point(name: &'static str) {
    static STOP_AT: OnceLock<Option<String>> = OnceLock::new();
    let stop_at = STOP_AT.get_or_init(|| std::env::var(VARIABLE).ok());
    if stop_at.as_deref() == Some(name) {
        tracing::warn!("stopped at {name}");
        let own = rustix::process::getpid();
        // It cannot fail for oneself.
        let _ = rustix::process::kill_process(own, rustix::process::Signal::STOP);
    }
}
