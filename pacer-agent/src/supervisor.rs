//! The parent of an agent: what a person starts as `pacer source` or
//! `pacer dest` starts itself again as the agent, and once more if that dies.
//!
//! An agent that is killed, or panics, leaves a guest behind that may be
//! stopped. This process has no network code and next to nothing to do, so it
//! is there when that happens: it frees a QEMU that waits at
//! `pre-switchover`, and starts an agent that reads the journal and goes on
//! (HANDOVER.md, "Every agent has a supervisor").

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};

use crate::exit::Exit;
use crate::fault;
use crate::process::ProcessId;
use crate::qmp::{Qmp, QmpError};
use crate::shutdown::{Signals, name_of, signal_of};

/// What this process is; unset where a person started it. `off` is an agent
/// that has no supervisor.
const ROLE: &str = "PACER_SUPERVISOR";
/// The supervisor of an agent.
const PID: &str = "PACER_SUPERVISOR_PID";
/// The signal that asked the agent before this one to end.
const ASKED: &str = "PACER_SUPERVISOR_ASKED";

/// The first agent of a supervisor.
const AGENT: &str = "agent";
/// The agent after one that died.
const RECOVERING: &str = "recovering";

/// An agent that dies so often has something that another start does not mend.
const MOST_STARTS: u32 = 4;
/// The guest may be stopped: the first start is at once.
const BETWEEN_STARTS: Duration = Duration::from_secs(1);
/// For what is asked of QEMU before the next agent is started.
const RESCUE: Duration = Duration::from_secs(1);
/// Exit code of a Rust program that panicked.
const PANICKED: i32 = 101;

/// What an agent's supervisor needs to know of it.
#[derive(Debug)]
pub struct Agent {
    /// QMP socket of the QEMU whose guest may be waiting at `pre-switchover`.
    pub source_qmp: Option<PathBuf>,
    /// What a person types if everything fails.
    pub remedy: String,
}

/// Whether this process is to supervise.
#[must_use]
pub fn is_wanted() -> bool {
    role().is_none()
}

/// Whether this process goes on for an agent that died.
#[must_use]
pub fn is_recovering() -> bool {
    role().as_deref() == Some(RECOVERING)
}

/// The supervisor's process, if this process has one.
#[must_use]
pub fn pid() -> Option<u32> {
    std::env::var(PID).ok()?.parse().ok()
}

/// The process that a person knows the agent by: the supervisor's, else its own.
#[must_use]
pub fn own_pid() -> u32 {
    pid().unwrap_or_else(std::process::id)
}

/// The same, proof against a pid that was given to another.
#[must_use]
pub fn process() -> Option<ProcessId> {
    ProcessId::of(pid()?).ok()
}

/// What an operator asked the agent before this one, which died.
#[must_use]
pub fn asked() -> Option<&'static str> {
    name_of(&std::env::var(ASKED).ok()?)
}

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// An agent ends in order when its supervisor is killed.
///
/// # Errors
///
/// If that has happened already, or the system refuses.
pub fn follow_supervisor() -> io::Result<()> {
    let Some(supervisor) = pid() else {
        return Ok(());
    };
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(supervisor) {
        return Err(io::Error::other("the supervisor has ended"));
    }
    Ok(())
}

/// Starts `agent` and sees it through; returns its exit code.
#[must_use]
pub fn run(agent: &Agent) -> ExitCode {
    // On this thread: the agent is told when the thread that started it ends.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.and_then(|runtime| runtime.block_on(supervise(agent))) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("pacer: the agent cannot be started ({error})");
            ExitCode::from(Exit::NotStarted.code())
        }
    }
}

async fn supervise(agent: &Agent) -> io::Result<u8> {
    let mut signals = Signals::new()?;
    let mut asked = None;
    let mut starts = 0;
    loop {
        starts += 1;
        let mut child = start(starts == 1, asked)?;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                name = signals.next() => {
                    asked = asked.or(Some(name));
                    pass_on(&child, name);
                }
            }
        };
        if let Some(code) = ended_by_itself(status) {
            return Ok(code);
        }
        tracing::error!("the agent died ({status})");
        if starts >= MOST_STARTS {
            eprintln!("pacer: the agent died {starts} times; {}", agent.remedy);
            return Ok(Exit::Stopped.code());
        }
        if let Some(path) = agent.source_qmp.clone() {
            // In a runtime of its own, with which the connection ends: QEMU
            // serves one client, and the next agent is to be that.
            let rescuing = tokio::task::spawn_blocking(move || rescue_within(&path));
            if let Ok(Err(error)) = rescuing.await {
                // The next agent asks again, and longer.
                tracing::warn!("QEMU was not asked: {error:#}");
            }
        }
        if starts > 1 {
            tokio::time::sleep(BETWEEN_STARTS * starts).await;
        }
        tracing::info!("starting the agent again; it goes on from its journal");
    }
}

fn start(is_first: bool, asked: Option<&'static str>) -> io::Result<Child> {
    // A path that was replaced meanwhile is another version: this one goes on.
    let program = std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| "/proc/self/exe".into());
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        // Ctrl-C reaches the supervisor alone, which passes it on.
        .process_group(0)
        .env(PID, std::process::id().to_string())
        .env(ROLE, if is_first { AGENT } else { RECOVERING });
    if !is_first {
        // Tests kill the first agent and look at what the next one does.
        command.env_remove(fault::VARIABLE);
    }
    if let Some(name) = asked {
        command.env(ASKED, name);
    }
    command.spawn()
}

fn pass_on(child: &Child, name: &str) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal_of(name));
    }
}

/// The exit code of an agent that ended in order; `None` if it died.
fn ended_by_itself(status: ExitStatus) -> Option<u8> {
    if status.signal().is_some() || status.code() == Some(PANICKED) {
        return None;
    }
    Some(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(Exit::NotStarted.code()),
    )
}

fn rescue_within(path: &Path) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        tokio::time::timeout(RESCUE, rescue(path)).await??;
        Ok(())
    })
}

/// A guest at `pre-switchover` stays stopped for ever, whatever becomes of the
/// agents: it is freed first.
async fn rescue(path: &Path) -> Result<(), QmpError> {
    let qmp = Qmp::connect(path).await?;
    if qmp.migration().await?.is("pre-switchover") {
        tracing::warn!("QEMU waits before its switchover; cancelling the migration");
        qmp.run("migrate_cancel", serde_json::Value::Null).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_told_from_an_end() {
        let exited = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(ended_by_itself(exited(0)), Some(0));
        assert_eq!(ended_by_itself(exited(6)), Some(6));
        assert_eq!(ended_by_itself(exited(PANICKED)), None);
        for signal in [6, 9, 11] {
            assert_eq!(ended_by_itself(ExitStatus::from_raw(signal)), None);
        }
    }
}
