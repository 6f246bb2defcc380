//! Programs that are attached once the process has opened what they are for:
//! they cost something with each call, and most guests have no use for them.

use std::io;
use std::os::fd::OwnedFd;

use aya::Ebpf;

use super::backend_names::NameReader;
use super::open_files::{Image, OpenFiles, Opened};
use super::{ProbeError, attach};
use crate::process;

/// A remark where files may not be looked at.
const REFUSED: &str = "packets from tap devices and guest writes behind image formats are watched \
     only as far as QEMU's open files may be looked at: for another user's process Pacer needs \
     CAP_SYS_PTRACE (run it as root, or `setcap cap_bpf,cap_perfmon,cap_sys_ptrace=ep` the binary)";

/// Follows what one process has open.
#[derive(Debug)]
pub(super) struct FileHooks {
    tgid: u32,
    files: OpenFiles<OwnedFd>,
    /// What watches a tap device was tried.
    tap_tried: bool,
    /// What watches the guest's side of an image with a format was tried.
    backends_tried: bool,
    /// What QEMU calls its backends, once they are watched.
    backend_names: NameReader,
    /// It was told that not all files may be looked at.
    refusal_told: bool,
}

impl FileHooks {
    /// Of the process `tgid`.
    pub(super) fn of(tgid: u32) -> Result<Self, ProbeError> {
        let pidfd = process::descriptor(tgid)
            .map_err(|source| ProbeError::NoSuchProcess { pid: tgid, source })?;
        Ok(Self {
            tgid,
            files: OpenFiles::new(tgid, pidfd),
            tap_tried: false,
            backends_tried: false,
            backend_names: NameReader::default(),
            refusal_told: false,
        })
    }

    /// The images that are open now. Attaches what that makes worth it.
    pub(super) fn look(
        &mut self,
        ebpf: &mut Ebpf,
        warnings: &mut Vec<String>,
    ) -> io::Result<Vec<Image>> {
        let opened = self.files.look().inspect_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                self.tell_refusal(error, warnings);
            }
        })?;
        self.attach(ebpf, &opened, warnings);
        if let Some(error) = opened.refused {
            self.tell_refusal(&error, warnings);
            if opened.images.is_empty() {
                return Err(error);
            }
        }
        Ok(opened.images)
    }

    /// What QEMU calls its backends.
    pub(super) const fn backend_names(&self) -> &NameReader {
        &self.backend_names
    }

    fn attach(&mut self, ebpf: &mut Ebpf, opened: &Opened, warnings: &mut Vec<String>) {
        if opened.has_tap && !self.tap_tried {
            self.tap_tried = true;
            attach::attach_tap(ebpf, warnings);
        }
        let has_format = opened.images.iter().any(|image| image.formatted);
        if has_format && !self.backends_tried {
            self.backends_tried = true;
            self.backend_names = attach::attach_backends(ebpf, self.tgid, warnings);
        }
    }

    fn tell_refusal(&mut self, error: &io::Error, warnings: &mut Vec<String>) {
        if !std::mem::replace(&mut self.refusal_told, true) {
            warnings.push(format!("{REFUSED} ({error})"));
        }
    }
}
