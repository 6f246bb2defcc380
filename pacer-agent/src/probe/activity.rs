//! What the programs have counted since the attach, read on a tick: plain data.
//! Totals never fall; whoever wants a rate takes the difference of two.

use std::fmt;
use std::time::Duration;

use pacer_common::socket;

use crate::pacing::time::Time;

/// Everything counted since the attach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// The files that were read or written, in no order.
    pub files: Vec<FileActivity>,
    /// What the guest asked of its disks, before an image format changed it.
    /// Empty where this build of QEMU is not known.
    pub backends: Vec<BackendActivity>,
    /// The block devices that are watched.
    pub devices: Vec<DeviceActivity>,
    /// The connections that were sent on. Past some thousands the one used
    /// least recently is forgotten, and begins at 0 if it is used again.
    pub sockets: Vec<SocketActivity>,
    /// Bytes accepted by any socket, those of forgotten connections too.
    pub sent_bytes: u64,
    /// What QEMU's devices read into memory.
    pub device_reads: DeviceReads,
}

/// A file, as long as it exists: a descriptor's number may be another file's a
/// moment later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The device its file system is on.
    pub device: DeviceId,
    /// Its inode there.
    pub inode: u64,
}

/// A device's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// Its driver.
    pub major: u32,
    /// Which of that driver's.
    pub minor: u32,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileActivity {
    /// Which.
    pub id: FileId,
    /// When it was first seen: of several with one id, the newest is there, and
    /// the others were deleted.
    pub first_at: Time,
    /// Content written.
    pub written: Requests,
    /// Ranges made zero.
    pub zeroed: Requests,
    /// Ranges given back.
    pub discarded: Requests,
    /// Content read.
    pub read: Requests,
    /// How often its chunks are written.
    pub chunks: ChunkIntervals,
}

/// How often the chunks of a file are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkIntervals {
    /// Size of a chunk.
    pub chunk_bytes: u64,
    /// Chunks written once so far.
    pub written_once: u64,
    /// Chunks by the mean interval between their writes, shortest first.
    pub classes: Vec<IntervalClass>,
    /// Chunks forgotten to make room for others; they are in no class.
    pub evicted: u64,
}

/// Chunks whose mean write interval lies within a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntervalClass {
    /// The range's lower end.
    pub at_least: Duration,
    /// The range's upper end, not in it.
    pub below: Duration,
    /// How many chunks.
    pub chunks: u64,
}

/// One block backend of QEMU, the guest's side of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendActivity {
    /// Its address in QEMU: the same for as long as the disk is there.
    pub address: u64,
    /// What QEMU calls it.
    pub names: BackendNames,
    /// Content written.
    pub written: Requests,
    /// Ranges made zero.
    pub zeroed: Requests,
    /// Ranges given back.
    pub discarded: Requests,
    /// How often its chunks are written, by the guest's offsets.
    pub chunks: ChunkIntervals,
}

/// What QEMU calls a block backend; `None` where it has no such name, or it
/// cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendNames {
    /// The id of the device that the guest sees (`qdev` in QMP), or the name of
    /// the backend itself (`device` in QMP).
    pub device: Option<String>,
    /// The name of its topmost block node.
    pub node: Option<String>,
}

/// One block device of this host, as whoever uses it loads it.
///
/// Requests are what the device is given: neighbours are merged before, large
/// ones split, as in the kernel's own `diskstats`. One that a driver hands back
/// to the queue is issued again and counts once, from its last issue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceActivity {
    /// Which.
    pub id: DeviceId,
    /// What was read.
    pub read: DeviceRequests,
    /// What was written. Not counted: flushes, discards, zeroes that the device
    /// writes by itself, appends to zones.
    pub write: DeviceRequests,
    /// Reads and writes given to the device and not completed.
    pub in_flight: u64,
}

/// Requests of one direction that a block device completed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRequests {
    /// How many, and their bytes.
    pub requests: Requests,
    /// Time from issue to completion, summed over the requests.
    pub latency: Duration,
    /// Requests by latency: number `k` holds those of 2^k up to 2^(k+1) ns, and
    /// number 0 also those below,
    /// the last also those above.
    pub by_latency: Vec<u64>,
}

/// One TCP connection of QEMU, and what it has handed to it. All other sockets
/// of one family are one, with the ports 0; so are TCP connections where this
/// kernel's sockets are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketActivity {
    /// What carries it.
    pub family: SocketFamily,
    /// This end's port; 0 where it has none (a Unix socket).
    pub local_port: u16,
    /// The other end's port; 0 where it has none.
    pub peer_port: u16,
    /// Bytes accepted by the socket.
    pub sent_bytes: u64,
}

/// The address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SocketFamily {
    /// A Unix socket: QEMU's monitors and serial ports, and what is migrated to
    /// one.
    Unix,
    /// IPv4.
    Ip4,
    /// IPv6; also IPv4 by a socket that takes both.
    Ip6,
    /// Any other, by the kernel's number.
    Other(u16),
}

/// What QEMU read from files and sockets: it lands in guest memory without a
/// trace in KVM's dirty log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceReads {
    /// Bytes whose addresses lie in guest memory.
    pub ram_bytes: u64,
    /// Bytes read elsewhere: packets, image metadata, bounce buffers.
    pub other_bytes: u64,
}

impl DeviceId {
    /// The numbers as the kernel packs them, the minor in the lower 20 bits.
    #[must_use]
    pub const fn from_kernel(device: u32) -> Self {
        Self {
            major: device >> 20,
            minor: device & 0xF_FFFF,
        }
    }

    /// The numbers as `stat` gives them, in `st_dev` and `st_rdev`.
    #[must_use]
    pub fn from_stat(device: u64) -> Self {
        Self {
            major: rustix::fs::major(device),
            minor: rustix::fs::minor(device),
        }
    }

    /// The reverse of [`DeviceId::from_kernel`].
    #[must_use]
    pub const fn to_kernel(self) -> u32 {
        self.major << 20 | self.minor & 0xF_FFFF
    }
}

impl SocketFamily {
    pub(super) const fn from_kernel(family: u16) -> Self {
        match family {
            socket::UNIX => Self::Unix,
            socket::IP4 => Self::Ip4,
            socket::IP6 => Self::Ip6,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for SocketFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Ip4 => f.write_str("ip4"),
            Self::Ip6 => f.write_str("ip6"),
            Self::Other(number) => write!(f, "family {number}"),
        }
    }
}
