//! Which migration is made in which run: drawn from seed and index alone. Whether
//! its deadline can be met is known from what the guest was drawn as.

use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;
use pacer_tests::scenario::change::GuestChange;
use pacer_tests::scenario::run::SETTLE;
use pacer_tests::scenario::timed::{Aim, LinkChange, TO_T0, Timed};
use pacer_tests::scenario::{Scenario, ScenarioGuest};
use serde_json::{Value, json};

use super::model::{Begin, GuestModel};
use crate::bench::seed::rng;

/// What a run is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Class {
    /// Feasible, and nothing happens.
    #[default]
    Undisturbed,
    /// Half-way the guest writes four times as much.
    DirtyRate,
    /// Half-way the guest writes to other pages.
    SetMoves,
    /// Half-way the link takes half as much for 10 s.
    LinkHalved,
    /// Half-way the link is down for 5 s.
    LinkDown,
    /// The deadline cannot be met.
    Infeasible,
    /// Half-way the link becomes too slow for good.
    LinkFalls,
    /// The same guest by QEMU alone and through the relay.
    Downtime,
}

/// Runs of each class in turn; what comes first is for those who have little time.
const CYCLE: [Class; 15] = [
    Class::Undisturbed,
    Class::LinkHalved,
    Class::Infeasible,
    Class::DirtyRate,
    Class::Downtime,
    Class::Undisturbed,
    Class::LinkDown,
    Class::Undisturbed,
    Class::Infeasible,
    Class::SetMoves,
    Class::Undisturbed,
    Class::Downtime,
    Class::Undisturbed,
    Class::LinkFalls,
    Class::Undisturbed,
];
/// 120 runs.
pub(super) const FULL: usize = CYCLE.len() * 8;
pub(super) const QUICK: usize = 5;

/// Seconds.
const DEADLINES: (f64, f64) = (20.0, 300.0);
/// An infeasible run lasts longer than its deadline.
const INFEASIBLE_DEADLINES: (f64, f64) = (20.0, 90.0);
const QUICK_DEADLINES: (f64, f64) = (20.0, 24.0);
/// Of those whose link is slow for 10 s from half-way on, so that it ends before.
const LEAST_HALVED: f64 = 30.0;
/// The deadline over the earliest finish: well above 1.2, well below 0.8, so that the
/// simulation of what was recorded finds them there too.
const FEASIBLE: (f64, f64) = (1.3, 5.0);
const INFEASIBLE: (f64, f64) = (0.4, 0.72);
/// A rate nearer to the knee is no feasible one.
const OVER_KNEE: f64 = 1.3;
/// What QEMU and two agents carry here for sure, in bytes a second, and what is too slow
/// for anything.
const HIGHEST_RATE: f64 = 100e6;
const LOWEST_RATE: f64 = 2e6;
/// The link carries so much more than the stream.
const OVERHEAD: f64 = 1.03;
/// Before the first byte: the usual windows, and longer ones.
const MEASURING: (f64, f64) = (1.5, 0.1);
/// What a link that is away or halved costs of the time after it.
const LINK_LOSS: f64 = 5.0;
/// Most of the work that can be left half-way, by a controller that hurries slowly.
const LEFT_HALF_WAY: f64 = 0.65;
/// A pace the guest keeps up with after it is four times that.
const SLOW_PAGES_PER_SECOND: u32 = 2000;
const TIMES: u32 = 4;
/// Of paths that are not the loopback.
const ROUND_TRIPS_MS: Range<u64> = 20..60;
/// Draws before it is a bug.
const MOST_DRAWS: usize = 2000;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Drawn {
    pub(super) class: Class,
    pub(super) timed: Timed,
    /// When the guest would arrive at the highest rate, by its model; `None` of a
    /// downtime.
    pub(super) earliest: Option<f64>,
    /// Of a downtime: which is first.
    pub(super) relay_first: bool,
}

impl Class {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Undisturbed => "undisturbed",
            Self::DirtyRate => "dirty-rate",
            Self::SetMoves => "set-moves",
            Self::LinkHalved => "link-halved",
            Self::LinkDown => "link-down",
            Self::Infeasible => "infeasible",
            Self::LinkFalls => "link-falls",
            Self::Downtime => "downtime",
        }
    }

    pub(super) fn from_word(word: &str) -> Option<Self> {
        CYCLE.into_iter().find(|class| class.word() == word)
    }

    /// Disturbed, and the deadline can still be met.
    pub(super) const fn is_disturbed(self) -> bool {
        matches!(
            self,
            Self::DirtyRate | Self::SetMoves | Self::LinkHalved | Self::LinkDown
        )
    }

    const fn change(self) -> Option<GuestChange> {
        match self {
            Self::DirtyRate => Some(GuestChange::Pace { times: TIMES }),
            Self::SetMoves => Some(GuestChange::Set),
            _ => None,
        }
    }
}

/// The run of this index.
pub(super) fn draw(seed: u64, index: usize, quick: bool) -> Drawn {
    let class = CYCLE[index % CYCLE.len()];
    let mut rng = rng(seed, index);
    let before = (0..index).filter(|&index| CYCLE[index % CYCLE.len()] == class);
    let nth = before.count();
    // Each class begins at another kind, and every kind comes round; one that does not
    // suit gives way to another.
    let first = CYCLE.iter().position(|&other| other == class).unwrap_or(0);
    (0..MOST_DRAWS)
        .find_map(|attempt| {
            let scenario = Scenario::draw(first * 2 + nth + attempt * 5, &mut rng);
            try_draw((class, nth), scenario, quick, &mut rng)
        })
        .expect("every class has kinds that suit, which a test sees to")
}

fn try_draw(
    (class, nth): (Class, usize),
    scenario: Scenario,
    quick: bool,
    rng: &mut Rng,
) -> Option<Drawn> {
    // Guests that change do so where a class says, and not beside.
    if scenario.changes() {
        return None;
    }
    match class {
        Class::Downtime => downtime(nth, scenario, rng),
        Class::Infeasible => infeasible(scenario, quick, rng),
        Class::LinkFalls => link_falls(scenario, quick, rng),
        Class::Undisturbed => undisturbed(scenario, quick, rng),
        Class::DirtyRate | Class::SetMoves => guest_changes(class, scenario, quick, rng),
        Class::LinkHalved | Class::LinkDown => link_changes(class, scenario, quick, rng),
    }
}

fn downtime(nth: usize, scenario: Scenario, rng: &mut Rng) -> Option<Drawn> {
    (!scenario.kind.ends_with("beyond-knee")).then(|| Drawn {
        class: Class::Downtime,
        timed: Timed {
            scenario,
            aim: Aim::Rate,
            max_rate: None,
            link: None,
            link_change: None,
            // Every other pair over a path with a round trip.
            delay: (nth % 2 == 1).then(|| Duration::from_millis(rng.u64(ROUND_TRIPS_MS) / 2)),
            give_up: pacer_tests::scenario::run::GIVE_UP,
        },
        earliest: None,
        relay_first: rng.bool(),
    })
}

fn undisturbed(scenario: Scenario, quick: bool, rng: &mut Rng) -> Option<Drawn> {
    let deadline = deadline(DEADLINES, quick, rng);
    let model = GuestModel::of(&scenario, None);
    let limited = rng.u32(..3);
    let rate = match limited {
        0 => HIGHEST_RATE,
        _ => feasible_rate(&model, deadline, rng)?,
    };
    let earliest = model.course(rate, begin(deadline))?.finish;
    if earliest * FEASIBLE.0 > deadline {
        return None;
    }
    let limits = match limited {
        0 => (None, None),
        1 => (Some(rate), None),
        _ => (None, Some(rate)),
    };
    Some(drawn(
        Class::Undisturbed,
        scenario,
        deadline,
        limits,
        earliest,
        rng,
    ))
}

fn link_changes(class: Class, scenario: Scenario, quick: bool, rng: &mut Rng) -> Option<Drawn> {
    let mut deadline = deadline(DEADLINES, quick, rng);
    if class == Class::LinkHalved {
        deadline = deadline.max(LEAST_HALVED);
    }
    let model = GuestModel::of(&scenario, None);
    let rate = feasible_rate(&model, deadline, rng)?;
    let course = model.course(rate, begin(deadline))?;
    let half = deadline / 2.0;
    let begin = Begin {
        at: half,
        left: LEFT_HALF_WAY,
    };
    let rest = model.course(rate, begin)?.finish + LINK_LOSS - half;
    if rest * FEASIBLE.0 > half || course.finish * FEASIBLE.0 > deadline {
        return None;
    }
    let link = on_wire(rate);
    let model = match class {
        Class::LinkHalved => format!("0:{}B/s,10:{link}B/s", link / 2),
        _ => format!("0:down,5:{link}B/s"),
    };
    let mut drawn = drawn(
        class,
        scenario,
        deadline,
        (None, Some(rate)),
        course.finish,
        rng,
    );
    drawn.timed.link_change = Some(LinkChange {
        after: Duration::from_secs_f64(half),
        model,
    });
    Some(drawn)
}

fn guest_changes(class: Class, scenario: Scenario, quick: bool, rng: &mut Rng) -> Option<Drawn> {
    let deadline = deadline(DEADLINES, quick, rng);
    let half = deadline / 2.0;
    let after = SETTLE + TO_T0 + Duration::from_secs_f64(half);
    let slowed = if class == Class::DirtyRate {
        slowed(scenario)
    } else {
        scenario
    };
    let changed = slowed.changing(class.change()?, after)?;
    let model = GuestModel::of(&changed, Some(half));
    let rest = Begin {
        at: half,
        left: LEFT_HALF_WAY,
    };
    let is_limited = rng.bool();
    let rate = match is_limited {
        true => feasible_rate(&model, deadline, rng)?.max(model.knee(rest)? * OVER_KNEE),
        false => HIGHEST_RATE,
    };
    let course = model.course(rate, begin(deadline))?;
    let later = model.course(rate, rest)?.finish - half;
    if later * FEASIBLE.0 > half || course.finish * FEASIBLE.0 > deadline || rate > HIGHEST_RATE {
        return None;
    }
    let limits = (is_limited.then_some(rate), None);
    Some(drawn(class, changed, deadline, limits, course.finish, rng))
}

/// Only guests whose earliest finish their model knows well.
fn infeasible(scenario: Scenario, quick: bool, rng: &mut Rng) -> Option<Drawn> {
    if matches!(scenario.guest, ScenarioGuest::Program { .. }) {
        return None;
    }
    let deadline = deadline(INFEASIBLE_DEADLINES, quick, rng);
    let share = if quick {
        INFEASIBLE.1
    } else {
        between(INFEASIBLE, rng)
    };
    let model = GuestModel::of(&scenario, None);
    let begin = begin(deadline);
    let rate = model.rate_for(deadline / share, begin)?;
    if rate < model.knee(begin)? * OVER_KNEE || !(LOWEST_RATE..HIGHEST_RATE).contains(&rate) {
        return None;
    }
    let earliest = model.course(rate, begin)?.finish;
    let limits = if rng.bool() {
        (Some(rate), None)
    } else {
        (None, Some(rate))
    };
    Some(drawn(
        Class::Infeasible,
        scenario,
        deadline,
        limits,
        earliest,
        rng,
    ))
}

/// Of guests that write nothing: how much is left then follows from the deadline.
fn link_falls(scenario: Scenario, quick: bool, rng: &mut Rng) -> Option<Drawn> {
    if !scenario.kind.starts_with("none-") {
        return None;
    }
    let deadline = deadline(INFEASIBLE_DEADLINES, quick, rng);
    let model = GuestModel::of(&scenario, None);
    let rate = feasible_rate(&model, deadline, rng)?;
    let earliest = model.course(rate, begin(deadline))?.finish;
    let after = model.first_bytes() / deadline * 0.5;
    if earliest * FEASIBLE.0 > deadline || after < LOWEST_RATE / 2.0 {
        return None;
    }
    let limits = (None, Some(rate));
    let mut drawn = drawn(Class::LinkFalls, scenario, deadline, limits, earliest, rng);
    drawn.timed.link_change = Some(LinkChange {
        after: Duration::from_secs_f64(deadline / 2.0),
        model: format!("0:{}B/s", on_wire(after)),
    });
    Some(drawn)
}

/// A highest rate at which the deadline can be met, with more or less to spare.
fn feasible_rate(model: &GuestModel, deadline: f64, rng: &mut Rng) -> Option<f64> {
    let begin = begin(deadline);
    let rate = model.rate_for(deadline / between(FEASIBLE, rng), begin)?;
    let rate = rate.max(model.knee(begin)? * OVER_KNEE).max(LOWEST_RATE);
    (rate <= HIGHEST_RATE).then_some(rate)
}

fn begin(deadline: f64) -> Begin {
    Begin {
        at: MEASURING.0 + MEASURING.1 * deadline,
        left: 1.0,
    }
}

/// With `--max-rate`, or a link, of so many bytes of the stream a second.
fn drawn(
    class: Class,
    scenario: Scenario,
    deadline: f64,
    (max_rate, link): (Option<f64>, Option<f64>),
    earliest: f64,
    rng: &mut Rng,
) -> Drawn {
    let after = Duration::from_millis(whole(deadline * 1000.0));
    Drawn {
        class,
        timed: Timed {
            scenario,
            aim: if rng.bool() {
                Aim::Deadline(after)
            } else {
                Aim::FinishAt(after)
            },
            max_rate: max_rate.map(whole),
            link: link.map(on_wire),
            link_change: None,
            delay: None,
            give_up: Duration::from_secs_f64(deadline.max(earliest) * 2.0 + 60.0),
        },
        earliest: Some(earliest),
        relay_first: false,
    }
}

/// The same guest, no faster than a quarter of what it can.
fn slowed(mut scenario: Scenario) -> Scenario {
    if let ScenarioGuest::Bare(guest) = &mut scenario.guest
        && let Some(pattern) = &mut guest.pattern
    {
        for phase in &mut pattern.phases {
            phase.pages_per_second = phase.pages_per_second.min(SLOW_PAGES_PER_SECOND);
        }
    }
    scenario
}

fn deadline(range: (f64, f64), quick: bool, rng: &mut Rng) -> f64 {
    between(if quick { QUICK_DEADLINES } else { range }, rng)
}

/// Log-uniform.
fn between((low, high): (f64, f64), rng: &mut Rng) -> f64 {
    low * (high / low).powf(rng.f64())
}

fn on_wire(bytes_per_second: f64) -> u64 {
    whole(bytes_per_second * OVERHEAD)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates and times: small and not negative"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

impl Drawn {
    /// The deadline, in seconds from t0.
    pub(super) fn deadline(&self) -> Option<f64> {
        match self.timed.aim {
            Aim::Deadline(after) | Aim::FinishAt(after) => Some(after.as_secs_f64()),
            Aim::Rate => None,
        }
    }

    /// The most of the stream that may be sent, in bytes a second.
    pub(super) fn highest_rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "rates are far below 2^53")]
        let rate = |rate: u64| rate as f64;
        let link = self.timed.link.map(|link| rate(link) / OVERHEAD);
        let highest = self.timed.max_rate.map(rate).or(link);
        highest.unwrap_or(HIGHEST_RATE)
    }

    pub(super) fn to_json(&self) -> Value {
        let Timed {
            scenario,
            aim,
            max_rate,
            link,
            link_change,
            delay,
            give_up,
        } = &self.timed;
        json!({
            "class": self.class.word(),
            "scenario": scenario.to_json(),
            "aim": match aim {
                Aim::Deadline(_) => "--deadline",
                Aim::FinishAt(_) => "--finish-at",
                Aim::Rate => "--rate",
            },
            "deadline_seconds": self.deadline(),
            "max_rate_bytes_per_second": max_rate,
            "link_bytes_per_second": link,
            "link_change": link_change.as_ref().map(|change| json!({
                "after_seconds": change.after.as_secs_f64(),
                "model": change.model,
            })),
            "round_trip_seconds": delay.map(|one_way| (one_way * 2).as_secs_f64()),
            "give_up_seconds": give_up.as_secs_f64(),
            "model_earliest_seconds": self.earliest,
            "relay_first": (self.class == Class::Downtime).then_some(self.relay_first),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all(seed: u64) -> Vec<Drawn> {
        (0..FULL).map(|index| draw(seed, index, false)).collect()
    }

    #[test]
    fn a_run_is_drawn_by_seed_and_index_alone() {
        for index in [0, 7, 13, 40] {
            assert_eq!(draw(1, index, false), draw(1, index, false));
            assert_ne!(draw(1, index, false), draw(2, index, false));
        }
        assert_ne!(draw(1, 0, false), draw(1, CYCLE.len(), false));
    }

    #[test]
    fn deadlines_and_links_are_what_they_should_be() {
        for seed in 1..4 {
            for drawn in all(seed) {
                let context = format!("{seed} {drawn:?}");
                let Some(deadline) = drawn.deadline() else {
                    assert_eq!(drawn.class, Class::Downtime);
                    continue;
                };
                assert!((20.0..=300.001).contains(&deadline), "{context}");
                let ratio = deadline / drawn.earliest.unwrap();
                match drawn.class {
                    Class::Infeasible => assert!(ratio <= 0.8, "{context}"),
                    _ => assert!(ratio >= 1.2, "{context}"),
                }
                let rate = drawn.highest_rate();
                assert!((1e6..=HIGHEST_RATE * 1.01).contains(&rate), "{context}");
                assert!(drawn.timed.give_up.as_secs_f64() > deadline + 30.0);
                let changes = drawn.timed.link_change.is_some() || drawn.timed.scenario.changes();
                let is_changed = drawn.class.is_disturbed() || drawn.class == Class::LinkFalls;
                assert_eq!(changes, is_changed, "{context}");
                if drawn.timed.link_change.is_some() {
                    assert!(drawn.timed.link.is_some(), "{context}");
                }
                if let ScenarioGuest::Bare(guest) = drawn.timed.scenario.guest {
                    assert!(guest.bios().is_ok(), "{context}");
                }
            }
        }
    }

    #[test]
    fn the_shares_are_what_they_should_be() {
        let all = all(1);
        assert!(all.len() >= 100);
        let count =
            |holds: &dyn Fn(&Drawn) -> bool| all.iter().filter(|drawn| holds(drawn)).count();
        assert_eq!(count(&|drawn| drawn.class == Class::Undisturbed), 48);
        assert_eq!(count(&|drawn| drawn.class.is_disturbed()), 32);
        assert_eq!(
            count(&|drawn| matches!(drawn.class, Class::Infeasible | Class::LinkFalls)),
            24
        );
        assert_eq!(count(&|drawn| drawn.class == Class::Downtime), 16);
        assert_eq!(count(&|drawn| drawn.timed.delay.is_some()), 8);
        let timed = count(&|drawn| drawn.class != Class::Downtime);
        let finish_at = count(&|drawn| matches!(drawn.timed.aim, Aim::FinishAt(_)));
        assert!(
            finish_at * 3 > timed && finish_at * 3 < timed * 2,
            "{finish_at} of {timed}"
        );
        let undisturbed = |holds: fn(&Timed) -> bool| {
            count(&|drawn| drawn.class == Class::Undisturbed && holds(&drawn.timed))
        };
        assert!(undisturbed(|timed| timed.max_rate.is_some()) >= 8);
        assert!(undisturbed(|timed| timed.link.is_some()) >= 8);
        assert!(undisturbed(|timed| timed.max_rate.is_none() && timed.link.is_none()) >= 8);
        let long = count(&|drawn| drawn.deadline().is_some_and(|deadline| deadline > 100.0));
        assert!(long > 10, "{long}");
        let kinds: BTreeSet<&str> = all.iter().map(|drawn| drawn.timed.scenario.kind).collect();
        assert!(kinds.len() >= 25, "{kinds:?}");
    }

    #[test]
    fn a_quick_draw_is_short() {
        let longest: f64 = (0..QUICK)
            .map(|index| draw(1, index, true))
            .map(|drawn| match (drawn.deadline(), drawn.class) {
                (Some(_), Class::Infeasible) => drawn.earliest.unwrap(),
                (Some(deadline), _) => deadline,
                // Twice.
                (None, _) => 60.0,
            })
            .sum();
        assert!(longest < 190.0, "{longest}");
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for class in CYCLE {
            assert_eq!(Class::from_word(class.word()), Some(class));
        }
    }
}
