//! A migration through Pacer, ready to start: two QEMUs, two identities, two
//! agents.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::{Agent, Identity, Output, pacer_binary};
use crate::process::{free_port, free_udp_port, pause, wait_until};
use crate::vm::{Guest, Incoming, Vm, VmOptions};

const START_TIMEOUT: Duration = Duration::from_secs(120);

/// What one side's `pacer` gets beyond addresses and identity.
#[derive(Clone, Debug)]
pub struct SideOptions {
    /// Whether it gets `--qmp`.
    pub qmp: bool,
    /// Appended to its command line.
    pub flags: Vec<OsString>,
    /// Added to its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Default for SideOptions {
    fn default() -> Self {
        Self {
            qmp: true,
            flags: Vec::new(),
            environment: Vec::new(),
        }
    }
}

/// A migration to set up.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// The source; the destination is the same, but waiting.
    pub vm: VmOptions,
    /// What runs the destination, where it is not what runs the source.
    pub destination_qemu: Option<crate::qemu::QemuInstall>,
    /// Makes the destination another machine than the source.
    pub change_destination: Option<fn(&mut VmOptions)>,
    /// Whether the destination is started with `-incoming defer`, so that
    /// `pacer dest` gives the address, or listens from the start.
    pub incoming_defer: bool,
    /// `pacer source`.
    pub source: SideOptions,
    /// `pacer dest`.
    pub destination: SideOptions,
    /// `--finish-at` for `pacer source`: so long after it is started.
    pub finish_in: Option<Duration>,
    /// UDP port that `pacer source` connects to in place of the destination's:
    /// a link emulator's.
    pub connect_port: Option<u16>,
    /// UDP port that `pacer dest` listens at; `None` picks one.
    pub quic_port: Option<u16>,
    /// How long the guest works before the agents are started.
    pub settle: Duration,
    /// The program under test; `None` is [`pacer_binary`]'s.
    pub pacer: Option<PathBuf>,
    /// Where the source agent's progress goes.
    pub output: Output,
}

impl PairOptions {
    /// A migration with QMP on both sides and nothing special.
    #[must_use]
    pub fn new(vm: VmOptions) -> Self {
        Self {
            vm,
            destination_qemu: None,
            change_destination: None,
            incoming_defer: false,
            source: SideOptions::default(),
            destination: SideOptions::default(),
            finish_in: None,
            connect_port: None,
            quic_port: None,
            settle: Duration::ZERO,
            pacer: None,
            output: Output::Log,
        }
    }

    /// The same with flags for `pacer source`.
    #[must_use]
    pub fn source_flags<Flag: Into<OsString>>(
        mut self,
        flags: impl IntoIterator<Item = Flag>,
    ) -> Self {
        self.source.flags = flags.into_iter().map(Into::into).collect();
        self
    }
}

/// Everything of one migration; all of it ends with the value.
#[derive(Debug)]
pub struct Pair {
    /// `pacer source`.
    pub source_agent: Agent,
    /// `pacer dest`.
    pub destination_agent: Agent,
    /// Where the guest starts.
    pub source: Vm,
    /// Where it is to arrive.
    pub destination: Vm,
    /// TCP port at which `pacer source` waits for QEMU.
    pub source_port: u16,
    /// What `--finish-at` is, if it was given.
    pub finish_at: Option<jiff::Timestamp>,
    guest: Guest,
    identities: [Identity; 2],
    folder: TempDir,
}

impl Pair {
    /// Starts the guest, waits until it has begun its work, and starts both
    /// agents. With QMP at the source the migration begins by itself;
    /// otherwise [`Pair::type_migrate`] begins it.
    ///
    /// # Errors
    /// Something did not start; with its log.
    pub fn start(options: &PairOptions) -> Result<Self> {
        Self::start_after(options, |_| Ok(()))
    }

    /// As [`Pair::start`]; before the agents are started `look` may do something
    /// with the guest at work.
    ///
    /// # Errors
    /// As there, and those of `look`.
    pub fn start_after(
        options: &PairOptions,
        look: impl FnOnce(&Vm) -> Result<()>,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("pacer-pair-").tempdir()?;
        let [source_port, forward_port] = [free_port()?, free_port()?];
        let quic_port = options.quic_port.map_or_else(free_udp_port, Ok)?;
        let source = Vm::start(&options.vm)?;
        let destination = Vm::start(&destination_options(options, forward_port))?;
        let program = options.pacer.clone().map_or_else(pacer_binary, Ok)?;
        let identities = [Identity::generate(&program)?, Identity::generate(&program)?];
        source.wait_started(START_TIMEOUT)?;
        pause(options.settle)?;
        look(&source)?;

        let [own, peer] = &identities;
        let listen = format!("127.0.0.1:{quic_port}");
        let mut command = pacer(&program, "dest", &listen, peer, own);
        command.args(["--forward", &format!("127.0.0.1:{forward_port}")]);
        add_side(&mut command, &options.destination, &destination);
        let destination_agent = Agent::spawn(command, Output::Log, options.vm.own_group)?;
        wait_listens(&destination_agent, quic_port)?;

        let connect = format!("127.0.0.1:{}", options.connect_port.unwrap_or(quic_port));
        let mut command = pacer(
            &program,
            "source",
            &format!("127.0.0.1:{source_port}"),
            own,
            peer,
        );
        command
            .args(["--connect", &connect, "--report"])
            .arg(folder.path().join("report"));
        add_side(&mut command, &options.source, &source);
        let finish_at = match options.finish_in {
            Some(after) => Some(jiff::Timestamp::now().checked_add(after)?),
            None => None,
        };
        if let Some(finish_at) = finish_at {
            command.args(["--finish-at", &finish_at.to_string()]);
        }
        let source_agent = Agent::spawn(command, options.output, options.vm.own_group)?;

        let guest = options.vm.guest.clone();
        Ok(Self {
            source_agent,
            destination_agent,
            source,
            destination,
            source_port,
            finish_at,
            guest,
            identities,
            folder,
        })
    }

    /// Does what a person does at the source's monitor once `pacer source`
    /// waits for QEMU.
    ///
    /// # Errors
    /// `pacer source` does not listen, or the monitor refuses.
    pub fn type_migrate(&self) -> Result<()> {
        wait_until("pacer source listens", START_TIMEOUT, || {
            Ok(is_bound("tcp", self.source_port)?.then_some(()))
        })
        .with_context(|| self.source_agent.log_tail())?;
        for line in [
            "migrate_set_capability return-path on".to_owned(),
            format!("migrate -d tcp:localhost:{}", self.source_port),
        ] {
            let answer = self.source.hmp(&line)?;
            if !answer.trim().is_empty() {
                bail!("{line}: {answer}");
            }
        }
        Ok(())
    }

    /// Where `pacer source` writes its report.
    #[must_use]
    pub fn report_path(&self) -> PathBuf {
        self.folder.path().join("report")
    }

    /// The report, once the source agent has ended.
    ///
    /// # Errors
    /// There is none, or it is not JSON.
    pub fn report(&self) -> Result<Value> {
        let path = self.report_path();
        let context = || format!("{}\n{}", path.display(), self.source_agent.log_tail());
        let text = std::fs::read(&path).with_context(context)?;
        serde_json::from_slice(&text).with_context(context)
    }

    /// The identities of source and destination.
    #[must_use]
    pub const fn identities(&self) -> &[Identity; 2] {
        &self.identities
    }

    /// Stops the bare guest at the destination, compares all its memory, lets
    /// it go on and returns how far it was.
    ///
    /// # Errors
    /// Its memory is not what it wrote, or it is not a bare guest.
    pub fn verify_destination(&self) -> Result<crate::guest::bare::BareState> {
        let Guest::Bare(guest) = &self.guest else {
            bail!("not a bare guest")
        };
        self.destination.verify_bare(guest)
    }
}

fn destination_options(options: &PairOptions, forward_port: u16) -> VmOptions {
    let incoming = if options.incoming_defer {
        Incoming::Defer
    } else {
        Incoming::Tcp {
            host: "127.0.0.1".to_owned(),
            port: forward_port,
        }
    };
    let mut vm = options.vm.destination(incoming);
    vm.paused = false;
    if let Some(qemu) = &options.destination_qemu {
        vm.qemu = qemu.clone();
    }
    if let Some(change) = options.change_destination {
        change(&mut vm);
    }
    vm
}

/// `pacer SIDE` with what both sides take.
fn pacer(program: &Path, side: &str, listen: &str, own: &Identity, peer: &Identity) -> Command {
    let mut command = Command::new(program);
    command.args([
        side,
        "--listen",
        listen,
        "--peer",
        peer.fingerprint(),
        "--identity",
    ]);
    command.arg(own.folder());
    command
}

fn add_side(command: &mut Command, options: &SideOptions, vm: &Vm) {
    if options.qmp {
        command.arg("--qmp").arg(vm.pacer_qmp());
    }
    command.args(&options.flags);
    command.envs(options.environment.iter().cloned());
}

fn wait_listens(agent: &Agent, quic_port: u16) -> Result<()> {
    wait_until("pacer dest listens", START_TIMEOUT, || {
        if let Some(code) = agent.try_wait()? {
            bail!("pacer dest ended with {code}");
        }
        Ok(is_bound("udp", quic_port)?.then_some(()))
    })
    .with_context(|| agent.log_tail())
}

/// Whether somebody has bound this port, from the kernel's table: connecting
/// to find out would itself be a connection.
fn is_bound(protocol: &str, port: u16) -> Result<bool> {
    let local = format!(":{port:04X}");
    for table in [protocol.to_owned(), format!("{protocol}6")] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}"))?;
        let mut locals = text
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1));
        if locals.any(|address| address.ends_with(&local)) {
            return Ok(true);
        }
    }
    Ok(false)
}
