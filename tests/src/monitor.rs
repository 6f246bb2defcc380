//! QEMU's two monitors, blocking: QMP (JSON) and HMP (what a person types).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::wait_until;

/// QEMU's monitor may be silent while it sends the last part of a migration.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const HMP_PROMPT: &str = "(qemu) ";

/// A QMP connection.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects, once QEMU listens, and negotiates.
    ///
    /// # Errors
    /// QEMU does not listen within `timeout`, or does not speak QMP.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let stream = BufReader::new(connect(path, timeout)?);
        let mut qmp = Self { stream };
        let greeting = qmp.read_line()?;
        if greeting.get("QMP").is_none() {
            bail!("{} greets with {greeting}", path.display());
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns its `return`; events are passed over.
    ///
    /// # Errors
    /// QEMU's own, or it closed the connection or did not answer in a minute.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({ "execute": command });
        // QEMU takes an object or nothing.
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        let context = || format!("QMP {line}");
        writeln!(self.stream.get_mut(), "{line}").with_context(context)?;
        loop {
            let mut answer = self.read_line().with_context(context)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QMP {line}: {error}");
            }
        }
    }

    fn read_line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// Types one line into QEMU's human monitor at `path` and returns what it
/// says, without echo and prompt.
///
/// # Errors
/// The monitor cannot be reached or did not answer in a minute.
pub fn hmp(path: &Path, line: &str) -> Result<String> {
    let mut stream = connect(path, ANSWER_TIMEOUT)?;
    read_to_prompt(&mut stream)?;
    writeln!(stream, "{line}")?;
    let answer = read_to_prompt(&mut stream)?;
    let text = answer.split_once("\r\n").map_or("", |(_echo, text)| text);
    Ok(text.replace("\r\n", "\n"))
}

fn connect(path: &Path, timeout: Duration) -> Result<UnixStream> {
    let what = format!("{} accepts", path.display());
    let stream = wait_until(&what, timeout, || Ok(UnixStream::connect(path).ok()))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn read_to_prompt(stream: &mut UnixStream) -> Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(HMP_PROMPT.as_bytes()) {
        match stream.read(&mut buffer)? {
            0 => bail!("QEMU closed its monitor"),
            count => text.extend_from_slice(&buffer[..count]),
        }
    }
    text.truncate(text.len() - HMP_PROMPT.len());
    Ok(String::from_utf8_lossy(&text).into_owned())
}
