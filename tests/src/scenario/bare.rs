//! The kinds with the bare guest. What it writes is measured by what the rate
//! moves: sets in seconds of it, paces in shares of it, so that whether a
//! migration converges is decided by the kind and not by chance.

use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Duration;

use fastrand::Rng;

use super::run::SETTLE;
use super::{Scenario, ScenarioGuest};
use crate::guest::bare::BareGuest;
use crate::guest::bare::pattern::{BareOrder, BarePattern, BarePhase};

/// Where the guest's own part of memory ends, in MiB.
const OWN_MIB: u32 = 16;
const PAGES_PER_MIB: u32 = 256;
const PAGE_BYTES: u64 = 4096;
/// What the guest's CPU is sure to keep up with where KVM emulates it.
const FASTEST_PAGES_PER_SECOND: f64 = 8000.0;
/// From when a settled guest's migration is asked for until memory is sent: for the
/// agents and the usual windows, and of the first pass for longer ones.
const AGENTS: Duration = Duration::from_millis(2500);
const MEASURING_SHARE: f64 = 1.0;

struct Kind {
    name: &'static str,
    /// Filled and left alone, in MiB.
    fill_mib: Range<u32>,
    /// Never touched, in MiB.
    zero_mib: Range<u32>,
    /// How long the fixed rate takes for the filler, in milliseconds.
    pass_ms: Range<u64>,
    limit_ms: Range<u64>,
    load: fn(&mut Draw<'_>) -> Load,
}

impl Kind {
    const fn new(name: &'static str, load: fn(&mut Draw<'_>) -> Load) -> Self {
        Self {
            name,
            fill_mib: 150..350,
            zero_mib: 10..150,
            pass_ms: 8000..16_000,
            limit_ms: 200..400,
            load,
        }
    }

    /// Passes that hardly become shorter: a short first one.
    const fn near_knee(self) -> Self {
        Self {
            fill_mib: 100..200,
            pass_ms: 6000..8000,
            ..self
        }
    }

    /// A rate that the guest is fast enough to exceed.
    const fn beyond_knee(self) -> Self {
        Self {
            fill_mib: 60..100,
            ..self.near_knee()
        }
    }
}

/// What a load is drawn with.
struct Draw<'a> {
    rng: &'a mut Rng,
    /// The fixed rate.
    pages_per_second: f64,
    limit_seconds: f64,
    pass: Duration,
}

/// What the guest writes.
struct Load {
    working_set_pages: u32,
    pattern: Option<BarePattern>,
    change_after: Option<Duration>,
}

/// A scenario of this kind; `None` if it is not one of these.
pub(super) fn draw(kind: &'static str, rng: &mut Rng) -> Option<Scenario> {
    let Kind {
        fill_mib,
        zero_mib,
        pass_ms,
        limit_ms,
        load,
        ..
    } = kinds()
        .into_iter()
        .find(|candidate| candidate.name == kind)?;
    let fill_mib = rng.u32(fill_mib);
    let pass_ms = rng.u64(pass_ms);
    let limit_ms = rng.u64(limit_ms);
    let pages_per_second = u64::from(fill_mib * PAGES_PER_MIB) * 1000 / pass_ms;
    let load = load(&mut Draw {
        rng,
        pages_per_second: Duration::from_secs(pages_per_second).as_secs_f64(),
        limit_seconds: Duration::from_millis(limit_ms).as_secs_f64(),
        pass: Duration::from_millis(pass_ms),
    });
    let working_set_mib = load.working_set_pages.div_ceil(PAGES_PER_MIB);
    Some(Scenario {
        kind,
        guest: ScenarioGuest::Bare(BareGuest {
            ram_mib: OWN_MIB + fill_mib + working_set_mib + rng.u32(zero_mib),
            fill_mib,
            working_set_pages: load.working_set_pages,
            // Without a pattern: next to nothing.
            pages_per_second: 1,
            pattern: load.pattern,
            ..BareGuest::PLAIN
        }),
        bytes_per_second: pages_per_second * PAGE_BYTES,
        downtime_limit: Duration::from_millis(limit_ms),
        change_after: load.change_after,
    })
}

fn kinds() -> [Kind; 27] {
    [
        Kind::new("none-small", |_| Load::NONE),
        Kind {
            zero_mib: 1000..2400,
            ..Kind::new("none-mostly-zero", |_| Load::NONE)
        },
        Kind {
            fill_mib: 600..900,
            zero_mib: 1..8,
            ..Kind::new("none-full", |_| Load::NONE)
        },
        Kind::new("sweep-within-limit", |draw| {
            let set = draw.limit_seconds * draw.between(0.3, 0.7);
            draw.steady(set, 0.3, 0.9, BareOrder::Sweep)
        }),
        Kind::new("sweep-small-set", |draw| {
            draw.steady_in(1.0, 2.0, 0.2, 0.5, BareOrder::Sweep)
        }),
        Kind::new("sweep-large-set", |draw| {
            draw.steady_in(5.0, 9.0, 0.1, 0.4, BareOrder::Sweep)
        }),
        Kind::new("sweep-near-knee", |draw| {
            draw.steady_in(2.0, 3.5, 0.6, 0.75, BareOrder::Sweep)
        })
        .near_knee(),
        Kind::new("sweep-beyond-knee", |draw| {
            draw.steady_in(3.0, 6.0, 1.15, 1.5, BareOrder::Sweep)
        })
        .beyond_knee(),
        Kind::new("random-small-set", |draw| {
            draw.steady_in(1.0, 2.0, 0.3, 0.8, BareOrder::Random)
        }),
        Kind::new("random-large-set", |draw| {
            draw.steady_in(5.0, 9.0, 0.1, 0.4, BareOrder::Random)
        }),
        Kind::new("random-near-knee", |draw| {
            draw.steady_in(3.0, 5.0, 0.6, 0.8, BareOrder::Random)
        })
        .near_knee(),
        Kind::new("random-beyond-knee", |draw| {
            draw.steady_in(3.0, 6.0, 1.3, 1.8, BareOrder::Random)
        })
        .beyond_knee(),
        Kind::new("hot-90-10", |draw| {
            let set = draw.between(4.0, 8.0);
            let order = draw.hot(set * 0.1, 90);
            draw.steady(set, 0.3, 0.8, order)
        }),
        Kind::new("hot-99-1", |draw| {
            let set = draw.between(5.0, 9.0);
            let order = draw.hot(set * 0.01, 99);
            draw.steady(set, 0.5, 0.9, order)
        }),
        // More writes than the rate moves, which converges nevertheless.
        Kind::new("hot-beyond-rate", |draw| {
            let hot = draw.limit_seconds * draw.between(0.2, 0.5);
            let order = draw.hot(hot, 95);
            let set = draw.between(4.0, 8.0);
            draw.steady(set, 1.0, 1.3, order)
        })
        .near_knee(),
        Kind::new("burst-short", |draw| {
            let (set, phase) = draw.phase_in(3.0, 6.0, 0.6, 1.2, BareOrder::Random);
            let (burst, pause) = (draw.rng.u32(200..400), draw.rng.u32(4..10) * 100);
            Load::pattern(set, BarePattern::bursts(draw.seed(), phase, burst, pause))
        }),
        Kind::new("burst-long", |draw| {
            let (set, phase) = draw.phase_in(3.0, 6.0, 0.4, 0.8, BareOrder::Sweep);
            let (burst, pause) = (draw.rng.u32(2000..4000), draw.rng.u32(20..50) * 100);
            Load::pattern(set, BarePattern::bursts(draw.seed(), phase, burst, pause))
        }),
        Kind::new("oscillating-pace", |draw| {
            let (set, fast) = draw.phase_in(3.0, 6.0, 0.5, 0.9, BareOrder::Random);
            let slow = draw.paced(fast, 0.05, 0.1);
            draw.alternating(set, [fast, slow], 100..300)
        }),
        Kind::new("oscillating-sets", |draw| {
            let (set, random) = draw.phase_in(1.0, 3.0, 0.2, 0.5, BareOrder::Random);
            let sweep = BarePhase {
                first_page: set,
                order: BareOrder::Sweep,
                ..draw.paced(random, 0.2, 0.5)
            };
            draw.alternating(set * 2, [random, sweep], 200..500)
        }),
        Kind::new("change-busier", |draw| {
            let (set, before) = draw.phase_in(5.0, 8.0, 0.1, 0.2, BareOrder::Random);
            let after = draw.paced(before, 0.5, 0.65);
            draw.changing(set, before, after)
        })
        .near_knee(),
        Kind::new("change-calmer", |draw| {
            let (set, before) = draw.phase_in(5.0, 8.0, 0.8, 0.95, BareOrder::Random);
            let after = draw.paced(before, 0.4, 0.55);
            draw.changing(set, before, after)
        })
        .near_knee(),
        Kind::new("change-set", |draw| {
            let (set, before) = draw.phase_in(1.0, 2.0, 0.4, 0.6, BareOrder::Random);
            let after = BarePhase {
                first_page: set,
                pages: set * 5,
                ..before
            };
            draw.changing(set * 6, before, after)
        })
        .near_knee(),
        Kind {
            limit_ms: 60..120,
            ..Kind::new("limit-tight", |draw| {
                draw.steady_in(2.0, 5.0, 0.2, 0.5, BareOrder::Random)
            })
        },
        Kind {
            limit_ms: 1000..2000,
            ..Kind::new("limit-loose", |draw| {
                draw.steady_in(4.0, 8.0, 0.3, 0.6, BareOrder::Sweep)
            })
        },
        Kind {
            fill_mib: 900..1400,
            ..Kind::new("rate-high", |draw| {
                draw.steady_in(0.5, 1.0, 0.1, 0.3, BareOrder::Random)
            })
        },
        Kind {
            fill_mib: 60..120,
            pass_ms: 12_000..20_000,
            ..Kind::new("rate-low", |draw| {
                draw.steady_in(2.0, 5.0, 0.2, 0.5, BareOrder::Random)
            })
        },
        Kind {
            zero_mib: 300..700,
            ..Kind::new("zero-half", |draw| {
                draw.steady_in(2.0, 5.0, 0.2, 0.5, BareOrder::Random)
            })
        },
    ]
}

impl Draw<'_> {
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.rng.f64()
    }

    fn seed(&mut self) -> NonZeroU32 {
        NonZeroU32::MIN.saturating_add(self.rng.u32(..u32::MAX))
    }

    /// As many as the rate moves in so many seconds.
    fn pages(&self, seconds: f64) -> u32 {
        whole((self.pages_per_second * seconds).max(16.0))
    }

    fn hot(&self, seconds: f64, hot_percent: u32) -> BareOrder {
        BareOrder::HotAndCold {
            hot_pages: self.pages(seconds),
            hot_percent,
        }
    }

    /// A phase over a set of so many seconds, at a share of the rate that is
    /// drawn.
    fn phase(&mut self, set: f64, slowest: f64, fastest: f64, order: BareOrder) -> BarePhase {
        let phase = BarePhase {
            writes: u32::MAX,
            pages_per_second: 1,
            first_page: 0,
            pages: self.pages(set),
            order,
        };
        self.paced(phase, slowest, fastest)
    }

    /// The same phase at another share of the rate.
    fn paced(&mut self, phase: BarePhase, slowest: f64, fastest: f64) -> BarePhase {
        let pace = self.pages_per_second * self.between(slowest, fastest);
        BarePhase {
            pages_per_second: whole(pace.clamp(1.0, FASTEST_PAGES_PER_SECOND)),
            ..phase
        }
    }

    /// A phase and the pages of its set, whose size is drawn too.
    fn phase_in(
        &mut self,
        smallest: f64,
        largest: f64,
        slowest: f64,
        fastest: f64,
        order: BareOrder,
    ) -> (u32, BarePhase) {
        let set = self.between(smallest, largest);
        let phase = self.phase(set, slowest, fastest, order);
        (phase.pages, phase)
    }

    fn steady(&mut self, set: f64, slowest: f64, fastest: f64, order: BareOrder) -> Load {
        let phase = self.phase(set, slowest, fastest, order);
        Load::pattern(phase.pages, BarePattern::steady(self.seed(), phase))
    }

    fn steady_in(
        &mut self,
        smallest: f64,
        largest: f64,
        slowest: f64,
        fastest: f64,
        order: BareOrder,
    ) -> Load {
        let set = self.between(smallest, largest);
        self.steady(set, slowest, fastest, order)
    }

    fn alternating(&mut self, set: u32, phases: [BarePhase; 2], period_ms: Range<u32>) -> Load {
        let phases = phases.map(|phase| (phase, self.rng.u32(period_ms.clone())));
        Load::pattern(set, BarePattern::alternating(self.seed(), phases))
    }

    /// Changes within the first pass.
    fn changing(&mut self, set: u32, before: BarePhase, after: BarePhase) -> Load {
        let into_pass = self.pass.mul_f64(MEASURING_SHARE + self.between(0.1, 0.5));
        let change_after = SETTLE + AGENTS + into_pass;
        let milliseconds = u32::try_from(change_after.as_millis()).unwrap_or(u32::MAX);
        let pattern = BarePattern::changing(self.seed(), before, milliseconds, after);
        Load {
            change_after: Some(change_after),
            ..Load::pattern(set, pattern)
        }
    }
}

impl Load {
    const NONE: Self = Self {
        working_set_pages: 1,
        pattern: None,
        change_after: None,
    };

    const fn pattern(working_set_pages: u32, pattern: BarePattern) -> Self {
        Self {
            working_set_pages,
            pattern: Some(pattern),
            change_after: None,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pages of 3 GiB at most, and not negative"
)]
fn whole(value: f64) -> u32 {
    value as u32
}
