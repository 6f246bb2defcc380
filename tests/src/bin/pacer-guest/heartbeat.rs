//! Writes memory and a disk, checks both, and says so: `PACER n ok …` or
//! `PACER n CORRUPT …`, about five times a second.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PAGE_DWORDS: usize = 1024;
const PAGE_BYTES: u64 = 4096;
const PAGES_PER_MIB: usize = 256;
const DISK: &str = "/dev/vda";
/// O_DIRECT: records go to the disk and come from it, not from a cache.
const O_DIRECT: i32 = 0o40_000;
const TICK: Duration = Duration::from_millis(20);
const TICKS_PER_HEARTBEAT: u64 = 10;
/// Pages of the filler that one heartbeat checks.
const FILLER_PAGES_PER_HEARTBEAT: usize = 512;

/// Aligned as O_DIRECT wants it.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u32; PAGE_DWORDS]);

struct Memory {
    filler: Vec<Page>,
    working_set: Vec<Page>,
    /// Pages written in all.
    writes: u64,
    /// Page of the filler that is checked next.
    next_check: usize,
}

struct Disk {
    file: File,
    capacity_records: u64,
    /// Records written in all; they wrap around at the disk's end.
    records: u64,
}

/// Never returns but for a fault of the disk.
///
/// # Errors
/// The disk cannot be opened, read or written.
pub(crate) fn run(
    fill_mib: u32,
    pages: u32,
    pages_per_second: u32,
    records_per_second: u32,
) -> io::Result<()> {
    let mut memory = Memory::new(fill_mib, pages);
    let mut disk = Disk::open()?;
    let start = Instant::now();
    let mut tick = 0;
    for heartbeat in 1_u64.. {
        for _ in 0..TICKS_PER_HEARTBEAT {
            tick += 1;
            sleep((TICK * tick).saturating_sub(start.elapsed()));
            let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            memory.write_up_to(milliseconds.saturating_mul(pages_per_second.into()) / 1000);
            disk.write_up_to(milliseconds.saturating_mul(records_per_second.into()) / 1000)?;
        }
        let fault = memory.check().or(disk.check()?);
        let verdict = fault.map_or("ok".to_owned(), |fault| format!("CORRUPT {fault}"));
        println!(
            "PACER {heartbeat} {verdict} writes={} records={}",
            memory.writes, disk.records
        );
    }
    Ok(())
}

/// Content of page `number` in round `round`: no two are alike.
fn page(number: u64, round: u64) -> Page {
    let mut state = (number << 32 ^ round).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    Page(std::array::from_fn(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what is wanted"
        )]
        let dword = state as u32;
        dword
    }))
}

impl Memory {
    fn new(fill_mib: u32, pages: u32) -> Self {
        let filler_pages = fill_mib as usize * PAGES_PER_MIB;
        let filler = (0..)
            .take(filler_pages)
            .map(|number| page(number, u64::MAX))
            .collect();
        let working_set = (0..)
            .take(pages.max(1) as usize)
            .map(|number| page(number, 0))
            .collect();
        Self {
            filler,
            working_set,
            writes: 0,
            next_check: 0,
        }
    }

    fn write_up_to(&mut self, writes: u64) {
        let pages = self.working_set.len() as u64;
        while self.writes < writes {
            let (round, number) = (self.writes / pages + 1, self.writes % pages);
            let index = usize::try_from(number).expect("less than the set's length");
            // Two dwords make the page dirty and are quick where the guest is slow.
            let [first, second, ..] = page(number, round).0;
            self.working_set[index].0[0] = first;
            self.working_set[index].0[1] = second;
            self.writes += 1;
        }
    }

    fn check(&mut self) -> Option<String> {
        self.check_working_set().or_else(|| self.check_filler())
    }

    fn check_working_set(&self) -> Option<String> {
        let pages = self.working_set.len() as u64;
        let (round, cursor) = (self.writes / pages, self.writes % pages);
        let wrong = (0..).zip(&self.working_set).find(|&(number, found)| {
            let expected = page(number, round + u64::from(number < cursor));
            found.0[..2] != expected.0[..2]
        });
        wrong.map(|(number, _)| format!("page {number} of the working set"))
    }

    fn check_filler(&mut self) -> Option<String> {
        let first = self.next_check;
        let checked = (0..)
            .zip(&self.filler)
            .skip(first)
            .take(FILLER_PAGES_PER_HEARTBEAT);
        self.next_check = first + FILLER_PAGES_PER_HEARTBEAT;
        if self.next_check >= self.filler.len() {
            self.next_check = 0;
        }
        let wrong = checked
            .into_iter()
            .find(|(number, found)| found.0 != page(*number, u64::MAX).0);
        wrong.map(|(number, _)| format!("page {number} of the filler"))
    }
}

impl Disk {
    fn open() -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(O_DIRECT)
            .open(DISK)?;
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
        Ok(Self {
            file,
            capacity_records: bytes / PAGE_BYTES,
            records: 0,
        })
    }

    fn write_up_to(&mut self, records: u64) -> io::Result<()> {
        while self.records < records {
            let record = self.records;
            self.file
                .write_all_at(&bytes_of(page(record, record)).0, self.offset(record))?;
            self.records += 1;
        }
        Ok(())
    }

    /// Reads back the newest record and one older one, another each time.
    fn check(&self) -> io::Result<Option<String>> {
        let Some(newest) = self.records.checked_sub(1) else {
            return Ok(None);
        };
        let held = self.records.min(self.capacity_records);
        let older = newest - newest.wrapping_mul(0x9E37_79B9) % held;
        for record in [newest, older] {
            let mut found = Bytes([0; 4096]);
            self.file.read_exact_at(&mut found.0, self.offset(record))?;
            if found.0 != bytes_of(page(record, record)).0 {
                return Ok(Some(format!("record {record} of the disk")));
            }
        }
        Ok(None)
    }

    const fn offset(&self, record: u64) -> u64 {
        record % self.capacity_records * PAGE_BYTES
    }
}

#[repr(C, align(4096))]
struct Bytes([u8; 4096]);

fn bytes_of(page: Page) -> Bytes {
    let mut bytes = Bytes([0; 4096]);
    for (slot, dword) in bytes.0.chunks_exact_mut(4).zip(page.0) {
        slot.copy_from_slice(&dword.to_le_bytes());
    }
    bytes
}
