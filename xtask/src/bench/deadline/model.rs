//! How long a guest takes at a rate, from what it was drawn as: what decides which
//! deadlines can be met, before anything that is under test has said a word. Pure.
//! Pages are of 4 KiB, seconds from t0.

use pacer_tests::guest::bare::BareGuest;
use pacer_tests::guest::bare::pattern::{BareOrder, BarePattern, BarePhase};
use pacer_tests::guest::program::ProgramLoad;
use pacer_tests::scenario::{Scenario, ScenarioGuest};

/// A page in the stream.
const PAGE_BYTES: f64 = 4104.0;
const ZERO_PAGE_BYTES: f64 = 9.0;
const PAGES_PER_MIB: f64 = 256.0;
/// What Linux itself leaves in memory, in MiB.
const LINUX_MIB: f64 = 100.0;
/// A program goes through what it works on, and as much beside, within so long.
const ROUND_SECONDS: f64 = 1.0;
/// What a switchover takes besides copying.
const SWITCHOVER_SECONDS: f64 = 0.1;
/// A migration of more passes than this goes on for ever.
const MOST_PASSES: u32 = 300;
/// Rates between which those that are looked for are, in bytes a second.
const RATES: (f64, f64) = (1e6, 5e8);

/// A guest, as far as its migration goes.
#[derive(Clone, Debug)]
pub(super) struct GuestModel {
    normal_pages: f64,
    zero_pages: f64,
    writing: Writing,
    change: Option<(f64, Writing)>,
    downtime_limit: f64,
}

/// How a migration begins, or goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begin {
    /// When.
    pub(super) at: f64,
    /// The share of its memory that is still to be sent.
    pub(super) left: f64,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Course {
    /// When the guest runs at the destination.
    pub(super) finish: f64,
    /// How long the pass took that it began with.
    pub(super) first_pass: f64,
}

/// What a guest writes: one phase or two, each with its writes a second.
#[derive(Clone, Debug)]
enum Writing {
    Phases(Vec<(BarePhase, f64)>),
    /// So many pages, over and over.
    Rounds(f64),
}

impl GuestModel {
    /// The guest of a scenario; `change_at` is when it changes, if it does.
    pub(super) fn of(scenario: &Scenario, change_at: Option<f64>) -> Self {
        let downtime_limit = scenario.downtime_limit.as_secs_f64();
        match scenario.guest {
            ScenarioGuest::Bare(guest) => Self::bare(&guest, change_at, downtime_limit),
            ScenarioGuest::Program { load, ram_mib } => {
                Self::program(load, ram_mib, downtime_limit)
            }
        }
    }

    fn bare(guest: &BareGuest, change_at: Option<f64>, downtime_limit: f64) -> Self {
        let set = f64::from(guest.working_set_pages);
        let normal_pages = f64::from(guest.fill_mib) * PAGES_PER_MIB + set;
        let total_pages = f64::from(guest.ram_mib) * PAGES_PER_MIB;
        let (writing, later) = match guest.pattern {
            None => (Writing::Rounds(1.0), None),
            Some(pattern) => writings(&pattern),
        };
        Self {
            normal_pages,
            zero_pages: (total_pages - normal_pages).max(0.0),
            writing,
            change: change_at.zip(later),
            downtime_limit,
        }
    }

    fn program(load: ProgramLoad, ram_mib: u32, downtime_limit: f64) -> Self {
        let normal_pages = (LINUX_MIB + f64::from(load.fill_mib)) * PAGES_PER_MIB;
        Self {
            normal_pages,
            zero_pages: (f64::from(ram_mib) * PAGES_PER_MIB - normal_pages).max(0.0),
            writing: Writing::Rounds(f64::from(load.work_mib) * PAGES_PER_MIB),
            change: None,
            downtime_limit,
        }
    }

    /// Bytes of the first pass.
    pub(super) fn first_bytes(&self) -> f64 {
        self.normal_pages * PAGE_BYTES + self.zero_pages * ZERO_PAGE_BYTES
    }

    /// The migration at a constant rate; `None` if it does not end.
    pub(super) fn course(&self, bytes_per_second: f64, begin: Begin) -> Option<Course> {
        let threshold = bytes_per_second * self.downtime_limit;
        let mut at = begin.at;
        let mut bytes = self.first_bytes() * begin.left;
        let mut first_pass = None;
        for _ in 0..MOST_PASSES {
            let until = at + bytes / bytes_per_second;
            first_pass.get_or_insert(until - at);
            bytes = self.dirtied(at, until) * PAGE_BYTES;
            at = until;
            if bytes <= threshold {
                return Some(Course {
                    finish: at + bytes / bytes_per_second + SWITCHOVER_SECONDS,
                    first_pass: first_pass?,
                });
            }
        }
        None
    }

    /// The lowest rate at which it ends, in bytes a second.
    pub(super) fn knee(&self, begin: Begin) -> Option<f64> {
        lowest(|rate| self.course(rate, begin).is_some())
    }

    /// The lowest rate at which it ends by `finish`.
    pub(super) fn rate_for(&self, finish: f64, begin: Begin) -> Option<f64> {
        lowest(|rate| {
            let course = self.course(rate, begin);
            course.is_some_and(|course| course.finish <= finish)
        })
    }

    /// Distinct pages written from one moment to another.
    fn dirtied(&self, from: f64, to: f64) -> f64 {
        match &self.change {
            Some((at, later)) => {
                let at = at.clamp(from, to);
                self.writing.pages(at - from) + later.pages(to - at)
            }
            None => self.writing.pages(to - from),
        }
    }
}

impl Writing {
    fn pages(&self, seconds: f64) -> f64 {
        match self {
            Self::Rounds(pages) => pages * (seconds / ROUND_SECONDS).min(1.0),
            Self::Phases(phases) => {
                let each = phases
                    .iter()
                    .map(|(phase, pace)| distinct(phase, pace * seconds));
                let end = phases
                    .iter()
                    .map(|(phase, _)| phase.first_page + phase.pages);
                let set = f64::from(end.max().unwrap_or(0));
                each.sum::<f64>().min(set)
            }
        }
    }
}

/// What is written first, and, of a pattern that changes once, what later.
fn writings(pattern: &BarePattern) -> (Writing, Option<Writing>) {
    let one = |phase: BarePhase| Writing::Phases(vec![(phase, f64::from(phase.pages_per_second))]);
    let [first, second] = pattern.phases;
    if !pattern.repeats {
        let later = (first != second).then(|| one(second));
        return (one(first), later);
    }
    let lasts = |phase: BarePhase| f64::from(phase.writes) / f64::from(phase.pages_per_second);
    let cycle = lasts(first) + lasts(second);
    let mean = |phase: BarePhase| (phase, f64::from(phase.writes) / cycle);
    (Writing::Phases(vec![mean(first), mean(second)]), None)
}

/// Distinct pages of so many writes.
fn distinct(phase: &BarePhase, writes: f64) -> f64 {
    let pages = f64::from(phase.pages);
    let drawn = |pages: f64, writes: f64| pages * -(-writes / pages).exp_m1();
    match phase.order {
        BareOrder::Sweep => writes.min(pages),
        BareOrder::Random => drawn(pages, writes),
        BareOrder::HotAndCold {
            hot_pages,
            hot_percent,
        } => {
            let (hot, share) = (f64::from(hot_pages), f64::from(hot_percent) / 100.0);
            drawn(hot, writes * share) + drawn(pages - hot, writes * (1.0 - share))
        }
    }
}

/// The lowest rate that will do, if the highest does.
fn lowest(will_do: impl Fn(f64) -> bool) -> Option<f64> {
    let (mut low, mut high) = RATES;
    if !will_do(high) {
        return None;
    }
    // To a thousandth: 2^-20 of the logarithm of a ratio of 500.
    for _ in 0..20 {
        let middle = (low * high).sqrt();
        if will_do(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
pub(super) mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use super::*;

    const START: Begin = Begin { at: 2.0, left: 1.0 };

    /// 100 MiB that are filled, and a set of 1000 pages written at this pace.
    fn scenario(pages_per_second: u32, order: BareOrder) -> Scenario {
        let phase = BarePhase {
            writes: u32::MAX,
            pages_per_second,
            first_page: 0,
            pages: 1000,
            order,
        };
        Scenario {
            kind: "made-up",
            guest: ScenarioGuest::Bare(BareGuest {
                ram_mib: 200,
                fill_mib: 100,
                working_set_pages: 1000,
                pattern: Some(BarePattern::steady(NonZeroU32::MIN, phase)),
                ..BareGuest::PLAIN
            }),
            bytes_per_second: 10_000_000,
            downtime_limit: Duration::from_millis(100),
            change_after: None,
        }
    }

    #[test]
    fn a_calm_guest_takes_what_its_memory_takes() {
        let model = GuestModel::of(&scenario(1, BareOrder::Sweep), None);
        let bytes = (100.0 * 256.0 + 1000.0) * 4104.0;
        assert!((model.first_bytes() / bytes - 1.0).abs() < 0.01);
        let course = model.course(10e6, START).unwrap();
        assert!(
            (course.finish - 2.0 - bytes / 10e6 - 0.1).abs() < 0.1,
            "{course:?}"
        );
        assert!((course.first_pass - bytes / 10e6).abs() < 0.1);
    }

    #[test]
    fn a_busy_guest_takes_longer_and_has_a_knee() {
        let model = GuestModel::of(&scenario(2000, BareOrder::Random), None);
        let knee = model.knee(START).unwrap();
        assert!((3e6..9e6).contains(&knee), "{knee}");
        assert!(model.course(knee * 0.95, START).is_none());
        let calm = GuestModel::of(&scenario(1, BareOrder::Sweep), None);
        let finish = |model: &GuestModel| model.course(knee * 1.5, START).unwrap().finish;
        assert!(finish(&model) > finish(&calm) + 0.1);
    }

    #[test]
    fn the_rate_that_is_found_is_in_time_and_the_lowest() {
        let model = GuestModel::of(&scenario(1000, BareOrder::Random), None);
        let rate = model.rate_for(20.0, START).unwrap();
        assert!(model.course(rate, START).unwrap().finish <= 20.0);
        assert!(model.course(rate * 0.99, START).unwrap().finish > 20.0);
        assert_eq!(model.rate_for(1.0, START), None, "it begins later");
    }

    #[test]
    fn a_guest_is_another_after_its_change() {
        let before = scenario(200, BareOrder::Sweep);
        let pace = pacer_tests::scenario::change::GuestChange::Pace { times: 20 };
        let after = before.changing(pace, Duration::from_secs(30)).unwrap();
        let model = GuestModel::of(&after, Some(10.0));
        assert!((model.dirtied(8.0, 10.0) - 400.0).abs() < 1e-6);
        assert!((model.dirtied(9.9, 10.1) - 420.0).abs() < 1e-6);
        let late = Begin {
            at: 10.0,
            left: 0.5,
        };
        assert!(model.knee(late).unwrap() > model.knee(START).unwrap() * 0.99);
    }
}
