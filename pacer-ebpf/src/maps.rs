//! The maps. Their names are constants in `pacer-common`.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruPerCpuHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use pacer_common::block::{BlockRequest, DeviceCounts, MAX_BLOCK_REQUESTS, MAX_DEVICES};
use pacer_common::chunk::{ChunkSet, SETS};
use pacer_common::counter;
use pacer_common::device::{DevicePiece, Ranges};
use pacer_common::dirty_log::PIECE_WORDS;
use pacer_common::event::RING_BYTES;
use pacer_common::file::{FileCounts, FileKey, MAX_FILES};
use pacer_common::slot::{MAX_SLOTS, Slot};
use pacer_common::socket::{MAX_SOCKETS, SocketKey};
use pacer_common::store::{MAX_STORES, StoreCounts};

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

#[map]
pub(crate) static OBSERVED: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static SLOTS: HashMap<u64, Slot> = HashMap::with_max_entries(MAX_SLOTS, 0);

#[map]
pub(crate) static RANGES: Array<Ranges> = Array::with_max_entries(1, 0);

// The loader sets how many. User space maps it to take out bits atomically.
#[map]
pub(crate) static DEVICE_PIECES: Array<DevicePiece> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub(crate) static PIECE: PerCpuArray<[u64; PIECE_WORDS]> = PerCpuArray::with_max_entries(1, 0);

// Not allocated before it is used: on a machine of many CPUs it would be large.
#[map]
pub(crate) static FILES: PerCpuHashMap<FileKey, FileCounts> =
    PerCpuHashMap::with_max_entries(MAX_FILES, BPF_F_NO_PREALLOC);

// User space maps it.
#[map]
pub(crate) static CHUNKS: Array<ChunkSet> = Array::with_max_entries(SETS, BPF_F_MMAPABLE);

#[map]
pub(crate) static PUSHED: Array<u64> = Array::with_max_entries(1, 0);

// Taken as pages come: only a guest under TCG has any.
#[map]
pub(crate) static STORES: HashMap<u64, u64> =
    HashMap::with_max_entries(MAX_STORES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static STORE_COUNTS: Array<StoreCounts> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static STORES_WATCHED: Array<u32> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static SOCKETS: LruPerCpuHashMap<SocketKey, u64> =
    LruPerCpuHashMap::with_max_entries(MAX_SOCKETS, 0);

#[map]
pub(crate) static DEVICES: PerCpuHashMap<u32, DeviceCounts> =
    PerCpuHashMap::with_max_entries(MAX_DEVICES, BPF_F_NO_PREALLOC);

// Allocated at once: completions come as interrupts.
#[map]
pub(crate) static BLOCK_REQUESTS: HashMap<u64, BlockRequest> =
    HashMap::with_max_entries(MAX_BLOCK_REQUESTS, 0);
