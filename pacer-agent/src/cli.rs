//! The command line as typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::address::{Address, parse_host_port};
use crate::identity::Fingerprint;
use crate::relay::frame::Handover;
use crate::units::{Rate, parse_duration, parse_positive_duration, parse_timestamp};

/// Moves a running QEMU guest so that it arrives when you asked.
#[derive(Debug, Parser)]
#[command(
    name = "pacer",
    version,
    after_help = "Durations are written 300ms, 90s, 10m or 2h; rates 50MB/s, 400Mbit/s or \
                  1GiB/s; addresses host:port ([::1]:4444 for IPv6), or unix:PATH where QEMU \
                  connects or listens."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the key pair of this host's agent; the last word printed is its
    /// fingerprint, which the other host's agent is given with --peer.
    Keygen(KeygenArgs),
    /// Run on the destination host, beside the QEMU that waits with -incoming.
    Dest(DestArgs),
    /// Run on the source host, beside the QEMU whose guest is to move.
    Source(Box<SourceArgs>),
    /// Say how long a guest's migration would take at which rate, before any.
    Predict(PredictArgs),
    /// Show what a running QEMU's guest does to its memory and its disks.
    Observe(ObserveArgs),
    /// After a crash: say what this side may do now, and do it.
    Resolve(ResolveArgs),
    /// Replay a recorded migration under another rate or deadline.
    Simulate(SimulateArgs),
}

/// `pacer keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// The directory to make, with the key (mode 0600) and its certificate.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What both agents need.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// The directory that `pacer keygen` made on this host.
    #[arg(long, value_name = "DIR")]
    pub identity: PathBuf,
    /// The fingerprint that `pacer keygen` printed on the other host.
    #[arg(long, value_name = "FINGERPRINT")]
    pub peer: Fingerprint,
    /// Serve Prometheus metrics at http://ADDR/metrics.
    #[arg(long, value_name = "ADDR", value_parser = parse_host_port)]
    pub metrics: Option<String>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// How long to look for the other agent once the guest's fate depends on it.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub outage_budget: Duration,
}

/// `pacer dest`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    pacer dest --listen 0.0.0.0:4433 --identity /etc/pacer --peer sha256:… \\\n             \
    --forward localhost:4444 --qmp /run/guest.qmp\n\n\
    QEMU is best started with -incoming defer and -qmp unix:/run/guest.qmp,server=on,wait=off.")]
pub struct DestArgs {
    /// Where to wait for the source's agent (UDP).
    #[arg(long, value_name = "ADDR", value_parser = parse_host_port)]
    pub listen: String,
    /// What both agents need.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// Where the destination's QEMU listens for the migration.
    #[arg(long, value_name = "ADDR")]
    pub forward: Address,
    /// QMP socket of the destination's QEMU.
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,
    /// Who continues the guest. `qemu` starts it by itself as soon as it has
    /// loaded: a fault between load and acknowledgement then lets it run twice.
    #[arg(long, value_enum, default_value_t = Handover::Pacer)]
    pub handover: Handover,
}

/// `pacer source`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    arrive in ten minutes:\n    \
    pacer source --listen localhost:4444 --connect dest.example:4433 --identity /etc/pacer \\\n      \
    --peer sha256:… --qmp /run/guest.qmp --deadline 10m\n  \
    pace a migration that is typed in QEMU's monitor (no --qmp):\n    \
    (qemu) migrate_set_capability return-path on\n    \
    (qemu) migrate -d tcp:localhost:4444\n\n\
    Exit codes: 0 arrived, and any deadline met; 1 nothing was started; 2 usage, or refused; \
    3 arrived, but the deadline was missed; 4 the guest runs at the source; 5 the guest itself \
    ended; 6 the guest is stopped and whole on a named side.")]
pub struct SourceArgs {
    /// Where to wait for this host's QEMU.
    #[arg(long, value_name = "ADDR")]
    pub listen: Address,
    /// Where the destination's agent listens (UDP).
    #[arg(long, value_name = "ADDR", value_parser = parse_host_port)]
    pub connect: String,
    /// What both agents need.
    #[command(flatten)]
    pub agent: AgentArgs,
    /// QMP socket of the source's QEMU: Pacer starts the migration itself.
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,
    /// The QEMU process, where it is not found from its connection.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// When the guest is to arrive.
    #[command(flatten)]
    pub objective: ObjectiveArgs,
    /// Not to arrive before this time: until then the guest's memory is copied and
    /// kept up to date, and the guest runs at the source.
    #[arg(long, value_name = "RFC3339", value_parser = parse_timestamp)]
    pub not_before: Option<jiff::Timestamp>,
    /// Never faster than this.
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<Rate>,
    /// With --qmp the guest is looked at for about a second before its first byte
    /// is sent, and for at most so long after that, for as long as that makes the
    /// forecast surer. Without it, up to a minute: a quarter of the time that a
    /// fixed rate takes, a tenth of the time to a deadline, or no time where it is
    /// to be as fast as possible.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub measure_for: Option<Duration>,
    /// How long the guest may stand at the switchover.
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = parse_positive_duration)]
    pub downtime_limit: Duration,
    /// After this long in the switchover the guest goes back to the source.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_positive_duration)]
    pub switchover_timeout: Duration,
    /// What to do if the deadline cannot be met.
    #[arg(long, value_enum, default_value_t = OnInfeasible::BestEffort)]
    pub on_infeasible: OnInfeasible,
    /// Hold the migration back while a request to the guest's disks takes longer
    /// than this on average.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub disk_latency_limit: Option<Duration>,
    /// What becomes of the source's QEMU once the guest runs at the destination.
    #[arg(long, value_enum, default_value_t = SourceAfter::Quit)]
    pub source_after: SourceAfter,
    /// Relay a migration that has no return path. QEMU then says `completed`
    /// before the destination has the guest: if anything fails at the end, the
    /// guest may be LOST.
    #[arg(long)]
    pub allow_no_return_path: bool,
    /// Write the report (JSON) here when the migration ends, however it ends.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Keep everything that is seen and decided here, for `pacer simulate`.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

/// `pacer predict`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    rate against time, downtime and bytes:\n    \
    pacer predict --qmp /run/guest.qmp\n  \
    the rate that arrives in ten minutes, on a link of 1 Gbit/s:\n    \
    pacer predict --qmp /run/guest.qmp --max-rate 1Gbit/s --deadline 10m\n\n\
    The guest runs on; QEMU logs its dirty pages for one to nine seconds, which slows a guest \
    that writes much. Times count from the start of pacer source. With the rights of pacer \
    observe the pages are counted by eBPF, else by QEMU.\n\n\
    Exit codes: 0 predicted, also that it cannot be done; 1 nothing could be asked; 2 usage, or \
    refused: a migration is under way, or QEMU cannot migrate this guest.")]
pub struct PredictArgs {
    /// QMP socket of the QEMU whose guest is to move. It is held for as long as
    /// this takes, and QEMU serves one client a socket.
    #[arg(long, value_name = "PATH")]
    pub qmp: PathBuf,
    /// Predict this rate; may be given several times. Without it: a dozen rates
    /// from well below the knee to the highest.
    #[arg(long, value_name = "RATE")]
    pub rate: Vec<Rate>,
    /// Never faster than this. Without it the link is supposed to carry
    /// 10 Gbit/s.
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<Rate>,
    /// How long the guest may stand at the switchover.
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = parse_positive_duration)]
    pub downtime_limit: Duration,
    /// Look at the guest for at most so long after the usual second, for as long as
    /// that makes the prediction surer.
    #[arg(long, value_name = "DURATION", default_value = "8s", value_parser = parse_duration)]
    pub measure_for: Duration,
    /// Say which rate arrives this long after the start.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub deadline: Option<Duration>,
    /// One JSON object and nothing else on standard output.
    #[arg(long)]
    pub json: bool,
}

/// `pacer observe`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    look at a guest:\n    \
    pacer observe --pid $(pidof qemu-system-x86_64) --qmp /run/guest.qmp\n  \
    a JSON object a line, without QMP:\n    \
    pacer observe --pid 1234 --json\n\n\
    It needs CAP_BPF and CAP_PERFMON, CAP_SYS_PTRACE where the process is another user's, and \
    tracefs that it may read. Ctrl-C ends it.\n\n\
    Exit codes: 0 ended by a signal, or the process has ended; 1 nothing could be observed; \
    2 usage.")]
pub struct ObserveArgs {
    /// The QEMU process.
    #[arg(long, value_name = "PID")]
    pub pid: u32,
    /// QMP socket of that QEMU: outside of a migration only QEMU can show which
    /// memory the guest writes. Every 10 s it is asked to measure over windows
    /// of 50, 100, 200 and 500 ms (before QEMU 8.2: of 1 s), once a minute of
    /// 1 and 2 s too. While it measures it logs dirty pages, which slows a guest
    /// that writes much. It is not asked while a migration runs. The socket is
    /// held all the time, and QEMU serves one client a socket.
    #[arg(long, value_name = "PATH")]
    pub qmp: Option<PathBuf>,
    /// Serve Prometheus metrics at http://ADDR/metrics.
    #[arg(long, value_name = "ADDR", value_parser = parse_host_port)]
    pub metrics: Option<String>,
    /// How long a tick is.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// One JSON object a line and tick, and nothing else on standard output.
    #[arg(long)]
    pub json: bool,
}

/// When the guest is to arrive; at most one.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct ObjectiveArgs {
    /// Arrive this long after the start: not later, and not earlier.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub deadline: Option<Duration>,
    /// Arrive at this time: not later, and not earlier.
    #[arg(long, value_name = "RFC3339", value_parser = parse_timestamp)]
    pub finish_at: Option<jiff::Timestamp>,
    /// Arrive any time before this.
    #[arg(long, value_name = "RFC3339", value_parser = parse_timestamp)]
    pub by: Option<jiff::Timestamp>,
    /// Send at this rate, whenever that arrives.
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
}

/// `pacer resolve`.
#[derive(Debug, Args)]
pub struct ResolveArgs {
    /// QMP socket of this side's QEMU.
    #[arg(long, value_name = "PATH")]
    pub qmp: PathBuf,
    /// The other side's QEMU is certainly gone: its host is off or fenced. If
    /// that is not true, the guest may run twice.
    #[arg(long)]
    pub peer_is_dead: bool,
}

/// `pacer simulate`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  \
    what if it had gone at half the rate:\n    \
    pacer source … --rate 50MB/s --trace move.trace\n    \
    pacer simulate move.trace --rate 25MB/s\n\n\
    Exit codes: 0 simulated, whatever came of it; 1 the trace cannot be read; 2 usage.")]
pub struct SimulateArgs {
    /// What `pacer source --trace` wrote.
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Send at this rate.
    #[arg(long, value_name = "RATE", conflicts_with = "deadline")]
    pub rate: Option<Rate>,
    /// Arrive this long after the start.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub deadline: Option<Duration>,
    /// Never faster than this.
    #[arg(long, value_name = "RATE")]
    pub max_rate: Option<Rate>,
    /// How long the guest may stand at the switchover.
    #[arg(long, value_name = "DURATION", value_parser = parse_positive_duration)]
    pub downtime_limit: Option<Duration>,
    /// Give up after so much of the migration's time: one that never ends ends then.
    #[arg(long, value_name = "DURATION", default_value = "2h", value_parser = parse_positive_duration)]
    pub give_up: Duration,
    /// One JSON object, and nothing else on standard output.
    #[arg(long)]
    pub json: bool,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do if the deadline cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnInfeasible {
    /// Arrive as early as possible.
    BestEffort,
    /// Cancel; the guest stays at the source.
    Abort,
    /// Slow the guest's processors (QEMU's auto-converge), only as far as needed.
    Converge,
}

/// What becomes of the source's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SourceAfter {
    /// It ends.
    Quit,
    /// It stays, with the guest stopped.
    Leave,
}

/// A tick long enough to read everything in.
fn parse_interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(50);
    match parse_positive_duration(text)? {
        interval if interval < LEAST => Err("it must be 50ms at least".to_owned()),
        interval => Ok(interval),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
