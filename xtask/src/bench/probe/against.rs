//! The same counted by bpftrace: what its programs cost beside ours.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::bpftrace::{Bpftrace, RunStatistics};
use pacer_tests::disk::DiskAio;
use pacer_tests::image_bench::ImageBench;
use serde_json::{Value, json};

use super::image::{self, Image, Place};
use super::{Bencher, aio_name, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "bpftrace";
const TIMEOUT: Duration = Duration::from_secs(120);
const DEPTH: u32 = 16;
/// Requests of one call that bpftrace looks at; QEMU submits no more for the loads
/// here.
const MOST_AT_ONCE: u32 = 64;
const WRITES: u32 = 30_000;

/// Who counts.
#[derive(Clone, Copy)]
enum Watcher {
    Pacer,
    /// bpftrace: [`writes`].
    Writes,
    /// bpftrace: [`hits`].
    Hits,
}

impl Watcher {
    const fn name(self) -> &'static str {
        match self {
            Self::Pacer => "pacer",
            Self::Writes => "writes",
            Self::Hits => "hits",
        }
    }
}

/// What the probe is attached to for an image's sake.
const TRACEPOINTS: [&str; 11] = [
    "syscalls:sys_exit_ioctl",
    "syscalls:sys_exit_pwrite64",
    "syscalls:sys_exit_pwritev",
    "syscalls:sys_exit_pwritev2",
    "syscalls:sys_exit_pread64",
    "syscalls:sys_exit_preadv",
    "syscalls:sys_exit_preadv2",
    "syscalls:sys_exit_io_submit",
    "syscalls:sys_exit_fallocate",
    "syscalls:sys_exit_read",
    "io_uring:io_uring_complete",
];

/// A script for bpftrace, and how many probes it attaches.
pub(super) struct Script {
    pub(super) text: String,
    pub(super) probes: usize,
}

/// Counts the hits of each tracepoint by one process, and nothing else.
pub(super) fn hits(pid: u32) -> Script {
    let probes: Vec<String> = TRACEPOINTS
        .iter()
        .map(|name| format!("tracepoint:{name}"))
        .collect();
    let text = format!(
        "{} /pid == {pid}/ {{ @[probe] = count(); }}",
        probes.join(",")
    );
    Script {
        text,
        probes: probes.len(),
    }
}

/// The inode of a descriptor, in a script for bpftrace, of the process that is
/// in a system call; `$file` holds what is opened.
fn inode_of(fd: &str) -> String {
    format!("$file = *(curtask->files->fdt->fd + {fd}); $inode = $file->f_inode->i_ino;")
}

/// Counts what the probe does: writes and their bytes by inode. bpftrace sees a
/// call's arguments at the call's start alone.
pub(super) fn writes(pid: u32) -> Script {
    let mut text = String::new();
    let calls = ["pwrite64", "pwritev", "pwritev2"];
    for call in calls {
        text += &format!(
            "tracepoint:syscalls:sys_enter_{call} /pid == {pid}/ {{
                 {inode} @inode[tid] = $inode;
             }}
             tracepoint:syscalls:sys_exit_{call} /pid == {pid}/ {{
                 if (args->ret > 0) {{
                     @writes[@inode[tid]] = count(); @bytes[@inode[tid]] = sum(args->ret);
                 }}
                 delete(@inode[tid]);
             }}
             ",
            inode = inode_of("args->fd"),
        );
    }
    // Of an iocb: opcode at 16 (8 writes a vector, all that QEMU uses), file at 20,
    // address of the vector at 24; of which the first part alone is taken.
    text += &format!(
        "tracepoint:syscalls:sys_enter_io_submit /pid == {pid}/ {{
             $list = (uint64)args->iocbpp; $count = (int64)args->nr; $i = 0;
             while ($i < {MOST_AT_ONCE}) {{
                 if ($i >= $count) {{ break; }}
                 $iocb = *uptr((uint64 *)($list + (uint64)$i * 8));
                 if (*uptr((uint16 *)($iocb + 16)) == 8) {{
                     $fd = *uptr((uint32 *)($iocb + 20));
                     $vector = *uptr((uint64 *)($iocb + 24));
                     {inode}
                     @writes[$inode] = count();
                     @bytes[$inode] = sum(*uptr((uint64 *)($vector + 8)));
                 }}
                 $i++;
             }}
         }}
         ",
        inode = inode_of("$fd"),
    );
    // 23 writes, 2 writes a vector.
    text += &format!(
        "tracepoint:io_uring:io_uring_complete /pid == {pid}/ {{
             $request = (struct io_kiocb *)args->req;
             if ($request->opcode == 23 || $request->opcode == 2) {{
                 $inode = $request->file->f_inode->i_ino;
                 @writes[$inode] = count(); @bytes[$inode] = sum(args->res);
             }}
         }}"
    );
    Script {
        text,
        probes: 2 * calls.len() + 2,
    }
}

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let repeats = bencher.plan.repeats(6, 1);
    let mut parts = Vec::new();
    for aio in DiskAio::ALL {
        let mut runs = Vec::new();
        for index in 0..repeats {
            let mut order = [Watcher::Pacer, Watcher::Writes, Watcher::Hits];
            bencher.rng(aio.name(), index).shuffle(&mut order);
            let parameters = json!({
                "aio": aio.name(), "depth": DEPTH, "writes": WRITES,
                "order": order.map(Watcher::name),
            });
            let pacer = bencher.plan.pacer.clone();
            runs.push(
                bencher
                    .records
                    .run(ROW, index, &parameters, || each(&pacer, aio, &order))?,
            );
        }
        parts.extend(figures(&runs, aio));
    }
    parts.append(&mut bencher.against_bpftrace);
    Ok(parts)
}

/// The same writes with each of them, one after the other.
fn each(pacer: &Path, aio: DiskAio, order: &[Watcher]) -> Result<Value> {
    let image = Image::create(Place::Memory)?;
    // Once without anybody: what comes first would find other caches.
    let bench = ImageBench::new(image.path(), aio, DEPTH, WRITES);
    let seconds = bench.run(TIMEOUT)?.as_secs_f64();
    let mut figures = json!({"seconds": seconds});
    for watcher in order {
        let figure = match watcher {
            Watcher::Pacer => image::cost(pacer, &image, (aio, DEPTH, WRITES))?,
            Watcher::Writes => traced_writes(&bench)?,
            Watcher::Hits => traced_hits(&bench)?,
        };
        figures[format!("{}_ns", watcher.name())] = figure["ns_per_write"].clone();
        figures[watcher.name()] = figure;
    }
    let ns = |watcher: Watcher| figures[watcher.name()]["ns_per_write"].as_f64();
    let pacer_ns = ns(Watcher::Pacer).context("no cost")?;
    let ratio = |watcher| Some(pacer_ns / ns(watcher).filter(|&ns| ns > 0.0)?);
    let [to_writes, to_hits] = [Watcher::Writes, Watcher::Hits].map(ratio);
    figures["to_writes"] = json!(to_writes);
    figures["to_hits"] = json!(to_hits);
    Ok(figures)
}

/// Both columns of what bpftrace printed must be those of the image.
fn traced_writes(bench: &ImageBench) -> Result<Value> {
    let (mut figures, printed) = traced(bench, writes)?;
    let inode = fs::metadata(&bench.image)?.ino();
    for (map, made) in [("writes", 1), ("bytes", bench.request_bytes)] {
        let made = u64::from(made) * u64::from(bench.writes);
        let counted = printed_number(&printed, &format!("@{map}[{inode}]"));
        ensure!(
            counted == Some(made),
            "bpftrace counted {counted:?} {map} of {made}: {printed}"
        );
        figures[map] = json!(counted);
    }
    Ok(figures)
}

fn traced_hits(bench: &ImageBench) -> Result<Value> {
    let (mut figures, printed) = traced(bench, hits)?;
    let hits = TRACEPOINTS
        .iter()
        .filter_map(|name| printed_number(&printed, &format!("@[tracepoint:{name}]")))
        .max();
    ensure!(
        hits >= Some(u64::from(bench.writes) / u64::from(DEPTH)),
        "bpftrace counted {hits:?} hits for {} writes: {printed}",
        bench.writes
    );
    figures["hits"] = json!(hits);
    Ok(figures)
}

/// The writes while bpftrace runs a script: what that cost, and what it printed.
fn traced(bench: &ImageBench, script: fn(u32) -> Script) -> Result<(Value, String)> {
    let _statistics = RunStatistics::enable()?;
    let ready = bench.ready()?;
    let script = script(ready.pid());
    let bpftrace = Bpftrace::start(&script.text, script.probes)?;
    let before = bpftrace.cost();
    let seconds = ready.run(TIMEOUT)?.as_secs_f64();
    let after = bpftrace.cost();
    let run_ns = u32::try_from(after.run_ns - before.run_ns)?;
    let figures = json!({
        "seconds": seconds,
        "run_ns": run_ns,
        "run_count": after.run_count - before.run_count,
        "ns_per_write": f64::from(run_ns) / f64::from(bench.writes),
    });
    Ok((figures, bpftrace.stop()?))
}

/// What bpftrace printed of one entry of a map, as `@writes[5]: 30000`.
fn printed_number(printed: &str, entry: &str) -> Option<u64> {
    let value = |line: &str| line.strip_prefix(entry)?.strip_prefix(": ")?.parse().ok();
    printed.lines().find_map(value)
}

fn figures(runs: &[Value], aio: DiskAio) -> Vec<Part> {
    let what = format!("per write, {}", aio_name(aio));
    if let Some(part) = errors(runs, &what) {
        return vec![part];
    }
    let of = |name| Bencher::figures(runs, name);
    let ratio = "pacer's cost by that of bpftrace counting";
    vec![
        Part::median(
            format!("{ratio} the same, writes and bytes by inode, {what}"),
            &of("to_writes"),
            "",
        )
        .limit(Limit::Below(1.0)),
        Part::median(
            format!("stated: {ratio} hits of its tracepoints and nothing else, {what}"),
            &of("to_hits"),
            "",
        ),
        Part::median(format!("pacer, {what}"), &of("pacer_ns"), "ns"),
        Part::median(
            format!("bpftrace, writes and bytes, {what}"),
            &of("writes_ns"),
            "ns",
        ),
        Part::median(format!("bpftrace, hits, {what}"), &of("hits_ns"), "ns"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read() {
        let printed = "Attaching 9 probes...\n\n@bytes[9]: 122880000\n\n@writes[9]: 30000\n";
        assert_eq!(printed_number(printed, "@writes[9]"), Some(30_000));
        assert_eq!(printed_number(printed, "@bytes[9]"), Some(122_880_000));
        assert_eq!(printed_number(printed, "@bytes[8]"), None);
    }
}
