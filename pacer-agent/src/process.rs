//! The QEMU process, seen from outside.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use procfs::ProcError;
use procfs::process::{FDTarget, MMapPath, Process};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// How often a process is looked at that may end.
const ALIVE_POLL: Duration = Duration::from_millis(50);
const GONE_POLL: Duration = Duration::from_millis(2);

/// Which process, proof against a pid that was given to another meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since the host did.
    pub start_ticks: u64,
}

/// A mapping of a process' memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins.
    pub address: u64,
    /// What of it the host had to back with memory so far.
    pub resident_bytes: u64,
}

/// Why a process cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such process.
    #[error("there is no process {0}; is the --pid right, and does QEMU still run?")]
    Missing(u32),
    /// The system refuses.
    #[error("process {pid} cannot be looked at ({reason})")]
    Unreadable {
        /// The process.
        pid: u32,
        /// What the system says.
        reason: String,
    },
}

impl ProcessId {
    /// Identifies the process that `pid` is now.
    ///
    /// # Errors
    ///
    /// If there is none, or it may not be looked at.
    pub fn of(pid: u32) -> Result<Self, ProcessError> {
        let start_ticks = open(pid)
            .and_then(|process| process.stat())
            .map_err(|error| explain(pid, &error))?
            .starttime;
        Ok(Self { pid, start_ticks })
    }

    /// Whether that very process still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        open(self.pid)
            .and_then(|process| process.stat())
            .is_ok_and(|stat| {
                stat.starttime == self.start_ticks && !matches!(stat.state, 'Z' | 'X')
            })
    }

    /// Waits until the process has ended.
    pub async fn ended(self) {
        while self.is_alive() {
            tokio::time::sleep(ALIVE_POLL).await;
        }
    }

    /// Whether the process, with all its threads, is certainly gone; waits for
    /// that no longer than `timeout`.
    pub async fn is_gone_within(self, timeout: Duration) -> bool {
        let gone = async {
            while !self.is_gone() {
                tokio::time::sleep(GONE_POLL).await;
            }
        };
        tokio::time::timeout(timeout, gone).await.is_ok()
    }

    /// A process whose first thread is a zombie may have others that still run.
    fn is_gone(self) -> bool {
        let ended = |state: char| matches!(state, 'Z' | 'X');
        let gone = open(self.pid).and_then(|process| {
            if process.stat()?.starttime != self.start_ticks {
                return Ok(true);
            }
            for task in process.tasks()? {
                if !ended(task?.stat()?.state) {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        match gone {
            Ok(gone) => gone,
            // A thread that ended meanwhile is looked for again.
            Err(_) => matches!(open(self.pid), Err(ProcError::NotFound(_))),
        }
    }

    /// The mapping with the guest's RAM, `ram_bytes` large. `None` if none can be
    /// taken for it.
    #[must_use]
    pub fn guest_ram(self, ram_bytes: u64) -> Option<Mapping> {
        let maps = open(self.pid).and_then(|process| process.smaps()).ok()?;
        // A large guest's RAM may be several mappings (below and above 4 GiB
        // is one block all the same); the smallest that holds it all is it.
        maps.iter()
            .filter(|map| {
                matches!(
                    map.pathname,
                    MMapPath::Anonymous
                        | MMapPath::Path(_)
                        | MMapPath::Other(_)
                        | MMapPath::Vsys(_)
                ) && map.address.1 - map.address.0 >= ram_bytes
            })
            .min_by_key(|map| map.address.1 - map.address.0)
            .and_then(|map| {
                Some(Mapping {
                    address: map.address.0,
                    resident_bytes: map.extension.map.get("Rss")?.min(&ram_bytes).to_owned(),
                })
            })
    }

    /// The program it runs.
    ///
    /// # Errors
    ///
    /// If it may not be looked at.
    pub fn executable(self) -> Result<PathBuf, ProcessError> {
        open(self.pid)
            .and_then(|process| process.exe())
            .map_err(|error| explain(self.pid, &error))
    }
}

/// A descriptor of the process `pid`, readable once it has ended.
///
/// # Errors
///
/// If there is no such process.
pub fn descriptor(pid: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let number = number.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
    Ok(pidfd_open(number, PidfdFlags::empty())?)
}

/// The process that holds the TCP connection from `client` to the port
/// `server_port`, both on this host. `None` if none is found, for instance while a daemon that opened
/// the connection passes it on.
#[must_use]
pub fn owner_of_connection(client: SocketAddr, server_port: u16) -> Option<u32> {
    let client = canonical(client);
    let tables = [procfs::net::tcp().ok(), procfs::net::tcp6().ok()];
    let inode = tables
        .into_iter()
        .flatten()
        .flatten()
        .find(|entry| {
            canonical(entry.local_address) == client && entry.remote_address.port() == server_port
        })?
        .inode;
    procfs::process::all_processes()
        .ok()?
        .filter_map(Result::ok)
        .find(|process| holds_socket(process, inode))
        .and_then(|process| u32::try_from(process.pid).ok())
}

fn holds_socket(process: &Process, inode: u64) -> bool {
    process.fd().is_ok_and(|descriptors| {
        descriptors.filter_map(Result::ok).any(
            |descriptor| matches!(descriptor.target, FDTarget::Socket(found) if found == inode),
        )
    })
}

/// An IPv4 address mapped into IPv6 as the IPv4 address it is.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn open(pid: u32) -> Result<Process, ProcError> {
    Process::new(i32::try_from(pid).unwrap_or(i32::MAX))
}

fn explain(pid: u32, error: &ProcError) -> ProcessError {
    match error {
        ProcError::NotFound(_) => ProcessError::Missing(pid),
        other => ProcessError::Unreadable {
            pid,
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_alive());
        let earlier = ProcessId {
            start_ticks: own.start_ticks - 1,
            ..own
        };
        assert!(!earlier.is_alive());
    }

    #[tokio::test]
    async fn only_a_process_that_has_ended_is_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        assert!(!process.is_gone_within(Duration::from_millis(1)).await);
        child.kill().unwrap();
        // Not reaped yet: gone all the same.
        assert!(process.is_gone_within(Duration::from_secs(10)).await);
        child.wait().unwrap();
        assert!(process.is_gone_within(Duration::ZERO).await);
    }

    #[test]
    fn a_pid_that_is_none_is_named() {
        let error = ProcessId::of(u32::MAX >> 1).unwrap_err();
        assert!(error.to_string().contains("no process"), "{error}");
    }

    #[test]
    fn the_owner_of_a_connection_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let owner = owner_of_connection(
            stream.local_addr().unwrap(),
            listener.local_addr().unwrap().port(),
        );
        assert_eq!(owner, Some(std::process::id()));
    }
}
