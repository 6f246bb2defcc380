//! `cargo xtask setup`: what is needed here, and how to get it.

mod apt;
mod unpack;

use std::fmt;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use pacer_tests::assets;
use pacer_tests::qemu::{QemuInstall, QemuVersion};

use crate::ebpf;
use crate::shell::{output, run};
use apt::Apt;

/// The oldest system QEMU that will do: major and minor.
const OLDEST_QEMU: (u32, u32) = (8, 2);
const TRACEFS: &str = "/sys/kernel/tracing";

/// What it is set up for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Building and running `pacer`.
    Build,
    /// That, and a guest to move.
    Demo {
        /// Whether it is the Linux guest.
        linux: bool,
    },
    /// Everything.
    All,
}

/// What is missing here.
enum Need {
    /// Debian packages, for what.
    Packages(&'static str, Vec<&'static str>),
    /// QEMU 8.2 or later.
    Qemu,
    /// QEMU 7.2 in the cache.
    OldQemu,
    /// The Linux guest's kernel in the cache.
    Kernel,
    /// bpf-linker, which cargo installs.
    BpfLinker,
    /// bpftrace, for the benchmarks.
    Bpftrace,
    /// tracefs is not mounted.
    Tracefs,
}

/// Installs what is missing. Says nothing if nothing is.
///
/// As root on Debian or Ubuntu it shows what is missing and installs it; on a
/// terminal it asks first, unless `yes`.
///
/// # Errors
/// Something is missing and cannot be installed by us, or was refused.
pub(crate) fn setup(scope: Scope, yes: bool) -> Result<()> {
    let needs = missing(scope);
    if scope == Scope::All && !Path::new("/dev/kvm").exists() {
        eprintln!("no /dev/kvm: guests will run under TCG, which is slower (optional)");
    }
    if needs.is_empty() {
        return Ok(());
    }
    eprintln!("missing:");
    for need in &needs {
        eprintln!("  {need}");
    }
    if !(is_root() && apt::is_there()) {
        eprintln!("as root on Debian or Ubuntu this would install it; the commands are:");
        for command in needs.iter().flat_map(Need::commands) {
            eprintln!("  {command}");
        }
        return refuse_required(&needs);
    }
    if !yes && !agreed()? {
        bail!("nothing was installed");
    }
    let mut apt = Apt::default();
    install_packages(&needs, &mut apt)?;
    // Asked again: some of the rest can only be told with the packages there.
    for need in missing(scope) {
        match need.install(&mut apt).with_context(|| need.to_string()) {
            Err(error) if need.is_optional() => eprintln!("going on without: {error:#}"),
            result => result?,
        }
    }
    refuse_required(&missing(scope))
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// On a terminal asks; without one goes ahead.
fn agreed() -> Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(true);
    }
    eprint!("install it? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "" | "y" | "Y" | "yes"))
}

/// All packages in one go: apt is slow to start.
fn install_packages(needs: &[Need], apt: &mut Apt) -> Result<()> {
    let packages: Vec<&str> = needs
        .iter()
        .filter_map(|need| match need {
            Need::Packages(_, packages) => Some(packages),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    if packages.is_empty() {
        return Ok(());
    }
    apt.install(&packages, None)
}

fn refuse_required(needs: &[Need]) -> Result<()> {
    let required = needs.iter().filter(|need| !need.is_optional());
    let missing: Vec<String> = required.map(Need::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("missing: {}", missing.join("; "))
}

fn missing(scope: Scope) -> Vec<Need> {
    let mut needs = Vec::new();
    build_needs(&mut needs);
    if scope == Scope::Build {
        return needs;
    }
    if !system_qemu_is_new_enough() {
        needs.push(Need::Qemu);
    }
    if matches!(scope, Scope::All | Scope::Demo { linux: true }) {
        linux_guest_needs(&mut needs);
    }
    if scope == Scope::All {
        program_needs(&mut needs);
    }
    if scope == Scope::All && old_qemu_version().is_none() {
        needs.push(Need::OldQemu);
    }
    if scope == Scope::All && output("bpftrace", &["--version"]).is_none() {
        needs.push(Need::Bpftrace);
    }
    needs
}

fn build_needs(needs: &mut Vec<Need>) {
    if output("cc", &["--version"]).is_none() {
        needs.push(Need::Packages(
            "a C compiler, for the cryptography",
            vec!["gcc", "libc6-dev"],
        ));
    }
    if let Err(missing) = ebpf::find() {
        if !missing.debian_packages.is_empty() {
            let packages = missing.debian_packages;
            needs.push(Need::Packages("the eBPF toolchain", packages));
        }
        if missing.bpf_linker {
            needs.push(Need::BpfLinker);
        }
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let is_tracefs = |line: &str| line.split(' ').nth(2) == Some("tracefs");
    if Path::new(TRACEFS).exists() && !mounts.lines().any(is_tracefs) {
        needs.push(Need::Tracefs);
    }
}

fn linux_guest_needs(needs: &mut Vec<Need>) {
    // cc prints the bare name of a file that it does not find.
    let libc = output("cc", &["-print-file-name=libc.a"]).unwrap_or_default();
    if !Path::new(libc.trim()).is_absolute() {
        needs.push(Need::Packages("the static C library", vec!["libc6-dev"]));
    }
    // ldd fails on a program that is linked statically, as it must be here.
    let busybox = Path::new("/bin/busybox").exists();
    if !busybox || output("ldd", &["/bin/busybox"]).is_some() {
        needs.push(Need::Packages(
            "a static busybox, for the Linux guest",
            vec!["busybox-static"],
        ));
    }
    let kernel = assets::cache_folder().map(|cache| cache.join(assets::KERNEL_FOLDER));
    if !kernel.is_ok_and(|folder| folder.is_dir()) {
        needs.push(Need::Kernel);
    }
}

/// What the Linux guest runs in benchmarks; none of it is a service here.
fn program_needs(needs: &mut Vec<Need>) {
    for (program, package) in [
        ("redis-benchmark", "redis-tools"),
        ("stress-ng", "stress-ng"),
        ("sqlite3", "sqlite3"),
    ] {
        if !is_on_path(program) {
            let what = "a program for the Linux guest";
            needs.push(Need::Packages(what, vec![package]));
        }
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn system_qemu_is_new_enough() -> bool {
    let version = QemuInstall::find(QemuVersion::System).and_then(|qemu| qemu.version());
    version.is_ok_and(|version| apt::major_minor(&version) >= Some(OLDEST_QEMU))
}

fn old_qemu_version() -> Option<String> {
    QemuInstall::find(QemuVersion::V7_2)
        .and_then(|qemu| qemu.version())
        .ok()
}

impl Need {
    /// Whether work goes on without it.
    fn is_optional(&self) -> bool {
        match self {
            // Only Debian 12 has its packages.
            Self::OldQemu => apt::debian_release().as_deref() != Some("bookworm"),
            // Containers may forbid it, and Pacer does without.
            Self::Tracefs => true,
            // One row of one benchmark.
            Self::Bpftrace => true,
            _ => false,
        }
    }

    fn install(&self, apt: &mut Apt) -> Result<()> {
        match self {
            Self::Packages(..) => Ok(()),
            Self::Qemu => apt::install_qemu(apt, OLDEST_QEMU),
            Self::OldQemu => unpack::old_qemu(apt),
            Self::Kernel => unpack::kernel(apt),
            Self::BpfLinker => ebpf::install_bpf_linker(&ebpf::tools_root()),
            Self::Bpftrace => apt.install(&["bpftrace"], None),
            Self::Tracefs => run(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS])),
        }
    }

    fn commands(&self) -> Vec<String> {
        let cache = assets::cache_folder().unwrap_or_else(|_| "~/.cache/pacer".into());
        let unpack = |packages: &str, folder: &str| {
            let folder = cache.join(folder).display().to_string();
            vec![format!(
                "mkdir -p {folder} && cd $(mktemp -d) && apt-get download {packages} && \
                 for p in *.deb; do dpkg -x $p {folder}; done"
            )]
        };
        match self {
            Self::Packages(_, packages) => vec![format!("apt-get install {}", packages.join(" "))],
            Self::Qemu => vec!["apt-get install qemu-system-x86  # 8.2 or later".to_owned()],
            Self::OldQemu => unpack(
                "'qemu-system-x86=1:7.2*' 'qemu-system-common=1:7.2*' 'qemu-system-data=1:7.2*' seabios",
                assets::QEMU_7_2_FOLDER,
            ),
            Self::Kernel => {
                let package = unpack::kernel_package();
                unpack(
                    package.as_deref().unwrap_or("linux-image-cloud-amd64"),
                    assets::KERNEL_FOLDER,
                )
            }
            Self::BpfLinker => match ebpf::find() {
                Err(missing) => missing.to_string().lines().map(str::to_owned).collect(),
                Ok(_) => Vec::new(),
            },
            Self::Bpftrace => vec!["apt-get install bpftrace".to_owned()],
            Self::Tracefs => vec![format!("mount -t tracefs tracefs {TRACEFS}")],
        }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = OLDEST_QEMU;
        match self {
            Self::Packages(what, packages) => write!(f, "{what}: {}", packages.join(" ")),
            Self::Qemu => write!(f, "QEMU {major}.{minor} or later"),
            Self::OldQemu => f.write_str("QEMU 7.2 beside it, for the tests (in Debian 12)"),
            Self::Kernel => f.write_str("a kernel for the Linux guest"),
            Self::BpfLinker => f.write_str("bpf-linker, for the eBPF programs"),
            Self::Bpftrace => f.write_str("bpftrace, which a benchmark compares with (optional)"),
            Self::Tracefs => write!(f, "tracefs at {TRACEFS} (optional)"),
        }
    }
}
