//! One observation, as the edge hands it in.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ram {
    /// Size of all migratable RAM, in bytes.
    pub total_bytes: u64,
    /// How much of it is not zero, in bytes, by a sample of its pages or at least
    /// by what the host had to back. `None` where it cannot be told.
    pub content_bytes: Option<u64>,
    /// Where it is not zero: of each of so many equal parts, in the order of their
    /// addresses, the share that is not, in 255ths. `None` where it cannot be told.
    pub content_parts: Option<[u8; PARTS]>,
}

/// The most pages that a sample of the guest's memory looks at: a share of a half is
/// then known to 0.3 % (standard error), one of a hundredth to 5 % of itself.
pub const SAMPLED_PAGES: u64 = 32_768;

/// Parts of a guest's memory that are told apart.
pub const PARTS: usize = 32;

/// One point of the dirty curve: this many distinct pages were written within
/// a window of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtyWindow {
    /// How long the window was.
    pub window: Duration,
    /// Distinct pages of 4 KiB written in it: by vCPUs alone where `origin` is
    /// of eBPF, by all where it is another.
    pub pages: u64,
    /// Further distinct pages that only devices wrote, since the sync before:
    /// where QEMU clears its log late in a pass, that is longer than `window`.
    /// 0 where it is not known, and where `pages` has them.
    pub device_pages: u64,
    /// Where the figure comes from.
    pub origin: Origin,
}

impl DirtyWindow {
    /// All pages that QEMU finds dirty at the window's end: it must send what
    /// devices wrote like the rest.
    #[must_use]
    pub const fn all_pages(&self) -> u64 {
        self.pages.saturating_add(self.device_pages)
    }

    /// Whether there is something to be learned from it: it is not empty, and not a
    /// lower bound.
    #[must_use]
    pub fn is_point(&self) -> bool {
        !self.window.is_zero() && self.origin != Origin::DirtyLogPart
    }
}

/// Where a figure about dirty pages comes from, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// Counted by eBPF in the dirty log that KVM handed to QEMU: exact for what
    /// vCPUs write. Devices' pages are those that QEMU reads into by address.
    DirtyLog,
    /// As [`Origin::DirtyLog`], but over that part of the guest's memory alone of
    /// which the probe, which came late, has seen QEMU clear the log: a lower
    /// bound, not to be learned from.
    DirtyLogPart,
    /// Counted by eBPF in KVM's dirty rings; a page that QEMU took out of a ring
    /// within the window counts again when it is written again. Not proven with
    /// QEMU, whose guests hang with rings where this was written.
    DirtyRing,
    /// Counted by eBPF where a guest under TCG stores to a page for the first
    /// time after a sync. Exact for a guest with one address space; within 5 %
    /// of what QEMU finds on Linux, and 8 % in windows of 0.1 s.
    StoreHelper,
    /// QEMU's own counter of pages found dirty at a sync.
    Qemu,
    /// Estimated by QEMU from a sample of pages (`calc-dirty-rate`).
    PageSampling,
    /// Counted in the stream: pages sent again.
    Stream,
    /// Estimated from a sample of the guest's pages, by comparing what is in them.
    /// A page that is written without being changed is not among them.
    ContentSampling,
}

impl Origin {
    /// Whether a figure is told by the very sync that ended its window.
    #[must_use]
    pub const fn marks_sync(self) -> bool {
        matches!(self, Self::DirtyLog | Self::DirtyRing | Self::StoreHelper)
    }
}

/// Counters of the migration stream since it began; they never fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCounters {
    /// Bytes read from QEMU's memory channels.
    pub bytes_from_qemu: u64,
    /// Bytes of them given to QUIC, after the bucket.
    pub bytes_on_wire: u64,
    /// Whole RAM pages seen in what was given to QUIC, sent with their content.
    pub normal_pages: u64,
    /// RAM pages seen that were announced as zero.
    pub zero_pages: u64,
    /// Passes begun: 1 while the first sweep over RAM runs. 0 before it.
    pub passes: u64,
}

/// What `query-migrate` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QemuProgress {
    /// Bytes of RAM that QEMU knows to be still dirty.
    pub remaining_bytes: u64,
    /// Bytes of RAM in all.
    pub total_bytes: u64,
    /// `dirty-sync-count`: 1 from the start, one more with every sync.
    pub dirty_sync_count: u64,
    /// `normal`: pages QEMU sent with their content.
    pub normal_pages: u64,
    /// `duplicate`: pages QEMU sent as zero.
    pub zero_pages: u64,
}

/// One observation. The time it was made goes with it as a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Sample {
    /// The guest's memory was sized up.
    Ram(Ram),
    /// A point of the dirty curve.
    Dirty(DirtyWindow),
    /// The stream's counters now.
    Stream(StreamCounters),
    /// QEMU's own figures now.
    Qemu(QemuProgress),
    /// The first byte of the stream was accepted from QEMU.
    StreamStarted,
    /// The guest was stopped at the source for the switchover.
    Stopped,
    /// The guest runs at the destination.
    Running,
    /// The link to the destination is measured or known to take at most this.
    LinkRate {
        /// Bytes of stream data per second.
        bytes_per_second: u64,
    },
    /// How long the guest's disk took for a request lately, on average.
    DiskLatency {
        /// Of the requests since the one before.
        mean: Duration,
    },
}

impl Sample {
    /// Whether the dirty curve learns from it.
    #[must_use]
    pub fn is_point(&self) -> bool {
        matches!(self, Self::Dirty(window) if window.is_point())
    }
}
