//! From what was counted to a line: what is new, and how fast it grows. Pure.

use std::collections::BTreeMap;

use super::disks::{Known, Tick, backends, devices};
use super::images::Image;
use super::line::{DeviceReads, Line, Probe, Program, Qemu, Socket};
use super::ram::RamState;
use crate::pacing::time::Time;
use crate::probe::activity::{Activity, DeviceId, SocketActivity};
use crate::probe::{ProbeCost, ProbeCounters};
use crate::units::to_f64;

/// The format's version.
const SCHEMA: u32 = 1;

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
    /// The block devices' names.
    pub device_names: BTreeMap<DeviceId, String>,
    /// The ends of connections, by local and peer port.
    pub connections: BTreeMap<(u16, u16), (String, String)>,
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
    connections: BTreeMap<(u16, u16), (String, String)>,
    last_at: Time,
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
            last_at: started,
            last: Activity::default(),
            last_run_ns: None,
        }
    }

    /// The line for what was read. `ended`: the process is gone.
    pub fn line(&mut self, reading: Reading, ended: bool) -> Line {
        let tick = Tick(reading.at.since(self.last_at));
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
            disks: self.known.disks(&activity.files, &self.last.files, tick),
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
        self.last_at = reading.at;
        self.last = activity;
        self.last_run_ns = reading.counters.run_ns;
        line
    }

    /// Whether both ends of a connection are known.
    #[must_use]
    pub fn knows_connection(&self, socket: &SocketActivity) -> bool {
        let ports = (socket.local_port, socket.peer_port);
        ports == (0, 0) || self.connections.contains_key(&ports)
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
        let port = |port: u16| match port {
            0 => "unix".to_owned(),
            port => format!(":{port}"),
        };
        let (local, peer) = self
            .connections
            .get(&ports)
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
            unreadable: counters.unreadable,
            map_full: counters.map_full,
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
