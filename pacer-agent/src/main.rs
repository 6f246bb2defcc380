//! The `pacer` binary: parses the command line, runs the command, and turns
//! how it ended into the exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use pacer_agent::cli::{Cli, Command, LogFormat};
use pacer_agent::exit::{Exit, Failure};
use pacer_agent::handover::{recover, resolve};
use pacer_agent::identity::Identity;
use pacer_agent::shutdown::Signals;
use pacer_agent::supervisor::{self, Agent};
use pacer_agent::{ctl, dest, observe, predict, simulate, source};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logging(&cli.command);
    if let Some(agent) = supervised(&cli.command) {
        if supervisor::is_wanted() {
            return supervisor::run(&agent);
        }
        if let Err(error) = supervisor::follow_supervisor() {
            eprintln!("pacer: {error}");
            return ExitCode::from(Exit::NotStarted.code());
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command)),
        Err(error) => Err(anyhow::Error::new(error).into()),
    };
    match ended {
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
        Command::Source(args) if supervisor::is_recovering() => {
            recover::run(*args, &mut signals).await
        }
        Command::Source(args) => source::run(*args, &mut signals).await,
        Command::Predict(args) => predict::run(args, &mut signals).await,
        Command::Observe(args) => observe::run(args, &mut signals).await,
        Command::Resolve(args) => resolve::run(args, &mut signals).await,
        Command::Ctl(args) => ctl::client::run(args, &mut signals).await,
        Command::Simulate(args) => simulate::run(&args),
    }
}

/// The agent that `command` is, with a supervisor above it.
fn supervised(command: &Command) -> Option<Agent> {
    let (side, qmp) = match command {
        Command::Source(args) => ("source", args.qmp.as_ref()),
        Command::Dest(args) => ("destination", args.qmp.as_ref()),
        _ => return None,
    };
    let path = qmp.map_or_else(|| "PATH".to_owned(), |path| path.display().to_string());
    Some(Agent {
        source_qmp: qmp.filter(|_| side == "source").cloned(),
        remedy: format!("see where the guest is, at the {side}: pacer resolve --qmp {path}"),
    })
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
        | Command::Ctl(_)
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
