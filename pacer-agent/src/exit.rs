//! How a command ended, and its exit code (a contract).

/// How `pacer source` ended; the other commands use the codes that fit them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Completed, and any deadline met.
    Success,
    /// Nothing was started.
    NotStarted,
    /// Usage, or a request Pacer refuses.
    Refused,
    /// Completed, but the deadline was missed.
    DeadlineMissed,
    /// Not completed; the guest runs at the source.
    Returned,
    /// The guest ended, or was lost with the process that held it.
    GuestEnded,
    /// The guest is stopped and whole on a named side.
    Stopped,
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::NotStarted => 1,
            Self::Refused => 2,
            Self::DeadlineMissed => 3,
            Self::Returned => 4,
            Self::GuestEnded => 5,
            Self::Stopped => 6,
        }
    }
}

/// A command that did not get as far as a migration.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nothing was started; exit code 1.
    #[error("{0:#}")]
    NotStarted(anyhow::Error),
    /// Pacer refuses; exit code 2.
    #[error("{0:#}")]
    Refused(anyhow::Error),
}

impl Failure {
    /// A refusal with this text.
    #[must_use]
    pub fn refused(text: impl Into<String>) -> Self {
        Self::Refused(anyhow::Error::msg(text.into()))
    }

    /// A failure to start with this text.
    #[must_use]
    pub fn not_started(text: impl Into<String>) -> Self {
        Self::NotStarted(anyhow::Error::msg(text.into()))
    }

    /// How the command ended.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        match self {
            Self::NotStarted(_) => Exit::NotStarted,
            Self::Refused(_) => Exit::Refused,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::NotStarted(error)
    }
}
