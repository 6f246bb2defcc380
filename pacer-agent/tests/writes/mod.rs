//! File writes by every system call that is watched.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use pacer_agent::probe::EventKind;

use crate::{alone, attach, kinds};

const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const PWRITEV: u16 = 8;

/// `struct iocb`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

pub(crate) fn file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

pub(crate) fn pwrite(file: &File, offset: u64, bytes: &[u8]) {
    file.write_all_at(bytes, offset).expect("the file takes it");
}

fn write(file: &File, offset: u64, bytes: u64) -> EventKind {
    EventKind::FileWrite {
        fd: file.as_raw_fd(),
        offset,
        bytes,
    }
}

fn vectors(parts: &[Vec<u8>]) -> Vec<libc::iovec> {
    let vector = |part: &Vec<u8>| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast::<c_void>(),
        iov_len: part.len(),
    };
    parts.iter().map(vector).collect()
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn pwrite_is_seen_exactly() {
    let _alone = alone();
    let mut probe = attach();
    let file = file();
    pwrite(&file, 5_000_000_000, &[7; 4097]);
    pwrite(&file, 0, b"x");
    let seen = kinds(&mut probe);
    assert_eq!(
        seen,
        [write(&file, 5_000_000_000, 4097), write(&file, 0, 1)]
    );
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn vectored_writes_are_seen_exactly() {
    let _alone = alone();
    let mut probe = attach();
    let file = file();
    let parts = [vec![1; 100], vec![], vec![2; 70_000]];
    let vectors = vectors(&parts);
    let fd = file.as_raw_fd();
    // SAFETY: three vectors over buffers that outlive the calls.
    let written = unsafe {
        [
            libc::pwritev(fd, vectors.as_ptr(), 3, 1 << 33),
            libc::pwritev2(fd, vectors.as_ptr(), 3, 4096, 0),
            libc::pwritev2(fd, vectors.as_ptr(), 1, -1, 0),
            // No such flag: fails, and must not be reported.
            libc::pwritev2(fd, vectors.as_ptr(), 3, 0, 1 << 30),
        ]
    };
    assert_eq!(written, [70_100, 70_100, 100, -1]);
    let expected = [
        write(&file, 1 << 33, 70_100),
        write(&file, 4096, 70_100),
        write(&file, u64::MAX, 100),
    ];
    assert_eq!(kinds(&mut probe), expected);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn linux_aio_is_seen_exactly() {
    let _alone = alone();
    let mut probe = attach();
    let file = file();
    let parts: Vec<_> = (1..=16).map(|at| vec![at; 512]).collect();
    let vectors = vectors(&parts);
    let request = |opcode, buffer: *const c_void, bytes, offset| Iocb {
        opcode,
        fd: file.as_raw_fd().cast_unsigned(),
        buffer: buffer as u64,
        bytes,
        offset,
        ..Iocb::default()
    };
    let mut requests = [
        request(PWRITE, parts[0].as_ptr().cast(), 512, 1 << 20),
        request(PWRITEV, vectors.as_ptr().cast(), 16, 4096),
        request(FSYNC, std::ptr::null(), 0, 0),
        request(PWRITE, parts[1].as_ptr().cast(), 256, 0),
        // Refused, so the kernel accepts the first four only.
        request(99, std::ptr::null(), 0, 0),
        request(PWRITE, parts[2].as_ptr().cast(), 128, 0),
    ];
    // fsync by AIO is refused by some file systems: keep it only where taken.
    let accepted = submit(&mut requests);
    assert!(accepted == 4 || accepted == 2, "{accepted}");
    let mut expected = vec![write(&file, 1 << 20, 512), write(&file, 4096, 16 * 512)];
    if accepted == 4 {
        expected.push(write(&file, 0, 256));
    }
    assert_eq!(kinds(&mut probe), expected);
}

/// How many of the requests the kernel accepted; waits for them.
fn submit(requests: &mut [Iocb]) -> i64 {
    let mut pointers: Vec<*mut Iocb> = requests.iter_mut().map(|one| &raw mut *one).collect();
    let mut queue: u64 = 0;
    // SAFETY: the queue is a word to write to; the requests and their buffers
    // outlive `io_destroy`, which waits for what was submitted.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 16, &raw mut queue), 0);
        let count = pointers.len();
        let accepted = libc::syscall(libc::SYS_io_submit, queue, count, pointers.as_mut_ptr());
        assert_eq!(libc::syscall(libc::SYS_io_destroy, queue), 0);
        accepted
    }
}
