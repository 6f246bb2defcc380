//! qemu-img bench with the probe attached: writes whose number is known.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pacer_tests::disk::DiskAio;
use pacer_tests::image_bench::ImageBench;
use pacer_tests::observe::{ObserveOptions, Observer};
use serde_json::{Value, json};
use tempfile::TempDir;

const BENCH_TIMEOUT: Duration = Duration::from_secs(120);
const END_TIMEOUT: Duration = Duration::from_secs(20);
const MEMORY_FOLDER: &str = "/dev/shm";

/// Where an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In memory: as many writes a second as this machine makes.
    Memory,
    /// On disk.
    Disk,
}

impl Place {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// An image without holes, gone when it is dropped.
pub(super) struct Image {
    path: PathBuf,
    _folder: TempDir,
}

impl Image {
    /// Small enough for the page cache.
    pub(super) const BYTES: u64 = 128 << 20;

    pub(super) fn create(place: Place) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("pacer-image-");
        let folder = match place {
            Place::Memory if takes_direct(Path::new(MEMORY_FOLDER)) => {
                builder.tempdir_in(MEMORY_FOLDER)?
            }
            _ => builder.tempdir()?,
        };
        let path = folder.path().join("image.raw");
        fs::write(&path, vec![1; 128 << 20]).with_context(|| path.display().to_string())?;
        fs::File::open(&path)?.sync_all()?;
        Ok(Self {
            path,
            _folder: folder,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Whether files there can be opened with O_DIRECT: memory's file system takes
/// it from Linux 6.6 on.
fn takes_direct(folder: &Path) -> bool {
    const O_DIRECT: i32 = 0o40_000;
    let Ok(file) = tempfile::NamedTempFile::new_in(folder) else {
        return false;
    };
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).custom_flags(O_DIRECT);
    options.open(file.path()).is_ok()
}

/// The same, and refuses a cost of writes that the probe did not see.
pub(super) fn cost(pacer: &Path, image: &Image, writes: (DiskAio, u32, u32)) -> Result<Value> {
    let figures = observed(pacer, image, writes)?;
    ensure!(
        figures["missed_bytes"] == 0 && figures["run_ns"].as_u64() > Some(0),
        "the probe saw {} of {} writes: {}",
        figures["observed_writes"],
        figures["writes"],
        figures["warnings"]
    );
    Ok(figures)
}

/// Writes `writes` times 4 KiB while `pacer observe` looks on.
pub(super) fn observed(
    pacer: &Path,
    image: &Image,
    (aio, depth, writes): (DiskAio, u32, u32),
) -> Result<Value> {
    let bench = ImageBench::new(image.path(), aio, depth, writes);
    let ready = bench.ready()?;
    let observer = Observer::start(&ObserveOptions::new(pacer, ready.pid()))?;
    let seconds = ready.run(BENCH_TIMEOUT)?.as_secs_f64();
    let observed = observer.wait_ended(END_TIMEOUT)?;
    let (first, last) = (&observed.first().probe, &observed.last().probe);
    let disk = observed.last().disk(image.path());
    let disk = disk.context("the image is not among the disks observed")?;
    ensure!(seconds > 0.0, "{writes} writes in no time");
    let mut run_ns = 0;
    let mut programs = Vec::new();
    for (name, (ns, count)) in last.cost_since(first) {
        run_ns += ns;
        if count > 0 {
            programs.push(json!({"name": name, "run_ns": ns, "run_count": count}));
        }
    }
    Ok(json!({
        "seconds": seconds,
        "writes": writes,
        "writes_per_second": f64::from(writes) / seconds,
        "observed_writes": disk.writes,
        "observed_bytes": disk.written_bytes,
        "missed_bytes": u64::from(writes * bench.request_bytes).abs_diff(disk.written_bytes),
        "reported_missed": last.missed(),
        "run_ns": run_ns,
        "ns_per_write": f64::from(u32::try_from(run_ns / u64::from(writes))?),
        "programs": programs,
        "warnings": observed.last().warnings,
    }))
}
