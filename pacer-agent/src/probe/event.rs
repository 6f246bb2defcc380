//! What the programs report, in the words of this side.

use pacer_common::event::{self as raw, RawEvent};

use crate::pacing::time::Time;

/// Something the observed process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, as the kernel stamped it.
    pub at: Time,
    /// What.
    pub kind: EventKind,
}

/// What an observed process did. A page is 4 KiB; a slot has its address space
/// in the upper and its id in the lower 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// QEMU told KVM of a memory slot, or changed or removed one.
    SlotRegistered {
        /// Which slot.
        slot: u32,
        /// Its size; 0: the slot is gone.
        pages: u64,
        /// Where its memory is in QEMU.
        user_address: u64,
        /// Whether KVM logs the pages that are written.
        logging: bool,
    },
    /// QEMU read a slot's dirty log. The first one of each logging session has
    /// every page set.
    DirtyLog {
        /// Which slot.
        slot: u32,
        /// Pages set in it: those that vCPUs wrote.
        dirty_pages: u64,
        /// Pages not set in it into which QEMU read for a device since it read
        /// the log before. Without what QEMU copies there from buffers of its
        /// own, which no system call shows.
        device_pages: u64,
        /// Pages the slot has.
        total_pages: u64,
        /// The slot was registered before the probe came: it has at least that
        /// many pages, as QEMU cleared so much of its log since.
        inferred: bool,
    },
    /// QEMU read a slot's dirty log, and it was not counted: nothing is known of
    /// the slot, or QEMU was faster than this side with the rest of a large one.
    LogUnread {
        /// Which slot.
        slot: u32,
    },
    /// QEMU emptied KVM's dirty rings.
    RingsReset {
        /// Pages that were in them and that QEMU had seen, each once.
        pages: u64,
        /// Pages pushed into them since the time before.
        pushed: u64,
    },
    /// One part of the log that the next [`EventKind::DirtyLog`] is about: of
    /// 1 GiB, or what is left of the slot. Slots of one part have none.
    DirtyPart {
        /// Which slot.
        slot: u32,
        /// First page of the part, within the slot.
        first_page: u64,
        /// As in [`EventKind::DirtyLog`].
        dirty_pages: u64,
        /// As in [`EventKind::DirtyLog`].
        device_pages: u64,
    },
    /// QEMU cleared a part of a slot's dirty log: its pages' windows start here.
    LogCleared {
        /// Which slot.
        slot: u32,
        /// First page of the part, within the slot.
        first_page: u64,
        /// Length of the part.
        pages: u64,
    },
    /// QEMU is about to stop the guest for the switchover.
    GuestStopping,
    /// QEMU begins to gather the dirty pages from KVM or TCG.
    BitmapSync,
    /// The pages that a guest under TCG stored to since the sync before: told
    /// with [`EventKind::BitmapSync`] while [`super::Probe::watch_stores`] is on.
    StoresCounted {
        /// Distinct pages; of the guest's own address space, so that a page
        /// counts twice that has two addresses there.
        pages: u64,
        /// Stores to pages that found no room in the kernel's map: there were
        /// up to as many pages more.
        overflow: u64,
        /// Which time of watching: the first count of each began before it.
        watching: u32,
    },
    /// The migration's state is changing, as this QEMU numbers its
    /// `MigrationStatus`.
    MigrationState {
        /// The state it leaves.
        old: u32,
        /// The state it enters.
        new: u32,
    },
}

impl Event {
    /// The process, and the event in this side's words; `None` if it is none of
    /// ours.
    pub(super) fn from_raw(event: &RawEvent) -> Option<(u32, Self)> {
        let at = Time::from_nanos(event.ktime_ns);
        let kind = kind_of(event)?;
        Some((event.tgid, Self { at, kind }))
    }
}

fn kind_of(event: &RawEvent) -> Option<EventKind> {
    let &RawEvent {
        a, b, c, subject, ..
    } = event;
    Some(match event.kind {
        raw::SLOT_REGISTERED => EventKind::SlotRegistered {
            slot: subject,
            pages: a,
            user_address: b,
            logging: c != 0,
        },
        raw::DIRTY_LOG => EventKind::DirtyLog {
            slot: subject,
            dirty_pages: a,
            device_pages: c,
            total_pages: b,
            inferred: event.flags & raw::INFERRED != 0,
        },
        raw::LOG_UNREAD => EventKind::LogUnread { slot: subject },
        raw::RINGS_RESET => EventKind::RingsReset {
            pages: a,
            pushed: b,
        },
        raw::DIRTY_PART => EventKind::DirtyPart {
            slot: subject,
            first_page: b,
            dirty_pages: a,
            device_pages: c,
        },
        raw::LOG_CLEARED => EventKind::LogCleared {
            slot: subject,
            first_page: a,
            pages: b,
        },
        raw::GUEST_STOPPING => EventKind::GuestStopping,
        raw::BITMAP_SYNC => EventKind::BitmapSync,
        raw::STORES_COUNTED => EventKind::StoresCounted {
            pages: a,
            overflow: b,
            watching: u32::try_from(c).ok()?,
        },
        raw::MIGRATION_STATE => EventKind::MigrationState {
            old: u32::try_from(a).ok()?,
            new: u32::try_from(b).ok()?,
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_programs_write() {
        let event = RawEvent {
            kind: raw::DIRTY_LOG,
            subject: 3,
            a: 12,
            b: 4096,
            c: 5,
            ..RawEvent::default()
        };
        let log = EventKind::DirtyLog {
            slot: 3,
            dirty_pages: 12,
            device_pages: 5,
            total_pages: 4096,
            inferred: false,
        };
        assert_eq!(kind_of(&event), Some(log));
        let unknown = RawEvent { kind: 99, ..event };
        assert_eq!(kind_of(&unknown), None);
        let inferred = RawEvent {
            flags: raw::INFERRED,
            ..event
        };
        assert!(matches!(
            kind_of(&inferred),
            Some(EventKind::DirtyLog { inferred: true, .. })
        ));
    }
}
