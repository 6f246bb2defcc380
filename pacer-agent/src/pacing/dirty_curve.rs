//! D(τ): how many distinct pages the guest writes within a window of length τ.
//!
//! The curve is Σ n_k (1 − e^(−λ_k τ)) with n_k ≥ 0 on a fixed grid of λ_k: n_k
//! pages that are each written λ_k times a second at random. Any mix of such
//! pages is monotone and concave, and so is the fit, whatever was observed.

use std::collections::VecDeque;
use std::time::Duration;

use super::non_negative::{COLUMNS, NormalEquations};
use super::number::to_f64;
use super::sample::{DirtyWindow, Origin};
use super::time::Time;

/// The dirty curve, learned from windows.
#[derive(Clone, Debug)]
pub struct DirtyCurve {
    total_pages: f64,
    observations: VecDeque<Observation>,
    /// Pages per class of write interval.
    classes: [f64; COLUMNS],
    /// Root mean square of the logarithms of observed over fitted.
    residual: f64,
}

#[derive(Clone, Copy, Debug)]
struct Observation {
    seconds: f64,
    pages: f64,
    trust: f64,
    at: Time,
}

/// Kept observations: a minute of short windows and the syncs of a long
/// migration, and few enough for a fit to be well under a millisecond.
const KEPT: usize = 96;
/// Observation time after which a figure weighs half.
const HALF_LIFE_SECONDS: f64 = 20.0;
/// What an old figure still weighs: it is better than none at its window.
const LEAST_WEIGHT: f64 = 0.01;
/// Weight of a guess about windows nobody has looked at.
const GUESS_WEIGHT: f64 = 0.0005;
/// Relative errors of counts below this many pages mean nothing.
const FEW_PAGES: f64 = 16.0;
/// What a single observation is trusted to, relatively: guests are not steady.
const PRIOR_RESIDUAL: f64 = 0.12;
/// Windows outside this range are read as its ends, in seconds.
const WINDOWS: (f64, f64) = (1e-4, 1e5);

impl DirtyCurve {
    /// A curve of a guest with this many pages of 4 KiB, nothing known.
    #[must_use]
    pub fn new(total_pages: u64) -> Self {
        Self {
            total_pages: to_f64(total_pages),
            observations: VecDeque::new(),
            classes: [0.0; COLUMNS],
            residual: PRIOR_RESIDUAL,
        }
    }

    /// The guest's size, in pages of 4 KiB, when it becomes known.
    pub fn set_total_pages(&mut self, total_pages: u64) {
        self.total_pages = to_f64(total_pages);
    }

    /// Learns one point: all pages that a sync finds, whoever wrote them. An
    /// empty window is left out, and so is a lower bound.
    pub fn observe(&mut self, window: DirtyWindow, at: Time) {
        let is_part = window.origin == Origin::DirtyLogPart;
        if window.window.is_zero() || is_part {
            return;
        }
        if self.observations.len() >= KEPT {
            self.observations.pop_front();
        }
        self.observations.push_back(Observation {
            seconds: window.window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1),
            pages: to_f64(window.all_pages()).min(self.total_pages),
            trust: trust(window.origin),
            at,
        });
        self.fit(at);
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

    /// The mean of [`Self::pages`] over all windows up to `window`, which is
    /// what a sweep finds whose pages' windows are spread evenly over it.
    #[must_use]
    pub fn mean_pages(&self, window: Duration) -> Option<f64> {
        self.is_known()
            .then(|| self.mean_pages_in(window.as_secs_f64()))
    }

    /// How sure [`Self::pages`] is of `window`: the standard deviation of the
    /// logarithm of true over fitted. 0.1 is about 10 %. From the residuals of
    /// the fit, and wider the farther `window` is from any that was observed.
    #[must_use]
    pub fn relative_uncertainty(&self, window: Duration) -> f64 {
        let seconds = window.as_secs_f64().clamp(WINDOWS.0, WINDOWS.1);
        let distance = self
            .observations
            .iter()
            .map(|observation| (observation.seconds / seconds).ln().abs())
            .fold(f64::INFINITY, f64::min);
        if distance.is_finite() {
            // A tenfold window may hold one to ten times the pages; the guess
            // is in the middle, and 1.64 of this reaches both ends.
            self.residual.hypot(0.3 * distance).min(1.5)
        } else {
            1.5
        }
    }

    pub(super) fn pages_in(&self, seconds: f64) -> f64 {
        self.sum(seconds, |x| -(-x).exp_m1())
    }

    pub(super) fn mean_pages_in(&self, seconds: f64) -> f64 {
        // (1/τ)∫(1 − e^(−λt))dt = 1 − (1 − e^(−λτ))/(λτ), by its series where
        // the difference would cancel.
        self.sum(seconds, |x| {
            if x < 1e-4 {
                x / 2.0
            } else {
                1.0 + (-x).exp_m1() / x
            }
        })
    }

    fn sum(&self, seconds: f64, part: impl Fn(f64) -> f64) -> f64 {
        if seconds.is_nan() || seconds <= 0.0 {
            return 0.0;
        }
        let pages: f64 = self
            .classes
            .iter()
            .zip(intervals())
            .filter(|&(&pages, _)| pages > 0.0)
            .map(|(&pages, interval)| pages * part(seconds / interval))
            .sum();
        pages.clamp(0.0, self.total_pages)
    }

    fn fit(&mut self, now: Time) {
        let mut equations = NormalEquations::new();
        let groups = self.groups(now);
        for observation in &self.observations {
            let Observation { seconds, pages, .. } = *observation;
            // Errors are relative to what its neighbours say now: relative to
            // itself, a small outdated count would hold a new level down.
            let scale = groups
                .iter()
                .filter(|group| (group.0 / seconds).ln().abs() < 0.7)
                .map(|group| group.1)
                .fold(pages, f64::max);
            let weight = observation.weight(now);
            add(&mut equations, seconds, pages, weight, scale);
        }
        for (seconds, pages) in guesses(&groups) {
            add(&mut equations, seconds, pages, GUESS_WEIGHT, pages);
        }
        equations.solve(&mut self.classes);
        self.residual = self.rms_residual(now);
    }

    fn rms_residual(&self, now: Time) -> f64 {
        let mut squares = PRIOR_RESIDUAL.powi(2);
        let mut weights = 1.0;
        for observation in &self.observations {
            let weight = observation.weight(now);
            let fitted = self.pages_in(observation.seconds) + FEW_PAGES;
            let error = ((observation.pages + FEW_PAGES) / fitted).ln();
            squares += weight * error.powi(2);
            weights += weight;
        }
        (squares / weights).sqrt()
    }

    /// Weighted means of the observations by window, windows within a factor of
    /// two together, shortest first.
    fn groups(&self, now: Time) -> Vec<(f64, f64)> {
        let mut sums = std::collections::BTreeMap::<i32, (f64, f64, f64)>::new();
        for observation in &self.observations {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the logarithm of a clamped window is a small number"
            )]
            let class = observation.seconds.log2().round() as i32;
            let weight = observation.weight(now);
            let sum = sums.entry(class).or_default();
            sum.0 += weight;
            sum.1 += weight * observation.seconds.ln();
            sum.2 += weight * observation.pages;
        }
        sums.values()
            .map(|&(weight, seconds, pages)| ((seconds / weight).exp(), pages / weight))
            .collect()
    }
}

impl Observation {
    fn weight(&self, now: Time) -> f64 {
        let age = now.since(self.at).as_secs_f64();
        let recency = (-age / HALF_LIFE_SECONDS).exp2().max(LEAST_WEIGHT);
        recency * self.trust
    }
}

/// Points beyond the shortest and the longest window observed. Beyond them
/// the truth lies between "the same pages again" and "in proportion"; the
/// guess is a power law between the two, its exponent from the ends of what
/// was seen where two windows tell one.
fn guesses(groups: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (Some(&first), Some(&last)) = (groups.first(), groups.last()) else {
        return Vec::new();
    };
    let slope = |a: (f64, f64), b: (f64, f64)| {
        let raw = ((b.1 + 1.0) / (a.1 + 1.0)).ln() / (b.0 / a.0).ln();
        raw.clamp(0.0, 1.0)
    };
    let (low, high) = match groups {
        [.., a, b] => (
            // Concave curves are steeper to the left, flatter to the right.
            0.5 + 0.5 * slope(groups[0], groups[1]),
            0.75 * slope(*a, *b),
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

fn add(equations: &mut NormalEquations, seconds: f64, pages: f64, weight: f64, scale: f64) {
    let mut row = [0.0; COLUMNS];
    for (cell, interval) in row.iter_mut().zip(intervals()) {
        *cell = -(-seconds / interval).exp_m1();
    }
    equations.add(&row, pages, weight / scale.max(FEW_PAGES).powi(2));
}

/// The grid: mean write intervals from 1 ms to 1000 s, three a decade. A finer
/// one fits no better; neighbours are already alike.
fn intervals() -> impl Iterator<Item = f64> {
    const GRID: [f64; COLUMNS] = [
        0.001, 0.002_15, 0.004_64, 0.01, 0.021_5, 0.046_4, 0.1, 0.215, 0.464, 1.0, 2.15, 4.64,
        10.0, 21.5, 46.4, 100.0, 215.0, 464.0, 1000.0,
    ];
    GRID.into_iter()
}

/// What a figure weighs by where it comes from.
const fn trust(origin: Origin) -> f64 {
    match origin {
        Origin::DirtyLog => 1.0,
        Origin::StoreHelper | Origin::DirtyRing => 0.9,
        Origin::Qemu => 0.7,
        Origin::Stream => 0.5,
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
        assert_eq!(curve.mean_pages(Duration::from_secs(1)), None);
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
    fn newer_points_win() {
        let mut curve = learned(&[(1000, 1000); 5]);
        for i in 0..3 {
            let at = Time::from_nanos((120 + i) * 1_000_000_000);
            curve.observe(point(1000, 4000), at);
        }
        let pages = curve.pages(Duration::from_secs(1)).unwrap();
        assert!((3400.0..4200.0).contains(&pages), "{pages}");
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
            let mut last = (0.0, 0.0);
            for exponent in 0..60 {
                let window = Duration::from_nanos(1 << exponent);
                let Some(pages) = curve.pages(window) else { break };
                let mean = curve.mean_pages(window).unwrap();
                let slack = 1.0 + 1e-9;
                prop_assert!(pages.is_finite() && pages <= to_f64(total));
                prop_assert!(mean <= pages * slack + 1e-9);
                prop_assert!(pages * slack >= last.0 && mean * slack + 1e-9 >= last.1);
                prop_assert!(curve.relative_uncertainty(window).is_finite());
                last = (pages, mean);
            }
        }
    }
}
