//! Which QEMU runs the guests, and on what.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::assets;
use crate::guest::bare::BareGuest;
use crate::process::wait_until;
use crate::vm::{Guest, Vm, VmOptions};

/// A version of QEMU that Pacer is tested with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuVersion {
    /// The system's `qemu-system-x86_64`, 8.2 or later.
    System,
    /// 7.2, unpacked in the cache.
    V7_2,
}

impl QemuVersion {
    /// What the environment variable `PACER_QEMU` asks for: `10.0` (also if
    /// unset) or `7.2`.
    ///
    /// # Errors
    /// It holds something else.
    pub fn from_env() -> Result<Self> {
        match std::env::var("PACER_QEMU").as_deref() {
            Err(_) | Ok("" | "10.0") => Ok(Self::System),
            Ok("7.2") => Ok(Self::V7_2),
            Ok(other) => bail!("PACER_QEMU is {other:?}, not 10.0 or 7.2"),
        }
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "10.0",
            Self::V7_2 => "7.2",
        })
    }
}

/// A QEMU to run.
#[derive(Clone, Debug)]
pub struct QemuInstall {
    program: PathBuf,
    /// Where it is unpacked; `None` for the system's own.
    root: Option<PathBuf>,
}

impl QemuInstall {
    /// The QEMU of that version, as `cargo xtask setup` leaves it.
    ///
    /// # Errors
    /// It is not there.
    pub fn find(version: QemuVersion) -> Result<Self> {
        match version {
            QemuVersion::System => Ok(Self {
                program: "qemu-system-x86_64".into(),
                root: None,
            }),
            QemuVersion::V7_2 => {
                Self::unpacked(&assets::cache_folder()?.join(assets::QEMU_7_2_FOLDER))
            }
        }
    }

    /// A QEMU whose packages are unpacked under `root`.
    ///
    /// # Errors
    /// There is none.
    pub fn unpacked(root: &Path) -> Result<Self> {
        let program = root.join("usr/bin/qemu-system-x86_64");
        if !program.is_file() {
            bail!("{} is not there: run cargo xtask setup", program.display());
        }
        Ok(Self {
            program,
            root: Some(root.to_owned()),
        })
    }

    /// A command that runs it with its own modules, firmware and libraries.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let libraries = root.join("usr/lib/x86_64-linux-gnu");
            command
                .env("QEMU_MODULE_DIR", libraries.join("qemu"))
                .env("LD_LIBRARY_PATH", &libraries)
                .arg("-L")
                .arg(root.join("usr/share/qemu"))
                .arg("-L")
                .arg(root.join("usr/share/seabios"));
        }
        command
    }

    /// What it calls itself, as `10.0.2`.
    ///
    /// # Errors
    /// It does not start.
    pub fn version(&self) -> Result<String> {
        let context = || format!("{} --version", self.program.display());
        let output = self
            .command()
            .arg("--version")
            .output()
            .with_context(context)?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().nth(3).with_context(context)?;
        Ok(version.to_owned())
    }
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The kernel.
    Kvm,
    /// QEMU itself.
    Tcg,
}

impl Accel {
    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// For the bare guest: what `PACER_ACCEL` (`kvm` or `tcg`) says, else KVM
    /// where it runs that guest, else TCG. Tried once in a process.
    ///
    /// # Errors
    /// `PACER_ACCEL` holds something else.
    pub fn detect() -> Result<Self> {
        static DETECTED: OnceLock<Accel> = OnceLock::new();
        match std::env::var("PACER_ACCEL").as_deref() {
            Ok("kvm") => Ok(Self::Kvm),
            Ok("tcg") => Ok(Self::Tcg),
            Err(_) | Ok("") => Ok(*DETECTED.get_or_init(|| match try_kvm() {
                Ok(()) => Self::Kvm,
                Err(error) => {
                    eprintln!("the bare guest does not run under KVM here, TCG it is: {error:#}");
                    Self::Tcg
                }
            })),
            Ok(other) => bail!("PACER_ACCEL is {other:?}, not kvm or tcg"),
        }
    }
}

/// Whether a small bare guest starts and goes on writing under KVM.
fn try_kvm() -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(5);
    std::fs::File::open("/dev/kvm").context("/dev/kvm")?;
    let guest = BareGuest {
        ram_mib: 20,
        fill_mib: 1,
        working_set_pages: 16,
        pages_per_second: 1000,
        ..BareGuest::PLAIN
    };
    let qemu = QemuInstall::find(QemuVersion::System)?;
    let vm = Vm::start(&VmOptions::new(Guest::Bare(guest), qemu, Accel::Kvm))?;
    vm.wait_started(TIMEOUT)?;
    let begun = guest.state(&vm.pmemsave(guest.used_bytes())?)?;
    wait_until("the guest writes on", TIMEOUT, || {
        let state = guest.state(&vm.pmemsave(guest.used_bytes())?)?;
        Ok((state.total_writes > begun.total_writes).then_some(()))
    })
}
