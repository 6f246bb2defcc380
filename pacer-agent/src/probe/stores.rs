//! The map of pages that a guest under TCG stored to.

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use pacer_common::store::STORES;

use super::ProbeError;

/// Forgets all pages, so that there is room for those to come. Must not be
/// called while stores are watched: a page might count twice.
pub(super) fn clear(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    let name = STORES;
    let map = ebpf.map_mut(name).ok_or(ProbeError::Incomplete { name })?;
    HashMap::try_from(map)
        .and_then(|mut map| remove_all(&mut map))
        .map_err(|source| ProbeError::Map { name, source })
}

fn remove_all(map: &mut HashMap<&mut MapData, u64, u64>) -> Result<(), MapError> {
    // All keys first: the kernel begins anew after one that is gone.
    let pages: Vec<u64> = map.keys().collect::<Result<_, _>>()?;
    pages.iter().try_for_each(|page| map.remove(page))
}
