//! The per-CPU array of counters; user space sums over the CPUs.

/// Name of the per-CPU array of `u64`.
pub const COUNTERS: &str = "COUNTERS";

/// Slot of: events put into the ring.
pub const EVENTS: u32 = 0;
/// Slot of: events that found no room in the ring.
pub const LOST_EVENTS: u32 = 1;
/// Slot of: dirty logs of memory slots whose size was never seen. They are not
/// read, since how long their bitmap is would be a guess.
pub const UNKNOWN_SLOTS: u32 = 2;
/// Slot of: arguments or bitmaps in the process' memory that could not be read.
pub const UNREADABLE: u32 = 3;
/// Slot of: calls or memory slots that found no room in a map.
pub const MAP_FULL: u32 = 4;

/// Slot of: writes longer than their chunks are followed.
pub const CUT_WRITES: u32 = 5;
/// Slot of: bytes read to addresses in guest memory.
pub const READ_TO_RAM_BYTES: u32 = 6;
/// Slot of: bytes read to other addresses.
pub const READ_ELSEWHERE_BYTES: u32 = 7;
/// Slot of: bytes that sockets accepted.
pub const SENT_BYTES: u32 = 8;

/// Slot of: memory slots of which only a lower bound of their size is known.
pub const INFERRED_SLOTS: u32 = 9;

/// How many counters there are.
pub const COUNT: u32 = 10;
