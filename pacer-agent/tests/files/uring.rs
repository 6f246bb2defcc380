//! io_uring.

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};

use super::{file, requests, seen, vectors};
use crate::{alone, attach};

/// Size of a chunk.
const CHUNK: u64 = 1 << 20;

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn io_uring_is_exact() {
    let _alone = alone();
    let mut ring = IoUring::new(16).expect("a ring");
    let probe = attach();
    let file = file();
    let fd = types::Fd(file.as_raw_fd());
    let parts: Vec<_> = (1..=4).map(|at| vec![at; 1000]).collect();
    let vectors = vectors(&parts);
    let mut buffer = vec![0u8; 5000];
    let writes = [
        opcode::Write::new(fd, parts[0].as_ptr(), 1000)
            .offset(1 << 30)
            .build(),
        opcode::Writev::new(fd, vectors.as_ptr(), 4)
            .offset(4096)
            .build(),
        opcode::Fsync::new(fd).build(),
    ];
    assert_eq!(run(&mut ring, &writes), [1000, 4000, 0]);
    let reads = [
        // Past what is there: a short read.
        opcode::Read::new(fd, buffer.as_mut_ptr(), 5000)
            .offset(1 << 30)
            .build(),
        opcode::Readv::new(fd, vectors.as_ptr(), 3)
            .offset(4096)
            .build(),
        // No such file: fails.
        opcode::Read::new(types::Fd(-1), buffer.as_mut_ptr(), 5000).build(),
    ];
    assert_eq!(run(&mut ring, &reads), [1000, 3000, -libc::EBADF]);
    let seen = seen(&probe, &file);
    assert_eq!(seen.written, requests(2, 5000));
    assert_eq!(seen.read, requests(2, 4000));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn io_uring_writes_are_where_they_began() {
    let _alone = alone();
    let mut ring = IoUring::new(16).expect("a ring");
    let probe = attach();
    let file = file();
    let fd = types::Fd(file.as_raw_fd());
    let buffer = [7u8; 4096];
    // The last of a chunk, which ends where the next begins, and the next.
    let writes = [CHUNK - 4096, CHUNK].map(|offset| {
        opcode::Write::new(fd, buffer.as_ptr(), 4096)
            .offset(offset)
            .build()
    });
    assert_eq!(run(&mut ring, &writes), [4096, 4096]);
    let seen = seen(&probe, &file);
    assert_eq!(seen.written, requests(2, 8192));
    assert_eq!(seen.chunks.written_once, 2);
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn io_uring_files_without_a_descriptor_are_told() {
    let _alone = alone();
    let mut ring = IoUring::new(16).expect("a ring");
    let probe = attach();
    let file = file();
    ring.submitter()
        .register_files(&[-1, file.as_raw_fd()])
        .expect("room in the ring");
    let buffer = [7u8; 1000];
    let write = opcode::Write::new(types::Fixed(1), buffer.as_ptr(), 1000).build();
    assert_eq!(run(&mut ring, &[write]), [1000]);
    assert_eq!(seen(&probe, &file).written, requests(1, 1000));
}

/// The requests' results, in their order: each is waited for.
fn run(ring: &mut IoUring, entries: &[squeue::Entry]) -> Vec<i32> {
    let one = |entry: &squeue::Entry| {
        // SAFETY: the buffers outlive the request, which is waited for.
        unsafe { ring.submission().push(entry) }.expect("room in the ring");
        ring.submit_and_wait(1).expect("the kernel takes it");
        let completion = ring.completion().next();
        completion.expect("waited for").result()
    };
    entries.iter().map(one).collect()
}
