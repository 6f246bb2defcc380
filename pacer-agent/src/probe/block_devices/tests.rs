//! A made-up host in a folder.

use std::os::unix::fs::symlink;

use super::*;

struct FakeHost {
    folder: tempfile::TempDir,
}

impl FakeHost {
    fn new(mountinfo: &str) -> Self {
        let host = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        };
        host.write("proc/self/mountinfo", mountinfo);
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        let parent = path.parent().expect("it is in the folder");
        fs::create_dir_all(parent).expect("it is made");
        fs::write(path, content).expect("it is written");
    }

    fn link(&self, target: &str, link: &str) {
        let link = self.path(link);
        let parent = link.parent().expect("it is in the folder");
        fs::create_dir_all(parent).expect("it is made");
        symlink(self.path(target), link).expect("it is linked");
    }

    /// A block device at `path` below `sys/devices`.
    fn device(&self, path: &str, numbers: &str) {
        let folder = format!("sys/devices/{path}");
        let name = path.rsplit('/').next().expect("a name");
        self.write(&format!("{folder}/dev"), &format!("{numbers}\n"));
        self.link(&folder, &format!("sys/dev/block/{numbers}"));
        self.link(&folder, &format!("sys/class/block/{name}"));
        self.write(&format!("dev/{name}"), "");
    }

    fn partition(&self, path: &str, numbers: &str) {
        self.device(path, numbers);
        self.write(&format!("sys/devices/{path}/partition"), "1\n");
    }

    fn slave(&self, of: &str, slave: &str) {
        let name = slave.rsplit('/').next().expect("a name");
        let link = format!("sys/devices/{of}/slaves/{name}");
        self.link(&format!("sys/devices/{slave}"), &link);
    }

    /// As the kernel names its folder: without links.
    fn host(&self) -> Host {
        Host {
            root: fs::canonicalize(self.folder.path()).expect("it is there"),
        }
    }

    fn check(&self, image: &str, devices: &[&str], unknown: &[&str]) {
        let image = parse_numbers(image).expect("numbers");
        let backing = self.host().devices_under(image);
        let expected = devices.iter().filter_map(|text| parse_numbers(text));
        assert_eq!(backing.devices, expected.collect(), "{backing:?}");
        assert_eq!(backing.unknown, unknown);
    }
}

#[test]
fn a_partition_is_its_disk() {
    let host = FakeHost::new("");
    host.device("pci/block/sda", "8:0");
    host.partition("pci/block/sda/sda1", "8:1");
    host.check("8:1", &["8:0"], &[]);
    host.check("8:0", &["8:0"], &[]);
    let partition = parse_numbers("8:1").expect("numbers");
    assert_eq!(host.host().name(partition), Some("sda1".to_owned()));
}

#[test]
fn mapped_devices_are_the_disks_under_them() {
    let host = FakeHost::new("");
    host.device("pci/block/sda", "8:0");
    host.partition("pci/block/sda/sda1", "8:1");
    host.device("pci/block/sdb", "8:16");
    host.device("virtual/block/md0", "9:0");
    host.slave("virtual/block/md0", "pci/block/sda/sda1");
    host.slave("virtual/block/md0", "pci/block/sdb");
    host.device("virtual/block/dm-0", "253:0");
    host.slave("virtual/block/dm-0", "virtual/block/md0");
    host.check("253:0", &["8:0", "8:16"], &[]);
}

#[test]
fn a_loop_device_is_itself_and_what_is_under_its_file() {
    let host = FakeHost::new("27 1 8:1 / /srv rw - ext4 /dev/sda1 rw\n");
    host.device("pci/block/sda", "8:0");
    host.partition("pci/block/sda/sda1", "8:1");
    host.device("virtual/block/loop0", "7:0");
    host.write(
        "sys/devices/virtual/block/loop0/loop/backing_file",
        "/srv/disk\n",
    );
    host.check("7:0", &["7:0", "8:0"], &[]);
    // On a device instead of a file.
    host.device("virtual/block/loop1", "7:1");
    host.write(
        "sys/devices/virtual/block/loop1/loop/backing_file",
        "/dev/loop0\n",
    );
    host.check("7:1", &["7:0", "7:1", "8:0"], &[]);
    host.device("virtual/block/loop2", "7:2");
    host.write(
        "sys/devices/virtual/block/loop2/loop/backing_file",
        "/elsewhere\n",
    );
    host.check(
        "7:2",
        &["7:2"],
        &["loop2: its file is on no file system seen from here"],
    );
}

#[test]
fn a_btrfs_is_all_its_devices() {
    let host = FakeHost::new("30 1 0:33 /@ / rw - btrfs /dev/mapper/root rw\n");
    host.device("pci/block/sda", "8:0");
    host.device("pci/block/sdb", "8:16");
    host.device("virtual/block/dm-0", "253:0");
    host.slave("virtual/block/dm-0", "pci/block/sda");
    host.link("dev/dm-0", "dev/mapper/root");
    host.check("0:33", &["8:0"], &[]);
    host.link("sys/devices/pci/block/sdb", "sys/fs/btrfs/a/devices/sdb");
    host.check("0:33", &["8:0"], &[]);
    host.link(
        "sys/devices/virtual/block/dm-0",
        "sys/fs/btrfs/a/devices/dm-0",
    );
    host.check("0:33", &["8:0", "8:16"], &[]);
}

#[test]
fn what_is_on_no_device_is_said() {
    let host = FakeHost::new(
        "30 1 0:40 / / rw - overlay overlay rw,upperdir=/u\n\
         31 1 0:41 / /tmp rw - tmpfs tmpfs rw\n\
         32 1 0:42 / /nfs rw - nfs4 server:/export rw\n\
         33 1 0:44 / /lost rw - btrfs /dev/sdz rw\n",
    );
    let on_none = |image: &str, kind: &str| {
        let reason = format!("device {image}: {kind} is on no block device of its own");
        host.check(image, &[], &[&reason]);
    };
    on_none("0:40", "overlay");
    on_none("0:41", "tmpfs");
    on_none("0:42", "nfs4");
    host.check(
        "0:44",
        &[],
        &["device 0:44: /dev/sdz is not among the devices here"],
    );
    host.check(
        "0:43",
        &[],
        &["device 0:43: it is neither in sysfs nor mounted here"],
    );
}

#[test]
fn nvme_with_several_paths_is_said() {
    let host = FakeHost::new("");
    host.device("virtual/nvme-subsystem/nvme-subsys0/nvme0n1", "259:0");
    host.check(
        "259:0",
        &[],
        &["nvme0n1: its paths (NVMe multipath) have no numbers in sysfs"],
    );
}
