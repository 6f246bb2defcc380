//! QEMU's events, for as long as they are wanted: also past a monitor that is lost.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::{Connection, Qmp, connect};

/// How often a monitor that is lost is tried.
const RETRY: Duration = Duration::from_millis(500);

/// An event of QEMU's.
#[derive(Clone, Debug)]
pub struct QmpEvent {
    /// Its name, for instance `STOP`.
    pub name: String,
    /// Its data.
    pub data: Value,
}

/// What the monitor has to say.
#[derive(Clone, Debug)]
pub enum Heard {
    /// An event.
    Event(QmpEvent),
    /// Events were missed: what they would have told must be asked for.
    Missed,
}

impl Qmp {
    /// Passes QEMU's events to `events` until nobody takes them. A monitor that is
    /// closed is connected to anew, and everybody who has this [`Qmp`] uses the new
    /// connection.
    pub async fn follow<E>(self, events: UnboundedSender<E>, wrap: impl Fn(Heard) -> E) {
        let mut lost = self.lost.subscribe();
        loop {
            let connection = self.connection();
            let mut stream = connection.client.events();
            loop {
                let heard = tokio::select! {
                    heard = stream.recv() => heard,
                    _ = lost.wait_for(|lost| *lost >= connection.number) => break,
                };
                let heard = match heard {
                    Ok(event) => Heard::Event(QmpEvent {
                        name: event.name,
                        data: event.data,
                    }),
                    Err(qmp::Error::EventLagged { missed }) => {
                        tracing::warn!(missed, "QEMU's events came faster than they were read");
                        Heard::Missed
                    }
                    Err(_) => break,
                };
                if events.send(wrap(heard)).is_err() {
                    return;
                }
            }
            tracing::warn!(
                "QEMU's monitor at {} was closed; connecting anew",
                self.path.display()
            );
            while let Err(error) = self.reconnect().await {
                tracing::debug!(%error, "the monitor is not there yet");
                tokio::time::sleep(RETRY).await;
                if events.is_closed() {
                    return;
                }
            }
            tracing::info!("QEMU's monitor is there again");
            if events.send(wrap(Heard::Missed)).is_err() {
                return;
            }
        }
    }

    async fn reconnect(&self) -> Result<(), super::QmpError> {
        let client = connect(&self.path).await?;
        let number = self.connection().number + 1;
        let fresh = Connection { client, number };
        *self
            .connection
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}
