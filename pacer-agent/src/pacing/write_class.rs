//! Pages that a guest writes alike, and how many of them a window finds.

/// QEMU clears its dirty log in chunks of this many pages (1 GiB), just before
/// the first page of a chunk is sent.
const CHUNK_PAGES: f64 = 262_144.0;

/// In which order the pages of a class are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteOrder {
    /// At random: after `seconds` the share 1 − 1/e of them has been written.
    Random,
    /// One after the other: after `seconds` all of them have been, once.
    Sweep,
}

/// Pages that are written alike.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteClass {
    pub(super) order: WriteOrder,
    /// The mean time between two writes of a page.
    pub(super) seconds: f64,
    pub(super) pages: f64,
}

impl WriteClass {
    pub(super) const NONE: Self = Self {
        order: WriteOrder::Random,
        seconds: 1.0,
        pages: 0.0,
    };

    /// Its pages that are written in these windows.
    pub(super) fn found(&self, windows: Windows) -> f64 {
        // Most classes of a fit have none.
        if self.pages > 0.0 {
            self.pages * self.written(windows)
        } else {
            0.0
        }
    }

    /// How many of its pages are dirty if `dirty` were, and `written` of them are
    /// written, both no more than there are. Of a sweep few are among those that
    /// wait, which it has just been through, unless it goes through most of them.
    pub(super) fn with(&self, dirty: f64, written: f64) -> f64 {
        let share = written / self.pages;
        let again = match self.order {
            WriteOrder::Random => share,
            WriteOrder::Sweep => share * share,
        };
        let all = dirty + written - dirty * again;
        all.max(dirty).max(written).min(self.pages.max(dirty))
    }

    /// The share of its pages that is written in these windows, 0 to 1.
    pub(super) fn written(&self, windows: Windows) -> f64 {
        let (a, b) = (
            windows.shortest / self.seconds,
            windows.longest / self.seconds,
        );
        let is_one = b - a < 1e-3;
        let share = match self.order {
            WriteOrder::Random if is_one => -(-b).exp_m1(),
            // The mean of 1 − e^(−x) from a to b.
            WriteOrder::Random => 1.0 - ((-a).exp() - (-b).exp()) / (b - a),
            WriteOrder::Sweep if is_one => b.min(1.0),
            // The mean of min(x, 1) from a to b.
            WriteOrder::Sweep => {
                let under = |x: f64| x.min(1.0).powi(2) / 2.0 + (x - 1.0).max(0.0);
                (under(b) - under(a)) / (b - a)
            }
        };
        if share.is_finite() {
            share.clamp(0.0, 1.0)
        } else {
            0.0
        }
    }
}

/// Keeps the pages of all classes below `total`: those that are written least often
/// become one class of what is left, and as many of them are written a second.
pub(super) fn limit(classes: &mut [WriteClass], total: f64) {
    let all: f64 = classes.iter().map(|class| class.pages).sum();
    if all <= total {
        return;
    }
    classes.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    let mut left = total;
    let mut rest = classes.iter_mut().skip_while(|class| {
        let fits = class.pages <= left;
        if fits {
            left -= class.pages;
        }
        fits
    });
    let Some(first) = rest.next() else { return };
    let mut per_second = first.pages / first.seconds;
    for class in rest {
        per_second += class.pages / class.seconds;
        class.pages = 0.0;
    }
    first.pages = left;
    if left > 0.0 {
        first.seconds = left / per_second;
    }
}

/// Windows over which a sync finds what was written, in seconds: spread evenly from
/// the shortest to the longest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Windows {
    shortest: f64,
    longest: f64,
}

impl Windows {
    /// One for all pages. What is no time is none.
    pub(super) fn all(seconds: f64) -> Self {
        let seconds = if seconds > 0.0 { seconds } else { 0.0 };
        Self {
            shortest: seconds,
            longest: seconds,
        }
    }

    /// As many of each length up to this one: each page has been copied at another
    /// moment of a sweep of so many seconds.
    pub(super) fn up_to(seconds: f64) -> Self {
        Self {
            shortest: 0.0,
            ..Self::all(seconds)
        }
    }

    /// Those of a pass: QEMU clears its log chunk by chunk, so that those of a
    /// large guest begin one after the other.
    pub(super) fn of_pass(seconds: f64, total_pages: f64) -> Self {
        let chunks = (total_pages / CHUNK_PAGES).ceil().max(1.0);
        let Self { longest, .. } = Self::all(seconds);
        Self {
            shortest: longest / chunks,
            longest,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(order: WriteOrder, seconds: f64) -> WriteClass {
        WriteClass {
            order,
            seconds,
            pages: 1.0,
        }
    }

    #[test]
    fn a_sweep_is_through_after_its_time() {
        let sweep = class(WriteOrder::Sweep, 2.0);
        let written = |seconds| sweep.written(Windows::all(seconds));
        assert_eq!(
            [written(0.0), written(1.0), written(2.0), written(9.0)],
            [0.0, 0.5, 1.0, 1.0]
        );
        assert_eq!(written(f64::NAN), 0.0);
    }

    #[test]
    fn what_is_too_much_is_fewer_pages_written_more_often() {
        let of = |pages, order, seconds| WriteClass {
            pages,
            ..class(order, seconds)
        };
        let mut classes = [
            of(500.0, WriteOrder::Random, 100.0),
            of(1000.0, WriteOrder::Random, 200.0),
            of(60.0, WriteOrder::Sweep, 1.0),
        ];
        limit(&mut classes, 100.0);
        let parts = classes.map(|class| (class.pages, class.seconds));
        assert_eq!(parts, [(60.0, 1.0), (40.0, 4.0), (0.0, 200.0)]);
        limit(&mut classes, 50.0);
        assert_eq!(classes.map(|class| class.pages), [50.0, 0.0, 0.0]);
    }

    proptest! {
        #[test]
        fn many_windows_are_the_mean_of_each(
            pass in 0.01_f64..100.0, interval in 0.01_f64..100.0, gib in 2_u32..40, sweeps: bool,
        ) {
            const PARTS: u32 = 2000;
            let order = if sweeps { WriteOrder::Sweep } else { WriteOrder::Random };
            let class = class(order, interval);
            let windows = Windows::of_pass(pass, f64::from(gib) * CHUNK_PAGES);
            let step = (windows.longest - windows.shortest) / f64::from(PARTS);
            let sum: f64 = (0..PARTS)
                .map(|part| windows.shortest + (f64::from(part) + 0.5) * step)
                .map(|seconds| class.written(Windows::all(seconds)))
                .sum();
            let mean = sum / f64::from(PARTS);
            prop_assert!((class.written(windows) - mean).abs() < 1e-3);
        }
    }
}
