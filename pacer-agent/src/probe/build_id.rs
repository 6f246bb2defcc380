//! Which build a QEMU is. What is read from inside it holds for builds that it
//! was tried on, and for those alone.

use std::fs;

use object::Object as _;
use object::read::ReadCache;

/// Where a build of QEMU keeps what is read from inside it, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// `BlockDriverState.node_name`, an array of 32 characters.
    pub(super) node_name: u64,
}

/// Builds whose `QEMUIOVector` keeps its size where the programs look for it, and
/// whose `BlockBackend` and `DeviceState` are as [`super::backend_names`] reads
/// them: Debian's 10.0.2 (bookworm-backports) and 7.2 (bookworm) for x86-64. Each
/// was compared with `query-blockstats`.
const KNOWN: [(&str, Layout); 2] = [
    (
        "0fbbd5ca8d2d0a32532049e20739f3e0d521c5ed",
        Layout { node_name: 0x40d8 },
    ),
    (
        "d9541fd67c4ea37f9ca7fca0f5096f32b3b7e7e0",
        Layout { node_name: 0x40b8 },
    ),
];

/// The layouts in the program of process `tgid`, if they are known; else the
/// reason why not.
pub(super) fn layout(tgid: u32) -> Result<Layout, String> {
    let path = format!("/proc/{tgid}/exe");
    let file = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    let cache = ReadCache::new(file);
    let build_id = object::File::parse(&cache)
        .ok()
        .and_then(|file| file.build_id().ok().flatten().map(hex))
        .ok_or("it carries no build id")?;
    KNOWN
        .iter()
        .find_map(|(known, layout)| (*known == build_id).then_some(*layout))
        .ok_or_else(|| format!("its build {build_id} is not a known one"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_no_known_build() {
        let reason = layout(std::process::id()).expect_err("no QEMU");
        assert!(reason.contains("build"), "{reason}");
    }
}
