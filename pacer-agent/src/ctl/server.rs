//! The agent's end: a task of its own, so that it answers whatever the loop does.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::status::Status;
use super::{Checked, Command, LONGEST_LINE, Reply, Request, VERSION, socket_of, sockets};

/// Clients at once; others wait.
const MOST_CLIENTS: usize = 8;
/// A client that says nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// The loop takes a tick; while a guest is looked at it takes longer.
const ANSWER: Duration = Duration::from_secs(2);

/// Something that the loop is to change.
#[derive(Debug)]
pub struct Asked {
    /// What.
    pub what: What,
    /// Where the answer goes: what it led to, or why not.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// What the loop can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Objective or limit.
    Set(Checked),
    /// Held, or not.
    Held(bool),
}

/// The loop's end.
#[derive(Debug)]
pub struct Control {
    /// What is asked for, in the order in which it was.
    pub asked: mpsc::Receiver<Asked>,
    /// The migration is to be taken back.
    pub cancel: CancellationToken,
    status: watch::Sender<Status>,
    server: Option<Server>,
}

#[derive(Debug)]
struct Server {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        // Whoever comes now is told that there is nothing.
        let _ = fs::remove_file(&self.path);
    }
}

impl Control {
    /// Serves the socket of the agent `pid` in `directory`. Without it the migration goes
    /// on, and a warning says why.
    #[must_use]
    pub fn start(directory: &Path, pid: u32) -> Self {
        let (asking, asked) = mpsc::channel(MOST_CLIENTS);
        let status = watch::Sender::new(Status {
            pid,
            ..Status::default()
        });
        let cancel = CancellationToken::new();
        let desk = Desk {
            asking,
            status: status.subscribe(),
            cancel: cancel.clone(),
        };
        let server = match listen(directory, pid) {
            Ok((listener, path)) => Some(Server {
                path,
                task: tokio::spawn(serve(listener, Arc::new(desk))),
            }),
            Err(error) => {
                tracing::warn!(
                    "no `pacer ctl` for this migration: no socket in {} ({error})",
                    directory.display()
                );
                None
            }
        };
        Self {
            asked,
            cancel,
            status,
            server,
        }
    }

    /// Where it is served.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.server.as_ref().map(|server| server.path.as_path())
    }

    /// How it goes from now on.
    pub fn publish(&self, status: Status) {
        self.status.send_replace(status);
    }

    /// Nothing can be changed any more.
    pub fn end(&self) {
        self.status
            .send_modify(|status| "ending".clone_into(&mut status.phase));
    }
}

/// A socket that nobody else can open, from its first moment on.
fn listen(directory: &Path, pid: u32) -> io::Result<(UnixListener, PathBuf)> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    sweep(directory)?;
    let path = socket_of(directory, pid);
    let draft = path.with_extension("new");
    for old in [&draft, &path] {
        // An agent with our pid that is no more.
        if let Err(error) = fs::remove_file(old)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    let listener = UnixListener::bind(&draft)?;
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
    fs::rename(&draft, &path)?;
    Ok((listener, path))
}

/// Removes the sockets that nobody listens at.
fn sweep(directory: &Path) -> io::Result<()> {
    for (_, path) in sockets(directory)? {
        let refused = std::os::unix::net::UnixStream::connect(&path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if refused {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// What a client is answered from.
#[derive(Debug)]
struct Desk {
    asking: mpsc::Sender<Asked>,
    status: watch::Receiver<Status>,
    cancel: CancellationToken,
}

async fn serve(listener: UnixListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(MOST_CLIENTS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may give theirs back.
                tracing::debug!(%error, "a client of pacer ctl was not accepted");
                tokio::time::sleep(PATIENCE / 30).await;
                continue;
            }
        };
        let desk = Arc::clone(&desk);
        tokio::spawn(async move {
            let _ = desk.talk(stream).await;
            drop(place);
        });
    }
}

impl Desk {
    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut stream).take(LONGEST_LINE);
            let reading = limited.read_until(b'\n', &mut line);
            let Ok(read) = tokio::time::timeout(PATIENCE, reading).await else {
                return Ok(());
            };
            if read? == 0 {
                return Ok(());
            }
            let is_whole = line.ends_with(b"\n");
            let reply = match is_whole {
                true => self.answer(&line).await,
                false => Reply::of(Err("a request is one line of at most 4 KiB".to_owned())),
            };
            let mut text = serde_json::to_vec(&reply)?;
            text.push(b'\n');
            stream.get_mut().write_all(&text).await?;
            if !is_whole {
                return Ok(());
            }
        }
    }

    async fn answer(&self, line: &[u8]) -> Reply {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(error) => return Reply::of(Err(format!("not a request: {error}"))),
        };
        if request.version != VERSION {
            return Reply::of(Err(format!(
                "version {} is asked for, this agent speaks {VERSION}",
                request.version
            )));
        }
        let status = self.status.borrow().clone();
        if request.command == Command::Status {
            return Reply::status(status);
        }
        if let Some(why) = status.is_final() {
            return Reply::of(Err(format!("{why}; nothing can be changed any more")));
        }
        Reply::of(match request.command {
            Command::Status => unreachable!("answered above"),
            Command::Cancel => {
                self.cancel.cancel();
                Ok("cancelling; the guest stays at the source".to_owned())
            }
            Command::Set(change) => match change.check() {
                Ok(checked) => self.ask(What::Set(checked)).await,
                Err(error) => Err(error),
            },
            Command::Hold => self.ask(What::Held(true)).await,
            Command::Release => self.ask(What::Held(false)).await,
        })
    }

    async fn ask(&self, what: What) -> Result<String, String> {
        const ENDS: &str = "the migration ends; nothing can be changed any more";
        let (answer, answered) = oneshot::channel();
        let asked = Asked { what, answer };
        if self.asking.try_send(asked).is_err() {
            return Err("the agent is busy; try again".to_owned());
        }
        match tokio::time::timeout(ANSWER, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(ENDS.to_owned()),
            Err(_) if self.status.borrow().is_final().is_some() => Err(ENDS.to_owned()),
            Err(_) => Ok("taken; it counts as soon as the guest has been looked at".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(path: &Path, line: &[u8]) -> Reply {
        let mut stream = BufReader::new(UnixStream::connect(path).await.unwrap());
        stream.get_mut().write_all(line).await.unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).await.unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    fn request(rest: &str) -> Vec<u8> {
        format!("{{\"version\":1,\"command\":{rest}}}\n").into_bytes()
    }

    #[tokio::test]
    async fn nobody_else_can_open_it_and_it_goes_with_the_agent() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("pacer");
        let control = Control::start(&directory, 5);
        let path = control.path().unwrap().to_owned();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
        drop(control);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_left_behind_is_swept() {
        let home = tempfile::tempdir().unwrap();
        let stale = socket_of(home.path(), 1);
        drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
        let live = Control::start(home.path(), 2);
        let other = Control::start(home.path(), 3);
        assert!(!stale.exists());
        assert!(live.path().unwrap().exists() && other.path().unwrap().exists());
    }

    #[tokio::test]
    async fn it_answers_while_the_loop_does_not() {
        let home = tempfile::tempdir().unwrap();
        let control = Control::start(home.path(), 5);
        let path = control.path().unwrap().to_owned();
        let reply = ask(&path, &request("\"status\"")).await;
        assert_eq!(reply.status.unwrap().pid, 5);
        control.end();
        for command in ["\"hold\"", "\"cancel\"", "\"set\",\"deadline_seconds\":5"] {
            let reply = ask(&path, &request(command)).await;
            assert!(reply.error.unwrap().contains("any more"), "{command}");
        }
        assert!(!control.cancel.is_cancelled());
    }

    #[tokio::test]
    async fn changes_reach_the_loop_in_order_and_their_answers_come_back() {
        let home = tempfile::tempdir().unwrap();
        let mut control = Control::start(home.path(), 5);
        let path = control.path().unwrap().to_owned();
        let asking = tokio::spawn(async move {
            let held = ask(&path, &request("\"hold\"")).await;
            let released = ask(&path, &request("\"release\"")).await;
            (held.message, released.error)
        });
        let first = control.asked.recv().await.unwrap();
        assert_eq!(first.what, What::Held(true));
        first.answer.send(Ok("held".to_owned())).unwrap();
        let second = control.asked.recv().await.unwrap();
        assert_eq!(second.what, What::Held(false));
        second.answer.send(Err("no".to_owned())).unwrap();
        let said = asking.await.unwrap();
        assert_eq!(said, (Some("held".to_owned()), Some("no".to_owned())));
    }

    #[tokio::test]
    async fn what_is_no_request_is_answered_and_harmless() {
        let home = tempfile::tempdir().unwrap();
        let control = Control::start(home.path(), 5);
        let path = control.path().unwrap().to_owned();
        for line in [
            &b"{}\n"[..],
            b"\n",
            b"{\"version\":9,\"command\":\"status\"}\n",
            b"{\"version\":1,\"command\":\"destroy\"}\n",
            b"{\"version\":1,\"command\":\"set\",\"deadline\":1}\n",
            b"\xff\n",
            &[b'x'; 5000],
        ] {
            assert!(ask(&path, line).await.error.is_some(), "{line:?}");
        }
    }
}
