//! What the programs counted, and what they cost.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::PerCpuArray;
use aya::sys::Stats;
use pacer_common::counter;

/// Sums since the attach, over all CPUs and programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCounters {
    /// Events put into the ring.
    pub events: u64,
    /// Events lost because the ring was full.
    pub lost_events: u64,
    /// Dirty logs not read because their slot was registered before the attach.
    pub unknown_slots: u64,
    /// Memory slots registered before the attach of which a lower bound of their
    /// size is known by now.
    pub inferred_slots: u64,
    /// Dirty logs of slots larger than the programs count that were not counted:
    /// QEMU changed them before this side had read them.
    pub overtaken_logs: u64,
    /// Arguments or bitmaps that could not be read or were too large; each is a
    /// call that was not reported.
    pub unreadable: u64,
    /// Calls or slots that found no room in a map.
    pub map_full: u64,
    /// Writes of which only the first chunks are in a file's write intervals.
    pub cut_writes: u64,
    /// Time spent in the programs, in nanoseconds, the filter's turning away of
    /// other processes included. `None` where the kernel does not count it
    /// (`kernel.bpf_stats_enabled`).
    pub run_ns: Option<u64>,
    /// How often the programs ran, likewise.
    pub run_count: Option<u64>,
}

impl ProbeCounters {
    /// Everything that is known not to be counted, in whole or in part. The runs
    /// that the kernel left out are not among it: see
    /// [`ProgramCost::missed`](super::ProgramCost::missed).
    #[must_use]
    pub const fn not_counted(&self) -> u64 {
        self.lost_events
            + self.unknown_slots
            + self.overtaken_logs
            + self.unreadable
            + self.map_full
            + self.cut_writes
    }
}

/// Asks the kernel to account run times for as long as the result lives. It
/// needs CAP_SYS_ADMIN; without it the probe works as well.
pub(super) fn enable_stats() -> Option<OwnedFd> {
    aya::sys::enable_stats(Stats::RunTime).ok()
}

/// The counters now. `stats`: this process has switched the accounting on.
pub(super) fn read(ebpf: &Ebpf, stats: bool) -> ProbeCounters {
    let (run_ns, run_count) = run_statistics(ebpf, stats).unzip();
    ProbeCounters {
        events: sum(ebpf, counter::EVENTS),
        lost_events: sum(ebpf, counter::LOST_EVENTS),
        unknown_slots: sum(ebpf, counter::UNKNOWN_SLOTS),
        inferred_slots: sum(ebpf, counter::INFERRED_SLOTS),
        overtaken_logs: 0,
        unreadable: sum(ebpf, counter::UNREADABLE),
        map_full: sum(ebpf, counter::MAP_FULL),
        cut_writes: sum(ebpf, counter::CUT_WRITES),
        run_ns,
        run_count,
    }
}

/// One counter, summed over the CPUs; 0 where it cannot be read.
pub(super) fn sum(ebpf: &Ebpf, index: u32) -> u64 {
    let Some(map) = ebpf.map(counter::COUNTERS) else {
        return 0;
    };
    let Ok(counters) = PerCpuArray::<_, u64>::try_from(map) else {
        return 0;
    };
    counters
        .get(&index, 0)
        .map_or(0, |values| values.iter().sum())
}

fn run_statistics(ebpf: &Ebpf, stats: bool) -> Option<(u64, u64)> {
    if !stats && !enabled_for_all() {
        return None;
    }
    let mut run_time = Duration::ZERO;
    let mut run_count = 0;
    for (_, program) in ebpf.programs() {
        // A program that was not loaded (an absent hook) has none.
        if let Ok(info) = program.info() {
            run_time += info.run_time();
            run_count += info.run_count();
        }
    }
    let run_ns = u64::try_from(run_time.as_nanos()).unwrap_or(u64::MAX);
    Some((run_ns, run_count))
}

/// Whether the accounting is on for the whole system.
pub(super) fn enabled_for_all() -> bool {
    fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gap_counts_once() {
        let counters = ProbeCounters {
            events: 1 << 10,
            lost_events: 1,
            unknown_slots: 1 << 1,
            inferred_slots: 1 << 11,
            overtaken_logs: 1 << 2,
            unreadable: 1 << 3,
            map_full: 1 << 4,
            cut_writes: 1 << 5,
            run_ns: Some(1 << 12),
            run_count: Some(1 << 13),
        };
        assert_eq!(counters.not_counted(), (1 << 6) - 1);
    }
}
