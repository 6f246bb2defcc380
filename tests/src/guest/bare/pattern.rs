//! What the bare guest writes where it is not simply page after page: two
//! phases, each with a pace, a part of the working set and an order. Each ends
//! after so many writes, not after a time: so the whole sequence follows from
//! the parameters, and memory can be checked to the last write.

use std::num::NonZeroU32;

use super::check_allowed;
use crate::guest::content::round_mark;

/// A phase that lasts for ever.
const FOR_EVER: u32 = u32::MAX;
/// Pages a second in a pause: it is counted in writes, as every phase is.
const PAUSE_PACE: u32 = 10;
/// Bytes of a phase's parameters in `pattern.s`.
const PHASE_BYTES: u32 = 32;

/// Two phases, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarePattern {
    /// The same seed draws the same pages.
    pub seed: NonZeroU32,
    /// The first begins when the memory is filled.
    pub phases: [BarePhase; 2],
    /// Whether the first follows the second again; else the second goes on.
    pub repeats: bool,
}

/// What is done for so many writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarePhase {
    /// How many writes it lasts, at least 1.
    pub writes: u32,
    /// Pages in a second of guest time, at least 1.
    pub pages_per_second: u32,
    /// First page of its part of the working set.
    pub first_page: u32,
    /// Pages of that part.
    pub pages: u32,
    /// Which of them comes next.
    pub order: BareOrder,
}

/// Which page is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareOrder {
    /// The one behind, and behind the last the first.
    Sweep,
    /// Any, each as likely as the others.
    Random,
    /// Any: of the first `hot_pages` in `hot_percent` of all cases.
    HotAndCold {
        /// At least 1, fewer than the pages of the part.
        hot_pages: u32,
        /// 1 to 99.
        hot_percent: u32,
    },
}

impl BarePattern {
    /// One phase for ever.
    #[must_use]
    pub const fn steady(seed: NonZeroU32, phase: BarePhase) -> Self {
        Self {
            seed,
            phases: [BarePhase {
                writes: FOR_EVER,
                ..phase
            }; 2],
            repeats: false,
        }
    }

    /// `phase` for so many milliseconds, then for so many, a multiple of 100,
    /// hardly a page (10 a second), and again.
    #[must_use]
    pub fn bursts(seed: NonZeroU32, phase: BarePhase, burst_ms: u32, pause_ms: u32) -> Self {
        let pause = BarePhase {
            pages_per_second: PAUSE_PACE,
            ..phase
        };
        Self::alternating(seed, [(phase, burst_ms), (pause, pause_ms)])
    }

    /// The one for so many milliseconds and the other for so many, in turn.
    #[must_use]
    pub fn alternating(seed: NonZeroU32, phases: [(BarePhase, u32); 2]) -> Self {
        Self {
            seed,
            phases: phases.map(|(phase, milliseconds)| phase.lasting(milliseconds)),
            repeats: true,
        }
    }

    /// `before` for so many milliseconds from the start, and then `after` for
    /// ever.
    #[must_use]
    pub fn changing(seed: NonZeroU32, before: BarePhase, after_ms: u32, after: BarePhase) -> Self {
        let after = BarePhase {
            writes: FOR_EVER,
            ..after
        };
        Self {
            seed,
            phases: [before.lasting(after_ms), after],
            repeats: false,
        }
    }

    /// Checks that such writes can be, in a working set of so many pages.
    pub(super) fn check(&self, working_set_pages: u32) -> Result<(), &'static str> {
        for phase in &self.phases {
            if phase.writes == 0 || phase.pages_per_second == 0 {
                return Err("a phase without writes");
            }
            let end = phase.first_page.checked_add(phase.pages);
            if phase.pages == 0 || end.is_none_or(|end| end > working_set_pages) {
                return Err("a phase beyond the working set");
            }
            if let BareOrder::HotAndCold {
                hot_pages,
                hot_percent,
            } = phase.order
                && (!(1..phase.pages).contains(&hot_pages) || !(1..100).contains(&hot_percent))
            {
                return Err("all hot or all cold");
            }
        }
        Ok(())
    }

    /// The pace of the first phase, pages a second.
    pub(super) const fn first_pace(&self) -> u32 {
        self.phases[0].pages_per_second
    }

    /// What `bare.s` has behind the devices' parameters, in its order.
    pub(super) fn parameters(self) -> [u32; 18] {
        let next = if self.repeats { 0 } else { PHASE_BYTES };
        let mut parameters = [0; 18];
        parameters[..2].copy_from_slice(&[self.seed.get(), next]);
        for (slot, phase) in parameters[2..].chunks_exact_mut(8).zip(self.phases) {
            let (random, hot_pages, share) = phase.draw();
            slot.copy_from_slice(&[
                phase.writes,
                phase.pages_per_second,
                phase.first_page,
                phase.pages,
                u32::from(random),
                hot_pages,
                share,
                0,
            ]);
        }
        parameters
    }

    /// What a working set of so many pages holds after so many writes.
    pub(super) fn stamps(&self, working_set_pages: u32, writes: u64) -> Stamps {
        let mut last = vec![0; working_set_pages as usize];
        let mut pages = Pages::new(*self);
        let mut stamp = 0_u32;
        for _ in 0..writes {
            stamp = stamp.wrapping_add(1);
            last[pages.next_page() as usize] = stamp;
        }
        Stamps {
            at_hand: pages.next_page(),
            next_stamp: stamp.wrapping_add(1),
            last,
        }
    }
}

impl BarePhase {
    const fn lasting(self, milliseconds: u32) -> Self {
        let writes = self.pages_per_second as u64 * milliseconds as u64 / 1000;
        Self {
            writes: match writes {
                0 => 1,
                #[expect(clippy::cast_possible_truncation, reason = "less than 2^32")]
                writes if writes < FOR_EVER as u64 => writes as u32,
                _ => FOR_EVER,
            },
            ..self
        }
    }

    /// Whether pages are drawn; how many of them are hot; how many of 2^32
    /// draws are for those.
    const fn draw(&self) -> (bool, u32, u32) {
        match self.order {
            BareOrder::Sweep => (false, 0, 0),
            BareOrder::Random => (true, 0, 0),
            BareOrder::HotAndCold {
                hot_pages,
                hot_percent,
            } => (true, hot_pages, hot_percent * (u32::MAX / 100)),
        }
    }
}

/// The stamp that each page of a working set was last written with.
pub(super) struct Stamps {
    last: Vec<u32>,
    /// Page that is written next: it may be already, or in part.
    at_hand: u32,
    next_stamp: u32,
}

impl Stamps {
    /// Whether the first two dwords of a page are what was written last; else
    /// the wrong offset and what should stand there.
    pub(super) fn check(&self, page: u32, found: [u32; 2]) -> Result<(), (usize, u32)> {
        let content = |stamp: u32| [stamp, round_mark(page, stamp)];
        let before = content(self.last[page as usize]);
        if page != self.at_hand {
            return check_allowed(found, &[before]);
        }
        let now = content(self.next_stamp);
        check_allowed(found, &[before, [now[0], before[1]], now])
    }
}

/// The pages in the order in which the guest writes them.
struct Pages {
    pattern: BarePattern,
    drawn: u32,
    phase: usize,
    left: u32,
    cursors: [u32; 2],
}

impl Pages {
    const fn new(pattern: BarePattern) -> Self {
        Self {
            pattern,
            drawn: pattern.seed.get(),
            phase: 0,
            left: pattern.phases[0].writes,
            cursors: [0; 2],
        }
    }

    fn next_page(&mut self) -> u32 {
        let phase = self.pattern.phases[self.phase];
        let offset = match phase.draw() {
            (false, ..) => {
                let cursor = &mut self.cursors[self.phase];
                let offset = *cursor;
                *cursor = (offset + 1) % phase.pages;
                offset
            }
            (true, hot_pages, share) => {
                if self.draw() < share {
                    self.draw_below(hot_pages)
                } else {
                    hot_pages + self.draw_below(phase.pages - hot_pages)
                }
            }
        };
        self.left -= 1;
        if self.left == 0 {
            self.phase = match (self.phase, self.pattern.repeats) {
                (1, true) => 0,
                _ => 1,
            };
            self.left = self.pattern.phases[self.phase].writes;
        }
        phase.first_page + offset
    }

    const fn draw(&mut self) -> u32 {
        self.drawn = self
            .drawn
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        self.drawn
    }

    const fn draw_below(&mut self, bound: u32) -> u32 {
        ((self.draw() as u64 * bound as u64) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: NonZeroU32 = NonZeroU32::MIN;
    const PHASE: BarePhase = BarePhase {
        writes: 4,
        pages_per_second: 1000,
        first_page: 10,
        pages: 100,
        order: BareOrder::Sweep,
    };

    fn pages(pattern: BarePattern, count: usize) -> Vec<u32> {
        let mut pages = Pages::new(pattern);
        (0..count).map(|_| pages.next_page()).collect()
    }

    #[test]
    fn phases_follow_each_other() {
        let second = BarePhase {
            writes: 2,
            first_page: 50,
            pages: 2,
            ..PHASE
        };
        let mut pattern = BarePattern {
            seed: SEED,
            phases: [PHASE, second],
            repeats: true,
        };
        assert_eq!(
            pages(pattern, 9),
            [10, 11, 12, 13, 50, 51, 14, 15, 16],
            "each goes on where it was"
        );
        pattern.repeats = false;
        assert_eq!(pages(pattern, 9), [10, 11, 12, 13, 50, 51, 50, 51, 50]);
    }

    #[test]
    fn hot_pages_are_drawn_more_often() {
        let order = BareOrder::HotAndCold {
            hot_pages: 10,
            hot_percent: 90,
        };
        let drawn = pages(
            BarePattern::steady(SEED, BarePhase { order, ..PHASE }),
            10_000,
        );
        assert!(drawn.iter().all(|page| (10..110).contains(page)));
        let hot = drawn.iter().filter(|&&page| page < 20).count();
        assert!((8800..9200).contains(&hot), "{hot}");
        let order = BareOrder::Random;
        let drawn = pages(
            BarePattern::steady(SEED, BarePhase { order, ..PHASE }),
            10_000,
        );
        let first = drawn.iter().filter(|&&page| page < 20).count();
        assert!((900..1100).contains(&first), "{first}");
    }

    #[test]
    fn phases_are_as_long_as_they_should_be() {
        let [burst, pause] = BarePattern::bursts(SEED, PHASE, 300, 1500).phases;
        assert_eq!((burst.writes, burst.pages_per_second), (300, 1000));
        assert_eq!((pause.writes, pause.pages_per_second), (15, 10));
        let [before, after] = BarePattern::changing(SEED, PHASE, 12_000, PHASE).phases;
        assert_eq!((before.writes, after.writes), (12_000, FOR_EVER));
    }

    #[test]
    fn the_last_write_is_what_stands_there() {
        let phase = BarePhase { pages: 3, ..PHASE };
        let stamps = BarePattern::steady(SEED, phase).stamps(20, 7);
        let content = |page, stamp| [stamp, round_mark(page, stamp)];
        // Pages 10, 11, 12, 10, 11, 12, 10, and 11 is next.
        for (page, stamp) in [(9, 0), (10, 7), (11, 5), (11, 8), (12, 6)] {
            assert!(stamps.check(page, content(page, stamp)).is_ok(), "{page}");
        }
        assert!(stamps.check(11, [8, round_mark(11, 5)]).is_ok(), "between");
        for (page, stamp) in [(9, 1), (10, 4), (11, 2), (12, 3)] {
            assert!(stamps.check(page, content(page, stamp)).is_err(), "{page}");
        }
    }

    #[test]
    fn impossible_patterns_are_refused() {
        let check = |phase| BarePattern::steady(SEED, phase).check(110);
        assert!(check(PHASE).is_ok());
        assert!(
            check(BarePhase {
                pages: 101,
                ..PHASE
            })
            .is_err()
        );
        let pages_per_second = 0;
        assert!(
            check(BarePhase {
                pages_per_second,
                ..PHASE
            })
            .is_err()
        );
        let order = BareOrder::HotAndCold {
            hot_pages: 100,
            hot_percent: 90,
        };
        assert!(check(BarePhase { order, ..PHASE }).is_err());
    }
}
