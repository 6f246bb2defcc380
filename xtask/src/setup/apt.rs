//! Debian's package manager.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{output, run, succeeds};

const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/pacer-backports.sources";
const BACKPORTS: &str = "bookworm-backports";

/// apt, with its lists brought up to date at most once.
#[derive(Default)]
pub(super) struct Apt {
    updated: bool,
}

impl Apt {
    /// Installs packages, from `suite` where one is named.
    pub(super) fn install(&mut self, packages: &[&str], suite: Option<&str>) -> Result<()> {
        if packages.iter().any(|package| candidate(package).is_none()) {
            self.update()?;
        }
        self.retried(|| {
            let mut command = Command::new("apt-get");
            command.args(["install", "--yes", "--no-install-recommends"]);
            if let Some(suite) = suite {
                command.args(["--target-release", suite]);
            }
            run(command
                .args(packages)
                .env("DEBIAN_FRONTEND", "noninteractive"))
        })
    }

    /// Downloads packages (`name` or `name=version`) into a folder.
    pub(super) fn download(&mut self, packages: &[String], folder: &Path) -> Result<()> {
        self.retried(|| {
            let mut command = Command::new("apt-get");
            // Its sandbox user may not write here.
            command.args(["download", "--quiet", "--option", "APT::Sandbox::User=root"]);
            run(command.args(packages).current_dir(folder))
        })
    }

    /// Brings the lists up to date.
    pub(super) fn update(&mut self) -> Result<()> {
        if !self.updated {
            self.updated = true;
            run(Command::new("apt-get").args(["update", "--quiet"]))?;
        }
        Ok(())
    }

    /// Old lists name packages that are gone: fails only with new ones.
    fn retried(&mut self, step: impl Fn() -> Result<()>) -> Result<()> {
        match step() {
            Err(_) if !self.updated => {
                self.update()?;
                step()
            }
            result => result,
        }
    }
}

/// Whether this is a Debian or a child of it.
pub(super) fn is_there() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let family = release.lines().filter(|line| line.starts_with("ID"));
    let debian = family
        .flat_map(|line| line.split(['=', '"', ' ']))
        .any(|id| matches!(id, "debian" | "ubuntu"));
    debian && succeeds("apt-get", &["--version"])
}

/// The code name of this Debian; `None` on anything else.
pub(super) fn debian_release() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME"))?
}

/// Installs a QEMU of at least `oldest`, on Debian 12 from its backports.
pub(super) fn install_qemu(apt: &mut Apt, oldest: (u32, u32)) -> Result<()> {
    const PACKAGE: &str = "qemu-system-x86";
    let is_new = |version: &String| major_minor(version) >= Some(oldest);
    if !versions(PACKAGE).iter().any(is_new) {
        if debian_release().as_deref() == Some("bookworm") && !Path::new(BACKPORTS_FILE).exists() {
            apt.update()?;
            add_backports()?;
            apt.updated = false;
        }
        apt.update()?;
    }
    if candidate(PACKAGE).as_ref().is_some_and(is_new) {
        return apt.install(&[PACKAGE], None);
    }
    if !versions(PACKAGE).iter().any(is_new) {
        bail!(
            "no package source has QEMU {}.{} or later",
            oldest.0,
            oldest.1
        );
    }
    apt.install(&[PACKAGE], Some(BACKPORTS))
}

/// Adds the backports of Debian 12, from the mirror in use here.
fn add_backports() -> Result<()> {
    let policy = output("apt-cache", &["policy"]).unwrap_or_default();
    let mirror = mirror_in(&policy).context("no package source has Debian 12 itself")?;
    let source = format!(
        "Types: deb\nURIs: {mirror}\nSuites: {BACKPORTS}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(BACKPORTS_FILE, source).context(BACKPORTS_FILE)
}

/// The mirror of Debian 12 in what `apt-cache policy` prints.
fn mirror_in(policy: &str) -> Option<&str> {
    let line = policy
        .lines()
        .find(|line| line.split(' ').any(|word| word == "bookworm/main"))?;
    line.split(' ').find(|word| word.contains("://"))
}

/// The version apt would install.
pub(super) fn candidate(package: &str) -> Option<String> {
    let policy = output("apt-cache", &["policy", package])?;
    let line = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (line != "(none)").then(|| line.to_owned())
}

/// The versions the package sources have, newest first.
pub(super) fn versions(package: &str) -> Vec<String> {
    let table = output("apt-cache", &["madison", package]).unwrap_or_default();
    table
        .lines()
        .filter_map(|line| Some(line.split('|').nth(1)?.trim().to_owned()))
        .collect()
}

/// What one version of a package depends on, first alternatives.
pub(super) fn dependencies(package: &str, version: &str) -> Vec<String> {
    let record =
        output("apt-cache", &["show", &format!("{package}={version}")]).unwrap_or_default();
    let line = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))
        .unwrap_or_default();
    let first_word = |item: &str| Some(item.split_whitespace().next()?.to_owned());
    line.split(',').filter_map(first_word).collect()
}

/// The first two numbers of a version such as `1:7.2+dfsg-7` or `10.0.2`.
pub(super) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let upstream = version
        .split_once(':')
        .map_or(version, |(_epoch, rest)| rest);
    let mut numbers = upstream
        .split(|c: char| !c.is_ascii_digit())
        .map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_in_use_is_found() {
        let policy = "Package files:\n 100 /var/lib/dpkg/status\n 500 http://mirror.invalid/debian \
                      bookworm/main amd64 Packages\n     release v=12.1,o=Debian\n";
        assert_eq!(mirror_in(policy), Some("http://mirror.invalid/debian"));
        assert_eq!(mirror_in(""), None);
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(major_minor("1:7.2+dfsg-7+deb12u18+b3"), Some((7, 2)));
        assert_eq!(major_minor("1:10.0.2+ds-2"), Some((10, 0)));
        assert_eq!(major_minor("8.2.1"), Some((8, 2)));
        assert_eq!(major_minor("none"), None);
    }
}
