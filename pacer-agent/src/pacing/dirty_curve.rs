//! D(τ): how many distinct pages the guest writes within a window of length τ.
//!
//! The curve is Σ n_k (1 − e^(−τ/T_k)) + Σ m_j min(τ/T_j, 1) with n_k, m_j ≥ 0: n_k
//! pages that are each written every T_k seconds at random, and m_j that are gone
//! through in T_j. Any mix of such pages is monotone and concave, and so is the fit,
//! whatever was observed.

use std::collections::VecDeque;
use std::time::Duration;

use super::non_negative::{COLUMNS, NormalEquations};
use super::number::to_f64;
use super::sample::{DirtyWindow, Origin, SAMPLED_PAGES};
use super::surprise::nearness;
use super::time::Time;
use super::write_class::{Windows, WriteClass, WriteOrder, limit};

/// The dirty curve, learned from windows.
#[derive(Clone, Debug)]
pub struct DirtyCurve {
    total_pages: f64,
    observations: VecDeque<Observation>,
    classes: [WriteClass; COLUMNS],
    longest: f64,
    /// How far what was observed is from the fit.
    residuals: Vec<Residual>,
}

#[derive(Clone, Copy, Debug)]
struct Observation {
    seconds: f64,
    pages: f64,
    trust: f64,
    at: Time,
    /// By a sample of pages whose content was compared.
    is_sampled: bool,
}

/// How far one observation is from the fit.
#[derive(Clone, Copy, Debug)]
struct Residual {
    /// The logarithm of its window in seconds.
    window: f64,
    weight: f64,
    /// The square of the logarithm of observed over fitted.
    square: f64,
}

/// Kept observations: a minute of short windows and the syncs of a long
/// migration, and few enough for a fit to be well under a millisecond.
const KEPT: usize = 96;
/// Observation time after which a figure weighs half.
const HALF_LIFE_SECONDS: f64 = 20.0;
const RECENT_NANOS: u64 = 20_000_000_000;
/// What an old figure still weighs: it is better than none at its window.
const LEAST_WEIGHT: f64 = 0.01;
/// Weight of a guess about windows nobody has looked at, and where one window is all
/// there is, which says nothing of the shape.
const GUESS_WEIGHT: f64 = 1e-5;
const LONE_GUESS_WEIGHT: f64 = 1e-3;
/// Sweeps serve where the other classes are off by more than the root of this.
const SWEEP_COST: f64 = 1e-3;
/// How long sweeps take that are not through in the longest window, in times of it: a
/// sweep of which one knows no more than that it lasted so long lasts twice as long as
/// often as not.
const BEYOND: f64 = 2.0;
/// And more pages than the most that were found at once serve where fewer are off by
/// more than the root of this times as many: without that, the noise of an exact count
/// is fitted with a large set that is hardly written.
const PAGE_COST: f64 = 5e-6;
/// Relative errors of counts below this many pages mean nothing, nor those of a sample
/// that has found fewer than so many.
const FEW_PAGES: f64 = 16.0;
const FEW_SAMPLED: f64 = 4.0;
/// What a single observation is trusted to, relatively: guests are not steady.
const PRIOR_RESIDUAL: f64 = 0.05;
/// How unsure the curve is of a window e times as long as the longest observed,
/// where it is flat there, and what is added where it grows in proportion. The
/// truth is between the same pages again and in proportion; the guess is nearer to
/// the latter, and 1.64 of both together reach beyond the middle of it.
const FLAT_UNCERTAINTY: f64 = 0.05;
const STEEP_UNCERTAINTY: f64 = 0.25;
const MOST_UNCERTAIN: f64 = 1.5;
/// Where nothing was counted: in a sample a page may have been written without its
/// content being another.
const SAMPLED_UNCERTAINTY: f64 = 0.5;
/// A curve grows that finds so many times as much in the longer window, and so
/// many times more than what is noise in any case.
const GROWTH: f64 = 1.1;
const GROWTH_PAGES: f64 = 2.0;
/// A sampled window is compared with counted ones that are up to so many times
/// shorter, and serves by itself if it is longer.
const NEAR: f64 = 1.25;
const LITTLE_LONGER: f64 = 3.0;
/// And one that none is near of, by this logarithm of their ratio.
const GAP: f64 = 0.5;
/// A guest whose windows fit no better is looked at for longer, and for so many
/// seconds in any case.
const UNFIT: f64 = 0.15;
/// From there on it is taken to work in bursts.
const BURSTY: f64 = 0.4;
const LEAST_SECONDS: f64 = 1.5;
/// Two moments that are no farther apart, in seconds, are one.
const SAME_TIME: f64 = 0.02;
/// Windows outside this range are read as its ends, in seconds.
const WINDOWS: (f64, f64) = (1e-4, 1e5);

impl DirtyCurve {
    /// A curve of a guest with this many pages of 4 KiB, nothing known.
    #[must_use]
    pub fn new(total_pages: u64) -> Self {
        Self {
            total_pages: to_f64(total_pages),
            observations: VecDeque::new(),
            classes: [WriteClass::NONE; COLUMNS],
            longest: 0.0,
            residuals: Vec::new(),
        }
    }

    /// The guest's size, in pages of 4 KiB, when it becomes known.
    pub fn set_total_pages(&mut self, total_pages: u64) {
        self.total_pages = to_f64(total_pages);
    }

    /// Learns one point: all pages that a sync finds, whoever wrote them. An
    /// empty window is left out, and so is a lower bound.
    pub fn observe(&mut self, window: DirtyWindow, at: Time) {
        if !window.is_point() {
            return;
        }
        if self.observations.len() >= KEPT {
            self.forget_one();
        }
        self.observations.push_back(Observation {
            seconds: window.window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1),
            pages: to_f64(window.all_pages()).min(self.total_pages),
            trust: trust(window.origin),
            at,
            is_sampled: window.origin == Origin::ContentSampling,
        });
        self.fit(at);
    }

    /// The oldest of the windows there are most of: the longest are few, and many short
    /// ones must not push them out.
    fn forget_one(&mut self) {
        let mut lengths = std::collections::BTreeMap::<i32, usize>::new();
        for observation in &self.observations {
            *lengths.entry(observation.length()).or_default() += 1;
        }
        let most = lengths.into_iter().max_by_key(|&(_, count)| count);
        let oldest = most.and_then(|(length, _)| {
            let mut all = self.observations.iter();
            all.position(|one| one.length() == length)
        });
        if let Some(oldest) = oldest {
            self.observations.remove(oldest);
        }
    }

    /// The guest changed its ways: `ratio` times as many pages as forecast were
    /// found in `window`. Older points near it are moved along, so that the
    /// shape of the curve is kept and its level follows at once.
    pub fn shift(&mut self, window: Duration, ratio: f64) {
        let ratio = if ratio.is_finite() {
            ratio.clamp(0.1, 10.0)
        } else {
            1.0
        };
        let seconds = window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1);
        for observation in &mut self.observations {
            let distance = (observation.seconds / seconds).ln().abs();
            if distance < 2.5 {
                observation.pages = (observation.pages * ratio).min(self.total_pages);
            }
        }
    }

    /// Whether anything was observed.
    #[must_use]
    pub fn is_known(&self) -> bool {
        !self.observations.is_empty()
    }

    /// Pages expected to be written within `window`; never more than the guest
    /// has. `None` while nothing was observed.
    #[must_use]
    pub fn pages(&self, window: Duration) -> Option<f64> {
        self.is_known().then(|| self.pages_in(window.as_secs_f64()))
    }

    /// The longest window that was observed, in seconds; 0 while none was.
    #[must_use]
    pub(super) const fn longest_window(&self) -> f64 {
        self.longest
    }

    /// How sure the level of the curve is about `window`: the standard deviation of
    /// the logarithm of true over fitted, from the residuals of windows like it.
    #[must_use]
    pub fn level_uncertainty(&self, window: Duration) -> f64 {
        let seconds = window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1);
        let near = self.residual_near(seconds);
        if self.observations.iter().any(Observation::is_counted) {
            near
        } else if self.is_known() {
            near.hypot(SAMPLED_UNCERTAINTY)
        } else {
            MOST_UNCERTAIN
        }
    }

    /// How sure [`Self::pages`] is of `window`: the standard deviation of the
    /// logarithm of true over fitted. 0.1 is about 10 %. From the residuals of
    /// the fit, and wider the farther `window` is from any that was observed, the
    /// more so the steeper the curve is there.
    #[must_use]
    pub fn relative_uncertainty(&self, window: Duration) -> f64 {
        let seconds = window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1);
        let groups = self.groups();
        let (Some(first), Some(last)) = (groups.first(), groups.last()) else {
            return MOST_UNCERTAIN;
        };
        let beyond = (seconds / last.0).max(first.0 / seconds).ln().max(0.0);
        let slope = match groups[..] {
            _ if seconds < first.0 => 1.0,
            [.., before, last] => slope(before, last),
            _ => 1.0,
        };
        let extrapolated = (FLAT_UNCERTAINTY + STEEP_UNCERTAINTY * slope) * beyond;
        self.residual_near(seconds)
            .hypot(extrapolated)
            .min(MOST_UNCERTAIN)
    }

    /// Whether windows about as long were observed, or shorter and longer ones.
    #[must_use]
    pub fn has_observed(&self, window: Duration) -> bool {
        let seconds = window.as_secs_f64();
        let groups = self.groups();
        groups
            .first()
            .is_some_and(|first| seconds >= first.0 / NEAR)
            && groups.last().is_some_and(|last| seconds <= last.0 * NEAR)
    }

    /// Whether a window was counted, not sampled, that is no more than a little longer:
    /// in a sample alone pages are not seen whose content stays as it was.
    #[must_use]
    pub fn has_counted(&self, window: Duration) -> bool {
        let longest = window.as_secs_f64() * LITTLE_LONGER;
        let mut counted = self.observations.iter().filter(|one| one.is_counted());
        counted.any(|one| one.seconds <= longest)
    }

    /// Whether a longer window than any observed may find more pages: the longest two
    /// differ, they do not fit with the others, as where a guest works in bursts, or
    /// they are so short that what comes round once a second may not be in them. A
    /// guest that writes the same pages over and over is known once a window is long
    /// enough.
    #[must_use]
    pub fn is_growing(&self) -> bool {
        let groups = self.groups();
        let [.., (_, before), (seconds, last)] = groups[..] else {
            return true;
        };
        let is_sampled = self.observations.iter().any(|one| one.is_sampled);
        let noise = GROWTH_PAGES * self.few(is_sampled);
        let grows = last > before * GROWTH && last > before + noise;
        grows || self.residual() > UNFIT || seconds < LEAST_SECONDS
    }

    /// Below so many pages a figure is noise: of all pages, a sample looks at few.
    fn few(&self, is_sampled: bool) -> f64 {
        let one_in = (self.total_pages / to_f64(SAMPLED_PAGES)).max(1.0);
        match is_sampled {
            true => FEW_PAGES.max(FEW_SAMPLED * one_in),
            false => FEW_PAGES,
        }
    }

    /// How wrong the curve is about a window: the logarithm of found over expected,
    /// both beside what is noise; `None` where it knows nothing.
    #[must_use]
    pub fn error_about(&self, window: DirtyWindow) -> Option<f64> {
        /// In times of what a fit takes for noise.
        const NOISE: f64 = 2.0;
        let noise = NOISE * self.few(window.origin == Origin::ContentSampling);
        let expected = self.pages(window.window)?;
        Some(((to_f64(window.all_pages()) + noise) / (expected + noise)).ln())
    }

    /// What was observed, as means by window: seconds and pages, windows within a
    /// factor of two together, shortest first.
    #[must_use]
    pub fn groups(&self) -> Vec<(f64, f64)> {
        let newest = self.observations.back();
        newest.map_or_else(Vec::new, |newest| {
            groups(&self.calibrated(newest.at), newest.at)
        })
    }

    /// The windows that there is to learn from, in seconds, and their pages.
    pub(super) fn windows(&self) -> Vec<(f64, f64)> {
        let newest = self.observations.back();
        let those = newest.map_or_else(Vec::new, |newest| self.calibrated(newest.at));
        those.iter().map(|one| (one.seconds, one.pages)).collect()
    }

    /// The guest's pages by how they are written.
    pub(super) const fn classes(&self) -> &[WriteClass; COLUMNS] {
        &self.classes
    }

    pub(super) fn pages_in(&self, seconds: f64) -> f64 {
        let windows = Windows::all(seconds);
        let written = self.classes.iter().map(|class| class.found(windows));
        written.sum::<f64>().clamp(0.0, self.total_pages)
    }

    fn fit(&mut self, now: Time) {
        let observations = self.calibrated(now);
        self.fit_to(&observations, now);
        // Where a guest works in bursts, the longer a window is, the more it says of
        // the mean: short ones show a burst or a pause.
        let bursty = ((self.residual() - UNFIT) / (BURSTY - UNFIT)).clamp(0.0, 1.0);
        if bursty > 0.0 {
            let longest = self.longest;
            let by_length = |one: &Observation| Observation {
                trust: one.trust * (one.seconds / longest).clamp(1e-3, 1.0).powf(bursty),
                ..*one
            };
            let observations: Vec<Observation> = observations.iter().map(by_length).collect();
            self.fit_to(&observations, now);
        }
        self.residuals = observations
            .iter()
            .map(|observation| self.residual_of(observation, now))
            .collect();
    }

    fn fit_to(&mut self, observations: &[Observation], now: Time) {
        let mut equations = NormalEquations::new();
        let groups = groups(observations, now);
        self.classes = grid(&groups);
        self.longest = groups.last().map_or(0.0, |longest| longest.0);
        for observation in observations {
            let Observation { seconds, pages, .. } = *observation;
            let scale = pages.max(least(observations, observation));
            let weight = observation.weight(now);
            let scale = scale.max(self.few(observation.is_sampled));
            self.add(&mut equations, (seconds, pages), weight, scale);
        }
        let weight = match groups.len() {
            1 => LONE_GUESS_WEIGHT,
            _ => GUESS_WEIGHT,
        };
        for (seconds, pages) in guesses(&groups) {
            self.add(
                &mut equations,
                (seconds, pages),
                weight,
                pages.max(FEW_PAGES),
            );
        }
        self.charge(&mut equations, observations, now);
        self.solve(equations);
        self.residuals = observations
            .iter()
            .map(|observation| self.residual_of(observation, now))
            .collect();
    }

    /// Without the slowest classes if there would be more pages than the guest has.
    fn solve(&mut self, mut equations: NormalEquations) {
        loop {
            for (class, pages) in self.classes.iter_mut().zip(equations.solve()) {
                class.pages = pages;
            }
            let all: f64 = self.classes.iter().map(|class| class.pages).sum();
            let used = self.classes.iter().enumerate();
            let slowest = used
                .filter(|(_, class)| class.pages > 0.0)
                .max_by(|one, other| one.1.seconds.total_cmp(&other.1.seconds));
            match slowest {
                Some((column, class)) if all > self.total_pages && class.seconds > 1.0 => {
                    equations.leave_out(column);
                }
                _ => break,
            }
        }
        limit(&mut self.classes, self.total_pages);
    }

    /// Between two windows sweeps make a straight line, which is the least that a
    /// concave curve can be; so they are used where random classes do not fit. Of
    /// those, few pages are likelier than many. What grows in proportion to the last
    /// is as likely a sweep that goes on as a large set, but not in so short a time that
    /// any set would.
    fn charge(&self, equations: &mut NormalEquations, observations: &[Observation], now: Time) {
        let weights: f64 = observations.iter().map(|one| one.weight(now)).sum();
        let most = observations
            .iter()
            .map(|one| one.pages)
            .fold(FEW_PAGES, f64::max);
        for (column, class) in self.classes.iter().enumerate() {
            let goes_on = class.seconds > self.longest * NEAR && self.longest > LEAST_SECONDS;
            let cost = match class.order {
                WriteOrder::Sweep if !goes_on => SWEEP_COST,
                WriteOrder::Random | WriteOrder::Sweep => PAGE_COST,
            };
            equations.charge(column, cost * weights / most);
        }
    }

    fn add(
        &self,
        equations: &mut NormalEquations,
        (seconds, pages): (f64, f64),
        weight: f64,
        scale: f64,
    ) {
        let windows = Windows::all(seconds);
        let row = self.classes.map(|class| class.written(windows));
        equations.add(&row, pages, weight / scale.powi(2));
    }

    /// What there is to learn from. Of what was sampled, windows longer than any
    /// that was counted, by the ratio of counted to sampled pages where there are
    /// both: a page may be written without its content changing.
    fn calibrated(&self, now: Time) -> Vec<Observation> {
        let of = |is_sampled: bool| {
            let all = self.observations.iter().copied();
            all.filter(move |observation| observation.is_sampled == is_sampled)
        };
        let mut counted: Vec<Observation> = of(false).collect();
        let sampled: Vec<Observation> = of(true).collect();
        if counted.is_empty() {
            return sampled;
        }
        let ratio = unchanged_ratio(&counted, &sampled, now);
        let longest = counted.iter().map(|one| one.seconds).fold(0.0, f64::max);
        let is_far = |one: &Observation, counted: &Observation| {
            (one.seconds / counted.seconds).ln().abs() > GAP
        };
        let counted_alone = counted.clone();
        let those = sampled.into_iter().filter(|one| {
            let is_longer = one.seconds > longest * NEAR;
            is_longer || counted_alone.iter().all(|counted| is_far(one, counted))
        });
        counted.extend(those.map(|observation| Observation {
            pages: (observation.pages * ratio).min(self.total_pages),
            ..observation
        }));
        counted
    }

    fn residual_of(&self, observation: &Observation, now: Time) -> Residual {
        let few = self.few(observation.is_sampled);
        let fitted = self.pages_in(observation.seconds) + few;
        Residual {
            window: observation.seconds.ln(),
            weight: observation.weight(now),
            square: ((observation.pages + few) / fitted).ln().powi(2),
        }
    }

    /// The root mean square of all.
    fn residual(&self) -> f64 {
        self.root_mean_square(|_| 1.0)
    }

    /// That of windows about as long: a guest that works in bursts is not to be known
    /// over a short window, and may well be over a long one.
    fn residual_near(&self, seconds: f64) -> f64 {
        let window = seconds.ln();
        self.root_mean_square(|residual| nearness(residual.window - window))
    }

    fn root_mean_square(&self, share: impl Fn(&Residual) -> f64) -> f64 {
        let mut squares = PRIOR_RESIDUAL.powi(2);
        let mut weights = 1.0;
        for residual in &self.residuals {
            let weight = residual.weight * share(residual);
            squares += weight * residual.square;
            weights += weight;
        }
        (squares / weights).sqrt()
    }
}

impl Observation {
    /// Every page that was written is in it.
    fn is_counted(&self) -> bool {
        !self.is_sampled && self.trust > trust(Origin::PageSampling)
    }

    /// Windows within a factor of two have the same.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the logarithm of a clamped window is a small number"
    )]
    fn length(&self) -> i32 {
        self.seconds.log2().round() as i32
    }

    /// When its window ended, in seconds.
    fn ended(&self) -> f64 {
        self.at.since(Time::ZERO).as_secs_f64()
    }

    fn begun(&self) -> f64 {
        self.ended() - self.seconds
    }

    fn weight(&self, now: Time) -> f64 {
        let age = now.since(self.at).as_secs_f64();
        let recency = (-age / HALF_LIFE_SECONDS).exp2().max(LEAST_WEIGHT);
        recency * self.trust
    }
}

/// What a window like that of `one` holds at least, going by the others that are no
/// older by much: as much as one shorter, and of one longer its part, since the curve
/// of means is concave. Errors are relative to this: relative to what was found, the
/// pauses of a guest that works in bursts, and a count that is outdated, would be all
/// that matters.
fn least(observations: &[Observation], one: &Observation) -> f64 {
    let oldest = one.at.as_nanos().saturating_sub(RECENT_NANOS);
    observations
        .iter()
        .filter(|other| other.at.as_nanos() >= oldest)
        .map(|other| other.pages * (one.seconds / other.seconds).min(1.0))
        .fold(0.0, f64::max)
}

/// Weighted means of observations by window, windows within a factor of two
/// together, shortest first.
fn groups(observations: &[Observation], now: Time) -> Vec<(f64, f64)> {
    let mut sums = std::collections::BTreeMap::<i32, (f64, f64, f64)>::new();
    for observation in observations {
        let weight = observation.weight(now);
        let sum = sums.entry(observation.length()).or_default();
        sum.0 += weight;
        sum.1 += weight * observation.seconds.ln();
        sum.2 += weight * observation.pages;
    }
    sums.values()
        .map(|&(weight, seconds, pages)| ((seconds / weight).exp(), pages / weight))
        .collect()
}

/// How many pages are written for each whose content changes, 1 at least. Two ways to
/// tell it err upwards, one for a guest that works in bursts, one for a guest that
/// writes the same pages over and over: the truth is no more than the lesser.
fn unchanged_ratio(counted: &[Observation], sampled: &[Observation], now: Time) -> f64 {
    let ratio = ratio_at_the_time(counted, sampled).min(ratio_of_windows(counted, sampled, now));
    // Nearly every write changes its page: a little more than 1 is noise.
    let (noise, clear) = (0.1, 0.4);
    let more = ratio - 1.0;
    1.0 + more.max(0.0) * ((more - noise) / (clear - noise)).clamp(0.0, 1.0)
}

/// The mean ratio of counted to sampled pages of windows as long.
fn ratio_of_windows(counted: &[Observation], sampled: &[Observation], now: Time) -> f64 {
    let groups = groups(counted, now);
    let logarithms = sampled.iter().filter_map(|observation| {
        let pages = between(&groups, observation.seconds)?;
        Some(((pages + FEW_PAGES) / (observation.pages + FEW_PAGES)).ln())
    });
    let logarithms: Vec<f64> = logarithms.collect();
    let count = to_f64(logarithms.len() as u64).max(1.0);
    (logarithms.iter().sum::<f64>() / count).exp()
}

/// By what the sample found new while a window was counted. Pages that had changed
/// before are not new.
fn ratio_at_the_time(counted: &[Observation], sampled: &[Observation]) -> f64 {
    /// Pages that must have been counted: of few the sample has seen none.
    const LEAST_PAGES: f64 = 64.0;
    /// What the sample covers may be so many times as long.
    const MOST_COVERED: f64 = 1.5;
    let ratio = |one: &&Observation| {
        let (begun, ended) = (one.begun(), one.ended());
        let after = sampled.iter().find(|other| other.at >= one.at)?;
        let since = after.begun();
        let before = sampled
            .iter()
            .rev()
            .find(|other| other.ended() <= begun + SAME_TIME);
        let (from, had) = before.map_or((since, 0.0), |before| (before.ended(), before.pages));
        let covered = (after.ended() - from) / (ended - begun);
        let is_near = from <= begun + SAME_TIME && covered <= MOST_COVERED;
        let new = (after.pages - had) / covered.max(1.0);
        (is_near && one.pages >= LEAST_PAGES)
            .then(|| (one.pages + FEW_PAGES) / (new.max(0.0) + FEW_PAGES))
    };
    let ratios = counted.iter().filter_map(|one| ratio(&one));
    ratios.fold(f64::INFINITY, f64::min)
}

/// Pages in a window of `seconds`, by a power law between the groups on both
/// sides, or the last two of them; `None` beyond what was observed.
fn between(groups: &[(f64, f64)], seconds: f64) -> Option<f64> {
    let (first, last) = (groups.first()?, groups.last()?);
    if seconds < first.0 / NEAR || seconds > last.0 * NEAR {
        return None;
    }
    let next = groups.iter().position(|group| group.0 >= seconds);
    let end = next.unwrap_or(groups.len() - 1).max(1);
    let [below, above] = groups.get(end - 1..=end)? else {
        return None;
    };
    let share = (seconds / below.0).ln() / (above.0 / below.0).ln();
    let (low, high) = (below.1.max(1.0).ln(), above.1.max(1.0).ln());
    Some((low + (high - low) * share).exp())
}

/// Points beyond the shortest and the longest window observed. Beyond them
/// the truth lies between "the same pages again" and "in proportion"; the
/// guess is a power law between the two, its exponent from the ends of what
/// was seen where two windows tell one.
fn guesses(groups: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (Some(&first), Some(&last)) = (groups.first(), groups.last()) else {
        return Vec::new();
    };
    let (low, high) = match groups {
        [.., a, b] => (
            // Concave curves are steeper to the left, flatter to the right.
            0.5 + 0.5 * slope(groups[0], groups[1]),
            0.75 * slope(*a, *b).powi(2),
        ),
        // Short windows are nearer to proportion than long ones.
        _ => (0.75, 0.5),
    };
    [0.1, 0.01]
        .map(|x: f64| (first.0 * x, first.1 * x.powf(low)))
        .into_iter()
        .chain([10.0, 100.0].map(|x: f64| (last.0 * x, last.1 * x.powf(high))))
        .collect()
}

/// How steeply pages grow from one group to the other: 0 not at all, 1 in
/// proportion.
fn slope(a: (f64, f64), b: (f64, f64)) -> f64 {
    let raw = ((b.1 + 1.0) / (a.1 + 1.0)).ln() / (b.0 / a.0).ln();
    raw.clamp(0.0, 1.0)
}

/// The classes of a fit, without pages: random ones with mean intervals from 1 ms
/// to 1000 s, three a decade, since neighbours are alike; and sweeps that are through
/// only after the longest window, or where something was observed, or between two windows where the one in proportion
/// reaches what the other found. Between them they make any curve that is monotone
/// and concave, and the corner of a sweep as well as the bend of a random set.
fn grid(groups: &[(f64, f64)]) -> [WriteClass; COLUMNS] {
    const INTERVALS: [f64; 19] = [
        0.001, 0.002_15, 0.004_64, 0.01, 0.021_5, 0.046_4, 0.1, 0.215, 0.464, 1.0, 2.15, 4.64,
        10.0, 21.5, 46.4, 100.0, 215.0, 464.0, 1000.0,
    ];
    let class = |order, seconds| WriteClass {
        order,
        seconds,
        pages: 0.0,
    };
    let random = INTERVALS.map(|seconds| class(WriteOrder::Random, seconds));
    let ends = (0..groups.len()).rev().flat_map(|index| {
        let one = groups[index];
        let longer = groups.get(index + 1);
        let corner = longer.and_then(|&longer| corner(one, longer));
        corner.into_iter().chain([one.0])
    });
    let last = groups.last().map_or(1.0, |last| last.0);
    let sweeps = [BEYOND * last].into_iter().chain(ends);
    let sweeps = sweeps.map(|seconds| class(WriteOrder::Sweep, seconds));
    let mut classes = [WriteClass::NONE; COLUMNS];
    for (slot, class) in classes.iter_mut().zip(random.into_iter().chain(sweeps)) {
        *slot = class;
    }
    classes
}

/// Where a sweep at the pace of one window is through with what a longer one found;
/// `None` where that is one of the two.
fn corner(one: (f64, f64), longer: (f64, f64)) -> Option<f64> {
    let seconds = one.0 * longer.1 / one.1.max(1.0);
    let (after, before) = (one.0 * NEAR.sqrt(), longer.0 / NEAR.sqrt());
    (after < seconds && seconds < before).then_some(seconds)
}

/// What a figure weighs by where it comes from.
const fn trust(origin: Origin) -> f64 {
    match origin {
        Origin::DirtyLog => 1.0,
        Origin::StoreHelper | Origin::DirtyRing => 0.9,
        Origin::Qemu => 0.7,
        Origin::Stream | Origin::ContentSampling => 0.5,
        Origin::PageSampling => 0.2,
        Origin::DirtyLogPart => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(millis: u64, pages: u64) -> DirtyWindow {
        DirtyWindow {
            window: Duration::from_millis(millis),
            pages,
            device_pages: 0,
            origin: Origin::DirtyLog,
        }
    }

    fn learned(points: &[(u64, u64)]) -> DirtyCurve {
        let mut curve = DirtyCurve::new(1 << 20);
        for &(millis, pages) in points {
            curve.observe(point(millis, pages), Time::ZERO);
        }
        curve
    }

    #[test]
    fn unknown_until_observed() {
        let mut curve = DirtyCurve::new(100);
        assert_eq!(curve.pages(Duration::from_secs(1)), None);
        curve.observe(point(0, 5), Time::ZERO);
        assert_eq!(curve.pages(Duration::from_secs(1)), None);
    }

    fn sampled(millis: u64, pages: u64) -> DirtyWindow {
        DirtyWindow {
            origin: Origin::ContentSampling,
            ..point(millis, pages)
        }
    }

    #[test]
    fn a_sample_serves_where_nothing_was_counted() {
        let counted = [(100, 1000), (200, 2000), (500, 5000), (1000, 10_000)];
        let mut curve = learned(&counted);
        // Every other write leaves a page as it was; the set is 16,000 pages.
        for (millis, pages) in [
            (500, 2500),
            (1000, 5000),
            (1500, 7500),
            (4000, 8000),
            (8000, 8000),
        ] {
            curve.observe(sampled(millis, pages), Time::ZERO);
        }
        let pages = |seconds| curve.pages(Duration::from_secs(seconds)).unwrap();
        assert!((pages(1) / 10_000.0 - 1.0).abs() < 0.1, "{}", pages(1));
        assert!((pages(8) / 16_000.0 - 1.0).abs() < 0.1, "{}", pages(8));
        let mut alone = DirtyCurve::new(1 << 20);
        for (millis, pages) in [(500, 2500), (1000, 5000)] {
            alone.observe(sampled(millis, pages), Time::ZERO);
        }
        let pages = alone.pages(Duration::from_secs(1)).unwrap();
        assert!((pages / 5000.0 - 1.0).abs() < 0.1, "{pages}");
    }

    /// Counted and sampled windows of one guest, in ms, each `at` its end.
    fn looked_at(counted: &[(u64, u64, u64)], compared: &[(u64, u64, u64)]) -> DirtyCurve {
        let mut curve = DirtyCurve::new(1 << 17);
        let counted = counted.iter().map(|one| (one, Origin::DirtyLog));
        let compared = compared.iter().map(|one| (one, Origin::ContentSampling));
        let mut all: Vec<_> = counted.chain(compared).collect();
        all.sort_by_key(|((at, ..), _)| *at);
        for (&(at, millis, pages), origin) in all {
            let window = DirtyWindow {
                origin,
                ..point(millis, pages)
            };
            curve.observe(window, Time::from_nanos(at * 1_000_000));
        }
        curve
    }

    #[test]
    fn a_guest_that_works_in_bursts_is_known_by_its_mean() {
        // Recorded: some seconds of 3,900 pages each, some seconds of none.
        let curve = looked_at(
            &[
                (270, 50, 3),
                (520, 100, 3),
                (830, 200, 4),
                (1490, 500, 1780),
                (3610, 2000, 7923),
            ],
            &[
                (420, 200, 0),
                (630, 416, 0),
                (980, 734, 7),
                (1610, 1380, 1882),
                (3740, 3516, 10_260),
                (5660, 5405, 14_677),
                (8420, 8149, 18_806),
                (10_210, 9969, 24_168),
            ],
        );
        let ten = curve.pages_in(10.0);
        assert!((ten / 24_168.0 - 1.0).abs() < 0.15, "{ten}");
        let one = curve.pages_in(1.0);
        assert!((1500.0..4500.0).contains(&one), "{one}");
        let long = curve.level_uncertainty(Duration::from_secs(10));
        let short = curve.level_uncertainty(Duration::from_millis(100));
        assert!(long < 0.5 * short, "{long} {short}");
    }

    #[test]
    fn a_sweep_is_through_at_its_corner_and_not_before() {
        let counted = [
            (270, 50, 162),
            (520, 100, 321),
            (830, 200, 639),
            (1450, 500, 1583),
            (3560, 2000, 6319),
        ];
        let under_way = [(420, 203, 632), (1560, 1342, 4251), (3690, 3457, 10_890)];
        let curve = looked_at(&counted, &under_way);
        let beyond = curve.pages_in(5.0);
        assert!((13_500.0..16_500.0).contains(&beyond), "{beyond}");
        let through = [
            under_way[0],
            under_way[1],
            under_way[2],
            (4530, 4281, 12_415),
            (8140, 7909, 12_415),
        ];
        let curve = looked_at(&counted, &through);
        let (before, after) = (curve.pages_in(3.0), curve.pages_in(20.0));
        assert!((before / 9450.0 - 1.0).abs() < 0.05, "{before}");
        assert!((after / 12_415.0 - 1.0).abs() < 0.1, "{after}");
    }

    #[test]
    fn a_working_set_saturates() {
        let curve = learned(&[
            (50, 75),
            (200, 300),
            (800, 1200),
            (1600, 2000),
            (5000, 2000),
        ]);
        let pages = |seconds| curve.pages(Duration::from_secs_f64(seconds)).unwrap();
        assert!((pages(5.0) / 2000.0 - 1.0).abs() < 0.15, "{}", pages(5.0));
        assert!((pages(0.2) / 300.0 - 1.0).abs() < 0.2, "{}", pages(0.2));
        assert!(pages(60.0) < 3000.0, "{}", pages(60.0));
    }

    #[test]
    fn one_window_extrapolates_between_flat_and_linear() {
        let curve = learned(&[(1000, 1000), (1000, 1020), (1000, 980)]);
        let ten = curve.pages(Duration::from_secs(10)).unwrap();
        assert!((1300.0..8000.0).contains(&ten), "{ten}");
        let near = curve.relative_uncertainty(Duration::from_secs(1));
        let far = curve.relative_uncertainty(Duration::from_secs(30));
        assert!(near < 0.15 && far > 0.6, "{near} {far}");
    }

    #[test]
    fn a_curve_is_flat_once_a_longer_window_finds_no_more() {
        let growing = |points: &[(u64, u64)]| learned(points).is_growing();
        assert!(growing(&[]) && growing(&[(2000, 1000)]));
        assert!(growing(&[(500, 1000), (1000, 1000), (2000, 1111)]));
        assert!(!growing(&[(500, 1000), (1000, 1000), (2000, 1099)]));
        assert!(!growing(&[(1000, 5), (2000, 20)]), "noise");
        assert!(!growing(&[(1000, 1000), (2000, 900)]));
        assert!(growing(&[(100, 1000), (200, 1000)]), "too short to tell");
        assert!(
            growing(&[(500, 10), (1000, 4000), (2000, 3000)]),
            "in bursts"
        );
    }

    #[test]
    fn newer_points_win() {
        let mut curve = learned(&[(1000, 1000); 5]);
        for i in 0..3 {
            let at = Time::from_nanos((120 + i) * 1_000_000_000);
            curve.observe(point(1000, 4000), at);
        }
        let pages = curve.pages(Duration::from_secs(1)).unwrap();
        assert!((3400.0..4200.0).contains(&pages), "{pages}");
    }

    #[test]
    fn many_short_windows_do_not_push_out_a_long_one() {
        let mut curve = learned(&[(20_000, 9000)]);
        for _ in 0..2 * KEPT {
            curve.observe(point(500, 400), Time::ZERO);
        }
        assert_eq!(curve.observations.len(), KEPT);
        assert!((curve.pages_in(20.0) / 9000.0 - 1.0).abs() < 0.1);
    }

    #[test]
    fn what_one_page_of_a_sample_stands_for_is_noise() {
        let mut curve = DirtyCurve::new(1 << 28);
        curve.observe(sampled(500, 0), Time::ZERO);
        // One page in 8192 was looked at.
        curve.observe(sampled(2000, 8192), Time::ZERO);
        assert!(!curve.is_growing());
        let error = curve.error_about(sampled(2000, 3 * 8192)).unwrap();
        assert!(error.abs() < 0.3, "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn monotone_and_bounded(
            points in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 1..40),
            total in 0_u64..1 << 40,
            ratio in any::<f64>(),
        ) {
            let mut curve = DirtyCurve::new(total);
            for (nanos, pages, at) in points {
                let window = DirtyWindow {
                    window: Duration::from_nanos(nanos >> (pages % 60)),
                    pages,
                    device_pages: 0,
                    origin: Origin::Qemu,
                };
                curve.observe(window, Time::from_nanos(at));
                curve.shift(window.window, ratio);
            }
            let mut last = 0.0;
            for exponent in 0..60 {
                let window = Duration::from_nanos(1 << exponent);
                let Some(pages) = curve.pages(window) else { break };
                let slack = 1.0 + 1e-9;
                prop_assert!(pages.is_finite() && pages <= to_f64(total));
                prop_assert!(pages * slack >= last);
                prop_assert!(curve.relative_uncertainty(window).is_finite());
                last = pages;
            }
        }
    }
}
