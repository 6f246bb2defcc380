//! `pacer predict`: rate against time, downtime and bytes of a running guest,
//! before any migration.
//!
//! This module asks and prints. What is looked at is in `guest`, what is
//! answered in [`crate::pacing::prediction`]; how it reads in [`words`],
//! [`table`], [`plot`] and [`json`], which are pure.

pub mod answer;
mod guest;
pub mod json;
pub mod plot;
pub mod table;
pub mod words;

use std::io::{self, IsTerminal as _, Write as _};

use answer::Answer;

use crate::cli::PredictArgs;
use crate::exit::{Exit, Failure};
use crate::shutdown::Signals;

/// Predicts the migration of one guest.
///
/// # Errors
///
/// If the flags contradict each other, nothing could be asked, or the guest
/// cannot be migrated.
pub async fn run(args: PredictArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    check(&args)?;
    let (answer, probe) = tokio::select! {
        answered = guest::ask(&args) => answered?,
        name = signals.next() => {
            return Err(Failure::not_started(format!("{name} before the guest was measured")));
        }
    };
    let printed = print(&text(&answer, args.json));
    // To let go of the probe takes a second, in which nobody should wait.
    drop(probe);
    match printed {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::not_started(
            format!("standard output cannot be written ({error})"),
        )),
        _ => Ok(Exit::Success),
    }
}

fn check(args: &PredictArgs) -> Result<(), Failure> {
    let most = args.max_rate;
    match args
        .rate
        .iter()
        .find(|rate| most.is_some_and(|most| **rate > most))
    {
        Some(rate) => Err(Failure::refused(format!(
            "--rate {rate} is above --max-rate {}",
            most.map_or_else(String::new, |most| most.to_string())
        ))),
        None => Ok(()),
    }
}

/// What is printed: one JSON object, or the table, and on a terminal a plot.
fn text(answer: &Answer, as_json: bool) -> String {
    if as_json {
        return json::object(answer);
    }
    let plot = if io::stdout().is_terminal() {
        plot::plot(&answer.prediction)
    } else {
        None
    };
    let parts = [
        Some(words::head(answer)),
        Some(table::table(&answer.prediction)),
        plot,
        Some(words::verdicts(answer)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join("\n")
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn checked(flags: &[&str]) -> Result<(), Failure> {
        let line = ["pacer", "predict", "--qmp", "/run/qmp"];
        let cli = Cli::try_parse_from(line.iter().chain(flags)).unwrap();
        let Command::Predict(args) = cli.command else {
            unreachable!("`predict` was asked for")
        };
        check(&args)
    }

    #[test]
    fn a_rate_above_the_highest_is_refused() {
        assert!(checked(&["--rate", "1MB/s", "--rate", "2MB/s"]).is_ok());
        assert!(checked(&["--rate", "1MB/s", "--max-rate", "1MB/s"]).is_ok());
        let flags = ["--rate", "1MB/s", "--rate", "3MB/s", "--max-rate", "2MB/s"];
        let failure = checked(&flags).unwrap_err();
        assert_eq!(failure.exit().code(), 2);
        assert!(failure.to_string().contains("3.0 MB/s"), "{failure}");
    }
}
