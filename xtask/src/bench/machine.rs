//! What the figures were measured on.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};
use pacer_tests::assets;
use pacer_tests::qemu::{QemuInstall, QemuVersion};
use serde_json::{Value, json};

use crate::shell::output;

/// This machine, when the benchmark began.
pub(super) struct Machine {
    cores: usize,
    kernel: String,
    qemu: String,
    /// Of the QEMU beside the system's.
    old_qemu: String,
    bpftrace: String,
    /// Of the Linux guest.
    guest_kernel: String,
    /// Runnable tasks, the mean over a minute.
    load: f64,
}

impl Machine {
    pub(super) fn read() -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().and_then(|load| load.parse().ok());
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            kernel: kernel.trim().to_owned(),
            qemu: QemuInstall::find(QemuVersion::System)?.version()?,
            old_qemu: QemuInstall::find(QemuVersion::V7_2)?.version()?,
            bpftrace: output("bpftrace", &["--version"]).unwrap_or_default(),
            guest_kernel: guest_kernel()?,
            load: load.context("/proc/loadavg")?,
        })
    }

    /// What of it figures depend on, in words.
    pub(super) fn versions(&self) -> String {
        let Self {
            kernel,
            qemu,
            old_qemu,
            bpftrace,
            guest_kernel,
            ..
        } = self;
        let bpftrace = bpftrace.trim();
        format!("Linux {kernel}, QEMU {qemu} and {old_qemu}, {bpftrace}, guest {guest_kernel}")
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "kernel": self.kernel,
            "qemu": self.qemu,
            "versions": self.versions(),
            "load": self.load,
        })
    }
}

/// The names of the guest's kernels: there is one.
fn guest_kernel() -> Result<String> {
    let folder = assets::cache_folder()?
        .join(assets::KERNEL_FOLDER)
        .join("lib/modules");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names.join(" "))
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cores,
            kernel,
            qemu,
            load,
            ..
        } = self;
        write!(
            f,
            "{cores} cores, Linux {kernel}, QEMU {qemu}, load {load} at the start"
        )
    }
}
