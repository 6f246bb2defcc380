//! What the loop does about what it hears, until the source completes or the
//! migration cannot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::begin::log_stranger;
use super::inbox::Event;
use super::{Driver, End};
use crate::cli::OnInfeasible;
use crate::fault;
use crate::handover::completion::Completion;
use crate::measure;
use crate::pacing::controller::{Reason, Verdict};
use crate::pacing::sample::{DirtyWindow, QemuProgress, Ram, Sample};
use crate::pacing::session::{Action, Phase};
use crate::pacing::time::Time;
use crate::pacing::token_bucket::Rate;
use crate::probe::EventKind;
use crate::qmp::MigrationInfo;
use crate::qmp::events::{Heard, QmpEvent};
use crate::relay::channel;
use crate::relay::control::ControlError;
use crate::relay::frame::{DestinationState, Message};
use crate::stream::reader::Seen;

/// `query-migrate` this often, besides once a pass.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// QEMU's monitor is not answered while the guest's last memory is sent.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(60);
/// Past this without an answer to `migrate_cancel` QEMU's sockets are reset.
const CANCEL_TIMEOUT: Duration = Duration::from_millis(500);
/// QEMU notices a reset connection, or a cancel, within this.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// After the channel has ended in order the source's state is known within
/// this, if it can be known at all.
const STATE_TIMEOUT: Duration = Duration::from_secs(1);
/// A cancel that raced with the end would show by then.
const STATE_SETTLE: Duration = Duration::from_millis(50);
/// A step of the wall's clock that is followed.
const WALL_STEP_NANOS: u128 = 1_000_000_000;

impl Driver {
    pub(super) async fn handle_event(&mut self, event: Event, now: Time) -> Option<End> {
        match event {
            Event::Qmp(Heard::Event(event)) => return self.handle_qmp(&event, now).await,
            Event::Qmp(Heard::Missed) => self.ask_what_was_missed(now),
            Event::Inspected(inspected, peer) => {
                if self.under_way || self.prepared.monitored.is_none() {
                    tracing::warn!(?peer, "one more migration stream was refused");
                    inspected.reset();
                    return None;
                }
                return self.admit(*inspected).await;
            }
            Event::Stranger(rejected, peer) => log_stranger(&rejected, peer),
            Event::Deaf(error) => {
                if !self.under_way {
                    return self
                        .cancel(End::Failed(format!("no longer listening: {error}")), now)
                        .await;
                }
            }
            Event::Channel(event) => return self.handle_channel(event, now),
            Event::Progress(progress) => {
                self.progress_asked = false;
                match progress {
                    Ok(info) => return self.handle_progress(&info, now),
                    Err(error) => tracing::debug!(%error, "no progress from QEMU"),
                }
            }
            Event::Status(Ok(status)) => return self.handle_run_state(&status.status, now).await,
            Event::Status(Err(error)) => tracing::debug!(%error, "QEMU does not say its state"),
            Event::Disks(Ok(disks)) => self.take_disks(&disks, now),
            Event::Disks(Err(error)) => {
                tracing::debug!(%error, "QEMU does not say how its disks do");
                self.disks.forget_question();
            }
            Event::Sized(ram) => self.on_ram(ram),
            Event::Compared(window) => self.on_compared(window, now),
            Event::MigrateRefused(error) => return Some(End::Failed(error.to_string())),
            Event::CancelFailed(error) => {
                tracing::warn!(%error, "QEMU cannot be told to cancel; its connections are reset");
                self.shared.abort.cancel();
            }
            Event::QemuEnded => {
                return Some(if self.guest_ended {
                    End::GuestEnded
                } else {
                    End::Lost
                });
            }
        }
        None
    }

    /// Until the first sync counts what was written in all of the first pass.
    fn on_compared(&mut self, window: DirtyWindow, now: Time) {
        match self.session.phase() {
            Phase::Waiting | Phase::Copying { pass: 1 } => {
                self.tell(Sample::Dirty(window), now);
            }
            _ => self.stop_following(),
        }
    }

    fn stop_following(&mut self) {
        if let Some(following) = self.following.take() {
            following.abort();
        }
    }

    async fn handle_qmp(&mut self, event: &QmpEvent, now: Time) -> Option<End> {
        tracing::debug!(name = event.name, data = %event.data, "QEMU's event");
        match event.name.as_str() {
            "MIGRATION_PASS" => self.next_progress = now,
            "MIGRATION" => {
                let status = event.data.get("status").and_then(|value| value.as_str());
                return self.handle_status(status.unwrap_or_default());
            }
            _ => return self.handle_guest_event(event, now).await,
        }
        None
    }

    fn handle_status(&mut self, status: &str) -> Option<End> {
        match status {
            "completed" => Some(End::Completed),
            "failed" | "cancelled" => Some(self.ended(&format!("QEMU says `{status}`"))),
            _ => None,
        }
    }

    fn handle_progress(&mut self, info: &MigrationInfo, now: Time) -> Option<End> {
        if let Some(ram) = info.ram {
            let progress = QemuProgress {
                remaining_bytes: ram.remaining,
                total_bytes: ram.total,
                dirty_sync_count: ram.dirty_sync_count,
                normal_pages: ram.normal,
                zero_pages: ram.duplicate,
            };
            self.tell(Sample::Qemu(progress), now);
        }
        match info.status.as_deref() {
            Some("failed" | "cancelled") => {
                let reason = info.error_desc.clone();
                Some(self.ended(reason.as_deref().unwrap_or("QEMU does not say why")))
            }
            // Before that it is the one that brought the guest here.
            Some("completed") if self.under_way => Some(End::Completed),
            _ => None,
        }
    }

    /// The migration did not complete: for the reason on record, or `reason`.
    fn ended(&mut self, reason: &str) -> End {
        match self.ending.take() {
            _ if self.guest_ended => End::GuestEnded,
            Some((end, _)) => end,
            None => End::Failed(reason.to_owned()),
        }
    }

    /// P2: the guest is stopped for the switchover. Every byte is downtime now.
    pub(super) fn on_stop(&mut self, at: Time) {
        if self.switchover.stopped_at.is_some() {
            return;
        }
        let timeout = self
            .prepared
            .args
            .switchover_timeout
            .max(self.prepared.args.downtime_limit);
        self.shared.gate.set_rate(Rate::Open);
        self.switchover.stopped_at = Some(at);
        self.switchover.due = Some(at + timeout);
        self.stop_following();
        self.record.step("P2 STOP", at);
        fault::point("source-stop");
        let reason = "guest stopped, bucket open".to_owned();
        self.record.rate(u64::MAX, reason, &self.session, at);
        // A person may have stopped it, or the guest itself: then QEMU answers.
        self.ask_run_state();
    }

    fn handle_channel(&mut self, event: channel::Event, now: Time) -> Option<End> {
        match event {
            channel::Event::Seen(seen) => self.handle_seen(&seen, now),
            channel::Event::Shut { value } => self.watch.on_shut(value),
            channel::Event::Finished => self.finished_at = Some(now),
            channel::Event::Reset { reason } => {
                tracing::debug!(reason, "the channel was reset");
                if self.prepared.monitored.is_none() && self.watch.was_loaded() {
                    // Whether the source completed is seen elsewhere.
                    self.finished_at.get_or_insert(now);
                    return None;
                }
                if self.prepared.monitored.is_none() {
                    return Some(self.ended(&reason));
                }
                // QEMU says itself what became of it.
                if self.ending.is_none() {
                    self.ending = Some((End::Failed(reason), now + ENDING_TIMEOUT));
                }
            }
        }
        None
    }

    fn handle_seen(&mut self, seen: &Seen, now: Time) {
        match seen {
            Seen::Ram {
                total_bytes,
                largest_block_bytes,
            } if self.prepared.monitored.is_none() => {
                self.on_ram(Ram {
                    total_bytes: *total_bytes,
                    content_bytes: None,
                    content_parts: None,
                });
                let sized = measure::ram(self.prepared.qemu, *total_bytes, *largest_block_bytes);
                let events = self.events.clone();
                self.tasks.spawn(async move {
                    let _ = events.send(Event::Sized(sized.await));
                });
            }
            Seen::LastRam => self.on_stop(now),
            Seen::Aside { what } => {
                tracing::warn!("the stream has {what}; going on without reading it");
            }
            Seen::Header
            | Seen::ReturnPath
            | Seen::Ram { .. }
            | Seen::DeviceState
            | Seen::NotMigration => {}
        }
    }

    /// Takes in what the probe has seen. True if a point of the curve was in it.
    pub(super) fn take_probe_events(&mut self) -> bool {
        let Some(probe) = &mut self.probe else {
            return false;
        };
        let mut is_point = false;
        for event in probe.drain() {
            if let Some(sample) = self.windows.handle_event(&event) {
                tracing::debug!(?sample, "dirty log");
                self.record.sample(sample, event.at);
                self.tell(sample, event.at);
                is_point |= sample.is_point();
            }
            match event.kind {
                EventKind::MigrationState { old, new } => self.watch.on_state(old, new),
                EventKind::GuestStopping if self.under_way => self.on_stop(event.at),
                _ => {}
            }
        }
        is_point
    }

    pub(super) async fn handle_message(&mut self, message: Message, now: Time) -> Option<End> {
        match message {
            Message::NeverRan { reason, .. }
            | Message::State {
                state: DestinationState::Failed { reason },
                ..
            } => {
                let reason = format!("the destination failed: {reason}");
                self.shared.abort.cancel();
                self.cancel(End::Failed(reason), now).await
            }
            other => {
                tracing::debug!(?other, "a message that does not belong here");
                None
            }
        }
    }

    pub(super) fn handle_link_lost(&mut self, error: &ControlError, now: Time) -> Option<End> {
        tracing::warn!("{error}");
        self.link = None;
        self.shared.abort.cancel();
        if self.ending.is_none() {
            self.ending = Some((End::Failed(error.to_string()), now + ENDING_TIMEOUT));
        }
        None
    }

    /// Before STOP a signal cancels; past it the handover is finished.
    pub(super) async fn handle_signal(&mut self, name: &str, now: Time) -> Option<End> {
        if self.switchover.stopped_at.is_some() {
            tracing::warn!("{name}: the guest is being handed over; ending after that");
            self.asked_to_end.store(true, Ordering::Relaxed);
            return None;
        }
        tracing::info!("{name}: cancelling; the guest stays at the source");
        self.cancel(End::Cancelled(format!("{name} by the operator")), now)
            .await
    }

    /// Takes the migration back. It has ended only when QEMU says so, or its
    /// connection is gone.
    pub(super) async fn cancel(&mut self, end: End, now: Time) -> Option<End> {
        if self.ending.is_some() {
            return None;
        }
        let Some(monitored) = &self.prepared.monitored else {
            self.shared.abort.cancel();
            return Some(end);
        };
        self.ending = Some((end, now + ENDING_TIMEOUT));
        let (qmp, events) = (monitored.qmp.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let reply: Result<serde_json::Value, _> = qmp
                .execute_within("migrate_cancel", serde_json::Value::Null, CANCEL_TIMEOUT)
                .await;
            if let Err(error) = reply {
                let _ = events.send(Event::CancelFailed(error));
            }
        });
        None
    }

    /// Hands the counters to the session.
    pub(super) fn observe(&mut self, now: Time) {
        self.take_dirty_logs(now);
        self.record.probe(&mut self.probe);
        // Past STOP every moment is downtime.
        if self.switchover.stopped_at.is_none() {
            self.record.show_probe(&mut self.probe, now);
        }
        if self.under_way {
            let counters = self.shared.counters.snapshot();
            self.tell(Sample::Stream(counters), now);
            self.record.metrics.set_bytes(counters);
            self.record.report.bytes_from_qemu = counters.bytes_from_qemu;
            self.record.report.bytes_on_wire = counters.bytes_on_wire;
        }
    }

    pub(super) fn ask_progress(&mut self, now: Time) {
        let due = now >= self.next_progress && !self.progress_asked;
        // Past STOP the monitor does not answer, and an event says the rest; if it is
        // overdue and the destination has loaded the guest, that was missed.
        let is_overdue = self.watch.was_loaded() && self.is_overdue(now);
        let is_quiet = self.switchover.stopped_at.is_some() && !is_overdue;
        if !self.under_way || !due || is_quiet {
            return;
        }
        let Some(monitored) = &self.prepared.monitored else {
            return;
        };
        self.progress_asked = true;
        self.next_progress = now + PROGRESS_EVERY;
        let (qmp, events) = (monitored.qmp.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let info = qmp
                .execute_within("query-migrate", serde_json::Value::Null, STATUS_TIMEOUT)
                .await;
            let _ = events.send(Event::Progress(info));
        });
    }

    /// Does what the session decided.
    pub(super) async fn act(&mut self, now: Time) -> Option<End> {
        let mut infeasible = false;
        while let Some(action) = self.session.poll_action() {
            match &action {
                // Past STOP the bucket is open, whatever else was decided.
                Action::SetRate { .. } if self.switchover.stopped_at.is_some() => continue,
                Action::SetRate {
                    bytes_per_second, ..
                } => self
                    .shared
                    .gate
                    .set_rate(Rate::from_bytes_per_second(*bytes_per_second)),
                Action::OpenBucket { .. } => self.shared.gate.set_rate(Rate::Open),
                Action::Verdict {
                    verdict: Verdict::Infeasible,
                    reason,
                    ..
                    // Whoever holds it back knows that it will be late.
                } => infeasible |= *reason != Reason::Held,
                Action::Throttle { percent, .. } => self.throttle(*percent),
                Action::PassEnded(_) => self.stop_following(),
                Action::Forecast(forecast) => self.forecast = Some(*forecast),
                Action::Verdict { .. } => {}
            }
            self.record.action(&action, &self.session, now);
        }
        self.tell_bandwidth();
        // Past STOP the guest is all but there.
        let may_abort = self.switchover.stopped_at.is_none()
            && self.prepared.args.on_infeasible == OnInfeasible::Abort;
        if infeasible && may_abort {
            let reason = "the deadline cannot be met (--on-infeasible abort)".to_owned();
            let end = End::Cancelled(reason);
            return if self.under_way {
                self.cancel(end, now).await
            } else {
                Some(end)
            };
        }
        None
    }

    /// Lets QEMU's auto-converge slow the guest by as much.
    fn throttle(&mut self, percent: u8) {
        let Some(monitored) = &self.prepared.monitored else {
            return;
        };
        let qmp = monitored.qmp.clone();
        self.tasks.spawn(async move {
            let arguments = serde_json::json!({ "max-cpu-throttle": percent });
            let set: Result<serde_json::Value, _> = qmp
                .execute_within("migrate-set-parameters", arguments, STATUS_TIMEOUT)
                .await;
            if let Err(error) = set {
                tracing::warn!(%error, "the guest cannot be slowed");
            }
        });
    }

    fn is_overdue(&self, now: Time) -> bool {
        self.switchover.due.is_some_and(|due| now >= due)
    }

    /// What is due by time: the switchover's end, a cancel's, the source's state.
    pub(super) async fn check_due(&mut self, now: Time) -> Option<End> {
        // Without QMP and past SHUT only the source's state is waited for.
        if self.is_overdue(now) && self.ending.is_none() && !self.watch.was_loaded() {
            self.switchover.due = None;
            tracing::warn!("the switchover takes too long; the guest goes back to the source");
            self.record.step("P2 timeout", now);
            let end = End::Failed("the switchover took longer than --switchover-timeout".into());
            return self.cancel(end, now).await;
        }
        if let Some((_, until)) = &self.ending
            && now >= *until
        {
            self.shared.abort.cancel();
            return Some(self.ended("QEMU does not say how it ended"));
        }
        if self.prepared.monitored.is_none() {
            return self.check_completion(now);
        }
        None
    }

    /// Without QMP: what the return path and the uprobe show.
    fn check_completion(&mut self, now: Time) -> Option<End> {
        let finished_at = self.finished_at?;
        if now < finished_at + STATE_SETTLE {
            return None;
        }
        match self.watch.completion() {
            Completion::Completed => Some(End::Completed),
            Completion::Failed => Some(self.ended("QEMU says that it failed")),
            Completion::Open if now < finished_at + STATE_TIMEOUT => None,
            Completion::Open | Completion::Unclear if self.watch.was_loaded() => {
                Some(End::Unclear(
                    "the destination has loaded the guest, and without QMP or eBPF it cannot be \
                     seen whether the source completed"
                        .to_owned(),
                ))
            }
            Completion::Open | Completion::Unclear => {
                Some(self.ended("the stream ended without the destination's word"))
            }
        }
    }

    /// Follows steps of the wall's clock where the deadline depends on it.
    pub(super) fn check_wall_clock(&mut self, now: Time) {
        let args = &self.prepared.args;
        if !self.prepared.wish.is_wall_clock() && args.not_before.is_none() {
            return;
        }
        let offset = super::wall_offset();
        if offset.abs_diff(self.wall_offset) <= WALL_STEP_NANOS {
            return;
        }
        self.wall_offset = offset;
        tracing::warn!("the wall's clock was stepped; what was asked by it follows");
        self.follow_wish(now);
    }
}
