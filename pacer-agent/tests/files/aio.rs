//! Linux AIO.

use std::ffi::c_void;
use std::os::fd::AsRawFd;

use super::{file, requests, seen, vectors};
use crate::{alone, attach};

const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const PREADV: u16 = 7;
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

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn linux_aio_is_exact() {
    let _alone = alone();
    let probe = attach();
    let file = file();
    file.set_len(2 << 20).expect("a sparse file");
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
    let mut list = [
        request(PREAD, parts[3].as_ptr().cast(), 512, 8192),
        request(PREADV, vectors.as_ptr().cast(), 2, 16384),
        request(PWRITE, parts[0].as_ptr().cast(), 512, 1 << 20),
        request(PWRITEV, vectors.as_ptr().cast(), 16, 4096),
        request(FSYNC, std::ptr::null(), 0, 0),
        request(PWRITE, parts[1].as_ptr().cast(), 256, 0),
        // Refused, so the kernel accepts the first six only.
        request(99, std::ptr::null(), 0, 0),
        request(PWRITE, parts[2].as_ptr().cast(), 128, 0),
    ];
    // fsync by AIO is refused by some file systems: the rest only where taken.
    let accepted = submit(&mut list);
    let seen = seen(&probe, &file);
    let expected = match accepted {
        6 => requests(3, 512 + 16 * 512 + 256),
        4 => requests(2, 512 + 16 * 512),
        other => panic!("{other} accepted"),
    };
    assert_eq!(seen.written, expected);
    assert_eq!(seen.read, requests(2, 512 + 2 * 512));
}

/// QEMU submits what a busy guest asks for by the dozen.
#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_request_among_many_costs_little() {
    const REQUESTS: u64 = 32;
    const CALLS: u64 = 500;
    const LIMIT_NS: u64 = 1000;
    let _alone = alone();
    let mut probe = attach();
    let file = file();
    let parts = vec![vec![7; 4096]];
    let vectors = vectors(&parts);
    let Some(before) = probe.counters().run_ns else {
        eprintln!("skipped: the kernel does not count run times");
        return;
    };
    for call in 0..CALLS {
        let mut list: Vec<Iocb> = (0..REQUESTS)
            .map(|request| Iocb {
                opcode: PWRITEV,
                fd: file.as_raw_fd().cast_unsigned(),
                buffer: vectors.as_ptr() as u64,
                bytes: 1,
                // All over 256 MiB.
                offset: i64::try_from((call * REQUESTS + request) * 40_503 % 65_536 * 4096)
                    .expect("it is small"),
                ..Iocb::default()
            })
            .collect();
        assert_eq!(submit(&mut list), 32);
    }
    let spent = probe.counters().run_ns.expect("counted before") - before;
    assert_eq!(seen(&probe, &file).written.count, CALLS * REQUESTS);
    let each = spent / (CALLS * REQUESTS);
    eprintln!("{each} ns a request");
    assert!(each <= LIMIT_NS, "{each} ns");
}

/// How many of the requests the kernel accepted; waits for them.
fn submit(requests: &mut [Iocb]) -> i64 {
    let mut pointers: Vec<*mut Iocb> = requests.iter_mut().map(|one| &raw mut *one).collect();
    let mut queue: u64 = 0;
    // SAFETY: the queue is a word to write to; the requests and their buffers
    // outlive `io_destroy`, which waits for what was submitted.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 64, &raw mut queue), 0);
        let count = pointers.len();
        let accepted = libc::syscall(libc::SYS_io_submit, queue, count, pointers.as_mut_ptr());
        assert_eq!(libc::syscall(libc::SYS_io_destroy, queue), 0);
        accepted
    }
}
