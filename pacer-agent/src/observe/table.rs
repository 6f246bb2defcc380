//! A line as people read it. Pure.

use std::fmt::Write as _;

use super::line::{Device, Direction, Disk, Line, Ram};
use super::ram::nominal_seconds;
use crate::units::{from_f64, show_bytes, show_rate, show_seconds};

/// A name longer than this loses its beginning.
const NAME_CHARS: usize = 40;

/// `line` as a block of text; every row ends with a line feed.
#[must_use]
pub fn table(line: &Line) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, line);
    text
}

fn write(text: &mut String, line: &Line) -> std::fmt::Result {
    writeln!(text, "{}", head(line))?;
    write_ram(text, &line.ram)?;
    write_disks(text, &line.disks)?;
    write_backends(text, line)?;
    write_devices(text, &line.devices)?;
    for socket in &line.sockets {
        let sent = show_bytes(socket.sent_bytes);
        writeln!(
            text,
            "socket  {} to {}  {sent} sent",
            socket.local, socket.peer
        )?;
    }
    let reads = line.device_reads;
    if reads.ram_bytes + reads.other_bytes > 0 {
        let (ram, other) = (show_bytes(reads.ram_bytes), show_bytes(reads.other_bytes));
        writeln!(
            text,
            "read by devices  {ram} into guest memory, {other} elsewhere"
        )?;
    }
    write_probe(text, line)?;
    for warning in &line.warnings {
        writeln!(text, "not seen  {warning}")?;
    }
    Ok(())
}

fn head(line: &Line) -> String {
    let mut head = format!("pid {}", line.pid);
    if let Some(version) = &line.qemu.version {
        let _ = write!(head, "  QEMU {version}");
    }
    if let Some(accelerator) = line.qemu.accelerator {
        let _ = write!(head, " ({accelerator})");
    }
    let _ = write!(head, "  {}", show_seconds(line.at_seconds));
    if line.ended {
        head.push_str("  the process has ended");
    }
    head
}

fn write_ram(text: &mut String, ram: &Ram) -> std::fmt::Result {
    if let Some(why_not) = &ram.why_not {
        writeln!(text, "dirty pages  not known: {why_not}")?;
    }
    if ram.dirty_rates.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "dirty pages  {:<9} {:>8} {:>14}  {:<8} from",
        "window", "pages", "per second", "age"
    )?;
    for rate in &ram.dirty_rates {
        writeln!(
            text,
            "             {:<9} {:>8} {:>14}  {:<8} {}",
            window(rate.window_seconds),
            rate.pages,
            from_f64(rate.pages_per_second.round()),
            show_seconds(rate.age_seconds),
            rate.origin,
        )?;
    }
    Ok(())
}

/// A window's length: of the usual ones by that name.
fn window(seconds: f64) -> String {
    let nominal = nominal_seconds(seconds);
    let seconds = if (seconds / nominal - 1.0).abs() < 0.05 {
        nominal
    } else {
        seconds
    };
    if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1000.0)
    } else {
        format!("{seconds:.1} s")
    }
}

fn write_disks(text: &mut String, disks: &[Disk]) -> std::fmt::Result {
    if disks.is_empty() {
        return Ok(());
    }
    writeln!(
        text,
        "{:<NAME_CHARS$}  {:>12} {:>12} {:>12} {:>12}",
        "disk", "written", "zeroed", "discarded", "read"
    )?;
    for disk in disks {
        let unnamed = format!("inode {} on {}", disk.inode, disk.device);
        let name = shorten(disk.path.as_deref().unwrap_or(&unnamed));
        writeln!(
            text,
            "{name:<NAME_CHARS$}  {:>12} {:>12} {:>12} {:>12}{}",
            rate(disk.written_bytes_per_second),
            rate(disk.zeroed_bytes_per_second),
            rate(disk.discarded_bytes_per_second),
            rate(disk.read_bytes_per_second),
            if disk.writable == Some(false) {
                "  read only"
            } else {
                ""
            },
        )?;
    }
    Ok(())
}

fn write_backends(text: &mut String, line: &Line) -> std::fmt::Result {
    for (number, backend) in line.backends.iter().enumerate() {
        let unnamed = format!("guest's disk {number}");
        let name = shorten(backend.name.as_deref().unwrap_or(&unnamed));
        writeln!(
            text,
            "{name:<NAME_CHARS$}  {:>12} {:>12} {:>12}  in all",
            show_bytes(backend.totals.written_bytes),
            show_bytes(backend.totals.zeroed_bytes),
            show_bytes(backend.totals.discarded_bytes),
        )?;
    }
    Ok(())
}

fn write_devices(text: &mut String, devices: &[Device]) -> std::fmt::Result {
    for device in devices {
        writeln!(
            text,
            "device {} ({})  {} in flight, queue depth {:.2}",
            device.name, device.device, device.in_flight, device.queue_depth
        )?;
        writeln!(text, "    read   {}", direction(&device.read))?;
        writeln!(text, "    write  {}", direction(&device.write))?;
    }
    Ok(())
}

fn direction(direction: &Direction) -> String {
    let rate = rate(direction.bytes_per_second);
    let latencies = (
        direction.mean_seconds,
        direction.p50_seconds,
        direction.p99_seconds,
    );
    match latencies {
        (Some(mean), Some(p50), Some(p99)) => format!(
            "{rate:>12}  latency mean {}, p50 {}, p99 {}",
            latency(mean),
            latency(p50),
            latency(p99)
        ),
        _ => format!("{rate:>12}"),
    }
}

fn latency(seconds: f64) -> String {
    if seconds < 0.000_999_5 {
        format!("{:.0} us", seconds * 1e6)
    } else {
        format!("{:.1} ms", seconds * 1e3)
    }
}

fn write_probe(text: &mut String, line: &Line) -> std::fmt::Result {
    let probe = &line.probe;
    let cost = match (probe.core_ratio, probe.run_ns) {
        (Some(ratio), _) => format!("{:.2} % of a core, ", ratio * 100.0),
        (None, Some(_)) => String::new(),
        (None, None) => "cost not counted, ".to_owned(),
    };
    let memory = show_bytes(probe.memory_bytes);
    let missed: u64 = probe.programs.iter().map(|program| program.missed).sum();
    writeln!(
        text,
        "probe  {cost}{memory}, {} events lost, {missed} runs missed",
        probe.lost_events,
    )?;
    let gaps = [
        (probe.unknown_slots, "dirty logs of unknown size"),
        (probe.overtaken_logs, "dirty logs changed too soon"),
        (probe.unreadable, "calls not readable"),
        (probe.map_full, "calls without room"),
        (probe.cut_writes, "writes longer than their chunks"),
    ];
    for (count, what) in gaps.into_iter().filter(|(count, _)| *count > 0) {
        writeln!(text, "       {count} {what}")?;
    }
    Ok(())
}

fn rate(bytes_per_second: f64) -> String {
    show_rate(from_f64(bytes_per_second))
}

/// The end of a long name is what tells it from others.
fn shorten(name: &str) -> String {
    let chars = name.chars().count();
    if chars <= NAME_CHARS {
        return name.to_owned();
    }
    let end: String = name.chars().skip(chars - NAME_CHARS + 1).collect();
    format!("…{end}")
}

#[cfg(test)]
mod tests {
    use super::super::line::{DirtyRate, Probe, Program, Qemu, Socket};
    use super::*;

    #[test]
    fn a_block_says_what_is_seen() {
        let line = Line {
            pid: 42,
            at_seconds: 12.3,
            qemu: Qemu {
                version: Some("10.0.2".to_owned()),
                accelerator: Some("kvm"),
            },
            ram: Ram {
                dirty_rates: vec![DirtyRate {
                    window_seconds: 0.0512,
                    pages: 600,
                    pages_per_second: 11_718.75,
                    age_seconds: 2.0,
                    origin: "dirty-log",
                }],
                known: true,
                ..Ram::default()
            },
            disks: vec![Disk {
                path: Some("/srv/images/a.qcow2".to_owned()),
                written_bytes_per_second: 1.5e6,
                writable: Some(false),
                ..Disk::default()
            }],
            devices: vec![Device {
                device: "254:0".to_owned(),
                name: "vda".to_owned(),
                in_flight: 3,
                queue_depth: 1.25,
                write: Direction {
                    mean_seconds: Some(0.002),
                    p50_seconds: Some(0.000_25),
                    p99_seconds: Some(0.012),
                    ..Direction::default()
                },
                ..Device::default()
            }],
            sockets: vec![Socket {
                local: "127.0.0.1:1".to_owned(),
                peer: "127.0.0.1:2".to_owned(),
                sent_bytes: 5_000_000,
            }],
            probe: Probe {
                core_ratio: Some(0.0123),
                memory_bytes: 12_000_000,
                unknown_slots: 4,
                overtaken_logs: 3,
                cut_writes: 5,
                programs: vec![Program {
                    missed: 2,
                    ..Program::default()
                }],
                ..Probe::default()
            },
            warnings: vec!["this and that".to_owned()],
            ..Line::default()
        };
        let expected = "\
pid 42  QEMU 10.0.2 (kvm)  12.3 s
dirty pages  window       pages     per second  age      from
             50 ms          600          11719  2.0 s    dirty-log
disk                                           written       zeroed    discarded         read
/srv/images/a.qcow2                           1.5 MB/s        0 B/s        0 B/s        0 B/s  read only
device vda (254:0)  3 in flight, queue depth 1.25
    read          0 B/s
    write         0 B/s  latency mean 2.0 ms, p50 250 us, p99 12.0 ms
socket  127.0.0.1:1 to 127.0.0.1:2  5.0 MB sent
probe  1.23 % of a core, 12 MB, 0 events lost, 2 runs missed
       4 dirty logs of unknown size
       3 dirty logs changed too soon
       5 writes longer than their chunks
not seen  this and that
";
        assert_eq!(table(&line), expected);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut line = Line::default();
        line.ram.why_not = Some("because".to_owned());
        line.ended = true;
        let text = table(&line);
        assert!(text.contains("dirty pages  not known: because\n"), "{text}");
        assert!(text.contains("the process has ended\n"), "{text}");
        assert!(text.contains("cost not counted"), "{text}");
    }

    #[test]
    fn windows_and_names_are_short() {
        assert_eq!(window(0.0503), "50 ms");
        assert_eq!(window(0.073), "73 ms");
        assert_eq!(window(1.01), "1.0 s");
        assert_eq!(window(3.4), "3.4 s");
        let long = shorten(&"x/".repeat(40));
        assert_eq!(long.chars().count(), NAME_CHARS);
        assert!(long.starts_with('…') && long.ends_with("x/"), "{long}");
    }
}
