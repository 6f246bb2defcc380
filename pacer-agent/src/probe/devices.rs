//! Which block devices are watched, and what they did.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::util::nr_cpus;
use pacer_common::block::{
    self, BlockRequest, DeviceCounts, DirectionCounts, LATENCY_CLASSES, READ, WRITE,
};

use super::ProbeError;
use super::activity::{DeviceActivity, DeviceId, DeviceRequests, Requests};
use crate::clock;

/// A request this old is one whose completion was missed: drivers give up
/// earlier (SCSI, with its retries, after some minutes).
const LOST_AFTER: Duration = Duration::from_secs(15 * 60);

/// No flags: an element that is there is replaced.
const ANY: u64 = 0;

/// Watches exactly `devices` from now on. Those watched before go on counting
/// from where they are.
pub(super) fn watch(ebpf: &mut Ebpf, devices: &[DeviceId]) -> Result<(), ProbeError> {
    let wanted: Vec<u32> = devices.iter().map(|device| device.to_kernel()).collect();
    let name = block::DEVICES;
    let map = ebpf.map_mut(name).ok_or(ProbeError::Incomplete { name })?;
    let removed = PerCpuHashMap::try_from(map)
        .and_then(|mut map| set_keys(&mut map, &wanted))
        .map_err(|source| ProbeError::Map { name, source })?;
    let name = block::BLOCK_REQUESTS;
    let map = ebpf.map_mut(name).ok_or(ProbeError::Incomplete { name })?;
    HashMap::try_from(map)
        .and_then(|mut map| forget_requests(&mut map, &removed))
        .map_err(|source| ProbeError::Map { name, source })
}

/// Returns the keys that are no longer there.
fn set_keys(
    map: &mut PerCpuHashMap<&mut MapData, u32, DeviceCounts>,
    wanted: &[u32],
) -> Result<Vec<u32>, MapError> {
    let present: Vec<u32> = map.keys().collect::<Result<_, _>>()?;
    let (kept, removed): (Vec<u32>, Vec<u32>) =
        present.into_iter().partition(|key| wanted.contains(key));
    for key in &removed {
        map.remove(key)?;
    }
    for key in wanted.iter().filter(|key| !kept.contains(key)) {
        map.insert(key, nothing_yet()?, ANY)?;
    }
    Ok(removed)
}

fn nothing_yet() -> Result<PerCpuValues<DeviceCounts>, MapError> {
    let cpus = nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
    Ok(PerCpuValues::try_from(vec![DeviceCounts::NONE; cpus])?)
}

/// So that what such a device had in hand does not stay if it never comes back.
fn forget_requests(
    map: &mut HashMap<&mut MapData, u64, BlockRequest>,
    devices: &[u32],
) -> Result<(), MapError> {
    if devices.is_empty() {
        return Ok(());
    }
    let requests: Vec<u64> = map
        .iter()
        .filter_map(Result::ok)
        .filter_map(|(request, issued)| devices.contains(&issued.device).then_some(request))
        .collect();
    for request in requests {
        // Else it was completed meanwhile.
        let _ = map.remove(&request);
    }
    Ok(())
}

/// What the watched devices did.
pub(super) fn read(ebpf: &Ebpf) -> Option<Vec<DeviceActivity>> {
    let map: PerCpuHashMap<_, u32, DeviceCounts> =
        PerCpuHashMap::try_from(ebpf.map(block::DEVICES)?).ok()?;
    let counts: BTreeMap<u32, PerCpuValues<DeviceCounts>> =
        map.iter().filter_map(Result::ok).collect();
    if counts.is_empty() {
        return Some(Vec::new());
    }
    let map: HashMap<_, u64, BlockRequest> =
        HashMap::try_from(ebpf.map(block::BLOCK_REQUESTS)?).ok()?;
    let requests = map.iter().filter_map(|entry| Some(entry.ok()?.1));
    let in_flight = in_flight(requests, clock::now().as_nanos());
    let devices = counts.iter().map(|(&device, cpus)| DeviceActivity {
        id: DeviceId::from_kernel(device),
        read: requests_of(cpus, READ),
        write: requests_of(cpus, WRITE),
        in_flight: in_flight.get(&device).copied().unwrap_or(0),
    });
    Some(devices.collect())
}

/// By device. Counted from the requests that are there, and not as a difference
/// of sums, which one missed event would make wrong for ever.
fn in_flight(requests: impl Iterator<Item = BlockRequest>, now_ns: u64) -> BTreeMap<u32, u64> {
    let mut in_flight = BTreeMap::new();
    for request in requests {
        let age = Duration::from_nanos(now_ns.saturating_sub(request.issued_ns));
        if age < LOST_AFTER {
            *in_flight.entry(request.device).or_insert(0) += 1;
        }
    }
    in_flight
}

fn requests_of(cpus: &[DeviceCounts], direction: u32) -> DeviceRequests {
    let mut all = DeviceRequests {
        by_latency: vec![0; LATENCY_CLASSES as usize],
        ..DeviceRequests::default()
    };
    let of_direction = |counts: &'_ DeviceCounts| {
        let index = usize::try_from(direction).ok()?;
        counts.directions.get(index).copied()
    };
    for counts in cpus.iter().filter_map(of_direction) {
        add(&mut all, &counts);
    }
    all
}

fn add(all: &mut DeviceRequests, counts: &DirectionCounts) {
    let Requests { count, bytes } = &mut all.requests;
    *count += counts.requests;
    *bytes += counts.bytes;
    all.latency += Duration::from_nanos(counts.latency_ns);
    for (total, part) in all.by_latency.iter_mut().zip(counts.by_latency) {
        *total += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_add_up_by_direction() {
        let mut cpus = [DeviceCounts::NONE; 2];
        for (counts, requests) in cpus.iter_mut().zip([1, 2]) {
            counts.directions[1].requests = requests;
            counts.directions[1].bytes = requests * 4096;
            counts.directions[1].latency_ns = requests * 10_000;
            counts.directions[1].by_latency[13] = requests;
        }
        let write = requests_of(&cpus, WRITE);
        let expected = Requests {
            count: 3,
            bytes: 3 * 4096,
        };
        assert_eq!(write.requests, expected);
        assert_eq!(write.latency, Duration::from_micros(30));
        assert_eq!(write.by_latency[13], 3);
        assert_eq!(write.by_latency.len(), LATENCY_CLASSES as usize);
        assert_eq!(requests_of(&cpus, READ).requests, Requests::default());
    }

    #[test]
    fn what_was_missed_does_not_stay_in_flight() {
        let minute = 60_000_000_000;
        let request = |device, issued_ns| BlockRequest {
            issued_ns,
            device,
            direction: READ,
        };
        let requests = [
            request(1, 0),
            request(1, 14 * minute),
            request(2, 20 * minute),
            // Issued after the clock was read.
            request(1, 21 * minute),
        ];
        let counted = in_flight(requests.into_iter(), 20 * minute);
        assert_eq!(counted, BTreeMap::from([(1, 2), (2, 1)]));
    }
}
