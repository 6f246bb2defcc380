//! Reads everything that a line is made from.

use std::io;

use super::connections::Connections;
use super::rights;
use super::state::{Reading, State};
use super::underlying::Underlying;
use crate::clock;
use crate::probe::Probe;

/// There is no such process.
const ESRCH: i32 = 3;

/// A longer warning is shortened.
const MOST_CHARS: usize = 800;

/// Reads what belongs to one process.
#[derive(Debug)]
pub(super) struct Reader {
    connections: Connections,
    underlying: Underlying,
    /// What is wrong with QEMU's measurements.
    pub(super) qemu_warning: Option<String>,
}

impl Reader {
    pub(super) fn new(pid: u32) -> Self {
        Self {
            connections: Connections::new(pid),
            underlying: Underlying::default(),
            qemu_warning: None,
        }
    }

    /// What is to be told now.
    pub(super) fn read(&mut self, probe: &mut Probe, state: &State) -> Reading {
        let images = probe.look_at_files();
        if let Ok(images) = &images {
            self.underlying.watch(probe, images);
        }
        let at = clock::now();
        let activity = probe.activity();
        let counters = probe.counters();
        // Only now: what was just read may have added to them.
        let mut warnings: Vec<String> = probe.warnings().iter().map(|text| brief(text)).collect();
        warnings.extend(images.as_ref().err().and_then(explain));
        warnings.extend(self.underlying.warnings());
        if counters.run_ns.is_none() {
            warnings.push(
                "what the probe costs: the kernel does not count it (as root, or once \
                 `sysctl kernel.bpf_stats_enabled=1` was said, it does)"
                    .to_owned(),
            );
        }
        warnings.extend(self.qemu_warning.clone());
        let is_new = |socket| !state.knows_connection(socket);
        let is_new = activity.sockets.iter().any(is_new);
        Reading {
            at,
            wall: clock::wall(),
            connections: self.connections.poll(is_new),
            block_devices: self.underlying.block_devices(),
            device_names: self.underlying.names().clone(),
            cost: probe.cost(),
            activity,
            counters,
            images: images.ok(),
            warnings,
        }
    }
}

/// A warning without the middle of what the kernel's verifier has to say, which
/// may be 100 KB: its last lines have the reason.
fn brief(warning: &str) -> String {
    let chars = warning.chars().count();
    if chars <= MOST_CHARS {
        return warning.to_owned();
    }
    let start = warning.chars().take(MOST_CHARS / 2);
    let end = warning.chars().skip(chars - MOST_CHARS / 2);
    start.chain(" … ".chars()).chain(end).collect()
}

/// Why the images are not known; nothing of a process that has just ended.
fn explain(error: &io::Error) -> Option<String> {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let missing = rights::missing();
            let missing = if missing.is_empty() {
                "CAP_SYS_PTRACE".to_owned()
            } else {
                missing.join(", ")
            };
            Some(format!(
                "which files the images are: no right to look at another user's process; \
                 missing: {missing} ({})",
                rights::REMEDY
            ))
        }
        // What files of a process that is ending say.
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => None,
        _ if error.raw_os_error() == Some(ESRCH) => None,
        _ => Some(format!("which files the images are: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_warning_keeps_its_ends() {
        assert_eq!(brief("short"), "short");
        let text = format!("first {} last", "é".repeat(100_000));
        let text = brief(&text);
        assert!(text.starts_with("first ") && text.ends_with(" last"));
        assert_eq!(text.chars().count(), MOST_CHARS + 3);
    }
}
