//! `pacer ctl` as typed.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::status::Status;
use super::{Change, Command, Reply, Request, VERSION, sockets};
use crate::cli::{CtlArgs, CtlCommand, CtlSetArgs};
use crate::exit::{Exit, Failure};
use crate::journal::directory;
use crate::shutdown::Signals;
use crate::units::Rate;

/// An agent answers within a moment, whatever it does.
const ANSWER: Duration = Duration::from_secs(5);
/// More than any answer has.
const LONGEST_ANSWER: u64 = 1 << 20;

/// Asks an agent of this host.
///
/// # Errors
///
/// Nothing to ask, no answer, or the agent refuses.
pub async fn run(args: CtlArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    let directory = directory();
    tokio::select! {
        done = run_in(&directory, args) => done,
        name = signals.next() => Err(Failure::not_started(name)),
    }
}

async fn run_in(directory: &Path, args: CtlArgs) -> Result<Exit, Failure> {
    let command = match &args.command {
        CtlCommand::List => return list(directory, args.json).await,
        CtlCommand::Status => Command::Status,
        CtlCommand::Set(set) => Command::Set(change(set)),
        CtlCommand::Hold => Command::Hold,
        CtlCommand::Release => Command::Release,
        CtlCommand::Cancel => Command::Cancel,
    };
    let path = choose(directory, args.pid)?;
    let reply = ask(&path, command)
        .await
        .map_err(|error| explain(&path, &error))?;
    if let Some(error) = reply.error {
        return Err(Failure::refused(error));
    }
    match (&reply.status, args.json) {
        (Some(status), true) => println!("{}", json(status)?),
        (Some(status), false) => print!("{}", status.text()),
        (None, true) => println!("{}", json(&reply)?),
        (None, false) => println!("{}", reply.message.unwrap_or_default()),
    }
    Ok(Exit::Success)
}

fn change(set: &CtlSetArgs) -> Change {
    let objective = &set.objective;
    Change {
        deadline_seconds: objective.deadline.map(|after| after.as_secs_f64()),
        finish_at: objective.finish_at.map(|time| time.to_string()),
        by: objective.by.map(|time| time.to_string()),
        rate_bytes_per_second: objective.rate.map(Rate::bytes_per_second),
        max_rate_bytes_per_second: set.max_rate.map(Rate::bytes_per_second),
    }
}

fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| anyhow::Error::new(error).into())
}

/// The socket of `pid`, or the only one there is.
fn choose(directory: &Path, pid: Option<u32>) -> Result<std::path::PathBuf, Failure> {
    let found = found(directory)?;
    let pids: Vec<String> = found.iter().map(|(pid, _)| pid.to_string()).collect();
    if let Some(pid) = pid {
        let socket = found.into_iter().find(|(agent, _)| *agent == pid);
        return socket.map(|(_, path)| path).ok_or_else(|| {
            Failure::not_started(format!(
                "no `pacer source` with pid {pid} runs here ({})",
                match pids.is_empty() {
                    true => "none does".to_owned(),
                    false => format!("there are: {}", pids.join(", ")),
                }
            ))
        });
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Err(Failure::not_started(format!(
            "no `pacer source` runs here as this user (nothing in {}); start one, or ask as the \
             user that started it",
            directory.display()
        ))),
        (Some((_, path)), None) => Ok(path),
        _ => Err(Failure::refused(format!(
            "several migrations run here; choose one with --pid: {}",
            pids.join(", ")
        ))),
    }
}

/// The sockets at which somebody listens.
fn found(directory: &Path) -> Result<Vec<(u32, std::path::PathBuf)>, Failure> {
    let mut found = sockets(directory).map_err(|error| {
        Failure::not_started(format!(
            "{} cannot be read ({error}); ask as the user that started `pacer source`",
            directory.display()
        ))
    })?;
    found.retain(|(_, path)| {
        !std::os::unix::net::UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    Ok(found)
}

async fn list(directory: &Path, as_json: bool) -> Result<Exit, Failure> {
    let mut all: Vec<Status> = Vec::new();
    for (_, path) in found(directory)? {
        match ask(&path, Command::Status).await {
            Ok(reply) => all.extend(reply.status.map(|status| *status)),
            Err(error) => eprintln!("{}", explain(&path, &error)),
        }
    }
    if as_json {
        println!("{}", json(&all)?);
    } else if all.is_empty() {
        println!("no migration runs here");
    } else {
        all.iter().for_each(|status| println!("{}", status.line()));
    }
    Ok(Exit::Success)
}

async fn ask(path: &Path, command: Command) -> io::Result<Reply> {
    let asking = async {
        let mut stream = BufReader::new(UnixStream::connect(path).await?);
        let request = Request {
            version: VERSION,
            command,
        };
        let mut text = serde_json::to_vec(&request)?;
        text.push(b'\n');
        stream.get_mut().write_all(&text).await?;
        let mut answer = Vec::new();
        stream
            .take(LONGEST_ANSWER)
            .read_until(b'\n', &mut answer)
            .await?;
        Ok(serde_json::from_slice(&answer)?)
    };
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

fn explain(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::not_started(match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("{path} belongs to another user: ask as the user that started `pacer source`")
        }
        io::ErrorKind::TimedOut => format!("the agent at {path} gives no answer within {ANSWER:?}"),
        _ => format!("the agent at {path} cannot be asked ({error}); it has ended, most likely"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::server::Control;

    #[test]
    fn without_an_agent_the_remedy_is_said() {
        let home = tempfile::tempdir().unwrap();
        let failure = choose(home.path(), None).unwrap_err();
        assert!(failure.to_string().contains("start one"), "{failure}");
        assert_eq!(failure.exit(), Exit::NotStarted);
    }

    #[tokio::test]
    async fn among_several_one_must_be_chosen() {
        let home = tempfile::tempdir().unwrap();
        let agents = [3, 5].map(|pid| Control::start(home.path(), pid));
        let failure = choose(home.path(), None).unwrap_err();
        assert!(failure.to_string().contains("--pid: 3, 5"), "{failure}");
        assert_eq!(failure.exit(), Exit::Refused);
        assert!(choose(home.path(), Some(5)).is_ok());
        let absent = choose(home.path(), Some(4)).unwrap_err();
        assert!(absent.to_string().contains("3, 5"), "{absent}");
        drop(agents);
        assert!(choose(home.path(), None).is_err());
    }

    #[tokio::test]
    async fn an_answer_is_read() {
        let home = tempfile::tempdir().unwrap();
        let control = Control::start(home.path(), 3);
        let reply = ask(control.path().unwrap(), Command::Status).await.unwrap();
        assert_eq!(reply.status.unwrap().pid, 3);
    }
}
