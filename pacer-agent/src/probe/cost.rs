//! What the probe costs: each program's run time, and the memory held.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Ebpf;
use aya::programs::Program;

use super::counters;

/// What the probe has cost since the attach, and holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbeCost {
    /// The programs that are loaded, by name.
    pub programs: Vec<ProgramCost>,
    /// This process' resident memory and that of the BPF maps it holds.
    pub memory_bytes: u64,
}

/// What one program has cost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgramCost {
    /// The program.
    pub name: String,
    /// Time spent in it, in nanoseconds, the filter's turning away of other
    /// processes included. `None` where the kernel does not count it.
    pub run_ns: Option<u64>,
    /// How often it ran, likewise.
    pub run_count: Option<u64>,
    /// How often the kernel left it out because another program was running on
    /// that CPU: events that were not seen.
    pub missed: u64,
}

/// What a descriptor of a BPF map leads to.
const MAP_LINK: &str = "anon_inode:bpf-map";

/// The cost now. `stats`: this process has switched the accounting on.
pub(super) fn read(ebpf: &Ebpf, stats: bool) -> ProbeCost {
    let stats = stats || counters::enabled_for_all();
    let mut programs: Vec<_> = ebpf
        .programs()
        .filter_map(|(name, program)| program_cost(name, program, stats))
        .collect();
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    ProbeCost {
        programs,
        memory_bytes: resident_bytes()
            .saturating_sub(mapped_map_bytes())
            .saturating_add(map_bytes()),
    }
}

/// `None` for a program that was not loaded (an absent hook).
fn program_cost(name: &str, program: &Program, stats: bool) -> Option<ProgramCost> {
    let fd = program.fd().ok()?.as_fd().as_raw_fd();
    let info = program.info().ok()?;
    let run_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
    Some(ProgramCost {
        name: name.to_owned(),
        run_ns: stats.then_some(run_ns),
        run_count: stats.then(|| info.run_count()),
        // aya does not tell; the kernel says it there too.
        missed: own_fdinfo(fd)
            .and_then(|text| field(&text, "recursion_misses"))
            .unwrap_or(0),
    })
}

/// Memory of this process that the machine holds, in bytes.
fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    let page_bytes = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    pages.unwrap_or(0).saturating_mul(page_bytes)
}

/// What of the resident memory is BPF maps, in bytes.
fn mapped_map_bytes() -> u64 {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    mapped_maps_in(&smaps)
}

fn mapped_maps_in(smaps: &str) -> u64 {
    let mut is_map = false;
    let mut kib = 0;
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let rss = rss.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            kib += if is_map { rss } else { 0 };
        } else if line
            .split_once(' ')
            .is_some_and(|(range, _)| !range.ends_with(':'))
        {
            is_map = line.ends_with(MAP_LINK);
        }
    }
    kib * 1024
}

/// Memory of the BPF maps that this process holds, in bytes; each counts once,
/// however many descriptors it has.
fn map_bytes() -> u64 {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let maps: BTreeMap<u64, u64> = descriptors
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = fs::read_link(entry.path()).ok()?;
            if target.as_os_str() != MAP_LINK {
                return None;
            }
            let fd = entry.file_name().to_str()?.parse().ok()?;
            let text = own_fdinfo(fd)?;
            Some((field(&text, "map_id")?, field(&text, "memlock")?))
        })
        .collect();
    maps.values().sum()
}

fn own_fdinfo(fd: i32) -> Option<String> {
    fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()
}

/// The number after `name:` in a file of `/proc`'s kind.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found == name).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "pos:\t0\nrun_cnt:\t7\nrecursion_misses:\t3\nmemlock:\t4096\n";
        assert_eq!(field(text, "recursion_misses"), Some(3));
        assert_eq!(field(text, "memlock"), Some(4096));
        assert_eq!(field(text, "lock"), None);
    }

    #[test]
    fn mapped_maps_are_told_from_other_memory() {
        let smaps = "7f00-7f10 r--s 00001000 00:10 1039                 anon_inode:bpf-map\n\
                     Size:                260 kB\nRss:                 256 kB\n\
                     7f10-7f20 rw-p 00000000 00:00 0                    [heap]\n\
                     Rss:                1000 kB\nVmFlags: rd mr mw me\n\
                     7f20-7f30 rw-s 00000000 00:10 1039                 anon_inode:bpf-map\n\
                     Rss:                   4 kB\n";
        assert_eq!(mapped_maps_in(smaps), 260 * 1024);
    }

    #[test]
    fn a_process_has_memory() {
        assert!(resident_bytes() > 64 * 1024);
    }
}
