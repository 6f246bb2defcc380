//! From what was counted to a line: what is new, and how fast it grows. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::disks::{Known, Tick, backends, devices};
use super::line::{DeviceReads, Line, Probe, Program, Qemu, Socket};
use super::ram::RamState;
use crate::pacing::time::Time;
use crate::probe::activity::{Activity, DeviceId, SocketActivity, SocketFamily};
use crate::probe::open_files::Image;
use crate::probe::{ProbeCost, ProbeCounters};
use crate::units::to_f64;

/// The format's version.
const SCHEMA: u32 = 1;

/// A connection's local and peer port.
pub type Ports = (u16, u16);
/// A connection's local and peer address.
pub type Ends = (String, String);

/// Everything that was read for one line.
#[derive(Debug, Default)]
pub struct Reading {
    /// When.
    pub at: Time,
    /// When, by the wall.
    pub wall: jiff::Timestamp,
    /// What was counted.
    pub activity: Activity,
    /// What the probe did.
    pub counters: ProbeCounters,
    /// What that cost.
    pub cost: ProbeCost,
    /// The images that are open. `None`: they could not be looked at.
    pub images: Option<Vec<Image>>,
    /// The block device that holds what is on a device, where one does.
    pub block_devices: BTreeMap<DeviceId, DeviceId>,
    /// The block devices' names.
    pub device_names: BTreeMap<DeviceId, String>,
    /// The ends of connections, by local and peer port.
    pub connections: BTreeMap<Ports, Ends>,
    /// What is not seen, and why.
    pub warnings: Vec<String>,
}

/// What is remembered from line to line.
#[derive(Debug)]
pub struct State {
    pid: u32,
    started: Time,
    /// What QEMU said of itself.
    pub qemu: Qemu,
    /// The guest's memory.
    pub ram: RamState,
    known: Known,
    connections: BTreeMap<Ports, Ends>,
    /// When the last line was made. `None` before the first.
    last_at: Option<Time>,
    last: Activity,
    last_run_ns: Option<u64>,
}

impl State {
    /// Of the process `pid`, observed since `started`.
    #[must_use]
    pub fn new(pid: u32, started: Time) -> Self {
        Self {
            pid,
            started,
            qemu: Qemu::default(),
            ram: RamState::default(),
            known: Known::default(),
            connections: BTreeMap::new(),
            last_at: None,
            last: Activity::default(),
            last_run_ns: None,
        }
    }

    /// The line for what was read. `ended`: the process is gone.
    pub fn line(&mut self, reading: Reading, ended: bool) -> Line {
        let last_at = self.last_at.replace(reading.at);
        let tick = Tick(last_at.map_or(Duration::ZERO, |last_at| reading.at.since(last_at)));
        let activity = reading.activity;
        if let Some(images) = reading.images {
            self.known.update(images, &activity.files);
        }
        self.connections.extend(reading.connections);
        let line = Line {
            schema: SCHEMA,
            at: reading.wall.to_string(),
            at_seconds: reading.at.since(self.started).as_secs_f64(),
            pid: self.pid,
            ended,
            qemu: self.qemu.clone(),
            ram: self.ram.line(self.started, reading.at),
            disks: self.known.disks(
                &activity.files,
                &self.last.files,
                &reading.block_devices,
                tick,
            ),
            backends: backends(&activity.backends),
            devices: devices(
                &activity.devices,
                &self.last.devices,
                &reading.device_names,
                tick,
            ),
            sockets: self.sockets(&activity.sockets),
            device_reads: DeviceReads {
                ram_bytes: activity.device_reads.ram_bytes,
                other_bytes: activity.device_reads.other_bytes,
            },
            probe: self.probe(reading.counters, reading.cost, tick),
            warnings: reading.warnings,
        };
        self.last = activity;
        self.last_run_ns = reading.counters.run_ns;
        line
    }

    /// Whether both ends of a connection are known.
    #[must_use]
    pub fn knows_connection(&self, socket: &SocketActivity) -> bool {
        let has_ports = matches!(socket.family, SocketFamily::Ip4 | SocketFamily::Ip6);
        let ports = (socket.local_port, socket.peer_port);
        !has_ports || self.connections.contains_key(&ports)
    }

    fn sockets(&mut self, sockets: &[SocketActivity]) -> Vec<Socket> {
        self.connections.retain(|ports, _| {
            let of = |socket: &SocketActivity| (socket.local_port, socket.peer_port);
            sockets.iter().any(|socket| of(socket) == *ports)
        });
        let mut sockets: Vec<Socket> = sockets.iter().map(|socket| self.socket(socket)).collect();
        sockets.sort_by(|one, other| (&one.local, &one.peer).cmp(&(&other.local, &other.peer)));
        sockets
    }

    fn socket(&self, socket: &SocketActivity) -> Socket {
        let ports = (socket.local_port, socket.peer_port);
        let port = |port: u16| match socket.family {
            SocketFamily::Unix => "unix".to_owned(),
            SocketFamily::Ip4 | SocketFamily::Ip6 => format!(":{port}"),
            SocketFamily::Other(family) => format!("family {family}"),
        };
        let (local, peer) = self
            .connections
            .get(&ports)
            .filter(|_| ports != (0, 0))
            .cloned()
            .unwrap_or_else(|| (port(ports.0), port(ports.1)));
        Socket {
            local,
            peer,
            sent_bytes: socket.sent_bytes,
        }
    }

    fn probe(&self, counters: ProbeCounters, cost: ProbeCost, tick: Tick) -> Probe {
        let new_ns = counters
            .run_ns
            .map(|run_ns| run_ns.saturating_sub(self.last_run_ns.unwrap_or(0)));
        let seconds = tick.0.as_secs_f64();
        Probe {
            events: counters.events,
            lost_events: counters.lost_events,
            unknown_slots: counters.unknown_slots,
            inferred_slots: counters.inferred_slots,
            overtaken_logs: counters.overtaken_logs,
            unreadable: counters.unreadable,
            map_full: counters.map_full,
            cut_writes: counters.cut_writes,
            run_ns: counters.run_ns,
            run_count: counters.run_count,
            core_ratio: new_ns
                .filter(|_| seconds > 0.0)
                .map(|new_ns| to_f64(new_ns) * 1e-9 / seconds),
            programs: cost
                .programs
                .into_iter()
                .map(|program| Program {
                    name: program.name,
                    run_ns: program.run_ns,
                    run_count: program.run_count,
                    missed: program.missed,
                })
                .collect(),
            memory_bytes: cost.memory_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::activity::{DeviceActivity, DeviceRequests, FileActivity, FileId, Requests};

    const SECOND: u64 = 1_000_000_000;

    fn file_id(minor: u32, inode: u64) -> FileId {
        let device = DeviceId { major: 254, minor };
        FileId { device, inode }
    }

    fn requests(count: u64, bytes: u64) -> Requests {
        Requests { count, bytes }
    }

    fn image(id: FileId, path: &str) -> Image {
        Image {
            id,
            path: path.to_owned(),
            writable: true,
            ..Image::default()
        }
    }

    fn written(id: FileId, count: u64, bytes: u64) -> FileActivity {
        FileActivity {
            id,
            written: requests(count, bytes),
            ..FileActivity::default()
        }
    }

    fn reading(seconds: u64, files: Vec<FileActivity>, images: Vec<Image>) -> Reading {
        Reading {
            at: Time::from_nanos(seconds * SECOND),
            activity: Activity {
                files,
                ..Activity::default()
            },
            images: Some(images),
            ..Reading::default()
        }
    }

    fn state() -> State {
        State::new(7, Time::from_nanos(10 * SECOND))
    }

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    #[test]
    fn totals_are_since_the_attach_and_rates_over_the_tick() {
        let mut state = state();
        let id = file_id(0, 1);
        let images = vec![image(id, "/a")];
        let first = state.line(reading(10, vec![], images.clone()), false);
        assert!(is_near(first.at_seconds, 0.0));
        assert_eq!(first.disks[0].totals.writes, 0, "open, and not used yet");
        assert!(is_near(first.disks[0].written_bytes_per_second, 0.0));
        let second = state.line(
            reading(12, vec![written(id, 3, 8000)], images.clone()),
            false,
        );
        assert_eq!(second.disks.len(), 1);
        assert_eq!(second.disks[0].totals.written_bytes, 8000);
        assert!(is_near(second.disks[0].written_bytes_per_second, 4000.0));
        let third = state.line(reading(13, vec![written(id, 4, 9000)], images), true);
        assert_eq!(third.disks[0].totals.writes, 4);
        assert!(is_near(third.disks[0].written_bytes_per_second, 1000.0));
        assert!(third.ended && third.pid == 7 && is_near(third.at_seconds, 3.0));
    }

    #[test]
    fn a_file_that_was_closed_keeps_its_name() {
        let mut state = state();
        let (used, unused) = (file_id(0, 1), file_id(0, 2));
        let images = vec![image(used, "/used"), image(unused, "/unused")];
        state.line(reading(11, vec![written(used, 1, 1)], images), false);
        let files = vec![written(used, 1, 1), written(file_id(0, 3), 1, 1)];
        let line = state.line(reading(12, files.clone(), vec![]), false);
        let names: Vec<_> = line.disks.iter().map(|disk| disk.path.as_deref()).collect();
        assert_eq!(names, [None, Some("/used")]);
        // They could not be looked at: what was known is.
        let mut unread = reading(13, files, vec![]);
        unread.images = None;
        let line = state.line(unread, true);
        assert_eq!(line.disks[1].path.as_deref(), Some("/used"));
    }

    #[test]
    fn a_file_system_may_tell_programs_another_device() {
        let mut state = state();
        let seen = file_id(9, 5);
        let images = vec![image(file_id(0, 5), "/overlay"), image(file_id(0, 6), "/b")];
        let line = state.line(reading(11, vec![written(seen, 1, 1)], images), false);
        assert_eq!(line.disks.len(), 2);
        assert_eq!(line.disks[1].path.as_deref(), Some("/overlay"));
        assert_eq!(line.disks[1].totals.writes, 1);
        // Two have that inode: neither is named.
        let images = vec![image(file_id(0, 5), "/one"), image(file_id(1, 5), "/two")];
        let line =
            State::new(7, Time::ZERO).line(reading(11, vec![written(seen, 1, 1)], images), false);
        let nameless = line.disks.iter().find(|disk| disk.totals.writes == 1);
        assert_eq!(nameless.and_then(|disk| disk.path.clone()), None);
        assert_eq!(line.disks.len(), 3);
    }

    fn device(count: u64, latency_ms: u64, by_latency: Vec<u64>) -> Vec<DeviceActivity> {
        vec![DeviceActivity {
            id: DeviceId { major: 8, minor: 0 },
            write: DeviceRequests {
                requests: requests(count, count * 512),
                latency: Duration::from_millis(latency_ms),
                by_latency,
            },
            in_flight: 2,
            ..DeviceActivity::default()
        }]
    }

    #[test]
    fn latencies_are_of_the_last_tick() {
        let mut state = state();
        let mut tick = |seconds, devices| {
            let mut reading = reading(seconds, vec![], vec![]);
            reading.activity.devices = devices;
            state.line(reading, false).devices.remove(0)
        };
        tick(11, device(1, 4000, vec![0, 0, 0, 0, 1]));
        let second = tick(13, device(3, 5000, vec![0, 0, 2, 0, 1]));
        assert_eq!(second.write.requests, 3);
        assert_eq!(second.write.mean_seconds, Some(0.5));
        let p50 = second.write.p50_seconds.unwrap();
        assert!((4e-9..8e-9).contains(&p50), "{p50}");
        assert!(is_near(second.queue_depth, 0.5), "1 s in 2 s");
        assert_eq!((second.in_flight, second.device.as_str()), (2, "8:0"));
        let third = tick(14, device(3, 5000, vec![0, 0, 2, 0, 1]));
        assert_eq!(third.write.mean_seconds, None);
        assert_eq!(third.write.p99_seconds, None);
        assert_eq!(third.write.requests, 3);
    }

    #[test]
    fn the_ends_of_a_connection_are_remembered() {
        let mut state = state();
        let socket = SocketActivity {
            family: SocketFamily::Ip4,
            local_port: 40_000,
            peer_port: 4444,
            sent_bytes: 5,
        };
        assert!(!state.knows_connection(&socket));
        let mut tick = |connections: &[(Ports, Ends)]| {
            let mut reading = reading(11, vec![], vec![]);
            reading.activity.sockets = vec![socket.clone()];
            reading.connections = connections.iter().cloned().collect();
            let socket = state.line(reading, false).sockets.remove(0);
            (socket.local, socket.peer)
        };
        let ends = |local: &str, peer: &str| (local.to_owned(), peer.to_owned());
        assert_eq!(tick(&[]), ends(":40000", ":4444"));
        let known = ends("127.0.0.1:40000", "127.0.0.1:4444");
        let other = ((1, 2), ends("x", "y"));
        assert_eq!(tick(&[((40_000, 4444), known.clone()), other]), known);
        assert_eq!(tick(&[]), known, "it may be closed by now");
    }

    #[test]
    fn the_probes_share_of_a_core_is_of_the_last_tick() {
        let mut state = state();
        let mut tick = |seconds, run_ns| {
            let mut reading = reading(seconds, vec![], vec![]);
            reading.counters.run_ns = run_ns;
            state.line(reading, false).probe.core_ratio
        };
        tick(11, Some(5_000));
        assert!(is_near(tick(13, Some(5_000 + SECOND / 10)).unwrap(), 0.05));
        assert_eq!(tick(14, None), None);
    }
}
