//! What the Linux guest does to disks when it is there for them, and what it
//! then says on its serial port.

use anyhow::{Context, Result, bail};

/// Requests of all kinds and sizes to every disk, each disk by a thread of its
/// own: writes and reads of 512 B (or the granularity) to 256 KiB at offsets
/// anywhere, writes of zeroes, flushes, and zeroing and discards of 4 KiB and
/// more where the disk offers them. The guest says `PACER DISKS n ready` when
/// it begins and `PACER DISKS done` when every request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLoad {
    /// The same seed and disks give the same requests.
    pub seed: u64,
    /// To each disk.
    pub requests: u64,
    /// Offsets and lengths are multiples of this, a power of two, 512 to
    /// 256 KiB.
    pub granularity_bytes: u64,
}

/// Writes of 4 KiB at random offsets as fast as the disks take them. The guest
/// says `PACER DISKS n ready` when it begins, how far it is each second, and
/// `PACER FLOOD done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskFlood {
    /// The same seed gives each thread the same offsets.
    pub seed: u64,
    /// For how long, by the guest's clock.
    pub seconds: u64,
    /// Writes under way at a time, spread over the disks.
    pub threads: usize,
}

/// What the guest did to one disk. Bytes are those of the guest's system
/// calls; its kernel may split one into several requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    /// [`crate::disk::DiskOptions::id`].
    pub name: String,
    /// Writes, those of zeroes too.
    pub writes: u64,
    /// Bytes of all writes.
    pub written_bytes: u64,
    /// Writes of nothing but zeroes.
    pub zero_writes: u64,
    /// Bytes of those.
    pub zero_written_bytes: u64,
    /// BLKZEROOUT.
    pub zeroes: u64,
    /// Bytes of those.
    pub zeroed_bytes: u64,
    /// BLKDISCARD.
    pub discards: u64,
    /// Bytes of those.
    pub discarded_bytes: u64,
    /// Reads; the kernel's own, when it looked for partitions, are not in it.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// What the guest has done once its [`DiskLoad`] is over; `None` before.
///
/// # Errors
/// The guest says that a disk failed, or not what it should.
pub fn parse_disk_reports(serial: &str) -> Result<Option<Vec<DiskReport>>> {
    check_no_fault(serial)?;
    if !serial.contains("PACER DISKS done") {
        return Ok(None);
    }
    let lines = serial
        .lines()
        .filter_map(|line| line.split_once("PACER DISK "));
    lines
        .map(|(_, report)| parse_report(report))
        .collect::<Result<_>>()
        .map(Some)
}

/// How far a [`DiskFlood`] is: the seconds it took by the guest's clock and the
/// writes it has made; `None` until it is over.
///
/// # Errors
/// The guest says that a disk failed, or not what it should.
pub fn parse_flood(serial: &str) -> Result<Option<(f64, u64)>> {
    check_no_fault(serial)?;
    let Some((_, rest)) = serial.split_once("PACER FLOOD done ") else {
        return Ok(None);
    };
    let Some((line, _)) = rest.split_once('\n') else {
        return Ok(None);
    };
    let (mut seconds, mut writes) = (None, None);
    for word in line.split_whitespace() {
        match word.split_once('=') {
            Some(("seconds", value)) => seconds = Some(value.parse()?),
            Some(("writes", value)) => writes = Some(value.parse()?),
            _ => bail!("{line:?}"),
        }
    }
    Ok(Some(seconds.zip(writes).with_context(|| line.to_owned())?))
}

fn check_no_fault(serial: &str) -> Result<()> {
    match serial.split_once("PACER 0 CORRUPT ") {
        None => Ok(()),
        Some((_, fault)) => bail!("the guest: {}", fault.lines().next().unwrap_or("")),
    }
}

fn parse_report(text: &str) -> Result<DiskReport> {
    let (name, fields) = text.split_once(' ').with_context(|| text.to_owned())?;
    let mut report = DiskReport {
        name: name.to_owned(),
        ..DiskReport::default()
    };
    for word in fields.split_whitespace() {
        if word == "done" {
            return Ok(report);
        }
        let (field, value) = word.split_once('=').with_context(|| text.to_owned())?;
        let slot = match field {
            "writes" => &mut report.writes,
            "written_bytes" => &mut report.written_bytes,
            "zero_writes" => &mut report.zero_writes,
            "zero_written_bytes" => &mut report.zero_written_bytes,
            "zeroes" => &mut report.zeroes,
            "zeroed_bytes" => &mut report.zeroed_bytes,
            "discards" => &mut report.discards,
            "discarded_bytes" => &mut report.discarded_bytes,
            "reads" => &mut report.reads,
            "read_bytes" => &mut report.read_bytes,
            "flushes" => &mut report.flushes,
            _ => bail!("{text:?}"),
        };
        *slot = value.parse().with_context(|| text.to_owned())?;
    }
    bail!("cut off: {text:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "[1.0] x PACER DISK d0 writes=3 written_bytes=4096 flushes=1 done\r\n";

    #[test]
    fn reports_are_whole_or_not_there() {
        assert_eq!(parse_disk_reports(LINE).unwrap(), None);
        let serial = format!("PACER DISKS 1 ready\r\n{LINE}PACER DISKS done\r\n");
        let report = DiskReport {
            name: "d0".to_owned(),
            writes: 3,
            written_bytes: 4096,
            flushes: 1,
            ..DiskReport::default()
        };
        assert_eq!(parse_disk_reports(&serial).unwrap(), Some(vec![report]));
        assert!(parse_disk_reports(&serial.replace(" done\r\nPACER", "\r\nPACER")).is_err());
        assert!(parse_disk_reports("PACER 0 CORRUPT no disk\r\n").is_err());
    }

    #[test]
    fn a_flood_ends_with_its_sum() {
        let begun = "PACER FLOOD seconds=1.001 writes=50\r\n";
        assert_eq!(parse_flood(begun).unwrap(), None);
        let over = format!("{begun}PACER FLOOD done seconds=2.5 writes=99\r\n");
        assert_eq!(parse_flood(&over).unwrap(), Some((2.5, 99)));
        assert_eq!(
            parse_flood(over.trim_end()).unwrap(),
            None,
            "may be cut off"
        );
    }
}
