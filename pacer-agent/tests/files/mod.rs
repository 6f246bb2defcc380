//! File reads and writes by every way that is watched, each known to the byte.

mod aio;
mod chunks;
mod uring;

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use pacer_agent::probe::Probe;
use pacer_agent::probe::activity::{DeviceId, FileActivity, FileId, Requests};

use crate::{alone, attach};

pub(crate) fn file() -> File {
    tempfile::tempfile().expect("a temporary file")
}

pub(crate) fn pwrite(file: &File, offset: u64, bytes: &[u8]) {
    file.write_all_at(bytes, offset).expect("the file takes it");
}

/// What the probe says of `file`; nothing if it does not know it.
fn seen(probe: &Probe, file: &File) -> FileActivity {
    let metadata = file.metadata().expect("an open file");
    let id = FileId {
        device: DeviceId {
            major: libc::major(metadata.dev()),
            minor: libc::minor(metadata.dev()),
        },
        inode: metadata.ino(),
    };
    let files = probe.activity().files;
    let found = files.into_iter().find(|file| file.id == id);
    found.unwrap_or_default()
}

fn requests(count: u64, bytes: u64) -> Requests {
    Requests { count, bytes }
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
fn plain_writes_and_reads_are_exact() {
    let _alone = alone();
    let probe = attach();
    let file = file();
    pwrite(&file, 5_000_000_000, &[7; 4097]);
    pwrite(&file, 0, b"x");
    let mut buffer = [0; 5000];
    let read = file.read_at(&mut buffer, 5_000_000_000).expect("readable");
    assert_eq!(read, 4097);
    // The end of the file, and a descriptor that is none.
    assert_eq!(file.read_at(&mut buffer, 6_000_000_000).expect("end"), 0);
    // SAFETY: there is no such descriptor, so nothing is read.
    let nowhere = unsafe { libc::pread(-1, buffer.as_mut_ptr().cast(), 1, 0) };
    assert_eq!(nowhere, -1);
    let seen = seen(&probe, &file);
    assert_eq!(seen.written, requests(2, 4098));
    assert_eq!(seen.read, requests(1, 4097));
    assert_eq!(seen.zeroed, requests(0, 0));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn vectored_writes_and_reads_are_exact() {
    let _alone = alone();
    let probe = attach();
    let file = file();
    let parts = [vec![1; 100], vec![], vec![2; 70_000]];
    let vectors = vectors(&parts);
    let fd = file.as_raw_fd();
    // SAFETY: three vectors over buffers that outlive the calls.
    let done = unsafe {
        [
            libc::pwritev(fd, vectors.as_ptr(), 3, 1 << 33),
            libc::pwritev2(fd, vectors.as_ptr(), 3, 4096, 0),
            // At the file's own position, which no chunk is known for.
            libc::pwritev2(fd, vectors.as_ptr(), 1, -1, 0),
            // No such flag: fails, and must not be counted.
            libc::pwritev2(fd, vectors.as_ptr(), 3, 0, 1 << 30),
            libc::preadv(fd, vectors.as_ptr(), 3, 1 << 33),
            libc::preadv2(fd, vectors.as_ptr(), 1, 4096, 0),
        ]
    };
    assert_eq!(done, [70_100, 70_100, 100, -1, 70_100, 100]);
    let seen = seen(&probe, &file);
    assert_eq!(seen.written, requests(3, 140_300));
    assert_eq!(seen.read, requests(2, 70_200));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn zeroes_and_holes_are_told_apart() {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let _alone = alone();
    let probe = attach();
    let file = file();
    pwrite(&file, 0, &[1; 65536]);
    let zeroed = fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 4096, 8192);
    assert_eq!(fallocate(&file, PUNCH, 16384, 4096), 0);
    // Allocates without a change of content.
    assert_eq!(fallocate(&file, 0, 0, 1 << 20), 0);
    let seen = seen(&probe, &file);
    // Not every file system zeroes a range.
    let expected = if zeroed == 0 {
        requests(1, 8192)
    } else {
        requests(0, 0)
    };
    assert_eq!(seen.zeroed, expected);
    assert_eq!(seen.discarded, requests(1, 4096));
    assert_eq!(seen.written, requests(1, 65536));
}

fn fallocate(file: &File, mode: i32, offset: i64, bytes: i64) -> i32 {
    // SAFETY: an open descriptor and numbers.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) }
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_reused_descriptor_is_another_file() {
    let _alone = alone();
    let probe = attach();
    let (first, second) = (file(), file());
    let number = first.as_raw_fd();
    pwrite(&first, 0, &[1; 100]);
    // A descriptor more on the same file is still that file.
    pwrite(&first.try_clone().expect("a descriptor"), 0, &[1; 10]);
    let before = seen(&probe, &first).written;
    // SAFETY: both are open; the first's number means the second from here.
    assert_eq!(unsafe { libc::dup2(second.as_raw_fd(), number) }, number);
    pwrite(&first, 0, &[2; 1000]);
    assert_eq!(before, requests(2, 110));
    assert_eq!(seen(&probe, &second).written, requests(1, 1000));
}

#[test]
#[ignore = "needs root and a kernel with BPF"]
fn a_reused_inode_is_another_file() {
    let _alone = alone();
    let probe = attach();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    let write = |bytes: &[u8]| {
        let file = File::create_new(&path).expect("it was deleted");
        pwrite(&file, 0, bytes);
        let inode = file.metadata().expect("an open file").ino();
        std::fs::remove_file(&path).expect("it was made");
        inode
    };
    let inodes = [write(&[1; 100]), write(&[1; 1000])];
    if inodes[0] != inodes[1] {
        eprintln!("this file system gives each file an inode of its own");
    }
    let mut files = probe.activity().files;
    files.retain(|file| inodes.contains(&file.id.inode));
    files.sort_by_key(|file| file.first_at);
    let written: Vec<_> = files.iter().map(|file| file.written).collect();
    assert_eq!(written, [requests(1, 100), requests(1, 1000)]);
}
