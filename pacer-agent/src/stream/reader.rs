//! The source's half of the stream, up to the device state.
//!
//! The layout is QEMU's own (migration/savevm.c and migration/ram.c; unchanged
//! in what is read here from 7.2 to 10.0): a header, then sections, each a type
//! byte and what belongs to it. Numbers are big endian.

use std::collections::VecDeque;

/// `QEMU_VM_FILE_MAGIC`: "QEVM".
const MAGIC: u32 = 0x5145_564d;
const FILE_VERSION: u32 = 3;

const SECTION_EOF: u8 = 0x00;
const SECTION_START: u8 = 0x01;
const SECTION_PART: u8 = 0x02;
const SECTION_END: u8 = 0x03;
const SECTION_FULL: u8 = 0x04;
const SECTION_CONFIGURATION: u8 = 0x07;
const SECTION_COMMAND: u8 = 0x08;
const SECTION_FOOTER: u8 = 0x7e;

const COMMAND_OPEN_RETURN_PATH: u16 = 1;

const PAGE_BYTES: u64 = 4096;
const RAM_ZERO: u64 = 0x02;
const RAM_MEM_SIZE: u64 = 0x04;
const RAM_PAGE: u64 = 0x08;
const RAM_EOS: u64 = 0x10;
const RAM_CONTINUE: u64 = 0x20;
const RAM_XBZRLE: u64 = 0x40;
const RAM_COMPRESS: u64 = 0x100;
const RAM_MULTIFD_FLUSH: u64 = 0x200;

/// Longest piece held at once: a name of 255 bytes and a 64-bit number.
const HELD_BYTES: usize = 255 + 8;

/// Something that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// These bytes are not a migration stream of QEMU's.
    NotMigration,
    /// The header: it is a migration stream.
    Header,
    /// The source expects a return path. It stands before the first RAM section.
    ReturnPath,
    /// The first RAM section begins; the guest has this much RAM.
    Ram {
        /// All blocks together, in bytes.
        total_bytes: u64,
        /// The largest block, in bytes: the guest's memory proper. The others
        /// are ROMs and the like.
        largest_block_bytes: u64,
    },
    /// The guest is stopped: its last RAM begins.
    LastRam,
    /// The devices' state begins; nothing behind it is read.
    DeviceState,
    /// Something the reader does not know; nothing behind it is read. The
    /// stream goes on all the same.
    Aside {
        /// What it was.
        what: String,
    },
}

/// Pages that have passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Sent with their content, compressed or not.
    pub normal: u64,
    /// Announced as zero.
    pub zero: u64,
    /// Sweeps over RAM begun: 1 during the first.
    pub passes: u64,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Header,
    SectionType,
    ConfigurationLength,
    Command,
    /// Section id and the length of the name.
    SectionName {
        full: bool,
    },
    SectionNameRest {
        id: u32,
        length: usize,
        full: bool,
    },
    SectionId {
        end: bool,
    },
    Footer,
    RamEntry,
    RamBlockName,
    /// The rest of an entry of the block list.
    RamBlockRest {
        length: usize,
    },
    PageBlockName {
        entry: u64,
    },
    PageBlockRest {
        entry: u64,
        length: usize,
    },
    ZeroFill,
    XbzrleHeader,
    CompressedLength,
    /// Nothing more is read.
    Nothing,
}

impl Next {
    /// How many bytes it takes to go on.
    const fn wanted(self) -> usize {
        match self {
            Self::Header | Self::RamEntry => 8,
            Self::SectionType | Self::RamBlockName | Self::PageBlockName { .. } => 1,
            Self::ZeroFill => 1,
            Self::ConfigurationLength
            | Self::Command
            | Self::SectionId { .. }
            | Self::Footer
            | Self::CompressedLength => 4,
            Self::SectionName { .. } => 5,
            Self::SectionNameRest { length, .. } | Self::RamBlockRest { length } => length + 8,
            Self::PageBlockRest { length, .. } => length,
            Self::XbzrleHeader => 3,
            Self::Nothing => 0,
        }
    }
}

/// Reads one main channel from its first byte.
#[derive(Debug)]
pub struct Reader {
    next: Next,
    held: [u8; HELD_BYTES],
    held_bytes: usize,
    /// Bytes to pass unread.
    skip: u64,
    seen: VecDeque<Seen>,
    pages: Pages,
    ram_section: Option<u32>,
    /// Names of the RAM blocks, in the order of the sweep.
    blocks: Vec<Vec<u8>>,
    total_bytes: u64,
    largest_block_bytes: u64,
    /// RAM of the block list that is still to be named.
    unlisted_bytes: u64,
    block: usize,
    /// Where the sweep stands: block and offset.
    position: Option<(usize, u64)>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// Before the first byte.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next: Next::Header,
            held: [0; HELD_BYTES],
            held_bytes: 0,
            skip: 0,
            seen: VecDeque::new(),
            pages: Pages {
                normal: 0,
                zero: 0,
                passes: 0,
            },
            ram_section: None,
            blocks: Vec::new(),
            total_bytes: 0,
            largest_block_bytes: 0,
            unlisted_bytes: 0,
            block: 0,
            position: None,
        }
    }

    /// Takes the next bytes, cut anywhere. Ask [`Reader::poll_seen`] after it.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.next != Next::Nothing {
            if self.skip > 0 {
                let available = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                let skipped = self.skip.min(available);
                self.skip -= skipped;
                bytes = &bytes[usize::try_from(skipped).unwrap_or(bytes.len())..];
                continue;
            }
            let wanted = self.next.wanted();
            let taken = (wanted - self.held_bytes).min(bytes.len());
            self.held[self.held_bytes..self.held_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.held_bytes += taken;
            bytes = &bytes[taken..];
            if self.held_bytes == wanted {
                self.held_bytes = 0;
                self.step();
            }
        }
    }

    /// The next thing seen, oldest first.
    pub fn poll_seen(&mut self) -> Option<Seen> {
        self.seen.pop_front()
    }

    /// The pages that have passed so far.
    #[must_use]
    pub const fn pages(&self) -> Pages {
        self.pages
    }

    /// Handles a whole piece, which stands at the front of `held`.
    fn step(&mut self) {
        self.next = match self.next {
            Next::Header => self.header(),
            Next::SectionType => self.section_type(),
            Next::ConfigurationLength => {
                self.skip = u64::from(self.u32_at(0));
                Next::SectionType
            }
            Next::Command => self.command(),
            Next::SectionName { full } => Next::SectionNameRest {
                id: self.u32_at(0),
                length: usize::from(self.held[4]),
                full,
            },
            Next::SectionNameRest { id, length, full } => self.section_name(id, length, full),
            Next::SectionId { end } => self.section_id(end),
            Next::Footer => Next::SectionType,
            Next::RamEntry => self.ram_entry(self.u64_at(0)),
            Next::RamBlockName => Next::RamBlockRest {
                length: usize::from(self.held[0]),
            },
            Next::RamBlockRest { length } => self.ram_block(length),
            Next::PageBlockName { entry } => match usize::from(self.held[0]) {
                0 => self.aside("a RAM page without a block's name"),
                length => Next::PageBlockRest { entry, length },
            },
            Next::PageBlockRest { entry, length } => self.page_block(entry, length),
            Next::ZeroFill => Next::RamEntry,
            Next::XbzrleHeader => {
                self.skip = u64::from(u16::from_be_bytes([self.held[1], self.held[2]]));
                Next::RamEntry
            }
            Next::CompressedLength => {
                self.skip = u64::from(self.u32_at(0));
                Next::RamEntry
            }
            Next::Nothing => Next::Nothing,
        };
    }

    fn header(&mut self) -> Next {
        if self.u32_at(0) == MAGIC && self.u32_at(4) == FILE_VERSION {
            self.seen.push_back(Seen::Header);
            Next::SectionType
        } else {
            self.seen.push_back(Seen::NotMigration);
            Next::Nothing
        }
    }

    fn section_type(&mut self) -> Next {
        match self.held[0] {
            SECTION_CONFIGURATION => Next::ConfigurationLength,
            SECTION_COMMAND => Next::Command,
            SECTION_START => Next::SectionName { full: false },
            SECTION_FULL => Next::SectionName { full: true },
            SECTION_PART => Next::SectionId { end: false },
            SECTION_END => Next::SectionId { end: true },
            SECTION_FOOTER => Next::Footer,
            SECTION_EOF => self.device_state(),
            other => self.aside(&format!("a section of type {other:#04x}")),
        }
    }

    fn command(&mut self) -> Next {
        let command = u16::from_be_bytes([self.held[0], self.held[1]]);
        if command == COMMAND_OPEN_RETURN_PATH {
            self.seen.push_back(Seen::ReturnPath);
        }
        self.skip = u64::from(u16::from_be_bytes([self.held[2], self.held[3]]));
        Next::SectionType
    }

    fn section_name(&mut self, id: u32, length: usize, full: bool) -> Next {
        let name = &self.held[..length];
        if full {
            return self.device_state();
        }
        if name == b"ram" {
            self.ram_section = Some(id);
            return Next::RamEntry;
        }
        let what = format!("the section `{}`", String::from_utf8_lossy(name));
        self.aside(&what)
    }

    fn section_id(&mut self, end: bool) -> Next {
        if self.ram_section != Some(self.u32_at(0)) {
            return self.aside("a section that was not begun");
        }
        if end {
            self.seen.push_back(Seen::LastRam);
        }
        Next::RamEntry
    }

    fn ram_entry(&mut self, entry: u64) -> Next {
        let offset = entry & !(PAGE_BYTES - 1);
        let flags = entry & (PAGE_BYTES - 1);
        if flags & RAM_MEM_SIZE != 0 {
            self.total_bytes = offset;
            self.unlisted_bytes = offset;
            self.largest_block_bytes = 0;
            self.blocks.clear();
            return self.next_block();
        }
        if flags & (RAM_ZERO | RAM_PAGE | RAM_XBZRLE | RAM_COMPRESS) != 0 {
            return if flags & RAM_CONTINUE == 0 {
                Next::PageBlockName { entry }
            } else {
                self.page(entry)
            };
        }
        match flags {
            RAM_EOS => Next::SectionType,
            RAM_MULTIFD_FLUSH => Next::RamEntry,
            other => self.aside(&format!("a RAM entry with the flags {other:#x}")),
        }
    }

    fn next_block(&mut self) -> Next {
        if self.unlisted_bytes > 0 {
            return Next::RamBlockName;
        }
        self.seen.push_back(Seen::Ram {
            total_bytes: self.total_bytes,
            largest_block_bytes: self.largest_block_bytes,
        });
        Next::RamEntry
    }

    fn ram_block(&mut self, length: usize) -> Next {
        let bytes = self.u64_at(length);
        if bytes == 0 || bytes > self.unlisted_bytes {
            return self.aside("a list of RAM blocks that does not add up");
        }
        self.unlisted_bytes -= bytes;
        self.largest_block_bytes = self.largest_block_bytes.max(bytes);
        self.blocks.push(self.held[..length].to_vec());
        self.next_block()
    }

    fn page_block(&mut self, entry: u64, length: usize) -> Next {
        let name = &self.held[..length];
        match self.blocks.iter().position(|block| block == name) {
            Some(block) => {
                self.block = block;
                self.page(entry)
            }
            None => self.aside("a page of a RAM block that was not listed"),
        }
    }

    fn page(&mut self, entry: u64) -> Next {
        let position = (self.block, entry & !(PAGE_BYTES - 1));
        if self.position.is_none_or(|last| position <= last) {
            self.pages.passes += 1;
        }
        self.position = Some(position);
        if entry & RAM_ZERO != 0 {
            self.pages.zero += 1;
            return Next::ZeroFill;
        }
        self.pages.normal += 1;
        if entry & RAM_PAGE != 0 {
            self.skip = PAGE_BYTES;
            Next::RamEntry
        } else if entry & RAM_XBZRLE != 0 {
            Next::XbzrleHeader
        } else {
            Next::CompressedLength
        }
    }

    fn device_state(&mut self) -> Next {
        self.seen.push_back(Seen::DeviceState);
        Next::Nothing
    }

    fn aside(&mut self, what: &str) -> Next {
        self.seen.push_back(Seen::Aside {
            what: what.to_owned(),
        });
        Next::Nothing
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.held[at..at + 4]);
        u32::from_be_bytes(bytes)
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.held[at..at + 8]);
        u64::from_be_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A stream as QEMU writes it: header, machine, return path, two passes
    /// over one block, the last part, the devices.
    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(MAGIC.to_be_bytes());
        bytes.extend(FILE_VERSION.to_be_bytes());
        bytes.push(SECTION_CONFIGURATION);
        bytes.extend(6_u32.to_be_bytes());
        bytes.extend(b"pc-7.2");
        bytes.extend([SECTION_COMMAND, 0, 1, 0, 0]);
        bytes.extend([SECTION_COMMAND, 0, 3, 0, 4, 0, 0, 0, 1]);
        bytes.extend([SECTION_START, 0, 0, 0, 2, 3]);
        bytes.extend(b"ram");
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 4]);
        bytes.extend(((3 * PAGE_BYTES) | RAM_MEM_SIZE).to_be_bytes());
        bytes.push(6);
        bytes.extend(b"pc.ram");
        bytes.extend((2 * PAGE_BYTES).to_be_bytes());
        bytes.push(7);
        bytes.extend(b"pc.bios");
        bytes.extend(PAGE_BYTES.to_be_bytes());
        end_of_section(&mut bytes);
        bytes.extend([SECTION_PART, 0, 0, 0, 2]);
        named(&mut bytes, RAM_PAGE);
        bytes.extend([7; 4096]);
        bytes.extend((PAGE_BYTES | RAM_ZERO | RAM_CONTINUE).to_be_bytes());
        bytes.push(0);
        bytes.extend(((2 * PAGE_BYTES) | RAM_XBZRLE | RAM_CONTINUE).to_be_bytes());
        bytes.extend([1, 0, 3, 9, 9, 9]);
        end_of_section(&mut bytes);
        bytes.extend([SECTION_END, 0, 0, 0, 2]);
        named(&mut bytes, RAM_PAGE);
        bytes.extend([8; 4096]);
        end_of_section(&mut bytes);
        bytes.extend([SECTION_FULL, 0, 0, 0, 3, 5]);
        bytes.extend(b"timer");
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 2, 0xff, 0xff]);
        bytes
    }

    fn named(bytes: &mut Vec<u8>, entry: u64) {
        bytes.extend(entry.to_be_bytes());
        bytes.push(6);
        bytes.extend(b"pc.ram");
    }

    fn end_of_section(bytes: &mut Vec<u8>) {
        bytes.extend(RAM_EOS.to_be_bytes());
        bytes.extend([SECTION_FOOTER, 0, 0, 0, 2]);
    }

    fn read(pieces: &[&[u8]]) -> (Vec<Seen>, Pages) {
        let mut reader = Reader::new();
        for piece in pieces {
            reader.feed(piece);
        }
        let pages = reader.pages();
        (std::iter::from_fn(|| reader.poll_seen()).collect(), pages)
    }

    #[test]
    fn a_stream_is_read_wherever_it_is_cut() {
        let bytes = stream();
        let whole = read(&[&bytes]);
        assert_eq!(
            whole.0,
            [
                Seen::Header,
                Seen::ReturnPath,
                Seen::Ram {
                    total_bytes: 3 * PAGE_BYTES,
                    largest_block_bytes: 2 * PAGE_BYTES,
                },
                Seen::LastRam,
                Seen::DeviceState
            ]
        );
        assert_eq!(
            whole.1,
            Pages {
                normal: 3,
                zero: 1,
                passes: 2
            }
        );
        for cut in 0..bytes.len() {
            assert_eq!(read(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_migration_is_said_to_be_none() {
        let (seen, _) = read(&[b"GET / HTTP/1.1\r\n\r\n"]);
        assert_eq!(seen, [Seen::NotMigration]);
    }

    #[test]
    fn an_unknown_section_is_stepped_aside_from() {
        let mut bytes = stream();
        bytes.truncate(8);
        bytes.push(0x42);
        bytes.extend([0; 64]);
        let (seen, _) = read(&[&bytes]);
        assert!(matches!(&seen[..], [Seen::Header, Seen::Aside { .. }]));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..512), at in 0_usize..300) {
            let mut bytes = stream();
            bytes.truncate(at.min(bytes.len()));
            bytes.extend(tail);
            read(&[&bytes]);
        }
    }
}
