//! Loads the programs and puts them on their hooks.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::{fs, io};

use aya::maps::{Array, MapData, RingBuf};
use aya::programs::uprobe::{UProbeError, UProbeLink, UProbeLinkId, UProbeScope};
use aya::programs::{Program, ProgramError, RawTracePoint, TracePoint, UProbe};
use aya::{Ebpf, EbpfLoader};
use pacer_common::block::BLOCK_LAYOUT;
use pacer_common::kernel::KERNEL_LAYOUT;
use pacer_common::socket::SOCKET_LAYOUT;
use pacer_common::tracepoint::TRACEPOINT_LAYOUT;
use pacer_common::{device, dirty_log, event, settings, store};

use super::backend_names::NameReader;
use super::error::{ATTACHED, LOADED, chain, is_refusal};
use super::hooks::{self, Function, Hook};
use super::kernel::Kernel;
use super::tracepoints::Tracepoints;
use super::{ProbeError, ProbeOptions, build_id, process};

/// Where tracefs may be, in the order in which aya looks.
pub(super) const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// What came of [`observe`].
pub(super) struct Attached {
    /// The hooks that are missing, each with the reason.
    pub(super) warnings: Vec<String>,
    /// Whether `migrate_set_state` is watched.
    pub(super) state_uprobe: bool,
}

/// Whether tracefs is there and readable. Asked before aya does, which remembers
/// a no for the life of the process.
pub(super) fn check_tracefs() -> Result<(), ProbeError> {
    for path in TRACEFS {
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return check_readable(Path::new(path)),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                let path = PathBuf::from(path);
                return Err(ProbeError::TracefsUnreadable { path, source });
            }
            // Not there, or an empty directory to mount it on.
            Ok(false) | Err(_) => {}
        }
    }
    Err(ProbeError::TracefsMissing)
}

/// Its directories may be open to all and what is in them to its group alone.
fn check_readable(tracefs: &Path) -> Result<(), ProbeError> {
    let path = tracefs.join("events/syscalls/sys_exit_ioctl/id");
    match fs::read(&path) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            Err(ProbeError::TracefsUnreadable { path, source })
        }
        // What is missing is told where it is needed.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Creates the maps and prepares the programs; no process is observed yet.
/// `pid` is the one that will be, where it is known.
pub(super) fn load(
    object: &[u8],
    kernel: &Kernel,
    tracepoints: &Tracepoints,
    pid: Option<u32>,
    options: &ProbeOptions,
) -> Result<Ebpf, ProbeError> {
    let device_pieces = process::device_pieces(pid);
    EbpfLoader::new()
        .map_max_entries(device::DEVICE_PIECES, device_pieces)
        .override_global(device::DEVICE_ENTRIES, &device_pieces, true)
        .override_global(dirty_log::RUN_PIECES, &options.run_pieces(), true)
        .override_global(KERNEL_LAYOUT, &kernel.layout, true)
        .override_global(BLOCK_LAYOUT, &kernel.block.unwrap_or_default(), true)
        .override_global(SOCKET_LAYOUT, &kernel.sockets.unwrap_or_default(), true)
        .override_global(TRACEPOINT_LAYOUT, &tracepoints.layout, true)
        .override_global(settings::PID_NAMESPACE, &process::pid_namespace(), true)
        .load(object)
        .map_err(ProbeError::from_load)
}

/// The ring of events.
pub(super) fn take_ring(ebpf: &mut Ebpf) -> Result<RingBuf<MapData>, ProbeError> {
    let name = event::EVENTS;
    let map = ebpf.take_map(name).ok_or(ProbeError::Incomplete { name })?;
    RingBuf::try_from(map).map_err(|source| ProbeError::Map { name, source })
}

/// Attaches what sees the dirty logs, of whatever process until one is observed.
pub(super) fn attach_required(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    hooks::REQUIRED
        .iter()
        .try_for_each(|hook| attach_tracepoint(ebpf, hook))
}

/// Makes `tgid` the observed process and attaches the programs that are for it
/// alone, to every hook that this kernel and this QEMU offer.
pub(super) fn observe(
    ebpf: &mut Ebpf,
    tgid: u32,
    kernel: &Kernel,
    tracepoints: &Tracepoints,
) -> Result<Attached, ProbeError> {
    set(ebpf, settings::OBSERVED, tgid)?;
    let mut warnings = Vec::new();
    attach_rings(ebpf);
    attach_optional(ebpf, &hooks::FILES, &mut warnings);
    if kernel.has_io_uring {
        attach_usable(ebpf, &hooks::IO_URING, tracepoints, &mut warnings);
    } else {
        warnings.push("io_uring is not watched: the kernel's BTF does not tell of it".to_owned());
    }
    for hook in hooks::SOCKETS {
        attach_usable(ebpf, &hook, tracepoints, &mut warnings);
    }
    if kernel.sockets.is_none() {
        warnings.push("ports are not known: the kernel's BTF does not tell of sockets".to_owned());
    }
    let mut state_uprobe = false;
    for function in hooks::MARKS {
        match attach_first(ebpf, &function, tgid) {
            Ok(()) => state_uprobe |= function.program == hooks::STATE_UPROBE,
            Err(warning) => warnings.push(warning),
        }
    }
    Ok(Attached {
        warnings,
        state_uprobe,
    })
}

/// Attaches what watches block devices.
pub(super) fn attach_block(ebpf: &mut Ebpf, kernel: &Kernel) -> Result<(), ProbeError> {
    if kernel.block.is_none() {
        let what = "requests to block devices";
        return Err(ProbeError::BtfUnknown { what });
    }
    for (name, tracepoint) in hooks::BLOCK {
        let program: &mut RawTracePoint = find(ebpf, name)?;
        load_once(program.load(), name)?;
        program
            .attach(tracepoint)
            .map_err(|source| ProbeError::from_program(name, ATTACHED, source))?;
    }
    Ok(())
}

/// Attaches what sees a tap device being read.
pub(super) fn attach_tap(ebpf: &mut Ebpf, warnings: &mut Vec<String>) {
    attach_optional(ebpf, &hooks::TAP, warnings);
}

/// Attaches what sees the guest's own writes. Raw images need none of it: there
/// the file's offsets are the guest's. A hit costs about a microsecond.
pub(super) fn attach_backends(
    ebpf: &mut Ebpf,
    tgid: u32,
    warnings: &mut Vec<String>,
) -> NameReader {
    let layout = match build_id::layout(tgid) {
        Ok(layout) => layout,
        Err(reason) => {
            warnings.push(format!(
                "guest writes behind image formats are not watched: {reason}"
            ));
            return NameReader::default();
        }
    };
    for function in hooks::BACKENDS {
        warnings.extend(attach_first(ebpf, &function, tgid).err());
    }
    NameReader::new(tgid, layout)
}

/// Sets the one number in the array `name`.
fn set(ebpf: &mut Ebpf, name: &'static str, value: u32) -> Result<(), ProbeError> {
    let map = ebpf.map_mut(name).ok_or(ProbeError::Incomplete { name })?;
    Array::<_, u32>::try_from(map)
        .and_then(|mut array| array.set(0, value, 0))
        .map_err(|source| ProbeError::Map { name, source })
}

/// Attaches what sees QEMU begin a call about a dirty log.
pub(super) fn attach_large_slots(ebpf: &mut Ebpf) -> Result<(), ProbeError> {
    attach_tracepoint(ebpf, &hooks::LARGE_SLOTS)
}

/// No warning: QEMU uses rings only where it is told to, and says how many pages
/// were in them by another call.
fn attach_rings(ebpf: &mut Ebpf) {
    let mut warnings = Vec::new();
    attach_optional(ebpf, &hooks::RINGS, &mut warnings);
    for warning in warnings {
        tracing::debug!("{warning}");
    }
}

fn attach_optional(ebpf: &mut Ebpf, hooks: &[Hook], warnings: &mut Vec<String>) {
    for hook in hooks {
        if let Err(error) = attach_tracepoint(ebpf, hook) {
            warnings.push(not_watched(hook, &chain(&error)));
        }
    }
}

/// A hook whose fields may not be as the program reads them.
fn attach_usable(
    ebpf: &mut Ebpf,
    hook: &Hook,
    tracepoints: &Tracepoints,
    warnings: &mut Vec<String>,
) {
    match tracepoints.problem(hook.tracepoint) {
        Some(problem) => warnings.push(not_watched(hook, problem)),
        None => attach_optional(ebpf, &[*hook], warnings),
    }
}

fn not_watched(hook: &Hook, reason: &str) -> String {
    let (category, name) = (hook.category, hook.tracepoint);
    format!("{category}:{name} is not watched: {reason}")
}

fn attach_tracepoint(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), ProbeError> {
    let &Hook {
        program: name,
        category,
        tracepoint,
    } = hook;
    let program: &mut TracePoint = find(ebpf, name)?;
    load_once(program.load(), name)?;
    match program.attach(category, tracepoint) {
        Ok(_) => Ok(()),
        Err(ProgramError::TracePointError(_)) if !has_tracepoint(category, tracepoint) => {
            Err(ProbeError::TracepointMissing {
                category,
                name: tracepoint,
            })
        }
        Err(source) => Err(ProbeError::from_program(name, ATTACHED, source)),
    }
}

/// On the first of `symbols` that is there; else the reason why the last is not.
fn attach_first(ebpf: &mut Ebpf, function: &Function, tgid: u32) -> Result<(), String> {
    let mut warning = String::new();
    for symbol in function.symbols {
        match attach_uprobe(ebpf, function.program, symbol, tgid) {
            Ok(()) => return Ok(()),
            Err(error) => {
                warning = format!("QEMU's {symbol} is not watched: {}", chain(&error));
            }
        }
    }
    Err(warning)
}

/// Attaches what sees devices copy into guest memory.
pub(super) fn attach_copies(ebpf: &mut Ebpf, tgid: u32) -> Result<(), String> {
    attach_first(ebpf, &hooks::COPIES, tgid)
}

/// Attaches what sees the stores of a guest under TCG; all of it or none.
pub(super) fn attach_stores(ebpf: &mut Ebpf, tgid: u32) -> Result<Vec<UProbeLink>, ProbeError> {
    let mut links = Vec::new();
    for function in hooks::STORES {
        let mut result = Err(ProbeError::SymbolMissing { symbol: "" });
        for symbol in function.symbols {
            result = uprobe_link(ebpf, function.program, symbol, tgid);
            if result.is_ok() {
                break;
            }
        }
        links.push(result?);
    }
    Ok(links)
}

/// Tells the programs whether all stores are seen: `watched` is a number that no
/// time of watching had before, or 0.
pub(super) fn set_stores_watched(ebpf: &mut Ebpf, watched: u32) -> Result<(), ProbeError> {
    set(ebpf, store::STORES_WATCHED, watched)
}

fn attach_uprobe(
    ebpf: &mut Ebpf,
    name: &'static str,
    symbol: &'static str,
    tgid: u32,
) -> Result<(), ProbeError> {
    uprobe_link_id(ebpf, name, symbol, tgid).map(drop)
}

/// As [`attach_uprobe`], but detached when the result is dropped.
fn uprobe_link(
    ebpf: &mut Ebpf,
    name: &'static str,
    symbol: &'static str,
    tgid: u32,
) -> Result<UProbeLink, ProbeError> {
    let link_id = uprobe_link_id(ebpf, name, symbol, tgid)?;
    let program: &mut UProbe = find(ebpf, name)?;
    program
        .take_link(link_id)
        .map_err(|source| ProbeError::from_program(name, ATTACHED, source))
}

fn uprobe_link_id(
    ebpf: &mut Ebpf,
    name: &'static str,
    symbol: &'static str,
    tgid: u32,
) -> Result<UProbeLinkId, ProbeError> {
    let program: &mut UProbe = find(ebpf, name)?;
    load_once(program.load(), name)?;
    // The link and not what it points to: it leads to the right file in another
    // mount namespace too, and after an upgrade has replaced it.
    let executable = format!("/proc/{tgid}/exe");
    let scope = NonZeroU32::new(tgid).map_or(UProbeScope::CallingProcess, UProbeScope::OneProcess);
    match program.attach(symbol, &executable, scope) {
        Ok(link_id) => Ok(link_id),
        Err(source) if is_symbol_missing(&source) => Err(explain_missing(&executable, symbol)),
        Err(source) => Err(ProbeError::from_program(name, ATTACHED, source)),
    }
}

/// aya says the same of a binary without the symbol and of one that it may not
/// read.
fn explain_missing(executable: &str, symbol: &'static str) -> ProbeError {
    match fs::File::open(executable) {
        Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
            ProbeError::BinaryUnreadable { source }
        }
        Ok(_) | Err(_) => ProbeError::SymbolMissing { symbol },
    }
}

/// Whether the binary could be read and has no such symbol.
fn is_symbol_missing(error: &ProgramError) -> bool {
    matches!(
        error,
        ProgramError::UProbeError(UProbeError::SymbolError { .. })
    ) && !is_refusal(error)
}

/// The program `name` as the type it must have.
fn find<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, ProbeError>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(ProbeError::Incomplete { name })
}

/// A program on several hooks is loaded with the first.
fn load_once(result: Result<(), ProgramError>, name: &'static str) -> Result<(), ProbeError> {
    match result {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(()),
        Err(source) => Err(ProbeError::from_program(name, LOADED, source)),
    }
}

fn has_tracepoint(category: &str, name: &str) -> bool {
    let event = Path::new("events").join(category).join(name);
    TRACEFS
        .iter()
        .any(|root| Path::new(root).join(&event).exists())
}
