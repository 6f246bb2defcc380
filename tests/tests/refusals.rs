//! Bad input: each gets a message that names the thing and the remedy, and the
//! exit code of the contract.

use std::io::Write as _;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use pacer_tests::agent::{Agent, Identity, pacer_binary};
use pacer_tests::process::free_port;

const TIMEOUT: Duration = Duration::from_secs(20);

/// Two identities and the arguments that would be right.
struct Good {
    own: Identity,
    peer: Identity,
}

impl Good {
    fn new() -> Result<Self> {
        let pacer = pacer_binary()?;
        Ok(Self {
            own: Identity::generate(&pacer)?,
            peer: Identity::generate(&pacer)?,
        })
    }

    fn source(&self, listen: &str, connect: &str, flags: &[&str]) -> Result<Agent> {
        let identity = self.own.folder().display().to_string();
        let mut arguments = vec!["source", "--listen", listen, "--connect", connect];
        arguments.extend(["--identity", &identity, "--peer", self.peer.fingerprint()]);
        arguments.extend(flags);
        Agent::start(arguments)
    }

    fn dest(&self, listen: &str, pinned: &str, flags: &[&str]) -> Result<Agent> {
        let identity = self.peer.folder().display().to_string();
        let mut arguments = vec!["dest", "--listen", listen, "--forward", "localhost:1"];
        arguments.extend(["--identity", &identity, "--peer", pinned]);
        arguments.extend(flags);
        Agent::start(arguments)
    }
}

/// `agent` ends with `code` and has said all of `words`.
fn check(agent: &Agent, code: i32, words: &[&str]) -> Result<()> {
    let ended = agent.wait(TIMEOUT)?;
    let log = agent.log();
    ensure!(ended == code, "exit code {ended}\n{log}");
    for word in words {
        ensure!(log.contains(word), "no `{word}` in\n{log}");
    }
    Ok(())
}

/// What is wrong with these flags of `pacer source` alone.
fn check_flags(flags: &[&str], code: i32, words: &[&str]) -> Result<()> {
    let good = Good::new()?;
    check(
        &good.source("127.0.0.1:0", "127.0.0.1:1", flags)?,
        code,
        words,
    )
}

#[test]
#[ignore = "needs pacer"]
fn a_deadline_in_the_past() -> Result<()> {
    let flags = ["--finish-at", "2020-01-01T00:00:00Z"];
    check_flags(&flags, 2, &["2020-01-01T00:00:00Z is past", "--deadline"])
}

#[test]
#[ignore = "needs pacer"]
fn a_rate_of_zero_and_two_objectives() -> Result<()> {
    check_flags(&["--rate", "0MB/s"], 2, &["at least 1B/s"])?;
    check_flags(&["--rate", "fast"], 2, &["50MB/s"])?;
    check_flags(
        &["--rate", "1MB/s", "--deadline", "9s"],
        2,
        &["cannot be used with"],
    )
}

#[test]
#[ignore = "needs pacer"]
fn a_process_that_is_not_there() -> Result<()> {
    check_flags(&["--pid", "4194304"], 1, &["no process 4194304", "--pid"])
}

#[test]
#[ignore = "needs pacer"]
fn a_qmp_socket_that_is_absent() -> Result<()> {
    check_flags(
        &["--qmp", "/nonexistent/qmp"],
        1,
        &["/nonexistent/qmp", "-qmp unix:"],
    )
}

#[test]
#[ignore = "needs pacer"]
fn a_socket_that_is_not_qmp_or_is_busy() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path)?;
    let path = path.display().to_string();
    let server = std::thread::spawn(move || -> std::io::Result<UnixListener> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"QEMU 10.0 monitor - type 'help'\n")?;
        Ok(listener)
    });
    check_flags(&["--qmp", &path], 1, &["not QMP", "-monitor"])?;
    // The listener goes on and nobody answers: what QEMU does to a second client.
    let listener = server.join().expect("the server does not panic")?;
    check_flags(&["--qmp", &path], 1, &[&path, "serves one client"])?;
    drop(listener);
    Ok(())
}

#[test]
#[ignore = "needs pacer"]
fn a_port_in_use() -> Result<()> {
    let good = Good::new()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    check(
        &good.source(&address, "127.0.0.1:1", &[])?,
        1,
        &[&address, "in use", "--listen"],
    )?;
    let taken = UdpSocket::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let pinned = good.own.fingerprint().to_owned();
    let dest = good.dest(&address, &pinned, &["--handover", "external"])?;
    check(&dest, 1, &[&address, "in use"])
}

#[test]
#[ignore = "needs pacer"]
fn an_address_where_nobody_is() -> Result<()> {
    let address = format!("127.0.0.1:{}", free_port()?);
    let good = Good::new()?;
    let agent = good.source("127.0.0.1:0", &address, &[])?;
    check(&agent, 1, &[&address, "pacer dest"])?;
    let agent = good.source("127.0.0.1:0", "nowhere.invalid:4433", &[])?;
    check(&agent, 1, &["nowhere.invalid:4433"])
}

#[test]
#[ignore = "needs pacer"]
fn a_destination_that_pacer_cannot_hold() -> Result<()> {
    let good = Good::new()?;
    let pinned = good.own.fingerprint().to_owned();
    let dest = good.dest("127.0.0.1:0", &pinned, &[])?;
    check(
        &dest,
        2,
        &["--qmp", "--handover external", "--handover qemu"],
    )
}

#[test]
#[ignore = "needs pacer"]
fn peers_that_are_not_pinned() -> Result<()> {
    let good = Good::new()?;
    let stranger = Identity::generate(&pacer_binary()?)?;
    let address = format!("127.0.0.1:{}", free_port()?);
    let flags = ["--handover", "external"];
    // The destination does not know the source.
    let dest = good.dest(&address, stranger.fingerprint(), &flags)?;
    dest.wait_log("waiting for the source", TIMEOUT)?;
    let source = good.source("127.0.0.1:0", &address, &[])?;
    check(&source, 1, &["--peer", good.own.fingerprint()])?;
    dest.wait_log(good.own.fingerprint(), TIMEOUT)?;
    ensure!(dest.try_wait()?.is_none(), "it goes on waiting");
    // The port is free once it has ended.
    dest.sigint()?;
    dest.wait(TIMEOUT)?;
    // The source does not know the destination.
    let pinned = good.own.fingerprint().to_owned();
    let dest = good.dest(&address, &pinned, &flags)?;
    dest.wait_log("waiting for the source", TIMEOUT)?;
    let impostor = Good {
        own: good.own,
        peer: stranger,
    };
    let source = impostor.source("127.0.0.1:0", &address, &[])?;
    check(&source, 1, &[&address, good.peer.fingerprint(), "--peer"])
}

#[test]
#[ignore = "needs pacer"]
fn an_identity_that_is_missing_or_open_to_others() -> Result<()> {
    let good = Good::new()?;
    let key = good.own.folder().join("key.pem");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    check(
        &good.source("127.0.0.1:0", "127.0.0.1:1", &[])?,
        1,
        &["chmod 600"],
    )?;
    std::fs::remove_file(&key)?;
    check(
        &good.source("127.0.0.1:0", "127.0.0.1:1", &[])?,
        1,
        &["pacer keygen"],
    )
}
