//! The maps. Their names are constants in `pacer-common`.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf};
use pacer_common::call::{Call, MAX_CALLS};
use pacer_common::counter;
use pacer_common::dirty_log::PIECE_WORDS;
use pacer_common::event::RING_BYTES;
use pacer_common::slot::MAX_SLOTS;

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

#[map]
pub(crate) static CALLS: HashMap<u64, Call> = HashMap::with_max_entries(MAX_CALLS, 0);

#[map]
pub(crate) static OBSERVED: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static SLOTS: HashMap<u64, u64> = HashMap::with_max_entries(MAX_SLOTS, 0);

#[map]
pub(crate) static PIECE: PerCpuArray<[u64; PIECE_WORDS]> = PerCpuArray::with_max_entries(1, 0);
