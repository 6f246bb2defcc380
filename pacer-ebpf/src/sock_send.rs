//! `sock_send_length`: a socket accepted bytes, by whatever call.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;
use pacer_common::counter;
use pacer_common::socket::{IP4, IP6, SocketKey, SocketLayout};
use pacer_common::tracepoint::TracepointLayout;

use crate::filter::observed_thread;
use crate::kernel::read_kernel;
use crate::maps::SOCKETS;
use crate::report::{count, count_bytes};
use crate::tracepoint;

// https://github.com/torvalds/linux/blob/v6.18/include/uapi/linux/in.h
const TCP: u16 = 6;
const MPTCP: u16 = 262;

#[unsafe(no_mangle)]
static SOCKET_LAYOUT: Global<SocketLayout> = Global::new(SocketLayout {
    local_port: 0,
    peer_port: 0,
});

#[tracepoint]
fn sock_send(context: TracePointContext) -> u32 {
    let _ = try_sock_send(&context);
    0
}

#[inline(always)]
fn try_sock_send(context: &TracePointContext) -> Option<()> {
    observed_thread()?;
    let layout = tracepoint::layout();
    let result: i32 = tracepoint::field(context, layout.send_result)?;
    let bytes = u64::try_from(result).ok().filter(|&bytes| bytes > 0)?;
    count_bytes(counter::SENT_BYTES, bytes);
    let sent = sent(&key(context, &layout)?)?;
    *sent += bytes;
    Some(())
}

#[inline(always)]
fn key(context: &TracePointContext, layout: &TracepointLayout) -> Option<SocketKey> {
    let family = tracepoint::field(context, layout.send_family)?;
    let protocol = tracepoint::field(context, layout.send_protocol)?;
    let socket = tracepoint::field(context, layout.send_socket)?;
    // Only TCP: a guest's datagrams would be a connection each.
    let (local_port, peer_port) = match (family, protocol) {
        (IP4 | IP6, TCP | MPTCP) => ports(socket).unwrap_or((0, 0)),
        _ => (0, 0),
    };
    Some(SocketKey {
        family,
        local_port,
        peer_port,
        padding: 0,
    })
}

/// This end's port and the other's.
#[inline(always)]
fn ports(socket: u64) -> Option<(u16, u16)> {
    let layout = SOCKET_LAYOUT.load();
    if layout.local_port == 0 {
        return None;
    }
    let peer: u16 = read_kernel(socket, layout.peer_port)?;
    Some((read_kernel(socket, layout.local_port)?, u16::from_be(peer)))
}

/// This CPU's bytes of a connection, made at its first.
#[inline(always)]
fn sent(key: &SocketKey) -> Option<&'static mut u64> {
    let bytes = match SOCKETS.get_ptr_mut(key) {
        Some(bytes) => bytes,
        None => {
            // As in `file::counts`: another CPU's are not overwritten.
            let _ = SOCKETS.insert(key, 0, u64::from(BPF_NOEXIST));
            let Some(bytes) = SOCKETS.get_ptr_mut(key) else {
                count(counter::MAP_FULL);
                return None;
            };
            bytes
        }
    };
    // SAFETY: the value lives as long as the map. It is this CPU's own, and
    // tracepoints run without preemption.
    Some(unsafe { &mut *bytes })
}
