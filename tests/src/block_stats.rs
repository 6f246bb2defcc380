//! What QEMU counts for each disk.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

/// The guest's requests to one disk since QEMU started, as QMP
/// `query-blockstats` has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Bytes the guest has written or asked to be zeroed.
    pub wr_bytes: u64,
    /// In so many requests.
    pub wr_operations: u64,
    /// Bytes the guest has read.
    pub rd_bytes: u64,
    /// In so many requests.
    pub rd_operations: u64,
    /// Bytes the guest has discarded; always 0 for virtio-blk, which starts to
    /// count them and never does.
    pub unmap_bytes: u64,
    /// In so many requests.
    pub unmap_operations: u64,
    /// Flushes by the guest.
    pub flush_operations: u64,
    /// Requests of any kind that failed.
    pub failed_operations: u64,
}

/// Reads the answer of `query-blockstats`; the devices by their ids.
///
/// # Errors
/// It is not what QEMU answers.
pub(crate) fn parse(answer: &Value) -> Result<BTreeMap<String, BlockStats>> {
    let disks = answer.as_array().context("query-blockstats: no list")?;
    let named = disks
        .iter()
        .filter_map(|disk| Some((device_id(disk)?, disk)));
    named.map(|(id, disk)| Ok((id, stats(disk)?))).collect()
}

/// `qdev` is the id, or for a part of the device (virtio's backend) a path
/// that has it.
fn device_id(disk: &Value) -> Option<String> {
    let qdev = disk.get("qdev")?.as_str()?;
    let id = match qdev.strip_prefix("/machine/peripheral/") {
        Some(path) => path.split('/').next()?,
        None => qdev,
    };
    Some(id.to_owned())
}

fn stats(disk: &Value) -> Result<BlockStats> {
    let stats = &disk["stats"];
    let number = |field: &str| {
        let value = stats[field].as_u64();
        value.with_context(|| format!("query-blockstats: no {field} in {disk}"))
    };
    let failed = ["wr", "rd", "unmap", "flush"].map(|kind| format!("failed_{kind}_operations"));
    Ok(BlockStats {
        wr_bytes: number("wr_bytes")?,
        wr_operations: number("wr_operations")?,
        rd_bytes: number("rd_bytes")?,
        rd_operations: number("rd_operations")?,
        unmap_bytes: number("unmap_bytes")?,
        unmap_operations: number("unmap_operations")?,
        flush_operations: number("flush_operations")?,
        failed_operations: failed
            .iter()
            .map(|field| number(field))
            .sum::<Result<u64>>()?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn devices_are_known_by_their_ids() {
        let mut stats = json!({"wr_bytes": 5});
        for field in ["wr", "rd", "unmap", "flush"] {
            stats[format!("{field}_operations")] = json!(2);
            stats[format!("failed_{field}_operations")] = json!(1);
        }
        stats["rd_bytes"] = json!(7);
        stats["unmap_bytes"] = json!(9);
        let answer = json!([
            {"qdev": "/machine/peripheral/a/virtio-backend", "node-name": "x", "stats": stats},
            {"qdev": "b", "stats": stats},
            {"device": "floppy0", "stats": {}},
        ]);
        let parsed = parse(&answer).unwrap();
        assert_eq!(parsed.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            parsed["a"],
            BlockStats {
                wr_bytes: 5,
                wr_operations: 2,
                rd_bytes: 7,
                rd_operations: 2,
                unmap_bytes: 9,
                unmap_operations: 2,
                flush_operations: 2,
                failed_operations: 4,
            }
        );
    }
}
