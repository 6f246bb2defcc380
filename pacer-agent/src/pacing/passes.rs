//! QEMU's pre-copy, pass after pass, as a calculation.
//!
//! Seconds, pages and bytes are floats here: these are expectations.

use super::dirty_curve::DirtyCurve;
use super::non_negative::COLUMNS;
use super::number::to_f64;
use super::sample::PARTS;
use super::write_class::{Windows, WriteClass, limit};

/// Bytes on the wire of a page sent with its content: 8 of header.
pub const NORMAL_PAGE_BYTES: f64 = 4104.0;
/// Bytes on the wire of a page announced as zero.
pub const ZERO_PAGE_BYTES: f64 = 9.0;
/// Bytes of a page as QEMU counts what remains.
pub const PAGE_BYTES: f64 = 4096.0;
/// How long QEMU takes to notice a change of rate: it measures over 100 ms, and
/// a measurement that straddles the change is between the two.
const MEASURING_SECONDS: f64 = 0.15;
/// QEMU sends for so long (`MAX_WAIT` in its `migration/ram.c`) before it looks
/// again at what is left, so that no pass is shorter.
pub(super) const ROUND_SECONDS: f64 = 0.05;
/// A class is known once a window has been observed that is so many times as long as
/// its interval, the reciprocal of this.
const SELDOM: f64 = 0.5;
/// Passes followed at most; what takes more does not converge in practice.
const PASSES: u32 = 200;
/// Passes followed before the sprint if they do not settle.
const PATIENCE: u32 = 24;

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct State {
    /// Pages with content that QEMU knows dirty and has not sent.
    pub normal_pages: f64,
    /// Pages it has yet to announce as zero.
    pub zero_pages: f64,
    /// Seconds since the present pass began.
    pub pass_seconds: f64,
    /// How long the window was, in seconds, whose pages are being sent; `None` in
    /// the first pass, which sends them all.
    pub sent_window: Option<f64>,
    /// All of the guest's pages.
    pub total_pages: f64,
    /// In the first pass, which goes through them in order: the share of each part
    /// of them that is not zero, in 255ths, where that is known.
    pub content_parts: Option<[u8; PARTS]>,
    /// Bytes between QEMU and the bucket: they delay the arrival.
    pub buffered_bytes: f64,
    /// Bytes a second that QEMU measured last; its threshold follows it.
    pub measured_rate: f64,
    /// The guest is stopped: only the rest is on its way.
    pub stopped: bool,
}

impl State {
    /// Bytes on the wire that the present pass has left.
    #[must_use]
    pub fn pending_bytes(&self) -> f64 {
        self.normal_pages * NORMAL_PAGE_BYTES + self.zero_pages * ZERO_PAGE_BYTES
    }
}

/// What does not change while a migration runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// The longest QEMU may estimate its last copy to take, in seconds.
    pub downtime_limit: f64,
    /// Bytes a second once the bucket is open.
    pub link_rate: f64,
    /// Seconds of a switchover that are not copying.
    pub overhead: f64,
}

/// A rate, and from some moment on another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Bytes a second from now on.
    pub rate: f64,
    /// Seconds from now at which the sprint begins.
    pub sprint_at: f64,
    /// Bytes a second from then on.
    pub sprint: f64,
}

impl Plan {
    /// One rate for good.
    #[must_use]
    pub const fn constant(rate: f64) -> Self {
        Self {
            rate,
            sprint_at: 0.0,
            sprint: rate,
        }
    }

    const fn rate_at(&self, seconds: f64) -> f64 {
        if seconds < self.sprint_at {
            self.rate
        } else {
            self.sprint
        }
    }

    /// What QEMU takes the bandwidth to be. A rise is noticed late; a fall is
    /// taken as noticed at once, which errs towards another pass.
    fn measured_at(&self, seconds: f64, before: f64) -> f64 {
        let earlier = seconds - MEASURING_SECONDS;
        let old = if earlier < -1e-9 {
            before
        } else {
            self.rate_at(earlier + 1e-9)
        };
        old.min(self.rate_at(seconds))
    }

    /// The next moment at which the rate or QEMU's idea of it changes.
    fn next_change(&self, seconds: f64) -> f64 {
        [
            MEASURING_SECONDS,
            self.sprint_at,
            self.sprint_at + MEASURING_SECONDS,
        ]
        .into_iter()
        .filter(|&change| change > seconds + 1e-9)
        .fold(f64::INFINITY, f64::min)
    }
}

/// How the guest dirties memory, as one forecast supposes it.
#[derive(Clone, Copy, Debug)]
pub struct Dirtying<'a> {
    /// The learned curve; `None` supposes that nothing is written.
    pub curve: Option<&'a DirtyCurve>,
    /// Times as many pages as the curve says.
    pub level: f64,
    /// Times as many pages that are written so seldom that no window observed has
    /// shown how many they are. As many of them are written in a short window: what
    /// was observed stays as it is, and what was not grows in proportion at most.
    pub extent: f64,
    /// Times as fast as it was seen to work.
    pub pace: f64,
}

impl<'a> Dirtying<'a> {
    /// What the curve says.
    #[must_use]
    pub const fn expected(curve: Option<&'a DirtyCurve>) -> Self {
        Self {
            curve,
            level: 1.0,
            extent: 1.0,
            pace: 1.0,
        }
    }

    /// Pages found dirty by the sync that ends a pass of this length.
    #[must_use]
    pub fn pages_after(&self, pass_seconds: f64, total_pages: f64) -> f64 {
        let windows = Windows::of_pass(pass_seconds, total_pages);
        let classes = self.classes(total_pages);
        classes.iter().map(|class| class.found(windows)).sum()
    }

    /// The guest's pages by how they are written; no more than it has.
    fn classes(&self, total_pages: f64) -> [WriteClass; COLUMNS] {
        let Some(curve) = self.curve else {
            return [WriteClass::NONE; COLUMNS];
        };
        let mut classes = *curve.classes();
        let longest = curve.longest_window();
        for class in &mut classes {
            class.pages *= self.level;
            if class.seconds > longest * SELDOM {
                // Not on fewer pages than were seen.
                let least = longest.min(class.seconds) / class.seconds;
                let extent = self.extent.max(least);
                class.pages *= extent;
                class.seconds *= extent;
            }
            class.seconds /= self.pace;
        }
        limit(&mut classes, total_pages);
        classes
    }
}

/// What QEMU knows dirty. Pages that are written again while they wait to be sent
/// are sent once: which, depends on how often each is written.
#[derive(Clone, Copy)]
struct Waiting {
    classes: [WriteClass; COLUMNS],
    /// The first so many classes have pages: most of a fit have none.
    used: usize,
    /// Those of each that QEMU knows dirty and has not sent.
    dirty: [f64; COLUMNS],
    /// Pages with content that are not written.
    cold: f64,
    zero: f64,
    total: f64,
    /// In the first pass.
    spread: Option<Spread>,
}

/// Where in the guest's memory there is content, by a sample.
#[derive(Clone, Copy)]
struct Spread {
    /// Pages with content in so many last parts.
    of_last: [f64; PARTS + 1],
    part_pages: f64,
}

impl Spread {
    fn new(parts: &[u8; PARTS], total_pages: f64) -> Self {
        let part_pages = total_pages / to_f64(PARTS as u64);
        let mut of_last = [0.0; PARTS + 1];
        for (number, &part) in parts.iter().rev().enumerate() {
            of_last[number + 1] = of_last[number] + part_pages * f64::from(part) / 255.0;
        }
        Self {
            of_last,
            part_pages,
        }
    }

    /// Pages with content among so many last ones.
    fn content_of_last(&self, pages: f64) -> f64 {
        let parts = (pages / self.part_pages).clamp(0.0, to_f64(PARTS as u64));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "no less than none and no more than all parts"
        )]
        let whole = parts as usize;
        let [before, after] = [whole, (whole + 1).min(PARTS)].map(|parts| self.of_last[parts]);
        before + (after - before) * parts.fract()
    }
}

impl Waiting {
    fn of(state: &State, dirtying: &Dirtying<'_>) -> Self {
        let mut classes = dirtying.classes(state.total_pages);
        let used = used_first(&mut classes);
        let windows = state
            .sent_window
            .map(|seconds| Windows::of_pass(seconds, state.total_pages));
        let normal = state.normal_pages;
        let left = ((normal + state.zero_pages) / state.total_pages).min(1.0);
        // In the first pass the same share of all is left.
        let mut dirty =
            classes.map(|class| windows.map_or(class.pages * left, |windows| class.found(windows)));
        let mut hot: f64 = dirty.iter().sum();
        // As many as are left, whatever was found; what is more is not written.
        if hot > normal {
            dirty = dirty.map(|pages| pages * normal / hot);
            hot = normal;
        }
        Self {
            classes,
            used,
            dirty,
            cold: normal - hot,
            zero: state.zero_pages,
            total: state.total_pages,
            spread: state
                .content_parts
                .map(|parts| Spread::new(&parts, state.total_pages)),
        }
    }

    fn normal(&self) -> f64 {
        self.cold + self.dirty[..self.used].iter().sum::<f64>()
    }

    fn pages(&self) -> f64 {
        self.normal() + self.zero
    }

    fn bytes(&self) -> f64 {
        self.normal() * NORMAL_PAGE_BYTES + self.zero * ZERO_PAGE_BYTES
    }

    /// So many bytes of it are sent.
    fn send(&mut self, bytes: f64) {
        /// Halvings of the number of pages.
        const HALVINGS: u32 = 20;
        let target = self.bytes() - bytes;
        let (mut low, mut high) = (0.0, self.pages());
        if self.spread.is_none() {
            // In proportion.
            high *= (target / self.bytes().max(1.0)).clamp(0.0, 1.0);
            return self.keep(self.last(high));
        }
        let last = self.lasts();
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(low, high);
            if last(middle).bytes() > target {
                high = middle;
            } else {
                low = middle;
            }
        }
        let left = last(high);
        drop(last);
        self.keep(left);
    }

    /// No more than this is left.
    fn keep(&mut self, left: Left) {
        let normal = self.normal();
        self.zero = left.zero;
        let kept = if normal > 0.0 {
            left.normal / normal
        } else {
            0.0
        };
        self.cold *= kept;
        for pages in &mut self.dirty[..self.used] {
            *pages *= kept;
        }
    }

    /// What is in so many last pages.
    fn last(&self, pages: f64) -> Left {
        self.lasts()(pages)
    }

    /// Of so many last pages, what is in them: a like part of everything, but in the
    /// first pass what is there. The sample says how it is spread, not how much it is.
    fn lasts(&self) -> impl Fn(f64) -> Left {
        let (normal, zero) = (self.normal(), self.zero);
        let share = normal / (normal + zero).max(1.0);
        let spread = self.spread.map(|spread| {
            let of_all = spread.content_of_last(normal + zero);
            let ratio = if of_all > 0.0 { normal / of_all } else { 1.0 };
            (spread, ratio)
        });
        move |pages| {
            let content = spread.map(|(spread, ratio)| spread.content_of_last(pages) * ratio);
            // The two ends may be the same but for rounding, which `clamp` would not bear.
            let (least, most) = (pages - zero.min(pages), pages.min(normal));
            let normal = content.unwrap_or(pages * share).max(least).min(most);
            Left {
                normal,
                zero: pages - normal,
            }
        }
    }

    /// A sync after a pass of this length; the pages it found.
    fn sync(&mut self, pass_seconds: f64) -> f64 {
        self.spread = None;
        let windows = Windows::of_pass(pass_seconds, self.total);
        let mut found = 0.0;
        let used = self.classes[..self.used].iter();
        for (class, dirty) in used.zip(&mut self.dirty) {
            let written = class.found(windows);
            found += written;
            if written > 0.0 {
                *dirty = class.with(*dirty, written);
            }
        }
        found
    }
}

/// Pages that are left.
#[derive(Clone, Copy)]
struct Left {
    normal: f64,
    zero: f64,
}

impl Left {
    fn bytes(self) -> f64 {
        self.normal * NORMAL_PAGE_BYTES + self.zero * ZERO_PAGE_BYTES
    }
}

/// Puts the classes that have pages before those that have none; their number.
fn used_first(classes: &mut [WriteClass; COLUMNS]) -> usize {
    let mut used = 0;
    for index in 0..classes.len() {
        if classes[index].pages > 0.0 {
            classes.swap(used, index);
            used += 1;
        }
    }
    used
}

/// How a migration ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Seconds from now until the guest runs at the destination; infinite where
    /// it never does.
    pub finish: f64,
    /// Seconds from STOP until then.
    pub downtime: f64,
    /// Bytes on the wire from now on.
    pub bytes: f64,
    /// Syncs from now on.
    pub passes: u32,
}

impl Outcome {
    const NEVER: Self = Self {
        finish: f64::INFINITY,
        downtime: f64::INFINITY,
        bytes: f64::INFINITY,
        passes: PASSES,
    };

    /// Whether the migration ends at all.
    #[must_use]
    pub const fn converges(&self) -> bool {
        self.finish.is_finite()
    }
}

/// Follows `plan` to its end. At most 200 passes are looked at, and a sync that
/// finds and leaves as much as the one before it, both after whole passes at the
/// same rate, ends the search: the curve is monotone, so it goes on like that.
#[must_use]
pub fn simulate(state: &State, plan: &Plan, dirtying: &Dirtying<'_>, terms: &Terms) -> Outcome {
    let mut now = Waiting::of(state, dirtying);
    if state.stopped {
        return switchover(&now, state, 0.0, now.bytes(), 0, terms);
    }
    let mut at = 0.0;
    let mut sent = 0.0;
    let mut pass_seconds = state.pass_seconds;
    let (mut settled_found, mut settled_pending) = (f64::INFINITY, f64::INFINITY);
    let mut last_found = f64::NAN;
    for passes in 1..=PASSES {
        let settled = at > plan.sprint_at + MEASURING_SECONDS;
        let is_new = pass_seconds == 0.0;
        let Some((seconds, bytes)) = finish_pass(&mut now, is_new, at, plan, state, terms) else {
            return Outcome::NEVER;
        };
        at += seconds;
        sent += bytes;
        let found = now.sync(pass_seconds + seconds);
        pass_seconds = 0.0;
        let threshold = plan.measured_at(at, state.measured_rate) * terms.downtime_limit;
        // A page of grace: with nothing found, what is left is the threshold.
        if (now.pages() - 1.0) * PAGE_BYTES <= threshold {
            return switchover(&now, state, at, sent + now.bytes(), passes, terms);
        }
        let pending = now.normal();
        let grows = found >= settled_found * 0.9999;
        if settled && grows && pending >= settled_pending * 0.9999 {
            return Outcome::NEVER;
        }
        if settled {
            (settled_found, settled_pending) = (found, pending);
        }
        // Long before the sprint QEMU goes round and round over the same set:
        // once passes are alike, the rest of them need not be followed.
        let alike = (found - last_found).abs() <= 0.02 * last_found;
        if (alike || passes % PATIENCE == 0) && at < plan.sprint_at {
            sent += plan.rate * (plan.sprint_at - at);
            at = plan.sprint_at;
        }
        last_found = found;
    }
    Outcome::NEVER
}

fn switchover(
    rest: &Waiting,
    state: &State,
    at: f64,
    bytes: f64,
    passes: u32,
    terms: &Terms,
) -> Outcome {
    let rest = rest.bytes() + state.buffered_bytes;
    let downtime = rest / terms.link_rate.max(1.0) + terms.overhead;
    Outcome {
        finish: at + downtime,
        downtime,
        bytes,
        passes,
    }
}

/// Sends until no more is left than QEMU's threshold, `at` seconds from now.
/// `None` where that never happens, else the seconds and bytes it took.
fn finish_pass(
    now: &mut Waiting,
    is_new: bool,
    at: f64,
    plan: &Plan,
    state: &State,
    terms: &Terms,
) -> Option<(f64, f64)> {
    let mut seconds = 0.0;
    let mut sent = 0.0;
    // Three changes of rate at most, and the end.
    for _ in 0..5 {
        let rate = plan.rate_at(at + seconds);
        let measured = plan.measured_at(at + seconds, state.measured_rate);
        let (pages, pending) = (now.pages(), now.bytes());
        let round = rate * ROUND_SECONDS * pages / pending.max(1.0);
        let mut surplus = pages - measured * terms.downtime_limit / PAGE_BYTES;
        if surplus > 0.0 {
            // It looks only after a round, and by then has sent half of one more.
            surplus += round / 2.0;
        }
        if is_new && seconds == 0.0 && pages > 0.0 {
            surplus = surplus.max(round);
        }
        surplus = surplus.min(pages);
        if surplus.is_nan() || surplus <= 0.0 {
            return Some((seconds, sent));
        }
        let left = now.last(pages - surplus);
        let bytes = pending - left.bytes();
        let needed = bytes / rate;
        let change = plan.next_change(at + seconds) - (at + seconds);
        if needed.min(change) >= 1e12 {
            return None;
        }
        let share = if needed <= change {
            1.0
        } else {
            change / needed
        };
        if share < 1.0 {
            now.send(bytes * share);
        } else {
            now.keep(left);
        }
        seconds += needed * share;
        sent += bytes * share;
        if needed <= change {
            return Some((seconds, sent));
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::pacing::sample::{DirtyWindow, Origin};
    use crate::pacing::time::Time;

    pub(in crate::pacing) const TERMS: Terms = Terms {
        downtime_limit: 0.3,
        link_rate: 100e6,
        overhead: 0.06,
    };

    pub(in crate::pacing) fn fresh(pages: f64) -> State {
        State {
            normal_pages: pages / 2.0,
            zero_pages: pages / 2.0,
            pass_seconds: 0.0,
            sent_window: None,
            content_parts: None,
            total_pages: pages,
            buffered_bytes: 0.0,
            measured_rate: 0.0,
            stopped: false,
        }
    }

    pub(in crate::pacing) fn working_set(total: u64, set: u64, per_second: u64) -> DirtyCurve {
        let mut curve = DirtyCurve::new(total);
        for millis in [50, 200, 1000, 3000, 10_000] {
            let window = DirtyWindow {
                window: Duration::from_millis(millis),
                pages: (per_second * millis / 1000).min(set),
                device_pages: 0,
                origin: Origin::DirtyLog,
            };
            curve.observe(window, Time::ZERO);
        }
        curve
    }

    #[test]
    fn an_idle_guest_takes_one_pass() {
        let idle = Dirtying::expected(None);
        let outcome = simulate(&fresh(100_000.0), &Plan::constant(10e6), &idle, &TERMS);
        let sweep = fresh(100_000.0).pending_bytes() / 10e6;
        assert_eq!(outcome.passes, 1);
        assert!((outcome.finish - sweep).abs() < 0.3, "{outcome:?} {sweep}");
    }

    #[test]
    fn a_hot_guest_converges_only_above_its_dirty_rate() {
        let curve = working_set(100_000, 50_000, 5000);
        let hot = Dirtying::expected(Some(&curve));
        let at = |rate| simulate(&fresh(100_000.0), &Plan::constant(rate), &hot, &TERMS);
        assert!(!at(15e6).converges());
        assert!(at(40e6).converges());
    }

    #[test]
    fn a_small_set_that_is_rewritten_over_and_over_ends() {
        // 2,000 pages, all of them written in a tenth of a second: no pass can find
        // more, and the threshold is 3,662 at 50 MB/s.
        let mut curve = DirtyCurve::new(100_000);
        for millis in [50, 100, 200, 1000, 5000, 20_000] {
            let window = DirtyWindow {
                window: Duration::from_millis(millis),
                pages: (millis * 20).min(2000),
                device_pages: 0,
                origin: Origin::DirtyLog,
            };
            curve.observe(window, Time::ZERO);
        }
        let hot = Dirtying::expected(Some(&curve));
        let outcome = simulate(&fresh(100_000.0), &Plan::constant(50e6), &hot, &TERMS);
        let sweep = fresh(100_000.0).pending_bytes() / 50e6;
        assert!(outcome.converges() && outcome.passes <= 3, "{outcome:?}");
        assert!((outcome.finish - sweep).abs() < 0.6, "{outcome:?} {sweep}");
    }

    #[test]
    fn zero_pages_at_the_end_take_no_time_before_it() {
        // The first quarter has all the content; the rate is noticed after 0.15 s.
        let mut parts = [0; PARTS];
        parts[..PARTS / 4].fill(255);
        let state = State {
            normal_pages: 100_000.0,
            zero_pages: 300_000.0,
            total_pages: 400_000.0,
            content_parts: Some(parts),
            ..fresh(400_000.0)
        };
        let idle = Dirtying::expected(None);
        let outcome = simulate(&state, &Plan::constant(50e6), &idle, &TERMS);
        let sweep = state.pending_bytes() / 50e6;
        assert!((outcome.finish - sweep).abs() < 0.2, "{outcome:?} {sweep}");
    }

    #[test]
    fn a_closed_plan_never_ends() {
        let idle = Dirtying::expected(None);
        let outcome = simulate(&fresh(1000.0), &Plan::constant(0.0), &idle, &TERMS);
        assert!(!outcome.converges());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn any_state_has_an_outcome(
            pages in 0.0_f64..1e9,
            normal in 0.0_f64..=1.0,
            left in 0.0_f64..=1.0,
            parts in prop::option::of(prop::array::uniform32(any::<u8>())),
            (seconds, window) in (0.0_f64..1e4, prop::option::of(0.0_f64..1e4)),
            (set, per_second) in (1_u64..1 << 24, 1_u64..1 << 20),
            rate in prop_oneof![0.0_f64..1e12, Just(0.0), Just(1.0)],
            (level, extent) in (0.0_f64..10.0, 0.01_f64..100.0),
            stopped: bool,
        ) {
            let curve = working_set(1 << 22, set, per_second);
            let dirtying = Dirtying { level, extent, ..Dirtying::expected(Some(&curve)) };
            let left = pages * left;
            let state = State {
                normal_pages: left * normal,
                zero_pages: left - left * normal,
                pass_seconds: seconds,
                sent_window: window,
                content_parts: parts,
                total_pages: pages,
                stopped,
                ..fresh(pages)
            };
            let outcome = simulate(&state, &Plan::constant(rate), &dirtying, &TERMS);
            prop_assert!(!outcome.finish.is_nan() && outcome.finish >= 0.0);
            prop_assert!(!outcome.bytes.is_nan() && !outcome.downtime.is_nan());
        }
    }
}
