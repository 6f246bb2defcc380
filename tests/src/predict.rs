//! `pacer predict`, run to its end.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::agent::pacer_binary;

/// How a `pacer predict` ended.
#[derive(Clone, Debug)]
pub struct Predicted {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub output: String,
    /// What it said on stderr.
    pub log: String,
}

/// Runs `pacer predict` on the guest whose monitor is at `qmp`.
///
/// # Errors
/// There is no `pacer`.
pub fn predict(qmp: &Path, flags: &[&str]) -> Result<Predicted> {
    let mut command = Command::new(pacer_binary()?);
    command.args(["predict", "--qmp"]).arg(qmp).args(flags);
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Predicted {
        code: output.status.code(),
        output: text(&output.stdout),
        log: text(&output.stderr),
    })
}

/// As [`predict`], with `--json`: the object.
///
/// # Errors
/// It did not end with 0, or printed something else.
pub fn predict_json(qmp: &Path, flags: &[&str]) -> Result<Value> {
    let predicted = predict(qmp, &[flags, &["--json"]].concat())?;
    ensure!(predicted.code == Some(0), "{predicted:?}");
    serde_json::from_str(&predicted.output).with_context(|| format!("{predicted:?}"))
}
