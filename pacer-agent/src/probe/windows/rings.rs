//! KVM's dirty rings: pages from one sync to the next.
//!
//! QEMU empties the rings at a sync just after the mark that shows it, and in
//! between when they fill up. Not proven with QEMU: see the programs.

use super::BURST_GAP;
use crate::pacing::sample::{DirtyWindow, Origin, Sample};
use crate::pacing::time::Time;

/// What came out of the rings.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// They are used.
    seen: bool,
    /// Pages since the last sync, so far.
    pages: u64,
    /// The last sync but one, then the last, whose pages may still come.
    syncs: (Option<Time>, Option<Time>),
}

impl Rings {
    pub(super) fn add(&mut self, pages: u64) {
        self.seen = true;
        self.pages = self.pages.saturating_add(pages);
    }

    /// A sync begins: it empties the rings.
    pub(super) fn begin_end(&mut self, at: Time) {
        self.syncs.1 = Some(at);
    }

    /// Whether the last sync has emptied the rings by `now`.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.seen
            && self
                .syncs
                .1
                .is_some_and(|sync| now.since(sync) >= BURST_GAP)
    }

    /// Ends the window of the last sync.
    pub(super) fn end(&mut self) -> Option<Sample> {
        let end = self.syncs.1.take()?;
        let began = self.syncs.0.replace(end);
        let pages = std::mem::take(&mut self.pages);
        let window = end.since(began?);
        (self.seen && !window.is_zero()).then_some(Sample::Dirty(DirtyWindow {
            window,
            pages,
            device_pages: 0,
            origin: Origin::DirtyRing,
        }))
    }
}
