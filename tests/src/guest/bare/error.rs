//! What can be wrong with a bare guest: with what it is told, and with its
//! memory.

use std::io;

use super::MAX_RAM_MIB;

/// A guest that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BareGuestError {
    /// More RAM than the guest can address.
    #[error("{ram_mib} MiB of RAM, at most {MAX_RAM_MIB}")]
    TooMuchRam {
        /// What was asked for.
        ram_mib: u32,
    },
    /// The filler and the working set do not fit into the RAM.
    #[error("{needed_mib} MiB are needed, the guest has {ram_mib}")]
    DoesNotFit {
        /// 16 MiB, the working set, the filler and the devices' buffers.
        needed_mib: u64,
        /// What was asked for.
        ram_mib: u32,
    },
    /// No page to write.
    #[error("the working set is empty")]
    NoWorkingSet,
    /// Something about the disk that the guest does not know how to do.
    #[error("disk: {0}")]
    BadDisk(&'static str),
    /// Writes that cannot be.
    #[error("pattern: {0}")]
    BadPattern(&'static str),
}

/// Why a memory is not that of the guest.
#[derive(Debug, thiserror::Error)]
pub enum BareFault {
    /// The memory could not be read.
    #[error("guest memory cannot be read")]
    Read(#[from] io::Error),
    /// The guest has not started, or its control page is lost.
    #[error("control page: magic {found:#010x}")]
    NoMagic {
        /// What stands there.
        found: u32,
    },
    /// Position and round do not belong together.
    #[error("control page: position {position:#010x} in round {round}")]
    BadPosition {
        /// The packed position.
        position: u32,
        /// The round beside it.
        round: u32,
    },
    /// A page does not hold what the guest wrote to it.
    #[error(
        "page at {address:#x}, offset {offset:#x}: {found:#010x} instead of {expected:#010x} \
         (round {round}, working-set page {page})"
    )]
    BadPage {
        /// Guest-physical address of the page, in bytes.
        address: u64,
        /// Of the first wrong dword in it, in bytes.
        offset: usize,
        /// What stands there.
        found: u32,
        /// What should.
        expected: u32,
        /// The guest's round.
        round: u32,
        /// Page of the working set that the guest is at.
        page: u32,
    },
}
