//! A virtual machine with memory, which nothing backs, and no processor: its
//! dirty log begins with every page set, and loses those that are cleared.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use anyhow::{Context, Result};

const CREATE_VM: u64 = 0xae01;
const ENABLE_CAP: u64 = 0x4068_aea3;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const GET_DIRTY_LOG: u64 = 0x4010_ae42;
const CLEAR_DIRTY_LOG: u64 = 0xc018_aec0;

const CAP_MANUAL_DIRTY_LOG_PROTECT2: u64 = 168;
const MANUAL_PROTECT_AND_INITIALLY_SET: u64 = 3;
const LOG_DIRTY_PAGES: u64 = 1;

const PAGE_BYTES: u64 = 4096;
/// QEMU clears the log of a migration in parts of this.
const CLEARED_PAGES: u64 = 1 << 18;
/// Slots are halved down to this before we give up.
const SMALLEST_SLOT_BYTES: u64 = 1 << 30;

/// The machine.
pub(crate) struct Machine {
    vm: File,
    memory: *mut c_void,
    memory_bytes: u64,
    slot_pages: u64,
    slots: u32,
    bitmap: Vec<u64>,
}

impl Machine {
    /// A machine with `bytes` of memory, in as few slots as the kernel takes.
    ///
    /// # Errors
    /// There is no KVM, or none with that much memory.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let mut slot_bytes = bytes;
        loop {
            match Self::with_slots(bytes, slot_bytes) {
                Err(_) if slot_bytes > SMALLEST_SLOT_BYTES => slot_bytes /= 2,
                machine => return machine,
            }
        }
    }

    fn with_slots(bytes: u64, slot_bytes: u64) -> Result<Self> {
        let slot_pages = slot_bytes / PAGE_BYTES;
        let machine = Self {
            vm: create_vm()?,
            memory: map(bytes)?,
            memory_bytes: bytes,
            slot_pages,
            slots: u32::try_from(bytes / slot_bytes)?,
            bitmap: vec![0; usize::try_from(slot_pages.div_ceil(64))?],
        };
        machine.register(0)?;
        Ok(machine)
    }

    /// From now on dirty pages are logged, as when QEMU begins to migrate or to
    /// measure. `percent` of the pages, anywhere, stay dirty for good.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn log(&mut self, percent: u64, random: &mut fastrand::Rng) -> Result<()> {
        self.register(LOG_DIRTY_PAGES)?;
        self.clear_each_part(|| clean_bits(percent, random))
    }

    fn register(&self, flags: u64) -> Result<()> {
        let slot_bytes = self.slot_pages * PAGE_BYTES;
        for slot in 0..u64::from(self.slots) {
            let offset = slot * slot_bytes;
            let address = self.memory as u64 + offset;
            // Slot and flags are two 32-bit fields side by side.
            let mut region = [slot | flags << 32, offset, slot_bytes, address];
            self.ioctl(SET_USER_MEMORY_REGION, &mut region)
                .with_context(|| format!("a slot of {slot_bytes} bytes"))?;
        }
        Ok(())
    }

    /// How many slots the memory is in.
    pub(crate) const fn slots(&self) -> u32 {
        self.slots
    }

    /// Reads the log of every slot. It stays where it is, as QEMU's does, until
    /// it is read again.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn read_log(&mut self) -> Result<()> {
        for slot in 0..u64::from(self.slots) {
            let mut log = [slot, self.bitmap.as_mut_ptr() as u64];
            self.ioctl(GET_DIRTY_LOG, &mut log)
                .context("KVM_GET_DIRTY_LOG")?;
        }
        Ok(())
    }

    /// Makes the calls that clear the log, but clears nothing: the next log is
    /// the same.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn clear_nothing(&self) -> Result<()> {
        self.clear_each_part(|| 0)
    }

    /// Clears the pages that `bits` gives, word by word.
    fn clear_each_part(&self, mut bits: impl FnMut() -> u64) -> Result<()> {
        let mut bitmap = vec![0_u64; usize::try_from(CLEARED_PAGES / 64)?];
        for slot in 0..u64::from(self.slots) {
            for part in 0..self.slot_pages / CLEARED_PAGES {
                bitmap.fill_with(&mut bits);
                let first_page = part * CLEARED_PAGES;
                let address = bitmap.as_ptr() as u64;
                let mut clear = [slot | CLEARED_PAGES << 32, first_page, address];
                self.ioctl(CLEAR_DIRTY_LOG, &mut clear)
                    .context("KVM_CLEAR_DIRTY_LOG")?;
            }
        }
        Ok(())
    }

    fn ioctl<T>(&self, request: u64, argument: &mut T) -> io::Result<()> {
        ioctl(&self.vm, request, argument)
    }
}

/// A word of pages of which about `100 - percent` in a hundred are set.
fn clean_bits(percent: u64, random: &mut fastrand::Rng) -> u64 {
    match percent {
        0 => u64::MAX,
        100.. => 0,
        _ => (0..64).fold(0, |bits, bit| {
            bits | u64::from(random.u64(..100) >= percent) << bit
        }),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(bytes) = usize::try_from(self.memory_bytes) {
            // SAFETY: mapped by `map` with this length, used by nothing but the
            // machine that ends now.
            unsafe { libc::munmap(self.memory, bytes) };
        }
    }
}

fn create_vm() -> Result<File> {
    let path = "/dev/kvm";
    let kvm = File::options().read(true).write(true).open(path);
    let kvm = kvm.context(path)?;
    // SAFETY: KVM_CREATE_VM takes a number and gives a new descriptor, which
    // nobody else owns.
    let vm = unsafe {
        let fd = libc::ioctl(kvm.as_raw_fd(), CREATE_VM, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("KVM_CREATE_VM");
        }
        File::from_raw_fd(fd)
    };
    // capability, flags, four arguments, reserved: 104 bytes.
    let mut capability = [0_u64; 13];
    capability[0] = CAP_MANUAL_DIRTY_LOG_PROTECT2;
    capability[1] = MANUAL_PROTECT_AND_INITIALLY_SET;
    ioctl(&vm, ENABLE_CAP, &mut capability).context("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")?;
    Ok(vm)
}

fn ioctl<T>(vm: &File, request: u64, argument: &mut T) -> io::Result<()> {
    // SAFETY: the callers pair requests with arguments of the right size; what
    // those point to belongs to the `Machine`, which is not moved meanwhile.
    match unsafe { libc::ioctl(vm.as_raw_fd(), request, &raw mut *argument) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Addresses that nothing stands behind.
fn map(bytes: u64) -> Result<*mut c_void> {
    let length = usize::try_from(bytes)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, rights, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).with_context(|| format!("{bytes} bytes"));
    }
    Ok(memory)
}
