//! Makes the system calls of a QEMU far larger than this machine: writes to a
//! disk of 16 TiB, dirty logs of 1 TiB of guest memory. Nothing in it is a
//! guest, and next to no memory or disk is used.
//!
//! Arguments: a folder (for the disk), the disk's bytes, writes, guest memory's
//! bytes, syncs, how many in a hundred pages are dirty, seed. It opens the disk
//! and maps the memory, says `ready`, waits for a line, does it, says as JSON
//! what it did, and waits for the end of its input.

mod disk;
mod kvm;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// From a log to the next. That of 1 TiB is not read more often by QEMU, which
/// goes through it in between.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("no folder")?);
    let mut next = |what: &'static str| -> Result<u64> {
        let argument = arguments.next().context(what)?;
        argument.parse().context(what)
    };
    let disk_bytes = next("the disk's bytes")?;
    let writes = next("writes")?;
    let ram_bytes = next("guest memory's bytes")?;
    let syncs = next("syncs")?;
    let dirty_percent = next("how many in a hundred pages are dirty")?;
    let mut random = fastrand::Rng::with_seed(next("seed")?);

    let disk = disk::Disk::create(&folder, disk_bytes)?;
    // As QEMU has its memory before anybody looks on.
    let machine = (syncs > 0).then(|| kvm::Machine::new(ram_bytes));
    let mut machine = machine.transpose()?;
    let mut input = io::stdin().lock().lines();
    say("ready")?;
    input.next().context("no line")??;
    disk.write(writes, &mut random)?;
    if let Some(machine) = &mut machine {
        machine.log(dirty_percent, &mut random)?;
        // The first log after that says nothing: every page was dirty.
        for _ in 0..=syncs {
            machine.read_log()?;
            std::thread::sleep(SYNC_INTERVAL);
            machine.clear_nothing()?;
        }
    }
    let done = json!({
        "writes": writes,
        "written_bytes": writes * disk::WRITE_BYTES,
        "syncs": syncs,
        "slots": machine.as_ref().map_or(0, kvm::Machine::slots),
    });
    say(&done.to_string())?;
    while input.next().transpose()?.is_some() {}
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}
