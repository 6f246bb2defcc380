//! The signals that ask the process to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask the process to end.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    /// `None` where it is ignored, as `nohup` has it.
    hang_up: Option<Signal>,
}

impl Signals {
    /// Takes the signals over from their default of ending the process.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn new() -> std::io::Result<Self> {
        let hang_up = match ignores_hang_up() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            hang_up,
        })
    }

    /// Waits for the next one and returns its name. Cancel safe.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => INTERRUPT,
            _ = self.terminate.recv() => TERMINATE,
            _ = self.quit.recv() => QUIT,
            () = next_or_never(&mut self.hang_up) => HANG_UP,
        }
    }
}

const INTERRUPT: &str = "Ctrl-C";
const TERMINATE: &str = "SIGTERM";
const QUIT: &str = "SIGQUIT";
const HANG_UP: &str = "SIGHUP";

/// The signal that [`Signals::next`] calls `name`.
#[must_use]
pub fn signal_of(name: &str) -> rustix::process::Signal {
    match name {
        INTERRUPT => rustix::process::Signal::INT,
        QUIT => rustix::process::Signal::QUIT,
        HANG_UP => rustix::process::Signal::HUP,
        _ => rustix::process::Signal::TERM,
    }
}

/// The word of [`Signals::next`] for `text`, if it is one.
#[must_use]
pub fn name_of(text: &str) -> Option<&'static str> {
    [INTERRUPT, TERMINATE, QUIT, HANG_UP]
        .into_iter()
        .find(|name| *name == text)
}

async fn next_or_never(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn ignores_hang_up() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|text| has_hang_up(&text, "SigIgn:"))
}

/// Whether SIGHUP, which is bit 0, is in a mask of `/proc/PID/status`.
fn has_hang_up(status: &str, field: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nohup_does_is_seen() {
        let status = |mask: &str| format!("SigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
        assert!(has_hang_up(&status("0000000000001001"), "SigIgn:"));
        assert!(!has_hang_up(&status("0000000000001000"), "SigIgn:"));
    }

    #[test]
    fn names_are_signals() {
        for name in [INTERRUPT, TERMINATE, QUIT, HANG_UP] {
            assert_eq!(name_of(name), Some(name));
        }
        assert_eq!(signal_of(INTERRUPT), rustix::process::Signal::INT);
        assert_eq!(name_of("SIGKILL"), None);
    }
}
