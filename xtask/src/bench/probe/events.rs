//! Whether every write is seen when there are as many as this machine makes.

use anyhow::Result;
use pacer_tests::disk::DiskAio;
use serde_json::{Value, json};

use super::image::{Image, Place, observed};
use super::{Bencher, aio_name, errors};
use crate::bench::target::{Limit, Part};

const ROW: &str = "events";
const DEPTH: u32 = 64;

pub(super) fn measure(bencher: &mut Bencher<'_>) -> Result<Vec<Part>> {
    let repeats = bencher.plan.repeats(3, 1);
    let writes = if bencher.plan.quick { 200_000 } else { 400_000 };
    let mut runs = Vec::new();
    for place in [Place::Memory, Place::Disk] {
        for index in 0..repeats {
            for aio in DiskAio::ALL {
                // A disk is slower, and is there for the sake of the real path.
                let writes = if place == Place::Disk {
                    writes / 4
                } else {
                    writes
                };
                let parameters = json!({
                    "aio": aio.name(), "image": place.name(), "depth": DEPTH, "writes": writes,
                });
                let pacer = bencher.plan.pacer.clone();
                runs.push(bencher.records.run(ROW, index, &parameters, || {
                    observed(&pacer, &Image::create(place)?, (aio, DEPTH, writes))
                })?);
            }
        }
    }
    Ok(parts(&runs))
}

fn parts(runs: &[Value]) -> Vec<Part> {
    if let Some(part) = errors(runs, "every run") {
        return vec![part];
    }
    let mut parts = Vec::new();
    for aio in DiskAio::ALL {
        let of_mode: Vec<Value> = runs
            .iter()
            .filter(|run| run["parameters"]["aio"] == aio.name())
            .cloned()
            .collect();
        let most = Bencher::figures(&of_mode, "writes_per_second");
        let most = Part::largest("", &most, "writes/s");
        let speed = most.value.unwrap_or_default();
        // A write that was missed is one of 4 KiB.
        let missed: Vec<f64> = of_mode
            .iter()
            .filter_map(|run| Some(run["figures"]["missed_bytes"].as_f64()? / 4096.0))
            .collect();
        let what = format!(
            "writes not counted, {}, up to {speed:.0} writes/s",
            aio_name(aio)
        );
        parts.push(Part::largest(what, &missed, "writes").limit(Limit::Exactly(0.0)));
        let reported = Bencher::figures(&of_mode, "reported_missed");
        let what = format!("events lost or not readable, {}", aio_name(aio));
        parts.push(Part::largest(what, &reported, "events").limit(Limit::Exactly(0.0)));
        parts.push(Part {
            what: format!("most writes a second, {}", aio_name(aio)),
            ..most
        });
    }
    parts
}
