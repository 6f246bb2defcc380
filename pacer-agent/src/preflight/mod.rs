//! Before anything moves: can this guest arrive at that QEMU?
//!
//! QEMU itself finds out at load, when the guest has been copied: the time is lost, and
//! the message is about a section or a RAM block. Here what both sides say of their
//! machines is compared before. Pure; [`ask`] gets the facts.

pub mod ask;

use std::collections::BTreeMap;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

/// What one side's QEMU says of its machine. `None` is what it did not say.
///
/// It travels between the agents: strings and lists are cut when it is made
/// ([`Facts::bounded`]), and a frame has a highest length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// QEMU's version: major, minor, micro.
    pub qemu: Option<(u64, u64, u64)>,
    /// The machine's type with its version, as `pc-i440fx-7.2-machine`.
    pub machine: Option<String>,
    /// Bytes of RAM, with what was plugged in.
    pub memory_bytes: Option<u64>,
    /// What the RAM is made of.
    pub backends: Option<Vec<Backend>>,
    /// Virtual CPUs.
    pub cpus: Option<u64>,
    /// The type of the first.
    pub cpu_model: Option<String>,
    /// `kvm` or what else runs it.
    pub accelerator: Option<String>,
    /// Its disks.
    pub disks: Option<Vec<Disk>>,
    /// Its devices.
    pub devices: Option<Vec<Device>>,
    /// The migration capabilities that are on.
    pub capabilities: Option<Vec<String>>,
    /// QEMU is set to encrypt the migration itself.
    pub tls: Option<bool>,
    /// The kernel's devices that QEMU has open, of vhost and VFIO.
    pub kernel_devices: Option<Vec<String>>,
}

/// A piece of RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// What QEMU calls it; in the stream too.
    pub id: String,
    /// Its size.
    pub bytes: u64,
    /// Other processes may write it.
    pub share: bool,
    /// In huge pages; `None` where it cannot be told.
    pub huge_pages: Option<bool>,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Disk {
    /// By what it is told from others: the drive's name, or its device's path.
    pub name: String,
    /// The guest's size of it; `None` for an empty drive.
    pub bytes: Option<u64>,
    /// The guest cannot write it.
    pub read_only: bool,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where it is plugged in, or its id.
    pub place: String,
    /// What it is.
    pub kind: String,
}

/// Whether something can be migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It can.
    Supported,
    /// Nobody could be asked.
    Unknown,
    /// It can, but something is not as good.
    Degraded,
    /// It cannot.
    Refused,
}

/// The verdict on one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing.
    pub what: &'static str,
    /// The verdict.
    pub verdict: Verdict,
    /// Why, with both sides' values and the remedy.
    pub detail: String,
}

/// The longest string and the most entries of each list that are told. A machine with
/// more is compared as far as this.
const MOST_CHARACTERS: usize = 64;
const MOST_ENTRIES: usize = 64;
/// Capabilities that both sides must have, or neither, as the migration will have them.
const MUST_AGREE: [&str; 6] = [
    "compress",
    "mapped-ram",
    "multifd",
    "postcopy-preempt",
    "x-colo",
    "x-ignore-shared",
];
/// Those of them that Pacer switches off at the source.
const SWITCHED_OFF: [&str; 2] = ["multifd", "postcopy-preempt"];

impl Facts {
    /// The same, small enough for a frame.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        for text in [
            &mut self.machine,
            &mut self.cpu_model,
            &mut self.accelerator,
        ]
        .into_iter()
        .flatten()
        {
            cut(text);
        }
        for list in [&mut self.capabilities, &mut self.kernel_devices]
            .into_iter()
            .flatten()
        {
            list.truncate(MOST_ENTRIES);
            list.iter_mut().for_each(cut);
        }
        if let Some(backends) = &mut self.backends {
            backends.truncate(MOST_ENTRIES);
            backends.iter_mut().for_each(|one| cut(&mut one.id));
        }
        if let Some(disks) = &mut self.disks {
            disks.truncate(MOST_ENTRIES);
            disks.iter_mut().for_each(|disk| cut(&mut disk.name));
        }
        if let Some(devices) = &mut self.devices {
            devices.truncate(MOST_ENTRIES);
            for device in devices {
                cut(&mut device.place);
                cut(&mut device.kind);
            }
        }
        self
    }
}

/// Also fit to be shown: it may come from the other side.
fn cut(text: &mut String) {
    text.retain(|letter| letter.is_ascii_graphic() || letter == ' ');
    text.truncate(MOST_CHARACTERS);
}

/// Judges whether the source's guest can arrive at the destination. `None` is a side
/// without QMP.
#[must_use]
pub fn judge(source: Option<&Facts>, destination: Option<&Facts>) -> Vec<Finding> {
    let Some(source) = source else {
        return vec![unknown("without --qmp at the source nothing is compared")];
    };
    let mut findings = source_alone(source);
    let Some(destination) = destination else {
        findings.push(unknown(
            "without --qmp at the destination nothing is compared",
        ));
        return findings;
    };
    findings.extend(
        [
            machine(source, destination),
            memory(source, destination),
            backends(source, destination),
            cpus(source, destination),
            accelerator(source, destination),
            version(source, destination),
            capabilities(source, destination),
            tls(source, destination),
            disks(source, destination),
            devices(source, destination),
        ]
        .into_iter()
        .flatten(),
    );
    findings
}

/// Why nothing is begun, if so.
#[must_use]
pub fn refusal(findings: &[Finding]) -> Option<String> {
    let refused: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Refused)
        .map(|finding| finding.detail.as_str())
        .collect();
    (!refused.is_empty()).then(|| {
        format!(
            "this guest cannot arrive at that QEMU, so nothing was begun: {}",
            refused.join("; ")
        )
    })
}

/// Says each verdict in the log.
pub fn log(findings: &[Finding]) {
    let supported: Vec<&str> = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Supported)
        .map(|finding| finding.what)
        .collect();
    if !supported.is_empty() {
        tracing::info!("pre-flight: supported: {}", supported.join(", "));
    }
    for Finding {
        what,
        verdict,
        detail,
    } in findings
    {
        match verdict {
            Verdict::Supported => {}
            Verdict::Unknown => tracing::info!("pre-flight: {what}: unknown: {detail}"),
            Verdict::Degraded => tracing::warn!("pre-flight: {what}: degraded: {detail}"),
            Verdict::Refused => tracing::error!("pre-flight: {what}: refused: {detail}"),
        }
    }
}

fn finding(what: &'static str, verdict: Verdict, detail: impl Into<String>) -> Finding {
    Finding {
        what,
        verdict,
        detail: detail.into(),
    }
}

fn supported(what: &'static str, detail: impl Display) -> Finding {
    finding(what, Verdict::Supported, detail.to_string())
}

fn refused(what: &'static str, detail: impl Into<String>) -> Finding {
    finding(what, Verdict::Refused, detail)
}

fn unknown(detail: &str) -> Finding {
    finding("machines", Verdict::Unknown, detail)
}

/// What of a guest does not go as well as the rest, wherever it goes.
fn source_alone(source: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(open) = &source.kernel_devices {
        let of = |prefix: &str| {
            let found = open.iter().filter(|path| path.starts_with(prefix));
            found.map(String::as_str).collect::<Vec<_>>().join(", ")
        };
        let vhost = of("/dev/vhost");
        findings.push(match vhost.as_str() {
            "" => supported("vhost", "none"),
            vhost => finding(
                "vhost",
                Verdict::Degraded,
                format!(
                    "{vhost} writes guest memory inside the kernel: QEMU copies those pages, and \
                     the forecast learns of them only at each sync"
                ),
            ),
        });
        let vfio = of("/dev/vfio");
        findings.push(match vfio.as_str() {
            "" => supported("VFIO", "none"),
            vfio => finding(
                "VFIO",
                Verdict::Degraded,
                format!(
                    "{vfio}: QEMU can migrate this device, but its state goes while the guest \
                     stands, which no forecast of the downtime knows"
                ),
            ),
        });
    }
    let user = source
        .devices
        .iter()
        .flatten()
        .filter(|device| device.kind.starts_with("vhost-user"))
        .map(|device| device.place.as_str())
        .collect::<Vec<_>>();
    if !user.is_empty() {
        findings.push(finding(
            "vhost-user",
            Verdict::Degraded,
            format!(
                "{}: another process writes guest memory, and QEMU relies on it to say which",
                user.join(", ")
            ),
        ));
    }
    if let Some(backends) = &source.backends
        && backends
            .iter()
            .any(|backend| backend.huge_pages == Some(true))
    {
        findings.push(supported(
            "huge pages",
            "what is written is logged and sent in pages of 4 KiB all the same",
        ));
    }
    findings
}

/// Refused unless both are the same; nothing where a side did not say.
fn same<T: PartialEq + Clone>(
    what: &'static str,
    (source, destination): (Option<&T>, Option<&T>),
    show: impl Fn(&T) -> String,
    remedy: impl FnOnce(&T) -> String,
) -> Option<Finding> {
    let (source, destination) = (source?, destination?);
    Some(if source == destination {
        supported(what, show(source))
    } else {
        refused(
            what,
            format!(
                "{what}: {} at the source, {} at the destination; {}",
                show(source),
                show(destination),
                remedy(source)
            ),
        )
    })
}

fn machine(source: &Facts, destination: &Facts) -> Option<Finding> {
    same(
        "machine type",
        (source.machine.as_ref(), destination.machine.as_ref()),
        |name| name.trim_end_matches("-machine").to_owned(),
        |name| {
            format!(
                "start the destination's QEMU with -machine {}",
                name.trim_end_matches("-machine")
            )
        },
    )
}

fn memory(source: &Facts, destination: &Facts) -> Option<Finding> {
    same(
        "RAM",
        (
            source.memory_bytes.as_ref(),
            destination.memory_bytes.as_ref(),
        ),
        |bytes| show_size(*bytes),
        |bytes| {
            format!(
                "start the destination's QEMU with -m {}",
                show_size(*bytes).replace(" MiB", "M").replace(" B", "B")
            )
        },
    )
}

fn show_size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{} MiB", bytes >> 20)
    } else {
        format!("{bytes} B")
    }
}

fn backends(source: &Facts, destination: &Facts) -> Option<Finding> {
    let names = |facts: &Facts| {
        let backends = facts.backends.as_ref()?;
        let mut names: Vec<String> = backends
            .iter()
            .map(|backend| format!("{} of {}", backend.id, show_size(backend.bytes)))
            .collect();
        names.sort();
        Some(names.join(", "))
    };
    same(
        "memory backends",
        (names(source).as_ref(), names(destination).as_ref()),
        Clone::clone,
        |_| "give both QEMUs the same memory backends with the same ids".to_owned(),
    )
}

fn cpus(source: &Facts, destination: &Facts) -> Option<Finding> {
    let machine = |facts: &Facts| Some((facts.cpus?, facts.cpu_model.clone()?));
    let compared = same(
        "vCPUs",
        (machine(source).as_ref(), machine(destination).as_ref()),
        |(count, model)| format!("{count} of {model}"),
        |(count, _)| {
            format!("start the destination's QEMU with the same -cpu and with -smp {count}")
        },
    )?;
    let is_host = source
        .cpu_model
        .as_deref()
        .is_some_and(|model| model.starts_with("host-"));
    if compared.verdict == Verdict::Supported && is_host {
        return Some(finding(
            "vCPUs",
            Verdict::Degraded,
            "-cpu host is what each host has: the guest may fail where the destination's \
             processor lacks what the source's has",
        ));
    }
    Some(compared)
}

fn accelerator(source: &Facts, destination: &Facts) -> Option<Finding> {
    let (from, to) = (
        source.accelerator.as_deref()?,
        destination.accelerator.as_deref()?,
    );
    Some(if from == to {
        supported("accelerator", from)
    } else {
        finding(
            "accelerator",
            Verdict::Degraded,
            format!(
                "{from} at the source, {to} at the destination: QEMU may refuse the guest at \
                 load, and it then stays at the source"
            ),
        )
    })
}

fn version(source: &Facts, destination: &Facts) -> Option<Finding> {
    let (from, to) = (source.qemu?, destination.qemu?);
    let show = |(major, minor, micro): (u64, u64, u64)| format!("{major}.{minor}.{micro}");
    Some(if (to.0, to.1) < (from.0, from.1) {
        finding(
            "QEMU",
            Verdict::Degraded,
            format!(
                "{} at the source, the older {} at the destination: QEMU promises only that an \
                 older one's guest can be loaded by a newer",
                show(from),
                show(to)
            ),
        )
    } else {
        supported("QEMU", format!("{} to {}", show(from), show(to)))
    })
}

fn capabilities(source: &Facts, destination: &Facts) -> Option<Finding> {
    let (from, to) = (
        source.capabilities.as_ref()?,
        destination.capabilities.as_ref()?,
    );
    let has = |list: &[String], name: &str| list.iter().any(|one| one == name);
    let mut wrong = Vec::new();
    for name in MUST_AGREE {
        let will = has(from, name) && !SWITCHED_OFF.contains(&name);
        let word = |on| if on { "on" } else { "off" };
        if will != has(to, name) {
            wrong.push(format!(
                "capability {name}: {} at the source, {} at the destination; type there: \
                 migrate_set_capability {name} {}",
                word(will),
                word(!will),
                word(will)
            ));
        } else if will && matches!(name, "mapped-ram" | "x-colo") {
            wrong.push(format!("capability {name}: it cannot go through a relay"));
        }
    }
    Some(if wrong.is_empty() {
        supported("capabilities", "they agree")
    } else {
        refused("capabilities", wrong.join("; "))
    })
}

fn tls(source: &Facts, destination: &Facts) -> Option<Finding> {
    let sides: Vec<&str> = [
        (source.tls?, "the source"),
        (destination.tls?, "the destination"),
    ]
    .into_iter()
    .filter_map(|(on, side)| on.then_some(side))
    .collect();
    Some(if sides.is_empty() {
        supported("encryption", "by the relay")
    } else {
        refused(
            "encryption",
            format!(
                "tls-creds is set at {}: an encrypted stream cannot be read in passing, and the \
                 relay encrypts by itself; type there: migrate_set_parameter tls-creds \"\"",
                sides.join(" and ")
            ),
        )
    })
}

/// Disks are matched by their names, and what has no match one after the other.
fn disks(source: &Facts, destination: &Facts) -> Option<Finding> {
    let media = |facts: &Facts| -> Option<Vec<Disk>> {
        let disks = facts.disks.as_ref()?.iter();
        Some(disks.filter(|disk| disk.bytes.is_some()).cloned().collect())
    };
    let (from, mut to) = (media(source)?, media(destination)?);
    let named: Vec<Option<Disk>> = from
        .iter()
        .map(|disk| {
            let at = to.iter().position(|other| other.name == disk.name)?;
            Some(to.remove(at))
        })
        .collect();
    let mut rest = to.into_iter();
    let mut wrong = Vec::new();
    for (disk, named) in from.iter().zip(named) {
        let size = |disk: &Disk| show_size(disk.bytes.unwrap_or(0));
        match named.or_else(|| rest.next()) {
            None => wrong.push(format!(
                "disk {} of {} is not there at the destination; give its QEMU the same disks",
                disk.name,
                size(disk)
            )),
            Some(other) if other.bytes < disk.bytes => wrong.push(format!(
                "disk {}: {} at the source, only {} at the destination ({}); make that image as \
                 large",
                disk.name,
                size(disk),
                size(&other),
                other.name
            )),
            Some(other) if other.read_only && !disk.read_only => wrong.push(format!(
                "disk {}: the guest writes it, and at the destination it is read-only ({})",
                disk.name, other.name
            )),
            Some(_) => {}
        }
    }
    Some(if wrong.is_empty() {
        supported("disks", from.len())
    } else {
        refused("disks", wrong.join("; "))
    })
}

fn devices(source: &Facts, destination: &Facts) -> Option<Finding> {
    let by_place = |devices: &'_ [Device]| -> BTreeMap<String, String> {
        let pairs = devices
            .iter()
            .map(|device| (device.place.clone(), device.kind.clone()));
        pairs.collect()
    };
    let (from, to) = (
        by_place(source.devices.as_ref()?),
        by_place(destination.devices.as_ref()?),
    );
    let wrong: Vec<String> = from
        .iter()
        .filter_map(|(place, kind)| match to.get(place) {
            Some(other) if other == kind => None,
            Some(other) => Some(format!(
                "{place} is {kind} at the source, {other} at the destination"
            )),
            None => Some(format!("{kind} ({place}) is not there at the destination")),
        })
        .collect();
    if !wrong.is_empty() {
        return Some(refused(
            "devices",
            format!(
                "{}; start the destination's QEMU with the same devices in the same places",
                wrong.join("; ")
            ),
        ));
    }
    let more: Vec<&str> = to
        .iter()
        .filter(|(place, _)| !from.contains_key(*place))
        .map(|(_, kind)| kind.as_str())
        .collect();
    Some(if more.is_empty() {
        supported("devices", from.len())
    } else {
        finding(
            "devices",
            Verdict::Degraded,
            format!(
                "the destination has more: {}; the guest will not expect it",
                more.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let disk = |name: &str, bytes| Disk {
            name: name.to_owned(),
            bytes,
            read_only: false,
        };
        let device = |place: &str, kind: &str| Device {
            place: place.to_owned(),
            kind: kind.to_owned(),
        };
        Facts {
            qemu: Some((10, 0, 2)),
            machine: Some("pc-i440fx-7.2-machine".to_owned()),
            memory_bytes: Some(64 << 20),
            backends: Some(vec![Backend {
                id: "pc.ram".to_owned(),
                bytes: 64 << 20,
                ..Backend::default()
            }]),
            cpus: Some(2),
            cpu_model: Some("qemu64-x86_64-cpu".to_owned()),
            accelerator: Some("kvm".to_owned()),
            disks: Some(vec![
                disk("virtio0", Some(1 << 30)),
                disk("/machine/peripheral/d2", Some(1 << 20)),
                disk("ide0-cd0", None),
            ]),
            devices: Some(vec![
                device("PCI 02.0", "1234:1111 VGA controller"),
                device("net0", "virtio-net-pci"),
            ]),
            capabilities: Some(vec!["events".to_owned()]),
            tls: Some(false),
            kernel_devices: Some(Vec::new()),
        }
    }

    /// The verdict and the text about one thing where the destination is otherwise.
    fn check(
        change: impl FnOnce(&mut Facts),
        what: &str,
        verdict: Verdict,
        words: &[&str],
    ) -> Vec<Finding> {
        let mut destination = facts();
        change(&mut destination);
        let findings = judge(Some(&facts()), Some(&destination));
        let finding = findings.iter().find(|finding| finding.what == what);
        let finding = finding.expect("there is a finding");
        assert_eq!(finding.verdict, verdict, "{finding:?}");
        for word in words {
            assert!(finding.detail.contains(word), "{finding:?}");
        }
        assert_eq!(
            refusal(&findings).is_some(),
            verdict == Verdict::Refused,
            "{findings:?}"
        );
        findings
    }

    #[test]
    fn the_same_machine_is_supported() {
        let findings = judge(Some(&facts()), Some(&facts()));
        assert!(
            findings
                .iter()
                .all(|finding| finding.verdict == Verdict::Supported),
            "{findings:?}"
        );
        assert_eq!(refusal(&findings), None);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused_with_both_values_and_the_remedy() {
        check(
            |facts| facts.machine = Some("pc-q35-7.2-machine".to_owned()),
            "machine type",
            Verdict::Refused,
            &["pc-q35-7.2", "-machine pc-i440fx-7.2"],
        );
        check(
            |facts| facts.memory_bytes = Some(128 << 20),
            "RAM",
            Verdict::Refused,
            &["64 MiB at the source", "128 MiB", "-m 64M"],
        );
        check(
            |facts| facts.cpus = Some(1),
            "vCPUs",
            Verdict::Refused,
            &["2 of", "1 of", "-smp 2"],
        );
        check(
            |facts| facts.backends.as_mut().unwrap()[0].id = "mem0".to_owned(),
            "memory backends",
            Verdict::Refused,
            &["pc.ram", "mem0"],
        );
        check(
            |facts| facts.devices.as_mut().unwrap()[1].kind = "e1000".to_owned(),
            "devices",
            Verdict::Refused,
            &["net0", "virtio-net-pci", "e1000"],
        );
        check(
            |facts| {
                facts.devices.as_mut().unwrap().pop();
            },
            "devices",
            Verdict::Refused,
            &["is not there"],
        );
        check(
            |facts| facts.capabilities.as_mut().unwrap().push("multifd".into()),
            "capabilities",
            Verdict::Refused,
            &["migrate_set_capability multifd off"],
        );
        check(
            |facts| facts.tls = Some(true),
            "encryption",
            Verdict::Refused,
            &["tls-creds"],
        );
    }

    #[test]
    fn disks_must_be_there_as_large_and_writable() {
        check(
            |facts| facts.disks.as_mut().unwrap()[0].bytes = Some(1 << 20),
            "disks",
            Verdict::Refused,
            &["1024 MiB at the source", "only 1 MiB"],
        );
        check(
            |facts| {
                facts.disks.as_mut().unwrap().remove(1);
            },
            "disks",
            Verdict::Refused,
            &["peripheral/d2", "is not there"],
        );
        check(
            |facts| facts.disks.as_mut().unwrap()[0].read_only = true,
            "disks",
            Verdict::Refused,
            &["read-only"],
        );
        // Another name is no other disk, and an empty drive no disk.
        check(
            |facts| {
                let disks = facts.disks.as_mut().unwrap();
                disks[1].name = "scratch".to_owned();
                disks.remove(2);
            },
            "disks",
            Verdict::Supported,
            &[],
        );
    }

    #[test]
    fn what_may_go_less_well_is_degraded() {
        check(
            |facts| facts.qemu = Some((7, 2, 0)),
            "QEMU",
            Verdict::Degraded,
            &["7.2.0", "10.0.2"],
        );
        check(
            |facts| facts.accelerator = Some("tcg".to_owned()),
            "accelerator",
            Verdict::Degraded,
            &["kvm", "tcg"],
        );
        let mut source = facts();
        source.kernel_devices = Some(vec!["/dev/vhost-net".to_owned()]);
        source.cpu_model = Some("host-x86_64-cpu".to_owned());
        let findings = judge(Some(&source), Some(&source.clone()));
        let degraded: Vec<&str> = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Degraded)
            .map(|finding| finding.what)
            .collect();
        assert_eq!(degraded, ["vhost", "vCPUs"]);
    }

    #[test]
    fn a_side_without_qmp_is_said_once() {
        for (source, destination) in [(None, Some(facts())), (Some(facts()), None), (None, None)] {
            let findings = judge(source.as_ref(), destination.as_ref());
            let unknown = findings
                .iter()
                .filter(|finding| finding.verdict == Verdict::Unknown);
            assert_eq!(unknown.count(), 1);
            assert_eq!(refusal(&findings), None);
        }
    }

    #[test]
    fn the_largest_facts_fit_into_a_frame() {
        let long = "\u{1}\\\"".repeat(1000);
        let facts = Facts {
            machine: Some(long.clone()),
            cpu_model: Some(long.clone()),
            accelerator: Some(long.clone()),
            capabilities: Some(vec![long.clone(); 500]),
            kernel_devices: Some(vec![long.clone(); 500]),
            backends: Some(vec![
                Backend {
                    id: long.clone(),
                    bytes: u64::MAX,
                    ..Backend::default()
                };
                500
            ]),
            disks: Some(vec![
                Disk {
                    name: long.clone(),
                    bytes: Some(u64::MAX),
                    read_only: false,
                };
                500
            ]),
            devices: Some(vec![
                Device {
                    place: long.clone(),
                    kind: long.clone(),
                };
                500
            ]),
            ..Facts::default()
        };
        let text = serde_json::to_vec(&facts.bounded()).unwrap();
        assert!(
            text.len() < crate::relay::frame::MAX_FRAME_BYTES - 1024,
            "{}",
            text.len()
        );
    }
}
