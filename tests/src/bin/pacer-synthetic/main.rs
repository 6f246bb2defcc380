//! Makes the system calls of a QEMU far larger than this machine: writes to a
//! disk of 16 TiB, dirty logs of 1 TiB of guest memory. Nothing in it is a
//! guest, and next to no memory or disk is used.
//!
//! Arguments: a folder (for the disk), the disk's bytes, writes, guest memory's
//! bytes, syncs, seed. It says `ready`, waits for a line, does it, says as JSON
//! what it did, and waits for the end of its input.

mod disk;
mod kvm;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// Syncs are this far apart, as those of a migration are.
const SYNC_INTERVAL: Duration = Duration::from_millis(30);

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
    let mut random = fastrand::Rng::with_seed(next("seed")?);

    let mut input = io::stdin().lock().lines();
    say("ready")?;
    input.next().context("no line")??;
    let disk = disk::Disk::create(&folder, disk_bytes)?;
    disk.write(writes, &mut random)?;
    let machine = (syncs > 0).then(|| kvm::Machine::new(ram_bytes));
    let mut slots = 0;
    if let Some(machine) = machine {
        let mut machine = machine?;
        slots = machine.slots();
        for _ in 0..syncs {
            machine.sync(&mut random)?;
            std::thread::sleep(SYNC_INTERVAL);
        }
    }
    let done = json!({
        "writes": writes,
        "written_bytes": writes * disk::WRITE_BYTES,
        "syncs": syncs,
        "slots": slots,
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
