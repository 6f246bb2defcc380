//! `pacer ctl`: what a migration under way is asked and told, over a local socket.
//!
//! One JSON object a line each way (docs/ctl.md). The socket belongs to the agent's
//! user alone, mode 0600.

pub mod client;
pub mod server;
pub mod status;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::Wish;
use crate::units::{Rate, parse_timestamp};
use status::Status;

/// The protocol's version: another one is refused.
pub const VERSION: u32 = 1;
/// The longest line that is read, in bytes.
const LONGEST_LINE: u64 = 4096;
const PREFIX: &str = "source-";
const SUFFIX: &str = ".ctl";

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: u32,
    /// What.
    #[serde(flatten)]
    pub command: Command,
}

/// What there is to ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// How it goes.
    Status,
    /// Another objective, another highest rate, or both.
    Set(Change),
    /// Come to the brink, and wait there.
    Hold,
    /// Go on.
    Release,
    /// Take the migration back.
    Cancel,
}

/// What is to be another thing; what is absent stays. At most one objective.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// Arrive so many seconds after the start of the migration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<f64>,
    /// Arrive at this time (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_at: Option<String>,
    /// Arrive at any time before this (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Send at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_second: Option<u64>,
    /// Never faster than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate_bytes_per_second: Option<u64>,
}

/// A [`Change`] that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// When the guest is to arrive; `None` is as before.
    pub wish: Option<Wish>,
    /// The highest rate; `None` is as before.
    pub max_rate: Option<Rate>,
}

impl Change {
    /// What that is.
    ///
    /// # Errors
    ///
    /// More than one objective, none of anything, or a figure that is none.
    pub fn check(&self) -> Result<Checked, String> {
        let mut wishes = Vec::new();
        if let Some(seconds) = self.deadline_seconds {
            let after = std::time::Duration::try_from_secs_f64(seconds)
                .ok()
                .filter(|after| !after.is_zero())
                .ok_or_else(|| format!("{seconds} s is no deadline"))?;
            wishes.push(Wish::After(after));
        }
        if let Some(time) = &self.finish_at {
            wishes.push(Wish::At(parse_timestamp(time)?));
        }
        if let Some(time) = &self.by {
            wishes.push(Wish::By(parse_timestamp(time)?));
        }
        if let Some(rate) = self.rate_bytes_per_second {
            wishes.push(Wish::Rate(positive(rate)?));
        }
        if wishes.len() > 1 {
            return Err("give one of deadline, finish-at, by and rate".to_owned());
        }
        let max_rate = self.max_rate_bytes_per_second.map(positive).transpose()?;
        if wishes.is_empty() && max_rate.is_none() {
            return Err("nothing is to be set; give a deadline or a rate".to_owned());
        }
        Ok(Checked {
            wish: wishes.pop(),
            max_rate,
        })
    }
}

fn positive(bytes_per_second: u64) -> Result<Rate, String> {
    Rate::new(bytes_per_second).ok_or_else(|| "a rate must be at least 1B/s".to_owned())
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// [`VERSION`].
    pub version: u32,
    /// Why it was not done; absent where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What there is to know of it; with `set`, `hold`, `release` and `cancel` what they
    /// led to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How it goes, to `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
}

impl Reply {
    fn of(result: Result<String, String>) -> Self {
        let (message, error) = match result {
            Ok(message) => (Some(message), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            version: VERSION,
            error,
            message,
            status: None,
        }
    }

    fn status(status: Status) -> Self {
        Self {
            version: VERSION,
            error: None,
            message: None,
            status: Some(Box::new(status)),
        }
    }
}

/// The socket of the agent `pid` in `directory`.
fn socket_of(directory: &Path, pid: u32) -> PathBuf {
    directory.join(format!("{PREFIX}{pid}{SUFFIX}"))
}

/// The sockets in `directory`, with the agents they belong to, by pid.
fn sockets(directory: &Path) -> std::io::Result<Vec<(u32, PathBuf)>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| Some((agent_of(&entry.path())?, entry.path())))
        .collect();
    found.sort();
    Ok(found)
}

fn agent_of(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix(PREFIX)?
        .strip_suffix(SUFFIX)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Request {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn requests_are_as_documented() {
        assert_eq!(
            read(r#"{"version":1,"command":"status"}"#).command,
            Command::Status
        );
        let set = read(r#"{"version":1,"command":"set","deadline_seconds":90.5}"#);
        let Command::Set(change) = set.command else {
            panic!("{set:?}")
        };
        let wish = change.check().unwrap().wish;
        assert_eq!(
            wish,
            Some(Wish::After(std::time::Duration::from_millis(90_500)))
        );
        let text = serde_json::to_string(&Request {
            version: 1,
            command: Command::Set(Change {
                max_rate_bytes_per_second: Some(7),
                ..Change::default()
            }),
        });
        assert_eq!(
            text.unwrap(),
            r#"{"version":1,"command":"set","max_rate_bytes_per_second":7}"#
        );
    }

    #[test]
    fn a_change_that_is_none_is_refused() {
        let refused = |change: Change| change.check().unwrap_err();
        assert!(refused(Change::default()).contains("nothing is to be set"));
        let two = Change {
            deadline_seconds: Some(1.0),
            rate_bytes_per_second: Some(1),
            ..Change::default()
        };
        assert!(refused(two).contains("one of"));
        for seconds in [-1.0, 0.0, f64::NAN, f64::INFINITY, 1e300] {
            let change = Change {
                deadline_seconds: Some(seconds),
                ..Change::default()
            };
            assert!(change.check().is_err(), "{seconds}");
        }
        let still = Change {
            max_rate_bytes_per_second: Some(0),
            ..Change::default()
        };
        assert!(refused(still).contains("at least"));
        let never = Change {
            by: Some("tomorrow".to_owned()),
            ..Change::default()
        };
        assert!(never.check().is_err());
    }

    #[test]
    fn agents_are_found_by_their_sockets() {
        let home = tempfile::tempdir().unwrap();
        for name in ["source-12.ctl", "source-7.ctl", "source-x.ctl", "7-9.json"] {
            std::fs::write(home.path().join(name), "").unwrap();
        }
        let pids: Vec<u32> = sockets(home.path()).unwrap().iter().map(|s| s.0).collect();
        assert_eq!(pids, [7, 12]);
        assert!(sockets(&home.path().join("absent")).unwrap().is_empty());
    }
}
