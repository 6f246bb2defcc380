//! Which build a QEMU is. What is read from inside it holds for builds that it
//! was tried on, and for those alone.

use std::fs;

use object::Object as _;
use object::read::ReadCache;

/// Builds whose `QEMUIOVector` keeps its size where the programs look for it:
/// Debian's 10.0.2 (bookworm-backports) and 7.2 (bookworm) for x86-64. Each was
/// compared with `query-blockstats`.
const KNOWN: [&str; 2] = [
    "0fbbd5ca8d2d0a32532049e20739f3e0d521c5ed",
    "d9541fd67c4ea37f9ca7fca0f5096f32b3b7e7e0",
];

/// Whether the layouts in the program of process `tgid` are known; else the
/// reason why not.
pub(super) fn check(tgid: u32) -> Result<(), String> {
    let path = format!("/proc/{tgid}/exe");
    let file = fs::File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    let cache = ReadCache::new(file);
    let build_id = object::File::parse(&cache)
        .ok()
        .and_then(|file| file.build_id().ok().flatten().map(hex));
    match build_id {
        Some(build_id) if KNOWN.contains(&build_id.as_str()) => Ok(()),
        Some(build_id) => Err(format!("its build {build_id} is not a known one")),
        None => Err("it carries no build id".to_owned()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_no_known_build() {
        let reason = check(std::process::id()).expect_err("no QEMU");
        assert!(reason.contains("build"), "{reason}");
    }
}
