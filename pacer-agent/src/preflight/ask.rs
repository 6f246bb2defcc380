//! Asks a QEMU what its machine is. What it does not answer is left out.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{Backend, Device, Disk, Facts};
use crate::process::ProcessId;
use crate::qmp::Qmp;

/// `statfs` says this of files in huge pages.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The facts about the machine of `qmp`, whose process is `qemu`.
pub async fn facts(qmp: &Qmp, qemu: Option<ProcessId>) -> Facts {
    let ask = async |command: &str| -> Option<Value> {
        match qmp.execute(command, Value::Null).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "a fact is not known");
                None
            }
        }
    };
    let get = async |path: &str, property: &str| -> Option<String> {
        let arguments = json!({ "path": path, "property": property });
        qmp.execute("qom-get", arguments).await.ok()
    };
    let list = async |path: &str| -> Option<Value> {
        qmp.execute("qom-list", json!({ "path": path })).await.ok()
    };
    let cpus = ask("query-cpus-fast").await;
    let first_cpu = cpus
        .as_ref()
        .and_then(|cpus| cpus[0]["qom-path"].as_str().map(str::to_owned));
    let cpu_model = match first_cpu {
        Some(path) => get(&path, "type").await,
        None => None,
    };
    let mut backends = ask("query-memdev").await.as_ref().and_then(backends);
    for backend in backends.iter_mut().flatten() {
        let path = format!("/objects/{}", backend.id);
        // RAM that is no file has no such property.
        let file = get(&path, "mem-path").await;
        backend.huge_pages = file.as_deref().and_then(is_huge);
    }
    let mut found = ask("query-pci").await.as_ref().map(pci_devices);
    for path in ["/machine/peripheral", "/machine/peripheral-anon"] {
        if let (Some(found), Some(listed)) = (&mut found, list(path).await) {
            found.extend(peripherals(&listed));
        }
    }
    let facts = Facts {
        qemu: Some(qmp.version_numbers()),
        machine: get("/machine", "type").await,
        memory_bytes: ask("query-memory-size-summary")
            .await
            .as_ref()
            .and_then(memory_bytes),
        backends,
        cpus: cpus
            .as_ref()
            .and_then(Value::as_array)
            .and_then(|cpus| u64::try_from(cpus.len()).ok()),
        cpu_model,
        accelerator: ask("query-kvm").await.as_ref().and_then(accelerator),
        disks: ask("query-block").await.as_ref().and_then(disks),
        devices: found,
        capabilities: qmp.capabilities().await.ok().map(|capabilities| {
            let on = capabilities.into_iter().filter(|(_, state)| *state);
            on.map(|(name, _)| name).collect()
        }),
        tls: qmp
            .parameters()
            .await
            .ok()
            .map(|parameters| is_encrypted(&parameters)),
        kernel_devices: qemu.and_then(|qemu| kernel_devices(qemu.pid)),
    };
    facts.bounded()
}

fn memory_bytes(summary: &Value) -> Option<u64> {
    let plugged = summary["plugged-memory"].as_u64().unwrap_or(0);
    Some(summary["base-memory"].as_u64()? + plugged)
}

fn backends(answer: &Value) -> Option<Vec<Backend>> {
    let backends = answer.as_array()?.iter();
    let read = backends.map(|backend| {
        Some(Backend {
            id: backend["id"].as_str()?.to_owned(),
            bytes: backend["size"].as_u64()?,
            share: backend["share"].as_bool().unwrap_or(false),
            huge_pages: None,
        })
    });
    read.collect()
}

fn accelerator(answer: &Value) -> Option<String> {
    let word = match answer["enabled"].as_bool()? {
        true => "kvm",
        false => "no kvm",
    };
    Some(word.to_owned())
}

fn disks(answer: &Value) -> Option<Vec<Disk>> {
    let disks = answer.as_array()?.iter().map(|drive| {
        let text = |key: &str| drive[key].as_str().filter(|text| !text.is_empty());
        let inserted = &drive["inserted"];
        Disk {
            name: text("device").or(text("qdev")).unwrap_or("").to_owned(),
            bytes: inserted["image"]["virtual-size"].as_u64(),
            read_only: inserted["ro"].as_bool().unwrap_or(false),
        }
    });
    Some(disks.collect())
}

/// The devices on the first bus: others have a bus number only once the guest's
/// firmware has given it, so not at a destination.
fn pci_devices(answer: &Value) -> Vec<Device> {
    let devices = answer[0]["devices"].as_array().into_iter().flatten();
    let read = devices.filter_map(|device| {
        let id = &device["id"];
        let (vendor, model) = (id["vendor"].as_u64()?, id["device"].as_u64()?);
        let (slot, function) = (device["slot"].as_u64()?, device["function"].as_u64()?);
        let name = device["class_info"]["desc"].as_str().unwrap_or("device");
        Some(Device {
            place: format!("PCI {slot:02x}.{function}"),
            kind: format!("{vendor:04x}:{model:04x} {name}"),
        })
    });
    read.collect()
}

/// What was given with `-device`: by its id, or as the how manieth of its kind.
fn peripherals(listed: &Value) -> Vec<Device> {
    let mut counts = BTreeMap::<String, u32>::new();
    let children = listed.as_array().into_iter().flatten();
    let read = children.filter_map(|child| {
        let kind = child["type"].as_str()?;
        let kind = kind.strip_prefix("child<")?.strip_suffix('>')?;
        let name = child["name"].as_str()?;
        let place = if name.starts_with("device[") {
            let count = counts.entry(kind.to_owned()).or_default();
            *count += 1;
            format!("{kind} no. {count}")
        } else {
            name.to_owned()
        };
        Some(Device {
            place,
            kind: kind.to_owned(),
        })
    });
    read.collect()
}

fn is_encrypted(parameters: &serde_json::Map<String, Value>) -> bool {
    parameters
        .get("tls-creds")
        .and_then(Value::as_str)
        .is_some_and(|id| !id.is_empty())
}

fn is_huge(path: &str) -> Option<bool> {
    let filesystem = rustix::fs::statfs(path).ok()?;
    Some(filesystem.f_type == HUGETLBFS_MAGIC)
}

/// Those of vhost and VFIO that the process has open.
fn kernel_devices(pid: u32) -> Option<Vec<String>> {
    let open = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")).ok()?;
    let mut found: Vec<String> = open
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .filter(|target| target.starts_with("/dev/vhost") || target.starts_with("/dev/vfio"))
        .collect();
    found.sort();
    found.dedup();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 and 10.0 answered, without what is not read.
    fn answers() -> [Value; 2] {
        let disk = |device: &str, qdev: &str, size: u64| {
            json!({ "device": device, "qdev": qdev, "type": "unknown", "removable": false,
                "inserted": { "ro": false, "node-name": "n", "drv": "raw",
                    "image": { "virtual-size": size, "filename": "a.img" } } })
        };
        // The unnamed device of an empty drive is another one in each version.
        [19, 5].map(|number| {
            let empty = json!({ "device": "ide0-cd0", "removable": true, "locked": false,
                "tray_open": false, "qdev": format!("/machine/unattached/device[{number}]") });
            json!([
                disk(
                    "virtio0",
                    "/machine/peripheral-anon/device[2]/virtio-backend",
                    1 << 20
                ),
                empty,
                disk("", "/machine/peripheral/d2/virtio-backend", 1 << 30),
            ])
        })
    }

    #[test]
    fn both_versions_tell_the_same_disks() {
        let [old, new] = answers().map(|answer| disks(&answer).unwrap());
        assert_eq!(old, new);
        let names: Vec<&str> = old.iter().map(|disk| disk.name.as_str()).collect();
        let unnamed = "/machine/peripheral/d2/virtio-backend";
        assert_eq!(names, ["virtio0", "ide0-cd0", unnamed]);
        assert_eq!(old[1].bytes, None);
        assert_eq!(old[2].bytes, Some(1 << 30));
    }

    #[test]
    fn devices_are_told_by_place_and_kind() {
        let pci = json!([{ "bus": 0, "devices": [
            { "bus": 0, "slot": 1, "function": 1, "qdev_id": "",
              "class_info": { "class": 257, "desc": "IDE controller" },
              "id": { "device": 28688, "vendor": 32902, "subsystem": 4352 } },
        ] }]);
        let found = pci_devices(&pci);
        assert_eq!(found[0].place, "PCI 01.1");
        assert_eq!(found[0].kind, "8086:7010 IDE controller");
        let listed = json!([
            { "name": "type", "type": "string" },
            { "name": "device[0]", "type": "child<e1000>" },
            { "name": "device[1]", "type": "child<e1000>" },
            { "name": "net0", "type": "child<virtio-net-pci>" },
        ]);
        let places: Vec<String> = peripherals(&listed)
            .into_iter()
            .map(|device| device.place)
            .collect();
        assert_eq!(places, ["e1000 no. 1", "e1000 no. 2", "net0"]);
    }

    #[test]
    fn the_rest_is_read_as_qemu_tells_it() {
        let summary = json!({ "base-memory": 67_108_864, "plugged-memory": 0 });
        assert_eq!(memory_bytes(&summary), Some(64 << 20));
        let memdev = json!([{ "share": false, "reserve": true, "prealloc": false,
            "host-nodes": [], "size": 67_108_864, "merge": true, "dump": true,
            "policy": "default", "id": "pc.ram" }]);
        assert_eq!(backends(&memdev).unwrap()[0].id, "pc.ram");
        let kvm = json!({ "enabled": true, "present": true });
        assert_eq!(accelerator(&kvm).as_deref(), Some("kvm"));
        let parameters = json!({ "tls-creds": "" });
        assert!(!is_encrypted(parameters.as_object().unwrap()));
    }
}
