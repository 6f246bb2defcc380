//! Which of the rights that the probe needs this process has not.

use std::fs;

/// Capabilities by their number, best known name first.
const NEEDED: [(u32, &str); 3] = [(39, "CAP_BPF"), (38, "CAP_PERFMON"), (19, "CAP_SYS_PTRACE")];

/// What gives the rights, for messages.
pub(super) const REMEDY: &str = "run Pacer as root, or \
    `setcap cap_bpf,cap_perfmon,cap_sys_ptrace=ep` the binary";

/// The rights out of CAP_BPF, CAP_PERFMON and CAP_SYS_PTRACE that this process
/// lacks.
pub(super) fn missing() -> Vec<&'static str> {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| effective(&status))
        .map(missing_in)
        .unwrap_or_default()
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing_in(effective: u64) -> Vec<&'static str> {
    // CAP_SYS_ADMIN (21) still stands for the two that were split off it.
    let admin = effective & (1 << 21) != 0;
    NEEDED
        .into_iter()
        .filter(|(number, _)| effective & (1 << number) == 0 && !(admin && *number > 21))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lacking_rights_are_named() {
        let status = "Name:\tpacer\nCapEff:\t0000004000000000\n";
        let missing = missing_in(effective(status).unwrap());
        assert_eq!(missing, ["CAP_BPF", "CAP_SYS_PTRACE"]);
        assert_eq!(missing_in(1 << 21), ["CAP_SYS_PTRACE"]);
        assert!(missing_in(u64::MAX).is_empty());
    }
}
