//! The bare guest: firmware of our own that fills memory with content it can
//! be checked against and then dirties it at a set speed. It runs under any
//! KVM and under TCG and says `R` on the serial port when its memory is filled.
//! It may read or write a disk beside, and receive frames: [`devices`]; and its
//! writes may follow a pattern: [`pattern`].

pub mod devices;
mod error;
pub mod pattern;
mod writes;

use devices::{BareCounters, BareDisk};
pub use error::{BareFault, BareGuestError};
use pattern::{BarePattern, Stamps};

use super::content::{CONTENT_BYTES, content, page_mark};
use super::memory::{GuestMemory, PAGE_BYTES};

mod image {
    //! The assembled code.
    use core::arch::global_asm;

    global_asm!(
        include_str!("bare.s"),
        include_str!("bare/devices.s"),
        include_str!("bare/pattern.s"),
        ".globl pacer_bare_end",
        "pacer_bare_end:",
        ".code64",
        ".text",
        options(att_syntax)
    );

    unsafe extern "C" {
        static pacer_bare_start: u8;
        static pacer_bare_end: u8;
    }

    /// The code, parameters first.
    pub(super) fn code() -> &'static [u8] {
        let start = &raw const pacer_bare_start;
        let end = &raw const pacer_bare_end;
        // SAFETY: both symbols are in one read-only section of bare.s, the
        // end after the start, and all between them is initialised.
        unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
    }
}

/// A BIOS image as QEMU wants it: a multiple of 64 KiB.
const IMAGE_BYTES: usize = 64 << 10;
/// Where the CPU starts, in the image.
const RESET_VECTOR: usize = 0xFFF0;
/// `ljmp $0xF000, $0x90`: the code behind the parameters.
const RESET_CODE: [u8; 5] = [0xEA, 0x90, 0x00, 0x00, 0xF0];
/// Where the guest keeps its state, and its words: magic, position, round,
/// timer ticks.
const CONTROL_ADDRESS: u64 = 0x8000;
const MAGIC: u32 = 0x5243_4150;
/// Where the working set begins; the filler follows it.
const BASE_MIB: u32 = 16;
const BASE_ADDRESS: u64 = (BASE_MIB as u64) << 20;
const PAGES_PER_MIB: u32 = 256;
/// Above this QEMU splits RAM around the PCI hole, and the guest has 32 bits.
const MAX_RAM_MIB: u32 = 3072;
/// The position packs the page into this many bits and the round above it.
const POSITION_PAGE_BITS: u32 = 20;

/// What a bare guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareGuest {
    /// Guest RAM, in MiB; at most 3072.
    pub ram_mib: u32,
    /// Filled after the working set and never written again, in MiB.
    pub fill_mib: u32,
    /// Pages of 4 KiB written over and over, at least 1.
    pub working_set_pages: u32,
    /// Pages written in a second of guest time; 0 is as fast as the CPU goes.
    /// A pattern has its own.
    pub pages_per_second: u32,
    /// Which pages of the working set are written, and how fast; `None` is one
    /// after the other and then from the first again.
    pub pattern: Option<BarePattern>,
    /// What it does to the first virtio-blk disk of its machine.
    pub disk: Option<BareDisk>,
    /// Whether its machine has a network card, at which it receives whatever
    /// comes ([`crate::vm::Vm::send_frames`]).
    pub network: bool,
}

/// How far a guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BareState {
    /// Sweeps over the working set begun; 1 from the start.
    pub round: u32,
    /// Page of the working set that is written next; with a pattern only a
    /// count within the round.
    pub page: u32,
    /// Pages written since the start; never falls.
    pub total_writes: u64,
    /// Of the two stores to `page`, how many are made already; `None` of a
    /// guest with a pattern, and if the page does not tell, which is only so if
    /// the guest ran while its memory was read.
    pub stores: Option<u8>,
}

impl BareGuest {
    /// The smallest there is, without devices: for what is not said.
    pub const PLAIN: Self = Self {
        ram_mib: 20,
        fill_mib: 0,
        working_set_pages: 1,
        pages_per_second: 0,
        pattern: None,
        disk: None,
        network: false,
    };

    /// Bytes from address 0 that [`BareGuest::state`] and
    /// [`BareGuest::counters`] need, the former without `stores`: little, for
    /// a guest that is not to be held up.
    pub const STATE_BYTES: u64 = CONTROL_ADDRESS + PAGE_BYTES as u64;

    /// Checks that such a guest can be.
    ///
    /// # Errors
    /// See [`BareGuestError`].
    pub fn check(&self) -> Result<(), BareGuestError> {
        if self.working_set_pages == 0 {
            return Err(BareGuestError::NoWorkingSet);
        }
        if self.ram_mib > MAX_RAM_MIB {
            return Err(BareGuestError::TooMuchRam {
                ram_mib: self.ram_mib,
            });
        }
        if let Some(disk) = self.disk {
            disk.check().map_err(BareGuestError::BadDisk)?;
        }
        if let Some(pattern) = self.pattern {
            let checked = pattern.check(self.working_set_pages);
            checked.map_err(BareGuestError::BadPattern)?;
        }
        let working_set_mib = u64::from(self.working_set_pages.div_ceil(PAGES_PER_MIB));
        let buffers_mib = self.buffer_pages().div_ceil(u64::from(PAGES_PER_MIB));
        let needed_mib =
            u64::from(BASE_MIB) + u64::from(self.fill_mib) + working_set_mib + buffers_mib;
        if needed_mib > u64::from(self.ram_mib) {
            return Err(BareGuestError::DoesNotFit {
                needed_mib,
                ram_mib: self.ram_mib,
            });
        }
        Ok(())
    }

    /// The BIOS image that is this guest (`qemu -bios`); 64 KiB.
    ///
    /// # Errors
    /// See [`BareGuest::check`].
    pub fn bios(&self) -> Result<Vec<u8>, BareGuestError> {
        self.check()?;
        let code = image::code();
        let mut bios = vec![0; IMAGE_BYTES];
        bios[..code.len()].copy_from_slice(code);
        let pace = self
            .pattern
            .map_or(self.pages_per_second, |pattern| pattern.first_pace());
        let own = [self.pages_total(), self.working_set_pages, pace];
        let pattern = self.pattern.map_or([0; 18], BarePattern::parameters);
        let parameters = own
            .into_iter()
            .chain(self.device_parameters())
            .chain(pattern);
        for (slot, value) in bios.chunks_exact_mut(4).zip(parameters) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        bios[RESET_VECTOR..RESET_VECTOR + RESET_CODE.len()].copy_from_slice(&RESET_CODE);
        Ok(bios)
    }

    /// Bytes from address 0 that [`BareGuest::verify`] looks at.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        BASE_ADDRESS + u64::from(self.pages_total()) * PAGE_BYTES as u64
    }

    /// Compares every page the guest has written, to the last byte, with what
    /// it must hold. The guest must be stopped.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self, memory: &GuestMemory) -> Result<BareState, BareFault> {
        let state = self.state(memory)?;
        let drawn = state
            .total_writes
            .saturating_sub(self.working_set_pages.into());
        let stamps = self
            .pattern
            .map(|pattern| pattern.stamps(self.working_set_pages, drawn));
        let content = content();
        let mut chunk = vec![0; CONTENT_BYTES];
        let mut first_page = 0;
        let mut left_bytes = usize::try_from(self.used_bytes() - BASE_ADDRESS)
            .expect("at most 3 GiB on a 64-bit host");
        while left_bytes > 0 {
            let chunk = &mut chunk[..left_bytes.min(CONTENT_BYTES)];
            memory.read(page_address(first_page), chunk)?;
            for (bytes, expected) in chunk
                .chunks_exact(PAGE_BYTES)
                .zip(content.chunks_exact(PAGE_BYTES))
            {
                self.check_page(first_page, bytes, expected, (state, stamps.as_ref()))?;
                first_page += 1;
            }
            left_bytes -= chunk.len();
        }
        Ok(state)
    }

    /// How far the guest has come, from its control page alone; also of a guest
    /// that runs.
    ///
    /// # Errors
    /// The page cannot be read or is not the guest's.
    pub fn state(&self, memory: &GuestMemory) -> Result<BareState, BareFault> {
        let mut control = vec![0; PAGE_BYTES];
        memory.read(CONTROL_ADDRESS, &mut control)?;
        let [magic, position, round] = [0, 4, 8].map(|offset| dword(&control, offset));
        if magic != MAGIC {
            return Err(BareFault::NoMagic { found: magic });
        }
        let page = position & ((1 << POSITION_PAGE_BITS) - 1);
        // The position is stored first: the round may be one behind it.
        let round_of_position = [round, round.wrapping_add(1)]
            .into_iter()
            .find(|round| round << POSITION_PAGE_BITS == position - page);
        let Some(round) = round_of_position.filter(|_| page < self.working_set_pages) else {
            return Err(BareFault::BadPosition { position, round });
        };
        let mut at_hand = vec![0; PAGE_BYTES];
        let stores = match memory.read(page_address(page), &mut at_hand) {
            Ok(()) if self.pattern.is_none() => {
                writes::stores_made(page, round, [dword(&at_hand, 0), dword(&at_hand, 4)])
            }
            _ => None,
        };
        let total_writes = u64::from(round) * u64::from(self.working_set_pages) + u64::from(page);
        Ok(BareState {
            round,
            page,
            total_writes,
            stores,
        })
    }

    /// What its devices have done, from its control page alone; also of a guest
    /// that runs.
    ///
    /// # Errors
    /// The page cannot be read or is not the guest's.
    pub fn counters(&self, memory: &GuestMemory) -> Result<BareCounters, BareFault> {
        self.state(memory)?;
        let mut control = vec![0; PAGE_BYTES];
        memory.read(CONTROL_ADDRESS, &mut control)?;
        Ok(BareCounters::read(&control))
    }

    const fn pages_total(&self) -> u32 {
        self.working_set_pages + self.fill_mib * PAGES_PER_MIB
    }

    fn check_page(
        &self,
        page: u32,
        bytes: &[u8],
        content: &[u8],
        (state, stamps): (BareState, Option<&Stamps>),
    ) -> Result<(), BareFault> {
        let written = page < self.working_set_pages;
        let mark = page_mark(page).to_le_bytes();
        let wrong = if !written && bytes[..8] != content[..8] {
            Some(0)
        } else if bytes[8..12] != mark {
            Some(8)
        } else if bytes[12..] != content[12..] {
            (12..PAGE_BYTES)
                .step_by(4)
                .find(|&at| bytes[at..at + 4] != content[at..at + 4])
        } else {
            None
        };
        let fault = |offset, expected| BareFault::BadPage {
            address: page_address(page),
            offset,
            found: dword(bytes, offset),
            expected,
            round: state.round,
            page: state.page,
        };
        match wrong {
            Some(8) => Err(fault(8, page_mark(page))),
            Some(offset) => Err(fault(offset, dword(content, offset))),
            None if written => {
                let found = [dword(bytes, 0), dword(bytes, 4)];
                let checked = match stamps {
                    Some(stamps) => stamps.check(page, found),
                    None => check_round(page, found, state),
                };
                checked.map_err(|(offset, expected)| fault(offset, expected))
            }
            None => Ok(()),
        }
    }
}

/// Whether a page of the working set holds its round; else the wrong offset
/// and what should stand there.
fn check_round(page: u32, found: [u32; 2], state: BareState) -> Result<(), (usize, u32)> {
    let [before, between, now] = writes::contents(page, state.round);
    // The guest may stand between the two stores of the page it is at, or
    // behind both.
    let allowed: &[[u32; 2]] = match page.cmp(&state.page) {
        std::cmp::Ordering::Less => &[now],
        std::cmp::Ordering::Equal => &[before, between, now],
        std::cmp::Ordering::Greater => &[before],
    };
    check_allowed(found, allowed)
}

/// The first two dwords of a page are one of these, else the wrong offset and
/// what should stand there.
fn check_allowed(found: [u32; 2], allowed: &[[u32; 2]]) -> Result<(), (usize, u32)> {
    if allowed.contains(&found) {
        return Ok(());
    }
    let expected = allowed[0];
    let wrong = usize::from(found[0] == expected[0]);
    Err((wrong * 4, expected[wrong]))
}

fn page_address(page: u32) -> u64 {
    BASE_ADDRESS + u64::from(page) * PAGE_BYTES as u64
}

fn dword(bytes: &[u8], offset: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::guest::content::round_mark;

    const GUEST: BareGuest = BareGuest {
        ram_mib: 64,
        fill_mib: 17,
        working_set_pages: 5,
        pages_per_second: 100,
        ..BareGuest::PLAIN
    };

    /// What a guest of `GUEST` leaves that was stopped before `page` of `round`.
    fn memory(round: u32, page: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(GUEST.used_bytes()).unwrap()];
        let position = round << POSITION_PAGE_BITS | page;
        put(&mut bytes, 0x8000, &[MAGIC, position, round]);
        let content = content();
        for page_index in 0..GUEST.pages_total() {
            let at = usize::try_from(page_address(page_index)).unwrap();
            let from = (at - usize::try_from(BASE_ADDRESS).unwrap()) % CONTENT_BYTES;
            bytes[at..at + PAGE_BYTES].copy_from_slice(&content[from..from + PAGE_BYTES]);
            put(&mut bytes, at + 8, &[page_mark(page_index)]);
            if page_index < GUEST.working_set_pages {
                let round = if page_index < page { round } else { round - 1 };
                put(&mut bytes, at, &[round, round_mark(page_index, round)]);
            }
        }
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, dwords: &[u32]) {
        for (slot, value) in bytes[at..].chunks_exact_mut(4).zip(dwords) {
            slot.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn verify(bytes: &[u8]) -> Result<BareState, BareFault> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        GUEST.verify(&GuestMemory::from_file(file))
    }

    fn at(page: u32) -> usize {
        usize::try_from(page_address(page)).unwrap()
    }

    #[test]
    fn whole_memory_passes() {
        let state = verify(&memory(7, 3)).unwrap();
        assert_eq!(
            state,
            BareState {
                round: 7,
                page: 3,
                total_writes: 38,
                stores: Some(0),
            }
        );
        assert!(
            verify(&memory(5000, 0)).is_ok(),
            "the position has 12 bits of the round"
        );
    }

    #[test]
    fn a_guest_stopped_between_two_stores_passes() {
        let mut bytes = memory(7, 3);
        put(&mut bytes, at(3), &[7]);
        assert_eq!(verify(&bytes).unwrap().stores, Some(1));
        put(&mut bytes, at(3), &[7, round_mark(3, 7)]);
        assert_eq!(verify(&bytes).unwrap().stores, Some(2));
        let mut bytes = memory(7, 0);
        put(&mut bytes, 0x8008, &[6]);
        assert_eq!(
            verify(&bytes).unwrap().round,
            7,
            "position stored, round not yet"
        );
    }

    #[test]
    fn one_stale_page_is_found() {
        for (page, stale) in [(0, 6), (2, 6), (4, 5), (4, 7), (3, 5)] {
            let mut bytes = memory(7, 3);
            put(&mut bytes, at(page), &[stale, round_mark(page, stale)]);
            let fault = verify(&bytes).unwrap_err();
            assert!(
                matches!(fault, BareFault::BadPage { address, .. } if address == page_address(page))
            );
        }
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let last = GUEST.pages_total() - 1;
        for address in [
            at(0) + 5,
            at(1) + 4095,
            at(5),
            at(100) + 9,
            at(last) + 4095,
            0x8001,
        ] {
            let mut bytes = memory(7, 3);
            bytes[address] ^= 0x10;
            assert!(verify(&bytes).is_err(), "{address:#x}");
        }
    }

    #[test]
    fn swapped_and_zero_pages_are_found() {
        let mut bytes = memory(7, 3);
        let (low, high) = bytes.split_at_mut(at(4096 + 50));
        low[at(50)..at(51)].swap_with_slice(&mut high[..PAGE_BYTES]);
        assert!(verify(&bytes).is_err(), "alike but for their marks");
        let mut bytes = memory(7, 3);
        bytes[at(200)..at(201)].fill(0);
        assert!(verify(&bytes).is_err());
    }

    #[test]
    fn impossible_guests_are_refused() {
        assert!(GUEST.bios().is_ok());
        assert!(
            BareGuest {
                working_set_pages: 0,
                ..GUEST
            }
            .bios()
            .is_err()
        );
        assert!(
            BareGuest {
                ram_mib: 33,
                ..GUEST
            }
            .bios()
            .is_err()
        );
        assert!(
            BareGuest {
                ram_mib: 4096,
                ..GUEST
            }
            .bios()
            .is_err()
        );
    }
}
