//! What becomes of the guest by itself, or by somebody else, while it migrates.

use serde_json::{Value, json};

use super::inbox::Event;
use super::watch::STATUS_TIMEOUT;
use super::{Driver, End};
use crate::pacing::time::Time;
use crate::pacing::token_bucket::Rate;
use crate::qmp::events::QmpEvent;

impl Driver {
    /// Events that are not the migration's.
    pub(super) async fn handle_guest_event(&mut self, event: &QmpEvent, now: Time) -> Option<End> {
        match event.name.as_str() {
            "STOP" if self.under_way && !self.guest_ended => self.on_stop(now),
            "STOP" if !self.under_way => self.on_pause_changed(true),
            "RESUME" => self.on_resumed(now),
            "SHUTDOWN" if event.data.get("guest") == Some(&true.into()) => {
                self.note(event, now);
                tracing::warn!("the guest itself ends");
                self.guest_ended = true;
                return self.cancel(End::GuestEnded, now).await;
            }
            "RESET" => {
                self.note(event, now);
                tracing::warn!("the guest was reset; the migration goes on");
            }
            "GUEST_PANICKED" => {
                self.note(event, now);
                tracing::warn!(data = %event.data, "the guest has panicked");
            }
            "BLOCK_IO_ERROR" => {
                self.note(event, now);
                self.io_error = Some(describe_io_error(&event.data));
            }
            _ => {}
        }
        None
    }

    /// Keeps it for the report.
    fn note(&mut self, event: &QmpEvent, now: Time) {
        let at_seconds = self.record.seconds(now);
        self.record.report.guest_events.push(json!({
            "at_seconds": at_seconds, "event": event.name
        }));
    }

    /// QEMU's word for what its guest does, asked for since it stopped or since events
    /// were missed.
    pub(super) async fn handle_run_state(&mut self, state: &str, now: Time) -> Option<End> {
        tracing::debug!(state, "what the guest does");
        match state {
            "finish-migrate" | "postmigrate" => None,
            "running" => {
                self.on_resumed(now);
                None
            }
            "io-error" => {
                let reason = self
                    .io_error
                    .take()
                    .unwrap_or_else(|| "the guest was stopped by an error of its disk".to_owned());
                self.cancel(End::Stopped(reason), now).await
            }
            "guest-panicked" | "shutdown" => {
                self.guest_ended = true;
                self.cancel(End::GuestEnded, now).await
            }
            _ if self.under_way => {
                self.on_paused(now);
                None
            }
            _ => {
                self.on_pause_changed(true);
                None
            }
        }
    }

    /// It was not the switchover: somebody paused the guest. It arrives paused.
    fn on_paused(&mut self, now: Time) {
        tracing::info!("the guest was paused; the migration goes on, and it will arrive paused");
        self.on_pause_changed(true);
        self.undo_stop("the guest was paused by somebody", now);
    }

    /// The guest runs: what was a stop was not the switchover, or is over.
    fn on_resumed(&mut self, now: Time) {
        self.on_pause_changed(false);
        self.undo_stop("the guest runs again", now);
    }

    fn undo_stop(&mut self, reason: &str, now: Time) {
        if self.switchover.stopped_at.take().is_none() {
            return;
        }
        self.switchover.due = None;
        if let Some(rate) = self.session.rate() {
            self.shared.gate.set_rate(Rate::from_bytes_per_second(rate));
            self.record
                .rate(rate, reason.to_owned(), &self.session, now);
        }
    }

    /// Has QEMU say what its guest does.
    pub(super) fn ask_run_state(&mut self) {
        let Some(monitored) = &self.prepared.monitored else {
            return;
        };
        let (qmp, events) = (monitored.qmp.clone(), self.events.clone());
        self.tasks.spawn(async move {
            let status = qmp
                .execute_within("query-status", Value::Null, STATUS_TIMEOUT)
                .await;
            let _ = events.send(Event::Status(status));
        });
    }

    /// Events were missed: QEMU is asked what they would have told.
    pub(super) fn ask_what_was_missed(&mut self, now: Time) {
        self.next_progress = now;
        self.progress_asked = false;
        self.ask_run_state();
    }
}

fn describe_io_error(data: &Value) -> String {
    let text = |name: &str| data.get(name).and_then(Value::as_str).unwrap_or_default();
    let device = match text("device") {
        "" => text("node-name"),
        device => device,
    };
    let space = match data.get("nospace") == Some(&true.into()) {
        true => ", no space is left",
        false => "",
    };
    format!(
        "the guest was stopped by an error of its disk {device} ({} failed{space}: {})",
        text("operation"),
        text("reason")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_names_the_disk_and_what_failed() {
        let text = describe_io_error(&json!({
            "device": "", "node-name": "disk0", "operation": "write", "nospace": true,
            "reason": "No space left on device", "action": "stop"
        }));
        assert!(
            text.contains("disk0 (write failed, no space is left: No space"),
            "{text}"
        );
    }
}
