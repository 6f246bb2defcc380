//! What QEMU says of itself unasked, with the time at which it happened.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::process::wait_until;

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    /// QEMU's word: `STOP`, `RESUME` …
    pub name: String,
    /// When, by QEMU, in seconds of the wall's clock.
    pub at_seconds: f64,
}

/// Listens at a QMP socket of its own until it is dropped.
#[derive(Debug)]
pub struct Events {
    heard: Arc<Mutex<Vec<Happened>>>,
    stream: UnixStream,
    listener: Option<JoinHandle<()>>,
}

impl Events {
    /// Listens at `path`.
    ///
    /// # Errors
    /// QEMU does not listen there within `timeout`.
    pub fn follow(path: &Path, timeout: Duration) -> Result<Self> {
        let what = format!("{} accepts", path.display());
        let mut stream = wait_until(&what, timeout, || Ok(UnixStream::connect(path).ok()))?;
        // Events come once this is said; its answer is a line that is no event.
        stream.write_all(b"{\"execute\": \"qmp_capabilities\"}\n")?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (reader, store) = (BufReader::new(stream.try_clone()?), Arc::clone(&heard));
        let listener = std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                lock(&store).extend(event(&line));
            }
        });
        Ok(Self {
            heard,
            stream,
            listener: Some(listener),
        })
    }

    /// When that last happened.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<f64> {
        let heard = lock(&self.heard);
        let found = heard.iter().rfind(|event| event.name == name);
        found.map(|event| event.at_seconds)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Its end is what the listener waits for; QEMU may have closed it before.
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn lock(heard: &Mutex<Vec<Happened>>) -> MutexGuard<'_, Vec<Happened>> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event(line: &str) -> Option<Happened> {
    let line: Value = serde_json::from_str(line).ok()?;
    let time = &line["timestamp"];
    Some(Happened {
        name: line["event"].as_str()?.to_owned(),
        at_seconds: time["seconds"].as_f64()? + time["microseconds"].as_f64()? / 1e6,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_last_of_its_name_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let events = Events::follow(&path, Duration::from_secs(5)).unwrap();
        let (mut qemu, _) = listener.accept().unwrap();
        for line in [
            r#"{"QMP": {}}"#,
            r#"{"return": {}}"#,
            r#"{"timestamp": {"seconds": 7, "microseconds": 250000}, "event": "STOP"}"#,
            r#"{"timestamp": {"seconds": 8, "microseconds": 0}, "event": "STOP"}"#,
            r#"{"timestamp": {"seconds": 9, "microseconds": 0}, "event": "RESUME"}"#,
        ] {
            writeln!(qemu, "{line}").unwrap();
        }
        wait_until("it is heard", Duration::from_secs(5), || {
            Ok(events.last("RESUME"))
        })
        .unwrap();
        assert_eq!(events.last("STOP"), Some(8.0));
        assert_eq!(events.last("SHUTDOWN"), None);
    }
}
