//! QEMU's monitor, as far as Pacer uses it.

pub mod events;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use qmp::{CallOptions, Client, ConnectOptions, Endpoint};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

/// QEMU serves one client per QMP socket; a second one hangs silently.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the monitor is of no use.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nothing listens there.
    #[error("{path}: no QMP socket can be reached there ({reason}); start QEMU with \
             -qmp unix:{path},server=on,wait=off", path = .path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// No greeting in time.
    #[error("{path}: QEMU does not greet; it serves one client per QMP socket, so another \
             program probably holds this one: close it, or give QEMU one more socket with \
             -qmp", path = .0.display())]
    Busy(PathBuf),
    /// Something else speaks there.
    #[error("{path}: what answers there is not QMP ({reason}); is it the monitor (-monitor) \
             rather than -qmp?", path = .path.display())]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// What was heard.
        reason: String,
    },
    /// QEMU refuses a command.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// What QEMU says.
        reason: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer `{command}` within {timeout:?}")]
    Silent {
        /// The command.
        command: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The monitor is gone, and with it most likely QEMU.
    #[error("QEMU closed its monitor during `{command}`")]
    Gone {
        /// The command.
        command: String,
    },
}

/// A connection to one QEMU's monitor. Clones share it.
#[derive(Clone, Debug)]
pub struct Qmp {
    path: PathBuf,
    connection: Arc<RwLock<Connection>>,
    /// The number of the last connection that was found closed; 0 is none.
    lost: watch::Sender<u64>,
}

/// One of the connections that there were: the crate's client does not say that it is
/// closed until something is asked of it.
#[derive(Clone, Debug)]
struct Connection {
    client: Client,
    /// From 1.
    number: u64,
}

/// `query-status`.
#[derive(Clone, Debug, Deserialize)]
pub struct RunStatus {
    /// The guest's vCPUs run.
    pub running: bool,
    /// QEMU's word for the state, for instance `postmigrate`.
    pub status: String,
}

/// `query-migrate`, as far as Pacer reads it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// QEMU's word for the state; absent before any migration.
    pub status: Option<String>,
    /// RAM.
    pub ram: Option<RamInfo>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why no migration may begin.
    pub blocked_reasons: Option<Vec<String>>,
    /// How long the guest stood, in ms, as QEMU measured.
    pub downtime: Option<u64>,
}

/// RAM in `query-migrate`.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RamInfo {
    /// Bytes still dirty.
    pub remaining: u64,
    /// Bytes in all.
    pub total: u64,
    /// Bytes given to the channel.
    pub transferred: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Pages sent as zero.
    pub duplicate: u64,
    /// Syncs of the dirty bitmap.
    pub dirty_sync_count: u64,
}

impl MigrationInfo {
    /// A migration is under way: its settings cannot be changed.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.status.as_deref().is_some_and(|word| {
            matches!(
                word,
                "setup" | "active" | "device" | "pre-switchover" | "cancelling"
            )
        })
    }

    /// QEMU says `word`.
    #[must_use]
    pub fn is(&self, word: &str) -> bool {
        self.status.as_deref() == Some(word)
    }
}

impl Qmp {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    ///
    /// If nothing, or something else, or nothing in time answers there.
    pub async fn connect(path: &Path) -> Result<Self, QmpError> {
        let client = connect(path).await?;
        Ok(Self {
            path: path.to_owned(),
            connection: Arc::new(RwLock::new(Connection { client, number: 1 })),
            lost: watch::Sender::new(0),
        })
    }

    fn connection(&self) -> Connection {
        // Whole after every call.
        let connection = self.connection.read();
        connection.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// QEMU's version, as `10.0.2`.
    #[must_use]
    pub fn version(&self) -> String {
        let (major, minor, micro) = self.version_numbers();
        format!("{major}.{minor}.{micro}")
    }

    /// QEMU's version in numbers.
    #[must_use]
    pub fn version_numbers(&self) -> (u64, u64, u64) {
        let qemu = self.connection().client.greeting().qmp.version.qemu;
        (qemu.major, qemu.minor, qemu.micro)
    }

    /// Executes `command` and reads its reply.
    ///
    /// # Errors
    ///
    /// If QEMU refuses, is silent for 5 s, or is gone.
    pub async fn execute<R: serde::de::DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
    ) -> Result<R, QmpError> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT)
            .await
    }

    /// As [`Qmp::execute`], with a time of its own.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn execute_within<R: serde::de::DeserializeOwned>(
        &self,
        command: &str,
        arguments: Value,
        timeout: Duration,
    ) -> Result<R, QmpError> {
        let arguments = (!arguments.is_null()).then_some(arguments);
        let options = CallOptions {
            timeout: Some(timeout),
            cancel: None,
        };
        let Connection { client, number } = self.connection();
        let done = client.execute_with_options(command, arguments, options);
        let error = match done.await {
            Ok(reply) => return Ok(reply),
            Err(error) => explain(command, timeout, error),
        };
        if matches!(error, QmpError::Gone { .. }) {
            self.lost.send_modify(|lost| *lost = number.max(*lost));
        }
        Err(error)
    }

    /// Executes `command` for its effect.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn run(&self, command: &str, arguments: Value) -> Result<(), QmpError> {
        let _: Value = self.execute(command, arguments).await?;
        Ok(())
    }

    /// Whether the guest runs.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn status(&self) -> Result<RunStatus, QmpError> {
        self.execute("query-status", Value::Null).await
    }

    /// Where the migration stands.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn migration(&self) -> Result<MigrationInfo, QmpError> {
        self.execute("query-migrate", Value::Null).await
    }

    /// Switches migration capabilities.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`]; a capability this QEMU does not know is refused.
    pub async fn set_capabilities(&self, capabilities: &[(String, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> = capabilities
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.run("migrate-set-capabilities", json!({ "capabilities": list }))
            .await
    }

    /// The migration capabilities and whether each is on.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn capabilities(&self) -> Result<Vec<(String, bool)>, QmpError> {
        #[derive(Deserialize)]
        struct Capability {
            capability: String,
            state: bool,
        }
        let list: Vec<Capability> = self
            .execute("query-migrate-capabilities", Value::Null)
            .await?;
        Ok(list
            .into_iter()
            .map(|entry| (entry.capability, entry.state))
            .collect())
    }

    /// The migration parameters.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn parameters(&self) -> Result<serde_json::Map<String, Value>, QmpError> {
        self.execute("query-migrate-parameters", Value::Null).await
    }

    /// Sets migration parameters.
    ///
    /// # Errors
    ///
    /// As [`Qmp::execute`].
    pub async fn set_parameters(&self, parameters: Value) -> Result<(), QmpError> {
        self.run("migrate-set-parameters", parameters).await
    }
}

async fn connect(path: &Path) -> Result<Client, QmpError> {
    let options = ConnectOptions {
        default_timeout: Some(COMMAND_TIMEOUT),
        ..ConnectOptions::default()
    };
    let connecting = Client::connect_with_options(Endpoint::unix(path), options);
    let reason = match tokio::time::timeout(GREETING_TIMEOUT, connecting).await {
        Ok(Ok(client)) => return Ok(client),
        Err(_) => return Err(QmpError::Busy(path.to_owned())),
        Ok(Err(qmp::Error::Io { source })) => {
            return Err(QmpError::Absent {
                path: path.to_owned(),
                reason: source.to_string(),
            });
        }
        Ok(Err(error)) => error.to_string(),
    };
    Err(QmpError::NotQmp {
        path: path.to_owned(),
        reason,
    })
}

fn explain(command: &str, timeout: Duration, error: qmp::Error) -> QmpError {
    let command = command.to_owned();
    match error {
        qmp::Error::Qmp { desc, .. } => QmpError::Refused {
            command,
            reason: desc,
        },
        qmp::Error::Timeout { .. } => QmpError::Silent { command, timeout },
        qmp::Error::Disconnected | qmp::Error::Io { .. } => QmpError::Gone { command },
        other => QmpError::Refused {
            command,
            reason: other.to_string(),
        },
    }
}

/// The process that listens at the QMP socket `path`: QEMU.
///
/// # Errors
///
/// If the socket cannot be reached, or the system does not say who listens.
pub fn owner(path: &Path) -> Result<u32, QmpError> {
    let absent = |reason: String| QmpError::Absent {
        path: path.to_owned(),
        reason,
    };
    // A second connection only waits in QEMU's queue and is closed at once.
    let socket =
        std::os::unix::net::UnixStream::connect(path).map_err(|error| absent(error.to_string()))?;
    let credentials = rustix::net::sockopt::socket_peercred(&socket)
        .map_err(|error| absent(error.to_string()))?;
    Ok(credentials.pid.as_raw_nonzero().get().unsigned_abs())
}
