//! Reads what was handed to sockets into [`SocketActivity`].

use aya::Ebpf;
use aya::maps::PerCpuHashMap;
use pacer_common::socket::{self, SocketKey};

use super::activity::{SocketActivity, SocketFamily};

/// Every connection that was sent on, but those forgotten to make room.
pub(super) fn read(ebpf: &Ebpf) -> Option<Vec<SocketActivity>> {
    let map: PerCpuHashMap<_, SocketKey, u64> =
        PerCpuHashMap::try_from(ebpf.map(socket::SOCKETS)?).ok()?;
    let sockets = map.iter().filter_map(Result::ok);
    Some(sockets.map(|(key, cpus)| activity(&key, &cpus)).collect())
}

fn activity(key: &SocketKey, cpus: &[u64]) -> SocketActivity {
    SocketActivity {
        family: SocketFamily::from_kernel(key.family),
        local_port: key.local_port,
        peer_port: key.peer_port,
        sent_bytes: cpus.iter().sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_add_up() {
        let key = SocketKey {
            family: socket::IP6,
            local_port: 1,
            peer_port: 2,
            padding: 0,
        };
        let expected = SocketActivity {
            family: SocketFamily::Ip6,
            local_port: 1,
            peer_port: 2,
            sent_bytes: 12,
        };
        assert_eq!(activity(&key, &[5, 0, 7]), expected);
    }
}
