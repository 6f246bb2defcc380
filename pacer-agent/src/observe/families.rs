//! What was observed, as families of Prometheus metrics. The newest line is
//! kept and turned into metrics when they are scraped: totals stay the kernel's
//! own, and what is gone is gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use super::family_table::{FAMILIES, Family, Kind, Sample, Value};
use super::line::Line;

/// The families, set from lines.
#[derive(Clone, Debug)]
pub struct ProbeFamilies {
    newest: Arc<Mutex<Line>>,
    descriptions: Vec<Desc>,
}

impl ProbeFamilies {
    /// Registers the families; before the first line they say that nothing was
    /// seen.
    ///
    /// # Errors
    ///
    /// If a name is taken or not Prometheus's kind of name: a mistake in a
    /// table of this module.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let describe = |family: &Family| {
            let labels = family.labels.iter().map(ToString::to_string).collect();
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                labels,
                HashMap::new(),
            )
        };
        let families = Self {
            newest: Arc::default(),
            descriptions: FAMILIES.iter().map(describe).collect::<Result<_, _>>()?,
        };
        registry.register(Box::new(families.clone()))?;
        Ok(families)
    }

    /// The newest line.
    pub fn set(&self, line: Line) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

impl Collector for ProbeFamilies {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let line = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        FAMILIES
            .iter()
            .map(|family| collect(family, &line))
            .collect()
    }
}

fn collect(family: &Family, line: &Line) -> MetricFamily {
    let mut collected = MetricFamily::default();
    collected.set_name(family.name.to_owned());
    collected.set_help(family.help.to_owned());
    collected.set_field_type(match family.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    let samples = merge((family.samples)(line));
    let metrics = samples.into_iter().map(|sample| metric(family, sample));
    collected.set_metric(metrics.collect());
    collected
}

/// One sample for each set of labels, which must not come twice: two files may
/// have had one path, two connections the same ends.
fn merge(samples: Vec<Sample>) -> Vec<Sample> {
    let mut merged: Vec<Sample> = Vec::new();
    let mut places: HashMap<Vec<String>, usize> = HashMap::new();
    for sample in samples {
        match places.entry(sample.labels.clone()) {
            Entry::Occupied(place) => merged[*place.get()].value.add(sample.value),
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(sample);
            }
        }
    }
    merged
}

fn metric(family: &Family, sample: Sample) -> Metric {
    let labels = family.labels.iter().zip(sample.labels);
    let labels = labels.map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    });
    // As the crate's own metrics have them.
    let mut labels: Vec<LabelPair> = labels.collect();
    labels.sort_by(|one, other| one.name().cmp(other.name()));
    let mut metric = Metric::from_label(labels);
    match (sample.value, family.kind) {
        (Value::Number(value), Kind::Counter) => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        (Value::Number(value), Kind::Gauge | Kind::Histogram) => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        (
            Value::Distribution {
                count,
                sum,
                cumulative,
            },
            _,
        ) => {
            let mut histogram = Histogram::default();
            histogram.set_sample_count(count);
            histogram.set_sample_sum(sum);
            let buckets = cumulative.into_iter().map(|(upper_bound, count)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(upper_bound);
                bucket.set_cumulative_count(count);
                bucket
            });
            histogram.set_bucket(buckets.collect());
            metric.set_histogram(histogram);
        }
    }
    metric
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::{Encoder as _, TextEncoder};

    use super::super::line::{Device, Direction, DirtyRate, Disk, Probe, Socket, Totals};
    use super::*;

    fn render(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&registry.gather(), &mut text)
            .unwrap();
        String::from_utf8(text).unwrap()
    }

    fn check(text: &str, expected: &[&str]) {
        for line in expected {
            assert!(text.lines().any(|found| found == *line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_was_seen_is_scraped() {
        let registry = Registry::new_custom(Some("pacer".to_owned()), None).unwrap();
        let families = ProbeFamilies::register(&registry).unwrap();
        check(&render(&registry), &["pacer_probe_events_total 0"]);
        let mut by_latency = vec![0; 64];
        (by_latency[5], by_latency[12], by_latency[40]) = (3, 4, 1);
        let mut line = Line {
            disks: vec![Disk {
                path: Some("/srv/a\"b.raw".to_owned()),
                totals: Totals {
                    writes: 2,
                    written_bytes: 8192,
                    ..Totals::default()
                },
                ..Disk::default()
            }],
            devices: vec![Device {
                name: "vda".to_owned(),
                read: Direction {
                    requests: 8,
                    latency: Duration::from_millis(1500),
                    by_latency,
                    ..Direction::default()
                },
                ..Device::default()
            }],
            probe: Probe {
                events: 7,
                run_ns: Some(1_500_000_000),
                ..Probe::default()
            },
            ..Line::default()
        };
        line.ram.dirty_rates = vec![DirtyRate {
            window_seconds: 0.0512,
            pages: 2,
            origin: "dirty-log",
            ..DirtyRate::default()
        }];
        families.set(line);
        check(
            &render(&registry),
            &[
                "pacer_probe_events_total 7",
                "pacer_guest_dirty_window_bytes{origin=\"dirty-log\",window=\"0.05\"} 8192",
                "pacer_guest_dirty_window_seconds{origin=\"dirty-log\",window=\"0.05\"} 0.0512",
                "pacer_disk_bytes_total{disk=\"/srv/a\\\"b.raw\",kind=\"write\"} 8192",
                "pacer_device_latency_seconds_count{device=\"vda\",direction=\"read\"} 8",
                "pacer_device_latency_seconds_sum{device=\"vda\",direction=\"read\"} 1.5",
                "pacer_device_latency_seconds_bucket{device=\"vda\",direction=\"read\",le=\"0.000001024\"} 3",
                "pacer_device_latency_seconds_bucket{device=\"vda\",direction=\"read\",le=\"0.000008192\"} 7",
                "pacer_device_latency_seconds_bucket{device=\"vda\",direction=\"read\",le=\"+Inf\"} 8",
            ],
        );
    }

    #[test]
    fn what_has_the_same_labels_is_one_series() {
        let registry = Registry::new_custom(Some("pacer".to_owned()), None).unwrap();
        let families = ProbeFamilies::register(&registry).unwrap();
        let disk = |inode, writes| Disk {
            path: Some("/srv/a.raw".to_owned()),
            inode,
            totals: Totals {
                writes,
                ..Totals::default()
            },
            ..Disk::default()
        };
        let socket = |sent_bytes| Socket {
            local: ":0".to_owned(),
            peer: ":0".to_owned(),
            sent_bytes,
        };
        let device = |below, above| {
            let mut by_latency = vec![0; 64];
            (by_latency[5], by_latency[12]) = (below, above);
            Device {
                name: "vda".to_owned(),
                read: Direction {
                    latency: Duration::from_millis(below),
                    by_latency,
                    ..Direction::default()
                },
                ..Device::default()
            }
        };
        families.set(Line {
            disks: vec![disk(1, 2), disk(2, 40)],
            sockets: vec![socket(5), socket(600)],
            devices: vec![device(1, 2), device(10, 20)],
            ..Line::default()
        });
        let text = render(&registry);
        check(
            &text,
            &[
                "pacer_disk_requests_total{disk=\"/srv/a.raw\",kind=\"write\"} 42",
                "pacer_socket_sent_bytes_total{local=\":0\",peer=\":0\"} 605",
                "pacer_device_latency_seconds_count{device=\"vda\",direction=\"read\"} 33",
                "pacer_device_latency_seconds_sum{device=\"vda\",direction=\"read\"} 0.011",
                "pacer_device_latency_seconds_bucket{device=\"vda\",direction=\"read\",le=\"0.000001024\"} 11",
                "pacer_device_latency_seconds_bucket{device=\"vda\",direction=\"read\",le=\"0.000008192\"} 33",
            ],
        );
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let mut names: Vec<_> = series.filter_map(|line| line.rsplit_once(' ')).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup_by_key(|(name, _)| *name);
        assert_eq!(names.len(), all, "{text}");
    }
}
