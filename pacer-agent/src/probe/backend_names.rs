//! What QEMU calls its block backends, read from its memory where the build is
//! known.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::activity::BackendNames;
use super::build_id::Layout;

/// `BlockBackend.name`, a pointer to characters.
const BACKEND_NAME: u64 = 0;
/// `BlockBackend.root`, a pointer to a `BdrvChild`.
const BACKEND_ROOT: u64 = 0x10;
/// `BlockBackend.dev`, a pointer to a `DeviceState`.
const BACKEND_DEVICE: u64 = 0xf8;
/// `DeviceState.id`, a pointer to characters.
const DEVICE_ID: u64 = 0x28;
/// `BdrvChild.bs`, a pointer to a `BlockDriverState`.
const CHILD_NODE: u64 = 0;

/// No name is longer.
const MOST_BYTES: usize = 128;

/// Reads the names of one process' backends. Without a layout there are none.
#[derive(Debug, Default)]
pub(super) struct NameReader {
    process: Option<(File, Layout)>,
    /// By address. Kept, since a disk may be taken out.
    known: RefCell<BTreeMap<u64, BackendNames>>,
}

impl NameReader {
    /// Of process `tgid`, whose build has that layout. No names are read where
    /// its memory may not be (it needs CAP_SYS_PTRACE).
    pub(super) fn new(tgid: u32, layout: Layout) -> Self {
        let memory = File::open(format!("/proc/{tgid}/mem"))
            .inspect_err(|error| tracing::debug!(%error, "backends have no names"));
        Self {
            process: memory.ok().map(|memory| (memory, layout)),
            known: RefCell::default(),
        }
    }

    /// The names of the backend at `address`.
    pub(super) fn read(&self, address: u64) -> BackendNames {
        if let Some(names) = self.known.borrow().get(&address) {
            return names.clone();
        }
        let Some((memory, layout)) = &self.process else {
            return BackendNames::default();
        };
        let names = Names {
            read: |at, bytes: &mut [u8]| memory.read_at(bytes, at).unwrap_or(0),
        }
        .of(address, *layout);
        if names != BackendNames::default() {
            self.known.borrow_mut().insert(address, names.clone());
        }
        names
    }
}

/// Follows pointers in memory that `read` copies from, as far as it can.
struct Names<R> {
    read: R,
}

impl<R: Fn(u64, &mut [u8]) -> usize> Names<R> {
    fn of(&self, backend: u64, layout: Layout) -> BackendNames {
        let device = self
            .pointer(backend, BACKEND_DEVICE)
            .and_then(|device| self.pointer(device, DEVICE_ID))
            .and_then(|id| self.text(id, 0));
        let own = || self.text(self.pointer(backend, BACKEND_NAME)?, 0);
        let node = self
            .pointer(backend, BACKEND_ROOT)
            .and_then(|child| self.pointer(child, CHILD_NODE))
            .and_then(|node| self.text(node, layout.node_name));
        BackendNames {
            device: device.or_else(own),
            node,
        }
    }

    /// The pointer `offset` bytes into what is at `base`. `None` if it is null,
    /// too.
    fn pointer(&self, base: u64, offset: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let read = (self.read)(base.checked_add(offset)?, &mut bytes);
        let pointer = u64::from_ne_bytes(bytes);
        (read == bytes.len() && pointer != 0).then_some(pointer)
    }

    /// Characters up to a 0, from `offset` bytes into what is at `base`. `None` if
    /// there are none, or what is there is no name.
    fn text(&self, base: u64, offset: u64) -> Option<String> {
        let mut bytes = [0; MOST_BYTES];
        let read = (self.read)(base.checked_add(offset)?, &mut bytes);
        let end = bytes[..read].iter().position(|&byte| byte == 0)?;
        let text = str::from_utf8(&bytes[..end]).ok()?;
        let is_name = !text.is_empty() && text.chars().all(|letter| letter.is_ascii_graphic());
        is_name.then(|| text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { node_name: 0x100 };
    const BACKEND: u64 = 0x1000;

    /// Memory from address 0 on.
    fn memory(parts: &[(u64, &[u8])]) -> Vec<u8> {
        let mut memory = vec![0; 0x8000];
        for &(at, part) in parts {
            let at = usize::try_from(at).unwrap();
            memory[at..at + part.len()].copy_from_slice(part);
        }
        memory
    }

    fn names(parts: &[(u64, &[u8])]) -> BackendNames {
        let memory = memory(parts);
        let read = |at: u64, bytes: &mut [u8]| {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let Some(rest) = memory.get(at..) else {
                return 0;
            };
            let length = rest.len().min(bytes.len());
            bytes[..length].copy_from_slice(&rest[..length]);
            length
        };
        Names { read }.of(BACKEND, LAYOUT)
    }

    fn pointer(address: u64) -> [u8; 8] {
        address.to_ne_bytes()
    }

    #[test]
    fn names_are_where_the_pointers_lead() {
        let names = names(&[
            (BACKEND + BACKEND_NAME, &pointer(0x5000)),
            (0x5000, b"drive0\0"),
            (BACKEND + BACKEND_DEVICE, &pointer(0x2000)),
            (0x2000 + DEVICE_ID, &pointer(0x3000)),
            (0x3000, b"virtio-disk0\0"),
            (BACKEND + BACKEND_ROOT, &pointer(0x4000)),
            (0x4000 + CHILD_NODE, &pointer(0x6000)),
            (0x6000 + 0x100, b"libvirt-1-format\0"),
        ]);
        assert_eq!(names.device.as_deref(), Some("virtio-disk0"));
        assert_eq!(names.node.as_deref(), Some("libvirt-1-format"));
    }

    #[test]
    fn what_is_no_name_is_none() {
        let none = names(&[
            (BACKEND + BACKEND_DEVICE, &pointer(u64::MAX - 4)),
            (BACKEND + BACKEND_ROOT, &pointer(0x4000)),
            (0x4000 + CHILD_NODE, &pointer(0x6000)),
            (0x6000 + 0x100, b"\xff\xfe\0"),
        ]);
        assert_eq!(none, BackendNames::default());
        let own = names(&[
            (BACKEND + BACKEND_NAME, &pointer(0x5000)),
            (0x5000, b"drive0\0"),
        ]);
        assert_eq!(own.device.as_deref(), Some("drive0"));
    }
}
