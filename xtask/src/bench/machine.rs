//! What the figures were measured on.

use std::fmt;
use std::fs;

use anyhow::{Context as _, Result};
use pacer_tests::qemu::{QemuInstall, QemuVersion};
use serde_json::{Value, json};

/// This machine, when the benchmark began.
pub(super) struct Machine {
    cores: usize,
    kernel: String,
    qemu: String,
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
            load: load.context("/proc/loadavg")?,
        })
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "kernel": self.kernel,
            "qemu": self.qemu,
            "load": self.load,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cores,
            kernel,
            qemu,
            load,
        } = self;
        write!(
            f,
            "{cores} cores, Linux {kernel}, QEMU {qemu}, load {load} at the start"
        )
    }
}
