//! KVM's dirty rings, with a processor that writes a known set of pages. QEMU's
//! guests hang with them where this was written.

use std::os::fd::AsRawFd;
use std::ptr::null_mut;

use pacer_agent::probe::EventKind;

use super::processor::{Processor, WRITTEN_PAGES};
use super::{ENABLE_CAP, LOG_DIRTY_PAGES, Vm, ioctl, plain_vm, registered};
use crate::{alone, attach, kinds};

const CAP_DIRTY_LOG_RING: u64 = 192;
const RESET_DIRTY_RINGS: u64 = 0xaec7;
const RING_BYTES: usize = 65_536;
/// Where a processor's file has its ring, in pages.
const RING_OFFSET: i64 = 64 * 4096;
const IS_DIRTY: u32 = 1;
const IS_SEEN: u32 = 2;

/// `struct kvm_dirty_gfn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    flags: u32,
    slot: u32,
    page: u64,
}

/// Says of all that is in the ring that it was seen; returns how much that is.
fn see_all(processor: &Processor) -> u64 {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let fd = processor.as_raw_fd();
    // SAFETY: a new mapping of the processor's ring, at a place of the kernel's
    // choice; its entries are read and written while the processor stands still.
    unsafe {
        let ring = libc::mmap(
            null_mut(),
            RING_BYTES,
            rights,
            libc::MAP_SHARED,
            fd,
            RING_OFFSET,
        );
        assert_ne!(ring, libc::MAP_FAILED);
        let entries = ring.cast::<Entry>();
        let mut seen = 0;
        for at in 0..RING_BYTES / size_of::<Entry>() {
            let entry = entries.add(at);
            if (*entry).flags & IS_DIRTY != 0 {
                (*entry).flags |= IS_SEEN;
                seen += 1;
            }
        }
        libc::munmap(ring, RING_BYTES);
        seen
    }
}

fn reset(vm: &Vm) -> i32 {
    // SAFETY: the call takes no argument.
    unsafe { libc::ioctl(vm.vm.as_raw_fd(), RESET_DIRTY_RINGS, 0) }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn rings_are_counted_to_the_page() {
    const PAGES: u64 = 200;
    let _alone = alone();
    let Some(vm) = plain_vm(PAGES) else { return };
    let mut cap = [0_u64; 13];
    cap[0] = CAP_DIRTY_LOG_RING;
    cap[1] = RING_BYTES as u64;
    if ioctl(&vm.vm, ENABLE_CAP, &mut cap) != 0 {
        eprintln!("skipped: this KVM has no dirty rings");
        return;
    }
    let processor = Processor::new(&vm);
    let mut probe = attach();
    vm.register(3, LOG_DIRTY_PAGES, 0, PAGES);
    processor.write_pages();
    assert_eq!(see_all(&processor), WRITTEN_PAGES);
    assert_eq!(u64::try_from(reset(&vm)), Ok(WRITTEN_PAGES));
    assert_eq!(reset(&vm), 0);
    let resets = |pages| EventKind::RingsReset {
        pages,
        pushed: pages,
    };
    let expected = [
        registered(&vm, 3, PAGES, true),
        resets(WRITTEN_PAGES),
        resets(0),
    ];
    assert_eq!(kinds(&mut probe), expected);
}
