//! QEMU's own count of the pages that each sync of a migration found dirty.
//!
//! While a pass lasts, the pages sent since the migration began and those still
//! to be sent add up to the same number; a sync adds what it newly finds. So
//! the difference of two passes' sums is what QEMU sends because of that sync:
//! nobody has to look at the moment of the sync.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process::wait_until;
use crate::vm::Vm;

/// Guest memory's pages, as QEMU counts them.
const PAGE_BYTES: u64 = 4096;

/// How a migration is paced so that no page is left over at a sync.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// `max-bandwidth`; before QEMU 8.2 it must be below 4 MB/s for the
    /// figures to be exact.
    pub bytes_per_second: u64,
    /// Whether QEMU knows `avail-switchover-bandwidth` (8.2 and later).
    pub switchover_bandwidth: bool,
}

/// A migration to nowhere that is watched sync by sync.
#[derive(Debug)]
pub struct DirtyCount<'a> {
    vm: &'a Vm,
    /// Sums seen in each pass, by `dirty-sync-count`, and how often.
    passes: BTreeMap<u64, BTreeMap<u64, u32>>,
}

/// Pages that one sync found dirty and that were not waiting to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewlyDirty {
    /// `dirty-sync-count` after it; the first is 1.
    pub sync: u64,
    /// The pages.
    pub pages: u64,
}

impl<'a> DirtyCount<'a> {
    /// Starts a migration whose bytes go nowhere. It does not complete as long
    /// as the guest dirties a page in each pass.
    ///
    /// # Errors
    /// QEMU's own.
    pub fn start(vm: &'a Vm, pace: Pace) -> Result<Self> {
        // QEMU syncs when what is left can be sent within the downtime limit:
        // that is to be less than a page.
        let mut parameters = json!({
            "max-bandwidth": pace.bytes_per_second,
            "downtime-limit": 1,
        });
        if pace.switchover_bandwidth {
            parameters["avail-switchover-bandwidth"] = json!(1_000_000);
        }
        vm.qmp("migrate-set-parameters", parameters)?;
        vm.qmp("migrate", json!({"uri": "exec:cat >/dev/null"}))?;
        Ok(Self {
            vm,
            passes: BTreeMap::new(),
        })
    }

    /// Watches until the sync number `sync`, and a while of the pass after it,
    /// have been seen.
    ///
    /// # Errors
    /// The migration ended, or it takes longer than `timeout`.
    pub fn watch(&mut self, sync: u64, timeout: Duration) -> Result<()> {
        const POLLS: u32 = 5;
        let what = format!("the migration's sync {sync}");
        wait_until(&what, timeout, || {
            let (at, sum) = self.look()?;
            let Some(sum) = sum else { return Ok(None) };
            let polls = self.passes.entry(at).or_default().entry(sum).or_default();
            *polls += 1;
            Ok((at >= sync && *polls >= POLLS).then_some(()))
        })
    }

    /// Cancels it.
    ///
    /// # Errors
    /// QEMU's own.
    pub fn cancel(&self) -> Result<()> {
        const TIMEOUT: Duration = Duration::from_secs(20);
        self.vm.qmp("migrate_cancel", json!({}))?;
        wait_until("the migration is cancelled", TIMEOUT, || {
            Ok((self.vm.migration_status()? == "cancelled").then_some(()))
        })
    }

    /// What each sync found whose passes before and after were both seen.
    #[must_use]
    pub fn newly_dirty(&self) -> Vec<NewlyDirty> {
        newly_dirty(&self.passes)
    }

    fn look(&self) -> Result<(u64, Option<u64>)> {
        let answer = self.vm.qmp("query-migrate", json!({}))?;
        match answer["status"].as_str() {
            Some("setup") => Ok((0, None)),
            Some("active") => look(&answer),
            status => bail!("the migration is {status:?}: {answer}"),
        }
    }
}

fn look(answer: &Value) -> Result<(u64, Option<u64>)> {
    let number = |field: &str| {
        let value = answer["ram"][field].as_u64();
        value.with_context(|| format!("query-migrate: no {field} in {answer}"))
    };
    let sync = number("dirty-sync-count")?;
    let remaining_bytes = number("remaining")?;
    ensure!(remaining_bytes % PAGE_BYTES == 0, "{answer}");
    let sum = number("normal")? + number("duplicate")? + remaining_bytes / PAGE_BYTES;
    Ok((sync, (sync > 0).then_some(sum)))
}

/// A page is out of both counts for the moment between its removal from the one
/// and its arrival in the other: the pass's sum is the one seen most.
fn newly_dirty(passes: &BTreeMap<u64, BTreeMap<u64, u32>>) -> Vec<NewlyDirty> {
    let most_seen = |sums: &BTreeMap<u64, u32>| {
        let most = sums.iter().max_by_key(|&(&sum, &polls)| (polls, sum));
        most.map(|(&sum, _)| sum)
    };
    let sums: Vec<(u64, u64)> = passes
        .iter()
        .filter_map(|(&sync, sums)| Some((sync, most_seen(sums)?)))
        .collect();
    sums.windows(2)
        .filter(|pair| pair[1].0 == pair[0].0 + 1)
        .map(|pair| NewlyDirty {
            sync: pair[1].0,
            pages: pair[1].1.saturating_sub(pair[0].1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_the_step_between_two_passes() {
        let passes = [
            (1, [(1000, 5)].into()),
            (2, [(1299, 1), (1300, 9)].into()),
            (3, [(1350, 2)].into()),
            // Number 4 was too short to be seen.
            (5, [(1500, 2)].into()),
        ];
        let found = newly_dirty(&passes.into());
        let expected = [(2, 300), (3, 50)].map(|(sync, pages)| NewlyDirty { sync, pages });
        assert_eq!(found, expected);
    }

    #[test]
    fn sums_are_pages_sent_and_left() {
        let ram = json!({"dirty-sync-count": 3, "remaining": 8192, "normal": 10, "duplicate": 5});
        assert_eq!(look(&json!({"ram": ram})).unwrap(), (3, Some(17)));
        let ram = json!({"dirty-sync-count": 3, "remaining": 100, "normal": 10, "duplicate": 5});
        assert!(look(&json!({"ram": ram})).is_err());
    }
}
