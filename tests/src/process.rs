//! Child processes that end with the value that owns them, and waiting for a
//! condition.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a signal may go unnoticed in a pause.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(50);
/// How much of a log an error shows, in bytes.
const LOG_TAIL_BYTES: usize = 4000;

/// A child that is killed and reaped on drop.
#[derive(Debug)]
pub struct OwnedChild {
    child: Child,
}

impl OwnedChild {
    /// Starts `command`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Ok(Self {
            child: command.spawn()?,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output, if it was piped and not taken yet.
    pub const fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard input, likewise.
    pub const fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Its exit status; `None` while it runs.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until it has ended, and no longer than `timeout`.
    ///
    /// # Errors
    /// It still runs then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait_until("the process ends", timeout, || Ok(self.child.try_wait()?))
    }

    /// Ends it with SIGKILL and reaps it; nothing if it has ended.
    pub fn kill9(&mut self) {
        // Both fail only for a child that is already reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGINT.
    ///
    /// # Errors
    /// It has ended.
    pub fn sigint(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// It has ended.
    pub fn sigterm(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal)?;
        Ok(())
    }
}

impl Drop for OwnedChild {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The exit code, or 128 and the signal, as a shell has it.
#[must_use]
pub fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What ends every wait of this process early once it is set, by a signal for
/// instance: the values that own processes are then dropped in order.
#[must_use]
pub fn interrupt_flag() -> Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    Arc::clone(FLAG.get_or_init(Arc::default))
}

/// Refuses to go on once [`interrupt_flag`] is set.
///
/// # Errors
/// It is.
pub fn check_interrupt() -> Result<()> {
    if interrupt_flag().load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Lets `duration` pass.
///
/// # Errors
/// [`interrupt_flag`] was set meanwhile.
pub fn pause(duration: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        check_interrupt()?;
        let left = duration.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(INTERRUPT_INTERVAL));
    }
}

/// Asks `condition` until it gives a value.
///
/// # Errors
/// The condition failed, or gave none within `timeout`; `what` names it. Or
/// [`interrupt_flag`] is set.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        check_interrupt()?;
        if start.elapsed() > timeout {
            bail!("waited {timeout:?} in vain until {what}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A log file as text; empty where there is none.
#[must_use]
pub fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The end of a log file, for an error.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    let log = read_log(path);
    let from = log.len().saturating_sub(LOG_TAIL_BYTES);
    let from = (from..=log.len())
        .find(|&at| log.is_char_boundary(at))
        .unwrap_or(0);
    format!("--- {}\n{}", path.display(), &log[from..])
}

/// A UDP port of the loopback that nobody is bound to, and that nobody gets by chance.
///
/// # Errors
/// There is none.
pub fn free_udp_port() -> io::Result<u16> {
    draw_port(|port| std::net::UdpSocket::bind(("127.0.0.1", port)).map(drop))
}

/// A TCP port of the loopback that nobody listens at, and that nobody gets by chance.
///
/// # Errors
/// There is none.
pub fn free_port() -> io::Result<u16> {
    draw_port(|port| std::net::TcpListener::bind(("127.0.0.1", port)).map(drop))
}

/// The kernel gives the ports above these to whoever asks for any: one that it gave us
/// could be another's by the time it is used. Each of these is drawn once a round.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

fn draw_port(bind: impl Fn(u16) -> io::Result<()>) -> io::Result<u16> {
    static DRAWN: AtomicU32 = AtomicU32::new(0);
    let ports = u32::from(PORTS.end - PORTS.start);
    // Other processes of ours begin elsewhere.
    let first = std::process::id().wrapping_mul(251);
    let mut error = None;
    for _ in 0..ports {
        let drawn = first.wrapping_add(DRAWN.fetch_add(1, Ordering::Relaxed)) % ports;
        let port = PORTS.start + u16::try_from(drawn).unwrap_or_default();
        match bind(port) {
            Ok(()) => return Ok(port),
            Err(taken) => error = Some(taken),
        }
    }
    Err(error.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()))
}
