//! A guest whose dirty curve is known exactly, and is not of the fitted form.

use super::guest::Guest;

/// A region written page after page, round and round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    pub(super) pages: f64,
    pub(super) per_second: f64,
}

/// Pages written at random, uniformly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scatter {
    pub(super) pages: f64,
    pub(super) per_second: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct SyntheticGuest {
    pub(super) total_pages: f64,
    pub(super) normal_pages: f64,
    pub(super) sweep: Sweep,
    pub(super) scatter: Scatter,
    /// From this time on the guest writes `factor` times as fast.
    pub(super) changes_at: f64,
    pub(super) factor: f64,
    /// From this time on it writes other pages than before.
    pub(super) moves_at: f64,
    /// It works only in so large a share of each of so many seconds.
    pub(super) bursts: (f64, f64),
}

impl SyntheticGuest {
    pub(super) fn idle(mib: f64, normal_mib: f64) -> Self {
        Self {
            total_pages: mib * 256.0,
            normal_pages: normal_mib * 256.0,
            sweep: Sweep {
                pages: 0.0,
                per_second: 0.0,
            },
            scatter: Scatter {
                pages: 1.0,
                per_second: 0.0,
            },
            changes_at: f64::INFINITY,
            factor: 1.0,
            moves_at: f64::INFINITY,
            bursts: (1.0, 1.0),
        }
    }

    pub(super) fn sweeping(self, pages: f64, per_second: f64) -> Self {
        let sweep = Sweep { pages, per_second };
        Self { sweep, ..self }
    }

    pub(super) fn scattering(self, pages: f64, per_second: f64) -> Self {
        let scatter = Scatter { pages, per_second };
        Self { scatter, ..self }
    }

    pub(super) fn changing(self, changes_at: f64, factor: f64) -> Self {
        Self {
            changes_at,
            factor,
            ..self
        }
    }

    pub(super) fn moving(self, moves_at: f64) -> Self {
        Self { moves_at, ..self }
    }

    pub(super) fn bursting(self, seconds: f64, share: f64) -> Self {
        Self {
            bursts: (seconds, share),
            ..self
        }
    }

    /// Seconds worked up to then, at its pace of the start.
    fn work(&self, at: f64) -> f64 {
        let at = at + (at - self.changes_at).max(0.0) * (self.factor - 1.0);
        let (seconds, share) = self.bursts;
        let whole = (at / seconds).floor();
        whole * seconds * share + (at - whole * seconds).min(seconds * share)
    }

    fn written(&self, from: f64, to: f64) -> f64 {
        let busy = self.work(to) - self.work(from);
        let swept = (self.sweep.per_second * busy).min(self.sweep.pages);
        let pages = self.scatter.pages.max(1.0);
        let missed = (1.0 - 1.0 / pages.max(1.000_1)).powf(self.scatter.per_second * busy);
        swept + pages * (1.0 - missed)
    }
}

impl Guest for SyntheticGuest {
    fn total_pages(&self) -> f64 {
        self.total_pages
    }

    fn normal_pages(&self) -> f64 {
        self.normal_pages
    }

    fn dirtied(&self, from: f64, to: f64) -> f64 {
        let moved = self.moves_at.clamp(from, to);
        let pages = self.written(from, moved) + self.written(moved, to);
        pages.min(self.total_pages)
    }
}
