//! The ring of events, from the programs to user space.

use core::mem::{align_of, offset_of, size_of};

/// Name of the ring buffer of [`RawEvent`].
pub const EVENTS: &str = "EVENTS";

/// Size of the ring, in bytes: a power of two. An event takes 64 with its
/// header, so this holds 16,384 of them, and a guest makes a few hundred a
/// second at most: what is frequent is counted in maps.
pub const RING_BYTES: u32 = 1 << 20;

/// A memory slot was registered. subject: slot; a: pages (0: it is gone);
/// b: address in QEMU; c: 1 if its dirty pages are logged, else 0.
pub const SLOT_REGISTERED: u32 = 1;
/// A slot's dirty log was read. subject: slot; a: pages set; b: pages in all;
/// c: further pages that devices wrote since the log was read before.
pub const DIRTY_LOG: u32 = 2;
/// Part of a slot's dirty log was cleared. subject: slot; a: first page;
/// b: pages.
pub const LOG_CLEARED: u32 = 3;
/// QEMU stops the guest for the switchover.
pub const GUEST_STOPPING: u32 = 4;
/// QEMU begins to gather the dirty pages.
pub const BITMAP_SYNC: u32 = 5;
/// The migration's state changed. a: old; b: new; as QEMU numbers them.
pub const MIGRATION_STATE: u32 = 6;

/// One part of a slot's dirty log, for slots of more than one; told before the
/// [`DIRTY_LOG`] that sums them up. subject: slot; a: pages set; b: first page;
/// c: further pages that devices wrote since the log was read before.
pub const DIRTY_PART: u32 = 16;

/// The distinct pages that a guest under TCG stored to between two syncs; told
/// after the [`BITMAP_SYNC`] that ends that time, while the store helpers are
/// watched. a: pages; b: stores that found no room, so that there are more
/// pages; c: which time of watching.
pub const STORES_COUNTED: u32 = 20;

/// What follows of a slot's dirty log is for user space to count; told before
/// the [`DIRTY_LOG`] that has what was counted. subject: slot; a: the first page
/// that was not; b: where the whole bitmap is in QEMU; c: the slot's version.
pub const LOG_REST: u32 = 17;
/// A slot's dirty log was read, and not counted, as nothing is known of the
/// slot or the bitmap could not be read. subject: slot; a: 0 for the first reason,
/// 1 for the second.
pub const LOG_UNREAD: u32 = 18;
/// The dirty rings were emptied. a: pages that were in them; b: pages pushed
/// since the time before.
pub const RINGS_RESET: u32 = 19;

/// [`RawEvent::flags`]: the slot's size is inferred.
pub const INFERRED: u32 = 1;
/// [`RawEvent::flags`]: a [`LOG_REST`] goes with it.
pub const PARTIAL: u32 = 2;

/// One event. What `subject`, `a`, `b` and `c` mean depends on `kind`; what a
/// kind does not use is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawEvent {
    /// When it happened: `bpf_ktime_get_ns`, CLOCK_MONOTONIC.
    pub ktime_ns: u64,
    /// First value.
    pub a: u64,
    /// Second value.
    pub b: u64,
    /// Third value.
    pub c: u64,
    /// Which event: one of this module's constants.
    pub kind: u32,
    /// What it is about: a slot.
    pub subject: u32,
    /// Which process, as the loader's PID namespace numbers it.
    pub tgid: u32,
    /// [`INFERRED`] and [`PARTIAL`], or 0.
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<RawEvent>() == 48);
    assert!(align_of::<RawEvent>() == 8);
    assert!(offset_of!(RawEvent, a) == 8);
    assert!(offset_of!(RawEvent, b) == 16);
    assert!(offset_of!(RawEvent, c) == 24);
    assert!(offset_of!(RawEvent, kind) == 32);
    assert!(offset_of!(RawEvent, subject) == 36);
    assert!(offset_of!(RawEvent, tgid) == 40);
    assert!(offset_of!(RawEvent, flags) == 44);
    assert!(RING_BYTES.is_power_of_two());
};

// SAFETY: `repr(C)`, integers only, 48 bytes that the fields fill without
// padding (asserted above): every byte pattern is a valid value.
#[cfg(feature = "user")]
unsafe impl aya::Pod for RawEvent {}

impl RawEvent {
    /// The event in `bytes`, a record of the ring. `None` if the length is not
    /// an event's.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        let long = |at: usize| {
            let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
            Some(u64::from_ne_bytes(bytes))
        };
        let short = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(bytes))
        };
        Some(Self {
            ktime_ns: long(offset_of!(Self, ktime_ns))?,
            a: long(offset_of!(Self, a))?,
            b: long(offset_of!(Self, b))?,
            c: long(offset_of!(Self, c))?,
            kind: short(offset_of!(Self, kind))?,
            subject: short(offset_of!(Self, subject))?,
            tgid: short(offset_of!(Self, tgid))?,
            flags: short(offset_of!(Self, flags))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_ring_holds() {
        let mut bytes = [0; 48];
        bytes[0..8].copy_from_slice(&1u64.to_ne_bytes());
        bytes[24..32].copy_from_slice(&4u64.to_ne_bytes());
        bytes[32..36].copy_from_slice(&GUEST_STOPPING.to_ne_bytes());
        bytes[36..40].copy_from_slice(&9u32.to_ne_bytes());
        bytes[40..44].copy_from_slice(&7u32.to_ne_bytes());
        let event = RawEvent::from_bytes(&bytes).expect("the right length");
        assert_eq!(
            event,
            RawEvent {
                ktime_ns: 1,
                c: 4,
                kind: GUEST_STOPPING,
                subject: 9,
                tgid: 7,
                ..RawEvent::default()
            }
        );
        assert_eq!(RawEvent::from_bytes(&bytes[..47]), None);
        assert_eq!(RawEvent::from_bytes(&[]), None);
    }
}
