//! The predictors that Pacer is compared with, on the same observations.
//!
//! They are given the pages that are left, zero pages apart, as Pacer knows them,
//! so that what is compared is what they make of the guest's writing.

use super::passes::{NORMAL_PAGE_BYTES, PAGE_BYTES, State};

/// What all of them are told.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Where the migration is.
    pub state: State,
    /// Bytes a second.
    pub rate: f64,
    /// The longest the last copy may take, in seconds.
    pub downtime_limit: f64,
    /// Windows that were measured: seconds, and distinct pages written in them.
    pub windows: Vec<(f64, f64)>,
}

/// Seconds from now until the guest has arrived, by each of them; `None` where it
/// says that it never does, or knows too little.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Baselines {
    /// [`remaining_over_rate`].
    pub remaining_over_rate: Option<f64>,
    /// [`geometric`].
    pub geometric: Option<f64>,
    /// [`dirty_vector`].
    pub dirty_vector: Option<f64>,
}

impl Baselines {
    /// What each says of it.
    #[must_use]
    pub fn of(known: &Known) -> Self {
        Self {
            remaining_over_rate: remaining_over_rate(known),
            geometric: geometric(known),
            dirty_vector: dirty_vector(known),
        }
    }

    /// Each changed by `change`.
    #[must_use]
    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self {
            remaining_over_rate: self.remaining_over_rate.map(&change),
            geometric: self.geometric.map(&change),
            dirty_vector: self.dirty_vector.map(&change),
        }
    }
}

/// Iterations followed at most.
const PASSES: u32 = 200;

/// What people do by hand: the bytes that QEMU calls remaining, through the rate.
#[must_use]
pub fn remaining_over_rate(known: &Known) -> Option<f64> {
    let pages = known.state.normal_pages + known.state.zero_pages;
    finite(pages * PAGE_BYTES / known.rate)
}

/// The geometric series V·rⁿ of one dirty rate, that of the longest window: each
/// pass takes r, dirty rate over rate, of the time of the one before (Clark et
/// al., NSDI 2005, and most models since).
#[must_use]
pub fn geometric(known: &Known) -> Option<f64> {
    let &(seconds, pages) = longest(&known.windows)?;
    let ratio = pages * NORMAL_PAGE_BYTES / seconds / known.rate;
    let mut pass = known.state.pending_bytes() / known.rate;
    let mut total = pass;
    for _ in 0..PASSES {
        if pass <= known.downtime_limit {
            return finite(total);
        }
        if ratio >= 1.0 {
            return None;
        }
        pass *= ratio;
        total += pass;
    }
    None
}

/// The simulation of the series "Migration time prediction using calc-dirty-rate"
/// for QEMU (A. Gudkov, 2023): a pass is followed by what a vector of windows says
/// was written meanwhile, interpolated between them, before the first on the line
/// through the first two, and beyond the last on that through the last two, with
/// neither growing backwards; no more than the pages that are not zero. After an
/// hour it is given up.
#[must_use]
pub fn dirty_vector(known: &Known) -> Option<f64> {
    /// Seconds.
    const GIVE_UP: f64 = 3600.0;
    let mut windows = known.windows.clone();
    windows.sort_by(|one, other| one.0.total_cmp(&other.0));
    windows.dedup_by(|one, other| one.0 <= other.0);
    if windows.len() < 2 {
        windows.insert(0, (0.0, 0.0));
    }
    longest(&windows)?;
    let most = known.state.normal_pages;
    let mut pass = known.state.pending_bytes() / known.rate;
    let mut total = pass;
    while total < GIVE_UP {
        if pass <= known.downtime_limit {
            return finite(total);
        }
        let pages = interpolate(&windows, pass).clamp(0.0, most);
        let next = pages * NORMAL_PAGE_BYTES / known.rate;
        // It would go on like that for the whole hour.
        if next >= pass * (1.0 - 1e-6) && next <= pass * (1.0 + 1e-6) {
            return None;
        }
        pass = next;
        total += pass;
    }
    None
}

fn longest(windows: &[(f64, f64)]) -> Option<&(f64, f64)> {
    windows
        .iter()
        .filter(|window| window.0 > 0.0)
        .max_by(|one, other| one.0.total_cmp(&other.0))
}

/// On the line through the points, which are in order.
fn interpolate(points: &[(f64, f64)], seconds: f64) -> f64 {
    let mut pairs = points.windows(2);
    let pair = pairs
        .find(|pair| seconds <= pair[1].0)
        .or_else(|| points.windows(2).last());
    pair.map_or(0.0, |pair| {
        let slope = ((pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)).max(0.0);
        pair[0].1 + slope * (seconds - pair[0].0)
    })
}

fn finite(seconds: f64) -> Option<f64> {
    seconds.is_finite().then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pacing::passes::tests::fresh;

    fn known(windows: &[(f64, f64)]) -> Known {
        Known {
            state: fresh(200_000.0),
            rate: 41.04e6,
            downtime_limit: 0.3,
            windows: windows.to_vec(),
        }
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.expect("it converges");
        assert!((found / expected - 1.0).abs() < 0.01, "{found} {expected}");
    }

    #[test]
    fn by_hand_every_page_counts_whole() {
        close(
            remaining_over_rate(&known(&[])),
            200_000.0 * 4096.0 / 41.04e6,
        );
    }

    #[test]
    fn a_series_adds_up() {
        // A tenth of 10,000 pages a second: 10.02, 1, and 0.1 s.
        close(
            geometric(&known(&[(0.1, 900.0), (1.0, 1000.0)])),
            10.02 * 1.11,
        );
        assert_eq!(geometric(&known(&[(1.0, 20_000.0)])), None);
        assert_eq!(geometric(&known(&[])), None);
    }

    #[test]
    fn a_vector_is_interpolated() {
        // A set of 5,000 pages, written within half a second: passes of half a
        // second find it again for ever, those of 0.25 s half of it.
        let set = [(0.25, 2500.0), (0.5, 5000.0), (1.0, 5000.0)];
        assert_eq!(dirty_vector(&known(&set)), None);
        let small = [(0.25, 1000.0), (0.5, 2000.0), (1.0, 2000.0)];
        close(dirty_vector(&known(&small)), 10.02 + 0.2);
    }

    #[test]
    fn nothing_known_gives_nothing() {
        let nothing = Known {
            rate: 0.0,
            ..known(&[(0.0, 5.0)])
        };
        assert_eq!(Baselines::of(&nothing), Baselines::default());
    }
}
