//! The `pacer` binary: parses the command line, runs the command, and turns
//! how it ended into the exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use pacer_agent::cli::{Cli, Command, LogFormat};
use pacer_agent::exit::{Exit, Failure};
use pacer_agent::handover::resolve;
use pacer_agent::identity::Identity;
use pacer_agent::shutdown::Signals;
use pacer_agent::{dest, observe, predict, simulate, source};
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(&cli.command);
    match run(cli.command).await {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(failure) => {
            eprintln!("pacer: {failure}");
            ExitCode::from(failure.exit().code())
        }
    }
}

async fn run(command: Command) -> Result<Exit, Failure> {
    let mut signals = Signals::new().map_err(anyhow::Error::new)?;
    match command {
        Command::Keygen(args) => {
            let identity = Identity::generate(&args.out).map_err(anyhow::Error::new)?;
            println!("fingerprint: {}", identity.fingerprint);
            Ok(Exit::Success)
        }
        Command::Dest(args) => dest::run(args, &mut signals).await,
        Command::Source(args) => source::run(*args, &mut signals).await,
        Command::Predict(args) => predict::run(args, &mut signals).await,
        Command::Observe(args) => observe::run(args, &mut signals).await,
        Command::Resolve(args) => resolve::run(args, &mut signals).await,
        Command::Simulate(args) => simulate::run(&args),
    }
}

/// To standard error; `RUST_LOG` overrides what is logged.
fn init_logging(command: &Command) {
    let format = match command {
        Command::Dest(args) => args.agent.log_format,
        Command::Source(args) => args.agent.log_format,
        Command::Keygen(_)
        | Command::Predict(_)
        | Command::Observe(_)
        | Command::Resolve(_)
        | Command::Simulate(_) => LogFormat::Text,
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,pacer=info,pacer_agent=info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
