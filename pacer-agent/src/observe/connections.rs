//! The addresses of connections, asked of `/proc` on a thread of its own: the
//! kernel goes through the tables of the whole host for that, which takes it 10 ms
//! and more.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;

use procfs::net::TcpNetEntry;
use procfs::process::Process;

use super::state::{Ends, Ports};

/// Asks about the connections of one process' network.
#[derive(Debug)]
pub(super) struct Connections {
    pid: u32,
    /// Where the answer to what was asked last comes.
    answer: Option<Receiver<BTreeMap<Ports, Ends>>>,
}

impl Connections {
    /// Of the process `pid`.
    pub(super) const fn new(pid: u32) -> Self {
        Self { pid, answer: None }
    }

    /// What was found since the last call; empty while nothing was. Never
    /// waits. `is_new`: there are connections whose ends are not known, so ask
    /// if nothing is being asked.
    pub(super) fn poll(&mut self, is_new: bool) -> BTreeMap<Ports, Ends> {
        if let Some(answer) = &self.answer {
            match answer.try_recv() {
                Ok(found) => {
                    self.answer = None;
                    return found;
                }
                Err(TryRecvError::Empty) => return BTreeMap::new(),
                Err(TryRecvError::Disconnected) => self.answer = None,
            }
        }
        if is_new {
            self.ask();
        }
        BTreeMap::new()
    }

    fn ask(&mut self) {
        let pid = self.pid;
        let (sender, answer) = sync_channel(1);
        let spawned = thread::Builder::new()
            .name("connections".to_owned())
            .spawn(move || {
                // Else nobody wants to know any more.
                let _ = sender.send(read(pid));
            });
        match spawned {
            Ok(_) => self.answer = Some(answer),
            Err(error) => tracing::debug!(%error, "no thread to look up connections in"),
        }
    }
}

fn read(pid: u32) -> BTreeMap<Ports, Ends> {
    let Ok(process) = Process::new(i32::try_from(pid).unwrap_or(i32::MAX)) else {
        return BTreeMap::new();
    };
    let tables = [process.tcp().ok(), process.tcp6().ok()];
    tables.into_iter().flatten().flatten().map(ends).collect()
}

fn ends(entry: TcpNetEntry) -> (Ports, Ends) {
    let (local, peer) = (entry.local_address, entry.remote_address);
    let ports = (local.port(), peer.port());
    (ports, (local.to_string(), peer.to_string()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// Calls of [`Connections::poll`] until it must have been answered.
    const POLLS: u32 = 3000;

    #[test]
    fn the_ends_are_found_without_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ends = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let ports = (ends.0.port(), ends.1.port());
        let mut connections = Connections::new(std::process::id());
        assert!(connections.poll(false).is_empty());
        assert!(connections.answer.is_none(), "nothing is to be asked");
        assert!(connections.poll(true).is_empty(), "it is being asked");
        let found = (0..POLLS).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            let found = connections.poll(true);
            (!found.is_empty()).then_some(found)
        });
        let expected = (ends.0.to_string(), ends.1.to_string());
        assert_eq!(found.unwrap().get(&ports), Some(&expected));
        assert!(connections.answer.is_none(), "it was answered");
    }
}
