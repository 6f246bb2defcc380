//! Where what is too large to build each time is kept between runs.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// The QEMU that stands beside the system's.
pub const QEMU_7_2_FOLDER: &str = "qemu-7.2";
/// The unpacked kernel package of the Linux guest.
pub const KERNEL_FOLDER: &str = "linux-guest-kernel";

/// `$XDG_CACHE_HOME/pacer`, else `~/.cache/pacer`.
///
/// # Errors
/// Neither variable is set.
pub fn cache_folder() -> Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let folder = cache
        .or_else(home)
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(folder.join("pacer"))
}

/// The Linux guest's program as `cargo xtask build` leaves it, below the
/// workspace's folder `tests`.
pub const GUEST_PROGRAM: &str = "../target/guest/x86_64-unknown-linux-gnu/release/pacer-guest";
