//! For how long a guest is looked at before its first byte is sent. Pure.
//!
//! A migration's passes are as long as its memory takes to send, and what a guest
//! writes in a pass cannot be told from windows that are much shorter: one that
//! goes through a large table writes in proportion to time until it has been
//! through, and nothing new from then on. So windows double for as long as they go
//! on finding more, within a part of the time that the migration itself will take.

use std::time::Duration;

/// The part of a migration's time that may be spent on looking at the guest.
const SHARE: u32 = 4;
/// The part of the time to a deadline, which a higher rate must make up for,
const DEADLINE_SHARE: u32 = 10;
/// and of that time which is not needed for sending all memory once.
const SLACK_SHARE: u32 = 2;
/// The first window after the usual ones.
const FIRST: Duration = Duration::from_secs(1);
/// Whoever waits for longer wants to say so.
const LONGEST_BUDGET: Duration = Duration::from_secs(60);

/// How long the windows after the usual ones may take together, of a migration
/// that is expected to take this long.
#[must_use]
pub fn budget(expected: Duration) -> Duration {
    (expected / SHARE).min(LONGEST_BUDGET)
}

/// The same of one that is to arrive at `deadline`, where sending all memory once
/// takes `least` at the highest rate that is known, if one is.
#[must_use]
pub fn budget_before(deadline: Duration, least: Option<Duration>) -> Duration {
    let slack = least.map_or(deadline, |least| deadline.saturating_sub(least));
    (deadline / DEADLINE_SHARE)
        .min(slack / SLACK_SHARE)
        .min(LONGEST_BUDGET)
}

/// The next window, in whole seconds, where the longest until now was `longest`
/// and `left` of the budget is left; `None` if there is not enough for one that is
/// clearly longer. What would be too little for a further one is taken now.
#[must_use]
pub fn next_window(longest: Duration, left: Duration) -> Option<Duration> {
    let left = Duration::from_secs(left.as_secs());
    let next = FIRST.max(longest * 2);
    if left * 2 >= next * 5 {
        return Some(Duration::from_secs(next.as_secs()));
    }
    (left >= FIRST && left * 2 >= longest * 3).then_some(left)
}

/// How a guest is looked at before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// How long the usual windows take together.
    pub usual: Duration,
    /// The longest of them.
    pub longest: Duration,
    /// Windows longer than this find no more; `None` where they may.
    pub settled: Option<Duration>,
    /// Whether all windows begin together, so that only the longest takes time.
    pub is_one: bool,
}

impl Lead {
    /// How long all windows take of a migration that is expected to take this
    /// long.
    #[must_use]
    pub fn before(&self, expected: Duration) -> Duration {
        let budget = budget(expected);
        let (mut longest, mut spent) = (self.longest, Duration::ZERO);
        while self.settled.is_none_or(|settled| longest < settled)
            && let Some(window) = next_window(longest, budget.saturating_sub(spent))
        {
            spent = match self.is_one {
                true => window.saturating_sub(self.usual),
                false => spent + window,
            };
            longest = window;
        }
        self.usual + spent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn windows(longest_ms: u64, budget_ms: u64) -> Vec<u64> {
        let mut longest = Duration::from_millis(longest_ms);
        let mut left = Duration::from_millis(budget_ms);
        let mut windows = Vec::new();
        while let Some(window) = next_window(longest, left) {
            windows.push(window.as_secs());
            left -= window;
            longest = window;
        }
        windows
    }

    #[test]
    fn windows_double_and_the_last_takes_what_is_left() {
        assert!(windows(500, 900).is_empty());
        assert_eq!(windows(500, 1000), [1]);
        assert_eq!(windows(500, 2900), [2]);
        assert_eq!(windows(500, 3100), [1, 2]);
        assert_eq!(windows(500, 10_000), [1, 2, 7]);
        assert_eq!(windows(500, 30_000), [1, 2, 4, 8, 15]);
        assert!(windows(1000, 1400).is_empty(), "hardly longer");
        assert_eq!(windows(1000, 3000), [3]);
    }

    #[test]
    fn a_guest_that_is_known_is_not_looked_at_for_longer() {
        let seconds = |settled: Option<u64>, is_one| {
            let lead = Lead {
                is_one,
                usual: Duration::from_secs(1),
                longest: Duration::from_millis(500),
                settled: settled.map(Duration::from_secs),
            };
            lead.before(Duration::from_secs(40)).as_secs()
        };
        assert_eq!(
            [Some(0), Some(2), None].map(|settled| seconds(settled, false)),
            [1, 4, 11]
        );
        assert_eq!(
            [Some(0), Some(2), None].map(|settled| seconds(settled, true)),
            [1, 2, 9]
        );
    }

    #[test]
    fn a_deadline_is_not_missed_for_the_sake_of_measuring() {
        let seconds = Duration::from_secs;
        assert_eq!(budget_before(seconds(40), None), seconds(4));
        assert_eq!(budget_before(seconds(40), Some(seconds(36))), seconds(2));
        assert_eq!(budget_before(seconds(40), Some(seconds(50))), seconds(0));
        assert_eq!(budget(seconds(3600)), seconds(60));
    }

    proptest! {
        #[test]
        fn no_more_is_spent_than_there_is(longest in 0_u64..1 << 40, budget in 0_u64..1 << 40) {
            let windows = windows(longest, budget);
            let spent: u64 = windows.iter().sum();
            prop_assert!(spent * 1000 <= budget);
            prop_assert!(windows.is_sorted_by(|one, other| one < other));
        }
    }
}
