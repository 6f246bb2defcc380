//! Is this the observed process?

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;
use pacer_common::settings::PidNamespace;

use crate::maps::OBSERVED;

/// Size of `bpf_pidns_info`: two numbers of 32 bits.
const INFO_BYTES: u32 = 8;

const _: () = assert!(size_of::<bpf_pidns_info>() == 8);

#[unsafe(no_mangle)]
static PID_NAMESPACE: Global<PidNamespace> = Global::new(PidNamespace {
    device: 0,
    inode: 0,
});

/// The current thread (tgid in the upper, pid in the lower 32 bits, as the
/// initial PID namespace has them) if it belongs to the observed process.
#[inline(always)]
pub(crate) fn observed_thread() -> Option<u64> {
    (own_tgid()? == *OBSERVED.get(0)?).then(bpf_get_current_pid_tgid)
}

/// As [`observed_thread`], but any thread while it is not known yet which
/// process is to be observed.
#[inline(always)]
pub(crate) fn candidate_thread() -> Option<u64> {
    let observed = *OBSERVED.get(0)?;
    (observed == 0 || own_tgid()? == observed).then(bpf_get_current_pid_tgid)
}

/// The current process, as the loader's PID namespace numbers it. `None` if it
/// is not in it.
#[inline(always)]
pub(crate) fn own_tgid() -> Option<u32> {
    let namespace = PID_NAMESPACE.load();
    if namespace.inode == 0 {
        Some((bpf_get_current_pid_tgid() >> 32) as u32)
    } else {
        tgid_in(namespace)
    }
}

/// The current process' number in a PID namespace; `None` if it is not in it.
/// Pacer in a container knows only these numbers.
#[inline(always)]
fn tgid_in(namespace: PidNamespace) -> Option<u32> {
    let mut info = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: `info` is what the helper fills, with its size.
    let ret = unsafe {
        bpf_get_ns_current_pid_tgid(namespace.device, namespace.inode, &raw mut info, INFO_BYTES)
    };
    (ret == 0).then_some(info.tgid)
}
