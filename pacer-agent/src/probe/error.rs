//! Why a probe could not be attached, each with what to do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// Why [`super::Probe::attach`] failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No process has this number.
    #[error("there is no process {pid}")]
    NoSuchProcess {
        /// The number asked for.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The probe still waits for its process.
    #[error("no process is observed yet")]
    NotObserving,
    /// The binary carries no programs.
    #[error("this binary was built without eBPF; `cargo xtask build` builds it with eBPF")]
    NotBuilt,
    /// The kernel refused.
    #[error(
        "no right to {action}: Pacer needs CAP_BPF and CAP_PERFMON \
         (run it as root, or `setcap cap_bpf,cap_perfmon=ep` the binary)"
    )]
    NotPermitted {
        /// What was refused.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// tracefs is not mounted.
    #[error("tracefs is not mounted; `mount -t tracefs tracefs /sys/kernel/tracing` mounts it")]
    TracefsMissing,
    /// tracefs is there and cannot be read.
    #[error(
        "{} cannot be read: run Pacer as root, or give its group the right \
         (`mount -o remount,mode=750,gid=GROUP /sys/kernel/tracing`)", path.display()
    )]
    TracefsUnreadable {
        /// What of it.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// This kernel does not have a tracepoint that is needed.
    #[error(
        "this kernel has no tracepoint {category}:{name} \
         (system calls need CONFIG_FTRACE_SYSCALLS)"
    )]
    TracepointMissing {
        /// The tracepoint's group.
        category: &'static str,
        /// The tracepoint.
        name: &'static str,
    },
    /// This kernel does not describe its types.
    #[error(
        "the kernel's types cannot be read from /sys/kernel/btf/vmlinux \
         (it needs CONFIG_DEBUG_INFO_BTF)"
    )]
    BtfMissing {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// This kernel's types are not as expected.
    #[error("/sys/kernel/btf/vmlinux does not tell of {what}")]
    BtfUnknown {
        /// The structure that is missing, or has other fields.
        what: &'static str,
    },
    /// The observed binary does not name a function that is to be watched.
    #[error("its binary exports no {symbol}")]
    SymbolMissing {
        /// The function.
        symbol: &'static str,
    },
    /// The observed process is another user's.
    #[error(
        "its binary may not be read: for another user's process Pacer needs CAP_SYS_PTRACE \
         (run it as root, or `setcap cap_bpf,cap_perfmon,cap_sys_ptrace=ep` the binary)"
    )]
    BinaryUnreadable {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("the eBPF programs cannot be loaded")]
    Load {
        /// What the loader said.
        #[source]
        source: EbpfError,
    },
    /// A program was refused, or could not be attached.
    #[error("the eBPF program {program} cannot be {action}")]
    Program {
        /// The program.
        program: &'static str,
        /// What was tried: loaded or attached.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: ProgramError,
    },
    /// The object does not hold what this binary expects of it.
    #[error("the eBPF object has no {name}: it is of another version of Pacer")]
    Incomplete {
        /// The program or map that is missing.
        name: &'static str,
    },
    /// A map cannot be used.
    #[error("the eBPF map {name} cannot be used")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
}

impl ProbeError {
    pub(super) fn from_load(source: EbpfError) -> Self {
        if is_refusal(&source) {
            return Self::NotPermitted {
                action: "create eBPF maps",
                source: source.into(),
            };
        }
        Self::Load { source }
    }

    pub(super) fn from_program(
        program: &'static str,
        action: &'static str,
        source: ProgramError,
    ) -> Self {
        // The verifier says EACCES too, with a log; that is no lack of rights.
        let by_verifier = matches!(
            &source,
            ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() != Some(EPERM)
        );
        if is_refusal(&source) && !by_verifier {
            let action = match action {
                LOADED => "load eBPF programs",
                _ => "attach eBPF programs",
            };
            return Self::NotPermitted {
                action,
                source: source.into(),
            };
        }
        Self::Program {
            program,
            action,
            source,
        }
    }
}

/// For [`ProbeError::from_program`].
pub(super) const LOADED: &str = "loaded";
/// For [`ProbeError::from_program`].
pub(super) const ATTACHED: &str = "attached";

const EPERM: i32 = 1;

/// The error and its causes in one line. The verifier's log, which is long, goes
/// to the debug log.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = causes(error).map(ToString::to_string).collect();
    let whole = causes.join(": ");
    let Some((before, log)) = whole.split_once(" Verifier output:") else {
        return whole;
    };
    tracing::debug!(log, "the verifier refused a program");
    format!("{before} (the verifier's log is in Pacer's at level debug)")
}

/// Whether EPERM or EACCES is at the bottom of it.
pub(super) fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    causes(error)
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(program_error: fn(io::Error) -> ProgramError, errno: i32) -> ProbeError {
        let source = program_error(io::Error::from_raw_os_error(errno));
        ProbeError::from_program("ioctl_exit", ATTACHED, source)
    }

    #[test]
    fn lack_of_rights_names_the_rights() {
        let syscall = |io_error| {
            ProgramError::SyscallError(aya::sys::SyscallError {
                call: "perf_event_open",
                io_error,
            })
        };
        let error = refused(syscall, EPERM).to_string();
        assert!(error.contains("CAP_BPF and CAP_PERFMON"), "{error}");
        let error = refused(syscall, 22).to_string();
        assert!(error.contains("ioctl_exit cannot be attached"), "{error}");
    }

    #[test]
    fn refused_maps_are_lack_of_rights() {
        let source = EbpfError::MapError(MapError::CreateError {
            name: "EVENTS".into(),
            io_error: io::Error::from_raw_os_error(EPERM),
        });
        let error = ProbeError::from_load(source);
        assert!(matches!(error, ProbeError::NotPermitted { .. }), "{error}");
    }

    #[test]
    fn causes_stand_in_one_line() {
        let error = ProbeError::NoSuchProcess {
            pid: 7,
            source: io::Error::from_raw_os_error(2),
        };
        let text = chain(&error);
        assert!(text.starts_with("there is no process 7: No such"), "{text}");
    }
}
