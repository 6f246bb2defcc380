//! How long the guest's disks take, as the guest sees it: by QEMU's own accounts.
//!
//! Those count whatever is under an image, a block device or a share on another host, and
//! only this guest's requests.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::Driver;
use super::inbox::Event;
use super::watch::STATUS_TIMEOUT;
use crate::pacing::sample::Sample;
use crate::pacing::time::Time;

/// As often as the guard can make use of it.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// What was asked, and told.
#[derive(Debug, Default)]
pub(super) struct Disks {
    due: Option<Time>,
    is_asked: bool,
    before: BTreeMap<String, Account>,
}

/// What `query-blockstats` says of one disk.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Disk {
    #[serde(default)]
    qdev: Option<String>,
    #[serde(default)]
    device: Option<String>,
    stats: Stats,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Stats {
    rd_operations: u64,
    wr_operations: u64,
    flush_operations: u64,
    rd_total_time_ns: u64,
    wr_total_time_ns: u64,
    flush_total_time_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Account {
    requests: u64,
    nanos: u64,
}

impl Driver {
    /// Asks for the accounts if they matter and it is time. Past STOP nobody answers.
    pub(super) fn ask_disks(&mut self, now: Time) {
        let is_due = self.disks.due.is_none_or(|due| now >= due) && !self.disks.is_asked;
        let matters = self.session.limits().disk_latency_limit.is_some();
        if !matters || !is_due || self.switchover.stopped_at.is_some() {
            return;
        }
        let Some(monitored) = &self.prepared.monitored else {
            if self.disks.due.is_none() {
                tracing::warn!("--disk-latency-limit needs --qmp: the disks are not seen");
                self.disks.due = Some(now + Duration::from_secs(u64::MAX >> 32));
            }
            return;
        };
        self.disks.due = Some(now + ASK_EVERY);
        self.disks.is_asked = true;
        let (qmp, events) = (monitored.qmp.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let disks = qmp
                .execute_within("query-blockstats", Value::Null, STATUS_TIMEOUT)
                .await;
            let _ = events.send(Event::Disks(disks));
        });
    }

    /// Tells the session of the slowest.
    pub(super) fn take_disks(&mut self, disks: &[Disk], now: Time) {
        self.disks.is_asked = false;
        if let Some(mean) = self.disks.slowest(disks) {
            tracing::debug!(?mean, "the slowest of the guest's disks");
            self.tell(Sample::DiskLatency { mean }, now);
        }
    }
}

impl Disks {
    /// The mean time of a request to the slowest disk since the accounts before; `None`
    /// if none was asked anything.
    fn slowest(&mut self, disks: &[Disk]) -> Option<Duration> {
        let mut slowest = None;
        for disk in disks {
            let account = disk.stats.account();
            let Some(before) = self.before.insert(disk.name(), account) else {
                continue;
            };
            let requests = account.requests.saturating_sub(before.requests);
            let nanos = account.nanos.saturating_sub(before.nanos);
            if let Some(mean) = nanos.checked_div(requests) {
                slowest = slowest.max(Some(Duration::from_nanos(mean)));
            }
        }
        slowest
    }

    /// QEMU did not answer.
    pub(super) const fn forget_question(&mut self) {
        self.is_asked = false;
    }
}

impl Disk {
    fn name(&self) -> String {
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        named(&self.qdev)
            .or_else(|| named(&self.device))
            .unwrap_or_default()
    }
}

impl Stats {
    const fn account(self) -> Account {
        Account {
            requests: self.rd_operations + self.wr_operations + self.flush_operations,
            nanos: self.rd_total_time_ns + self.wr_total_time_ns + self.flush_total_time_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disks(text: &str) -> Vec<Disk> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_slowest_disk_counts_and_only_what_is_new() {
        let mut seen = Disks::default();
        let first = r#"[
            {"device":"","qdev":"a","stats":{"rd_operations":10,"rd_total_time_ns":1000}},
            {"device":"b","stats":{"wr_operations":1,"wr_total_time_ns":999999}}]"#;
        assert_eq!(seen.slowest(&disks(first)), None);
        assert_eq!(seen.slowest(&disks(first)), None, "nothing was asked");
        let then = r#"[
            {"device":"","qdev":"a","stats":{"rd_operations":14,"rd_total_time_ns":3000,
                "flush_operations":1,"flush_total_time_ns":500}},
            {"device":"b","stats":{"wr_operations":2,"wr_total_time_ns":1000199}}]"#;
        assert_eq!(
            seen.slowest(&disks(then)),
            Some(Duration::from_nanos(500)),
            "2500 over 5 requests, and 200 over 1"
        );
    }
}
