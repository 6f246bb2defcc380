//! The eBPF toolchain: finds one, installs the linker, builds the programs.
//!
//! Two routes lead to an object. Most users have rustup with a nightly and its
//! `rust-src`, which builds `core` for the BPF target. Where rustup cannot fetch
//! those, Debian's `rustc-web` brings a compiler whose packaged `core` for that
//! target is ready-made; the current cargo drives it.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

const TARGET: &str = "bpfel-unknown-none";
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

/// Debian's compiler, whether or not another `rustc` comes first on PATH.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";

const RUSTC_PACKAGE: &str = "rustc-web";
const CORE_PACKAGE: &str = "libstd-rust-web-dev-bpf";
const LLVM_PACKAGE: &str = "llvm-22-dev";

/// How `core` for the BPF target is come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// rustup's nightly builds it from `rust-src`.
    Nightly,
    /// Debian's `rustc-web` has it.
    Debian,
}

/// What builds the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Which compiler.
    pub(crate) route: Route,
    /// The linker.
    pub(crate) bpf_linker: PathBuf,
}

/// What is still needed; its text has the commands that get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Debian packages to install, where this is a Debian or Ubuntu.
    pub(crate) debian_packages: Vec<&'static str>,
    /// Whether [`install_bpf_linker`] is needed (after the packages).
    pub(crate) bpf_linker: bool,
    /// Whether no compiler was found and rustup could bring one.
    pub(crate) rustup_nightly: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the eBPF toolchain is not complete:")?;
        if self.rustup_nightly {
            let command = "rustup toolchain install nightly --component rust-src";
            write!(f, "\n  {command}")?;
        }
        if !self.debian_packages.is_empty() {
            let or = if self.rustup_nightly {
                "or, on Debian: "
            } else {
                ""
            };
            let packages = self.debian_packages.join(" ");
            let command = "apt-get install -y --no-install-recommends";
            write!(f, "\n  {or}{command} {packages}")?;
        }
        if self.bpf_linker {
            write!(f, "\n  {}", linker_command(&self.debian_packages))?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

/// What there is on this machine, as far as it matters here.
#[derive(Clone, Debug, Default)]
struct Environment {
    nightly_with_source: bool,
    debian_rustc: bool,
    debian_core: bool,
    debian_llvm: bool,
    /// Packages can be installed here.
    apt: bool,
    rustup: bool,
    bpf_linker: Option<PathBuf>,
}

/// A toolchain on this machine.
///
/// # Errors
///
/// What is missing.
pub(crate) fn find() -> Result<Toolchain, Missing> {
    choose(&look_around())
}

/// Where Pacer keeps tools it builds for itself: `pacer/tools` in the user's
/// cache.
#[must_use]
pub(crate) fn tools_root() -> PathBuf {
    cache_home().join("pacer/tools")
}

/// Builds bpf-linker and installs it below `root` ([`tools_root`]), whose `bin`
/// is where [`find`] looks. Takes a minute or two.
///
/// # Errors
///
/// cargo cannot be run, or fails.
pub(crate) fn install_bpf_linker(root: &Path) -> Result<()> {
    let mut cargo = Command::new("cargo");
    without_outer_cargo(&mut cargo);
    cargo
        .args(["install", LINKER, "--version", LINKER_VERSION, "--locked"])
        .arg("--root")
        .arg(root);
    if Path::new(DEBIAN_LLVM).is_dir() {
        let bin = Path::new(DEBIAN_LLVM).join("bin");
        cargo
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("PATH", with_first(&bin)?)
            .env("LLVM_PREFIX", DEBIAN_LLVM)
            .env("LLVM_SYS_221_PREFIX", DEBIAN_LLVM);
    }
    run(&mut cargo).context("bpf-linker was not installed")
}

/// Builds the programs; returns the object's path.
///
/// # Errors
///
/// cargo cannot be run, or fails.
pub(crate) fn build(toolchain: &Toolchain, workspace_root: &Path) -> Result<PathBuf> {
    // Its own directory: another compiler and other flags would make the host's
    // build start from scratch, time and again.
    let target_dir = workspace_root.join("target/ebpf");
    let mut cargo = compiler(toolchain.route);
    without_outer_cargo(&mut cargo);
    cargo
        .args(["build", "--release", "--package", "pacer-ebpf"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&toolchain.bpf_linker)?)
        .current_dir(workspace_root);
    if toolchain.route == Route::Nightly {
        cargo.args(["-Z", "build-std=core"]);
    } else {
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    }
    run(&mut cargo).context("the eBPF programs were not built")?;
    let object = target_dir.join(TARGET).join("release/pacer-ebpf");
    if !object.is_file() {
        bail!("cargo built no {}", object.display());
    }
    Ok(object)
}

fn choose(environment: &Environment) -> Result<Toolchain, Missing> {
    let debian_compiler = environment.debian_rustc && environment.debian_core;
    let route = if environment.nightly_with_source {
        Some(Route::Nightly)
    } else {
        debian_compiler.then_some(Route::Debian)
    };
    match (route, &environment.bpf_linker) {
        (Some(route), Some(bpf_linker)) => Ok(Toolchain {
            route,
            bpf_linker: bpf_linker.clone(),
        }),
        _ => Err(missing(environment, route)),
    }
}

fn missing(environment: &Environment, route: Option<Route>) -> Missing {
    let bpf_linker = environment.bpf_linker.is_none();
    // Where rustup is of no help either, the packages are named all the same.
    let debian = environment.apt || !environment.rustup;
    let packages = [
        (route.is_none() && !environment.debian_rustc, RUSTC_PACKAGE),
        (route.is_none() && !environment.debian_core, CORE_PACKAGE),
        // Only to build the linker.
        (bpf_linker && !environment.debian_llvm, LLVM_PACKAGE),
    ];
    Missing {
        debian_packages: packages
            .into_iter()
            .filter_map(|(needed, package)| (needed && debian).then_some(package))
            .collect(),
        bpf_linker,
        rustup_nightly: route.is_none() && environment.rustup,
    }
}

fn linker_command(packages: &[&str]) -> String {
    let root = tools_root();
    let install = format!(
        "cargo install {LINKER} --version {LINKER_VERSION} --locked --root {}",
        root.display()
    );
    if packages.contains(&LLVM_PACKAGE) || Path::new(DEBIAN_LLVM).is_dir() {
        return format!(
            "PATH={DEBIAN_LLVM}/bin:$PATH LLVM_PREFIX={DEBIAN_LLVM} \
             LLVM_SYS_221_PREFIX={DEBIAN_LLVM} {install} --no-default-features --features llvm-22"
        );
    }
    install
}

fn look_around() -> Environment {
    Environment {
        nightly_with_source: nightly_with_source(),
        debian_rustc: Path::new(DEBIAN_RUSTC).exists(),
        debian_core: Path::new(DEBIAN_CORE).is_dir(),
        debian_llvm: Path::new(DEBIAN_LLVM).join("bin/llvm-config").exists(),
        apt: Path::new("/usr/bin/apt-get").exists(),
        rustup: output("rustup", &["--version"]).is_some(),
        bpf_linker: linker_places().into_iter().find(|path| path.is_file()),
    }
}

fn nightly_with_source() -> bool {
    // Asked of rustup, whose `run` never installs what is not there.
    let ask = ["run", "nightly", "rustc", "--print", "sysroot"];
    output("rustup", &ask).is_some_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    })
}

/// Where the linker may be, in the order of preference.
fn linker_places() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from);
    env::split_paths(&path)
        .chain([cargo_home.join("bin"), tools_root().join("bin")])
        .map(|folder| folder.join(LINKER))
        .collect()
}

fn cache_home() -> PathBuf {
    // The specification says to ignore one that is not absolute.
    env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| home().join(".cache"))
}

fn home() -> PathBuf {
    env::home_dir().unwrap_or_else(|| PathBuf::from("/"))
}

fn compiler(route: Route) -> Command {
    match route {
        Route::Nightly => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", "nightly", "cargo"]);
            rustup
        }
        Route::Debian => Command::new("cargo"),
    }
}

/// Without `--btf`, the kernel refuses the callbacks of `bpf_loop` ("missing btf
/// func_info"); BTF is made of debug information.
fn rustflags(bpf_linker: &Path) -> Result<String> {
    let linker = bpf_linker
        .to_str()
        .with_context(|| format!("the path {} is not UTF-8", bpf_linker.display()))?;
    let linker = format!("-Clinker={linker}");
    Ok([&linker, "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\u{1f}"))
}

/// Forgets what the cargo that runs us has set for its own build.
fn without_outer_cargo(command: &mut Command) {
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
}

/// PATH with `folder` before all others.
fn with_first(folder: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf()).chain(env::split_paths(&path));
    env::join_paths(folders).context("PATH cannot be extended")
}

/// What a command prints; `None` if it cannot be run or fails.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then_some(text)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("{} cannot be run", command.get_program().display()))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linker() -> Option<PathBuf> {
        Some(PathBuf::from("/tools/bpf-linker"))
    }

    /// The names of what is needed, `bpf-linker` and `nightly` included.
    fn check(environment: &Environment, expected: &[&str]) {
        let missing = choose(environment).expect_err("something is missing");
        let mut names = missing.debian_packages.clone();
        if missing.bpf_linker {
            names.push(LINKER);
        }
        if missing.rustup_nightly {
            names.push("nightly");
        }
        assert_eq!(names, expected);
    }

    #[test]
    fn nightly_with_source_comes_first() {
        let environment = Environment {
            nightly_with_source: true,
            debian_rustc: true,
            debian_core: true,
            bpf_linker: linker(),
            ..Environment::default()
        };
        let toolchain = choose(&environment).expect("complete");
        assert_eq!(toolchain.route, Route::Nightly);
        assert_eq!(Some(toolchain.bpf_linker), linker());
    }

    #[test]
    fn debian_serves_without_nightly() {
        let environment = Environment {
            debian_rustc: true,
            debian_core: true,
            rustup: true,
            bpf_linker: linker(),
            ..Environment::default()
        };
        let toolchain = choose(&environment).expect("complete");
        assert_eq!(toolchain.route, Route::Debian);
    }

    #[test]
    fn a_fresh_debian_needs_all_packages() {
        let mut environment = Environment {
            apt: true,
            ..Environment::default()
        };
        let all = [RUSTC_PACKAGE, CORE_PACKAGE, LLVM_PACKAGE, LINKER];
        check(&environment, &all);
        // Some other rustc in /usr/bin has no core for BPF.
        environment.debian_rustc = true;
        check(&environment, &[CORE_PACKAGE, LLVM_PACKAGE, LINKER]);
        environment.debian_core = true;
        environment.debian_llvm = true;
        check(&environment, &[LINKER]);
    }

    #[test]
    fn elsewhere_rustup_brings_the_compiler() {
        let mut environment = Environment {
            rustup: true,
            ..Environment::default()
        };
        check(&environment, &[LINKER, "nightly"]);
        environment.nightly_with_source = true;
        check(&environment, &[LINKER]);
    }

    #[test]
    fn the_text_has_the_commands() {
        let environment = Environment {
            apt: true,
            rustup: true,
            ..Environment::default()
        };
        let text = choose(&environment).expect_err("missing").to_string();
        for command in [
            "rustup toolchain install nightly --component rust-src",
            "or, on Debian: apt-get install -y --no-install-recommends \
             rustc-web libstd-rust-web-dev-bpf llvm-22-dev",
            "LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0",
            "--no-default-features --features llvm-22",
        ] {
            assert!(text.contains(command), "{command:?} is not in {text}");
        }
    }

    #[test]
    fn flags_keep_paths_with_blanks_whole() {
        let flags = rustflags(Path::new("/my tools/bpf-linker")).expect("UTF-8");
        let expected = [
            "-Clinker=/my tools/bpf-linker",
            "-Cdebuginfo=2",
            "-Clink-arg=--btf",
        ];
        assert_eq!(flags.split('\u{1f}').collect::<Vec<_>>(), expected);
        assert!(rustflags(Path::new("/bpf-linker")).is_ok());
    }
}
