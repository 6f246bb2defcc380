//! `pacer source`: everything that must be right before a migration begins.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::address::Listener;
use crate::cli::SourceArgs;
use crate::clock;
use crate::config::Wish;
use crate::driver::Driver;
use crate::exit::{Exit, Failure};
use crate::fault;
use crate::handover::earlier;
use crate::http;
use crate::identity::Identity;
use crate::journal::{Journal, Reach, directory, sweep};
use crate::link::{Link, LinkError, Ready};
use crate::measure::Accelerator;
use crate::metrics::Metrics;
use crate::preflight::{self, Finding};
use crate::process::ProcessId;
use crate::qmp::Qmp;
use crate::relay::endpoint::EndpointError;
use crate::relay::padding::LinkRate;
use crate::shutdown::Signals;
use crate::trace::TraceWriter;
use crate::units::{Rate, show_rate};

/// The source's QEMU where Pacer may talk to it.
#[derive(Debug)]
pub struct Monitored {
    /// Its monitor.
    pub qmp: Qmp,
    /// Its process.
    pub qemu: ProcessId,
    /// How it runs the guest.
    pub accelerator: Accelerator,
    /// The guest ran when Pacer came; one that was paused stays paused.
    pub was_running: bool,
}

/// What a migration begins with.
pub struct Prepared {
    /// The flags.
    pub args: SourceArgs,
    /// When the guest is to arrive.
    pub wish: Wish,
    /// Where QEMU connects.
    pub listener: Arc<Listener>,
    /// The attempt.
    pub attempt: Uuid,
    /// How to reach the destination.
    pub reach: Reach,
    /// The link; the driver takes it.
    pub link: Option<Link>,
    /// What the destination said.
    pub ready: Ready,
    /// What the link was found to take.
    pub link_rate: Option<LinkRate>,
    /// What was compared before.
    pub findings: Vec<Finding>,
    /// QEMU, with `--qmp`.
    pub monitored: Option<Monitored>,
    /// QEMU's process, as far as it is known.
    pub qemu: Option<ProcessId>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// What is seen and decided goes there; the driver takes it.
    pub trace: Option<TraceWriter>,
}

/// Runs the source's agent until its migration has ended.
///
/// # Errors
///
/// If nothing was started, or Pacer refuses.
pub async fn run(args: SourceArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    let wish = Wish::resolve(&args, clock::wall())?;
    let identity = Identity::load(&args.agent.identity).map_err(anyhow::Error::new)?;
    let reach = Reach::new(&args.connect, &args.agent.identity, args.agent.peer);
    let listener = args.listen.listen().await.map_err(|error| {
        Failure::not_started(format!(
            "cannot listen for QEMU on {} ({error}); give --listen another address",
            args.listen
        ))
    })?;
    check_journal()?;
    let trace = args.trace.as_deref().map(create_trace).transpose()?;
    let metrics = Arc::new(Metrics::new("source").map_err(anyhow::Error::new)?);
    let _server = http::serve_if(args.agent.metrics.as_deref(), &metrics).await?;
    let monitored = match &args.qmp {
        Some(path) => {
            let monitored = inspect(path, args.pid).await?;
            earlier::settle(&monitored.qmp, monitored.qemu, path).await?;
            Some(monitored)
        }
        None => None,
    };
    let qemu = match (&monitored, args.pid) {
        (Some(monitored), _) => Some(monitored.qemu),
        (None, Some(pid)) => Some(ProcessId::of(pid).map_err(anyhow::Error::new)?),
        (None, None) => None,
    };
    let attempt = Uuid::new_v4();
    let connecting = tokio::select! {
        connecting = Link::connect(&reach, attempt, false) => connecting,
        name = signals.next() => return Err(Failure::not_started(format!("{name} before anything began"))),
    };
    let (link, ready) = connecting.map_err(|error| explain(error, &identity))?;
    tracing::info!(
        destination = %reach.address,
        round_trip = ?link.round_trip(),
        %attempt,
        "the destination's agent is ready"
    );
    let findings = preflight(monitored.as_ref(), &ready).await?;
    let measuring = measure_link(&link, wish, args.max_rate);
    let link_rate = tokio::select! {
        link_rate = measuring => link_rate,
        name = signals.next() => return Err(Failure::not_started(format!("{name} before anything began"))),
    };
    fault::point("source-ready");
    let prepared = Prepared {
        args,
        wish,
        listener: Arc::new(listener),
        attempt,
        reach,
        link: Some(link),
        ready,
        link_rate,
        findings,
        monitored,
        qemu,
        metrics,
        trace,
    };
    Driver::new(prepared).run(signals).await
}

/// Compares both machines before anything moves.
async fn preflight(monitored: Option<&Monitored>, ready: &Ready) -> Result<Vec<Finding>, Failure> {
    let facts = match monitored {
        Some(monitored) => Some(preflight::ask::facts(&monitored.qmp, Some(monitored.qemu)).await),
        None => None,
    };
    let findings = preflight::judge(facts.as_ref(), ready.facts.as_ref());
    preflight::log(&findings);
    match preflight::refusal(&findings) {
        Some(reason) => Err(Failure::refused(reason)),
        None => Ok(findings),
    }
}

/// What the link takes, for what is decided by it. A fixed rate is sent whatever the
/// link takes, and whoever gives one wants no more than that on the link: nothing is
/// measured then.
async fn measure_link(link: &Link, wish: Wish, most: Option<Rate>) -> Option<LinkRate> {
    if matches!(wish, Wish::Rate(_)) {
        return None;
    }
    match link.measure(most.map(Rate::bytes_per_second)).await {
        Ok(rate) => {
            let (about, word) = match rate {
                LinkRate::About(rate) => (rate, "about"),
                LinkRate::AtLeast(rate) => (rate, "at least"),
            };
            tracing::info!("the link takes {word} {}", show_rate(about));
            Some(rate)
        }
        // The migration shows it, or that the link is gone.
        Err(error) => {
            tracing::warn!("what the link takes was not measured: {error}");
            None
        }
    }
}

fn create_trace(path: &Path) -> Result<TraceWriter, Failure> {
    TraceWriter::create(path).map_err(|error| {
        Failure::not_started(format!(
            "the trace {} cannot be made ({error})",
            path.display()
        ))
    })
}

/// A handover that cannot be remembered is not begun.
fn check_journal() -> Result<(), Failure> {
    let own = ProcessId::of(std::process::id()).map_err(anyhow::Error::new)?;
    sweep(&directory());
    Journal::of(&directory(), own)
        .map(drop)
        .map_err(|error| anyhow::Error::new(error).into())
}

/// Is there a QEMU at `path` whose guest can be migrated?
///
/// # Errors
///
/// If not, or a migration is under way.
pub(crate) async fn inspect(path: &Path, pid: Option<u32>) -> Result<Monitored, Failure> {
    let qmp = Qmp::connect(path).await.map_err(anyhow::Error::new)?;
    let pid = match pid {
        Some(pid) => pid,
        None => crate::qmp::owner(path).map_err(anyhow::Error::new)?,
    };
    let qemu = ProcessId::of(pid).map_err(anyhow::Error::new)?;
    let status = qmp.status().await.map_err(anyhow::Error::new)?;
    if !matches!(status.status.as_str(), "running" | "paused") {
        return Err(Failure::refused(format!(
            "the guest is neither running nor paused but `{}`; a guest in that state is not \
             migrated (after a crash: pacer resolve --qmp {})",
            status.status,
            path.display()
        )));
    }
    let info = qmp.migration().await.map_err(anyhow::Error::new)?;
    if let Some(reasons) = info.blocked_reasons.filter(|reasons| !reasons.is_empty()) {
        return Err(Failure::refused(format!(
            "QEMU cannot migrate this guest: {}",
            reasons.join("; ")
        )));
    }
    if let Some(word) = info.status
        && matches!(
            word.as_str(),
            "setup" | "active" | "pre-switchover" | "device"
        )
    {
        return Err(Failure::refused(format!(
            "a migration of this guest is under way already (`{word}`)"
        )));
    }
    let accelerator = Accelerator::of(&qmp).await.map_err(anyhow::Error::new)?;
    Ok(Monitored {
        qmp,
        qemu,
        accelerator,
        was_running: status.running,
    })
}

/// A refused key is explained with the fingerprint that the other side lacks.
fn explain(error: LinkError, identity: &Identity) -> Failure {
    let own = identity.fingerprint;
    match &error {
        LinkError::Endpoint(EndpointError::UnknownPeer { .. }) => anyhow::Error::new(error).into(),
        LinkError::Endpoint(EndpointError::NoPeer { reason, .. })
        | LinkError::Control(crate::relay::control::ControlError::Link(reason))
            if reason.contains("refused this agent's key") =>
        {
            Failure::not_started(format!(
                "the destination's agent does not know this one: start it with --peer {own}"
            ))
        }
        LinkError::Refused(_) | LinkError::Model(_) => Failure::Refused(anyhow::Error::new(error)),
        _ => anyhow::Error::new(error).into(),
    }
}
