//! `pacer dest`: the destination's event loop.

mod inbox;

use std::sync::Arc;
use std::time::Duration;

use inbox::{Event, Peer, accept_channels, accept_peers, forward_channel_events, read_messages};
use quinn::{Connection, Endpoint};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::address::Address;
use crate::cli::DestArgs;
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::fault;
use crate::handover::destination::Destination;
use crate::identity::Identity;
use crate::journal::{Reach, Step, directory, of_supervisor};
use crate::metrics::Metrics;
use crate::pacing::time::Time;
use crate::pacing::token_bucket::Rate;
use crate::relay::channel::{self, Counters, Shared};
use crate::relay::control::{ControlError, Sender};
use crate::relay::endpoint;
use crate::relay::frame::{DestinationState, Message};
use crate::relay::gate::Gate;
use crate::relay::tls::PinnedPeer;
use crate::shutdown::Signals;
use crate::supervisor;

/// How long the peer has to take what was said last.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the source has to say that nothing more will come.
const DONE_TIMEOUT: Duration = Duration::from_secs(10);
const REMIND: Duration = Duration::from_secs(30);
/// While nobody is connected QEMU is looked at this often.
const LOOK: Duration = Duration::from_secs(1);

/// The connection in use.
struct Link {
    number: u64,
    connection: Connection,
    sender: Sender,
    tasks: JoinSet<()>,
}

/// How long to wait for the source.
#[derive(Clone, Copy)]
struct Patience {
    /// While the guest does not run here; `None` is for ever.
    before: Option<Duration>,
    /// For the source to ask once more, once the guest runs here.
    after: Duration,
}

struct Dest {
    destination: Destination,
    forward: Address,
    events: UnboundedSender<Event>,
    inbox: UnboundedReceiver<Event>,
    link: Option<Link>,
    links: u64,
    /// A channel reached QEMU: the guest is on its way.
    under_way: bool,
    /// The guest runs here, since when.
    arrived_at: Option<Time>,
    shared: Shared,
    metrics: Arc<Metrics>,
    patience: Patience,
    started_at: Time,
    tasks: JoinSet<()>,
}

/// Runs the destination's agent until the guest has arrived or is given up.
///
/// # Errors
///
/// If nothing could be started.
pub async fn run(args: DestArgs, signals: &mut Signals) -> Result<Exit, Failure> {
    if supervisor::is_recovering()
        && let Some(exit) = ended_meanwhile()
    {
        return Ok(exit);
    }
    let identity = Identity::load(&args.agent.identity).map_err(anyhow::Error::new)?;
    let reach = Reach::new(&args.listen, &args.agent.identity, args.agent.peer);
    let pinned = PinnedPeer::new(args.agent.peer);
    let endpoint = endpoint::listen(&args.listen, &identity, &pinned)
        .await
        .map_err(anyhow::Error::new)?;
    let metrics = Arc::new(Metrics::new("destination").map_err(anyhow::Error::new)?);
    let _server = crate::http::serve_if(args.agent.metrics.as_deref(), &metrics).await?;
    let destination =
        Destination::prepare(args.qmp.as_deref(), args.handover, &args.forward, reach).await?;
    let address = endpoint.local_addr().map_err(anyhow::Error::new)?;
    tracing::info!(
        %address,
        fingerprint = %identity.fingerprint,
        handover = ?args.handover,
        "waiting for the source's agent"
    );
    if args.handover == crate::relay::frame::Handover::Qemu {
        tracing::warn!(
            "--handover qemu: QEMU starts the guest by itself; a fault between load and \
             acknowledgement lets it run twice"
        );
    }
    let patience = Patience {
        before: None,
        after: args.agent.outage_budget,
    };
    let dest = Dest::new(destination, args.forward, metrics, patience);
    let exit = dest.serve(&endpoint, &pinned, signals).await;
    endpoint.close(0_u32.into(), b"done");
    // Lets the close reach the peer; it times out by itself otherwise.
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    Ok(exit)
}

/// Takes `destination`, whose guest was loaded before, through the end of its
/// handover, if the source calls within `patience`. For `pacer resolve`.
///
/// # Errors
///
/// If its address cannot be listened on.
pub async fn finish(
    destination: Destination,
    patience: Duration,
    signals: &mut Signals,
) -> Result<Exit, Failure> {
    let reach = destination.reach().clone();
    let identity = Identity::load(&reach.identity).map_err(anyhow::Error::new)?;
    let peer = reach
        .peer()
        .ok_or_else(|| Failure::not_started("the journal names no peer"))?;
    let pinned = PinnedPeer::new(peer);
    let endpoint = endpoint::listen(&reach.address, &identity, &pinned)
        .await
        .map_err(anyhow::Error::new)?;
    let metrics = Arc::new(Metrics::new("destination").map_err(anyhow::Error::new)?);
    // Nothing is forwarded any more: the guest is loaded.
    let nowhere = Address::Unix("/nonexistent".into());
    let patience = Patience {
        before: Some(patience),
        after: patience,
    };
    let dest = Dest::new(destination, nowhere, metrics, patience);
    let exit = dest.serve(&endpoint, &pinned, signals).await;
    endpoint.close(0_u32.into(), b"done");
    let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    Ok(exit)
}

/// How it ended, if the QEMU of the agent that died before this one is gone.
fn ended_meanwhile() -> Option<Exit> {
    let supervisor = supervisor::process()?;
    let (_, entry) = of_supervisor(&directory(), supervisor).pop()?;
    if entry.qemu.is_alive() {
        return None;
    }
    tracing::error!(step = ?entry.step, "the agent died, and the destination's QEMU has ended");
    Some(match entry.step {
        Step::Running => Exit::Success,
        Step::Committed => Exit::GuestEnded,
        _ => Exit::Returned,
    })
}

impl Dest {
    fn new(
        destination: Destination,
        forward: Address,
        metrics: Arc<Metrics>,
        patience: Patience,
    ) -> Self {
        let (events, inbox) = unbounded_channel();
        let (channel_events, channel_inbox) = unbounded_channel();
        let mut tasks = JoinSet::new();
        tasks.spawn(forward_channel_events(channel_inbox, events.clone()));
        if let Some(qemu) = destination.qemu() {
            let events = events.clone();
            tasks.spawn(async move {
                qemu.ended().await;
                let _ = events.send(Event::QemuEnded);
            });
        }
        let now = clock::now();
        Self {
            arrived_at: (destination.step() == Some(Step::Running)).then_some(now),
            destination,
            forward,
            events,
            inbox,
            link: None,
            links: 0,
            under_way: false,
            shared: Shared {
                gate: Arc::new(Gate::new(Rate::Open)),
                counters: Arc::new(Counters::default()),
                abort: CancellationToken::new(),
                events: channel_events,
            },
            metrics,
            patience,
            started_at: now,
            tasks,
        }
    }

    /// Serves the source until there is nothing more to do.
    async fn serve(
        mut self,
        endpoint: &Endpoint,
        pinned: &Arc<PinnedPeer>,
        signals: &mut Signals,
    ) -> Exit {
        self.tasks.spawn(accept_peers(
            endpoint.clone(),
            Arc::clone(pinned),
            self.events.clone(),
        ));
        let mut remind = tokio::time::interval(REMIND);
        remind.reset();
        let mut look = tokio::time::interval(LOOK);
        if let Some(name) = supervisor::asked() {
            // The agent that died was asked to end.
            return self.handle_signal(name).await;
        }
        let exit = loop {
            let due = self.due();
            let exit = tokio::select! {
                Some(event) = self.inbox.recv() => self.handle_event(event).await,
                name = signals.next() => Some(self.handle_signal(name).await),
                _ = remind.tick() => {
                    self.remind().await;
                    None
                }
                _ = look.tick() => self.look().await,
                exit = out_of_patience(due) => Some(exit),
            };
            self.metrics.set_bytes(self.shared.counters.snapshot());
            if let Some(exit) = exit {
                break exit;
            }
        };
        if let Some(link) = self.link.take() {
            // The last answer must not be lost with the connection.
            link.sender.finish(FINISH_TIMEOUT).await;
        }
        exit
    }

    /// When to stop waiting, and how that ends.
    fn due(&self) -> Option<(Time, Exit)> {
        match self.arrived_at {
            // The source has heard it, or knows how to ask.
            Some(at) if self.link.is_some() => {
                Some((at + DONE_TIMEOUT.min(self.patience.after), Exit::Success))
            }
            Some(at) => Some((at + self.patience.after, Exit::Success)),
            None => self
                .patience
                .before
                .map(|before| (self.started_at + before, Exit::Stopped)),
        }
    }

    /// The guest runs here.
    fn on_arrived(&mut self) {
        self.arrived_at = self.arrived_at.or_else(|| Some(clock::now()));
    }

    async fn handle_event(&mut self, event: Event) -> Option<Exit> {
        match event {
            Event::Peer(peer) => self.handle_peer(*peer).await,
            Event::Message(number, message) if self.is_current(number) => {
                self.handle_message(message).await
            }
            Event::Lost(number, error) if self.is_current(number) => self.handle_lost(&error).await,
            Event::Message(..) | Event::Lost(..) => None,
            Event::Channel(event) => self.handle_channel(event).await,
            Event::Opened => {
                self.under_way = true;
                fault::point("destination-channel");
                None
            }
            Event::Unreachable(reason) => {
                tracing::error!(reason, "QEMU cannot be connected to");
                self.fail(&reason).await
            }
            Event::QemuEnded if self.arrived_at.is_some() => Some(Exit::Success),
            Event::QemuEnded => {
                tracing::error!("the destination's QEMU ended");
                self.fail("the destination's QEMU ended").await;
                Some(Exit::Returned)
            }
        }
    }

    fn is_current(&self, number: u64) -> bool {
        self.link.as_ref().is_some_and(|link| link.number == number)
    }

    async fn handle_peer(&mut self, peer: Peer) -> Option<Exit> {
        let Peer {
            connection,
            mut sender,
            receiver,
            attempt,
            resume,
        } = peer;
        if self.link.is_some() && self.destination.attempt() != Some(attempt) {
            self.refuse(
                sender,
                connection,
                "this agent is serving another migration".to_owned(),
            );
            return None;
        }
        let reply = match self.destination.begin(attempt, resume).await {
            Ok(ready) => ready,
            Err(reason) => {
                tracing::warn!(reason, "the source is refused");
                self.refuse(sender, connection, reason);
                return None;
            }
        };
        if sender.send(&reply).await.is_err() {
            return None;
        }
        tracing::info!(peer = %connection.remote_address(), %attempt, resume, "the source's agent is here");
        fault::point("destination-ready");
        self.links += 1;
        let number = self.links;
        let mut tasks = JoinSet::new();
        tasks.spawn(read_messages(number, receiver, self.events.clone()));
        tasks.spawn(accept_channels(
            connection.clone(),
            self.forward.clone(),
            self.shared.clone(),
            self.events.clone(),
        ));
        self.link = Some(Link {
            number,
            connection,
            sender,
            tasks,
        });
        None
    }

    /// Tells a peer why it is not served.
    fn refuse(&mut self, mut sender: Sender, connection: Connection, reason: String) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(async move {
            // Best effort: the peer may be gone.
            let _ = sender.send(&Message::Refused { reason }).await;
            sender.finish(FINISH_TIMEOUT).await;
            connection.close(0_u32.into(), b"refused");
        });
    }

    async fn handle_message(&mut self, message: Message) -> Option<Exit> {
        let reply = match message {
            Message::Status { attempt } => {
                let state = self.destination.state().await;
                if state == DestinationState::Running {
                    // QEMU, or somebody else, has continued it.
                    self.on_arrived();
                }
                Message::State { attempt, state }
            }
            Message::Commit {
                attempt,
                continue_guest,
            } => {
                tracing::info!(%attempt, "the guest is handed over to this side");
                self.destination.commit(attempt, continue_guest).await
            }
            Message::Abort { attempt, reason } => return self.handle_abort(attempt, reason).await,
            Message::Done { .. } if self.arrived_at.is_some() => return Some(Exit::Success),
            other => {
                tracing::warn!(?other, "a message that does not belong here");
                return None;
            }
        };
        self.reply(&reply).await;
        if matches!(reply, Message::State { .. }) {
            fault::point("destination-status");
        }
        match reply {
            Message::Running { .. } if self.arrived_at.is_none() => {
                self.on_arrived();
                tracing::info!("the guest runs here");
                fault::point("destination-running");
                self.metrics.set_outcome("completed");
                self.destination.settle().await;
            }
            Message::NeverRan { .. } => return Some(Exit::Returned),
            _ => {}
        }
        None
    }

    async fn handle_abort(&mut self, attempt: Uuid, reason: String) -> Option<Exit> {
        if self.destination.attempt() != Some(attempt) {
            return None;
        }
        tracing::info!(reason, "the guest stays at the source");
        if !self.under_way && self.destination.state().await == DestinationState::Loading {
            // Nothing has reached QEMU: it may wait for the next attempt.
            self.reply(&Message::Aborted { attempt }).await;
            self.link = None;
            return None;
        }
        self.shared.abort.cancel();
        if !self.destination.abort().await {
            tracing::error!("the source gives up a guest that was handed over; it stays here");
            return None;
        }
        self.reply(&Message::Aborted { attempt }).await;
        self.metrics.set_outcome("returned");
        Some(Exit::Returned)
    }

    async fn handle_lost(&mut self, error: &ControlError) -> Option<Exit> {
        if let Some(mut link) = self.link.take() {
            link.tasks.abort_all();
            link.connection.close(0_u32.into(), b"");
        }
        if self.arrived_at.is_some() {
            return None;
        }
        match self.destination.state().await {
            DestinationState::Running => {
                self.on_arrived();
                None
            }
            DestinationState::Loaded => {
                tracing::warn!(
                    reason = %error,
                    "the guest is loaded and paused here; waiting for the source to hand it over"
                );
                None
            }
            DestinationState::Loading if !self.under_way => {
                tracing::info!(reason = %error, "the source's agent is gone; waiting for the next");
                None
            }
            _ => {
                tracing::warn!(reason = %error, "the migration broke; the guest stays at the source");
                self.fail(&error.to_string()).await
            }
        }
    }

    async fn handle_channel(&mut self, event: channel::Event) -> Option<Exit> {
        match event {
            channel::Event::Seen(_) => {}
            channel::Event::Shut { value } => {
                self.destination.handle_shut(value);
                fault::point("destination-shut");
            }
            channel::Event::Finished => tracing::debug!("QEMU's connection ended in order"),
            channel::Event::Reset { reason } => {
                let state = self.destination.state().await;
                tracing::debug!(reason, ?state, "QEMU's connection was reset");
                if !matches!(state, DestinationState::Loaded | DestinationState::Running) {
                    return self.fail(&reason).await;
                }
            }
        }
        None
    }

    /// This attempt will not succeed: tells the source, and ends a QEMU that is
    /// of no more use. A guest that was handed over is never given up.
    async fn fail(&mut self, reason: &str) -> Option<Exit> {
        let attempt = self.destination.attempt()?;
        self.shared.abort.cancel();
        if !self.destination.abort().await && self.destination.step() != Some(Step::Aborted) {
            return None;
        }
        let reason = reason.to_owned();
        let message = if self.destination.is_held() {
            Message::NeverRan { attempt, reason }
        } else {
            let state = DestinationState::Failed { reason };
            Message::State { attempt, state }
        };
        self.reply(&message).await;
        self.metrics.set_outcome("returned");
        Some(Exit::Returned)
    }

    async fn handle_signal(&mut self, name: &str) -> Exit {
        tracing::info!("{name}: ending");
        if self.arrived_at.is_some() {
            return Exit::Success;
        }
        match self.destination.state().await {
            DestinationState::Running => Exit::Success,
            DestinationState::Loaded => {
                tracing::warn!(
                    "the guest is loaded and paused here and was not handed over; to go on with \
                     it, start `pacer dest` again with the same options or `pacer resolve --qmp`"
                );
                Exit::Stopped
            }
            state
                if self.under_way
                    || (self.destination.attempt().is_some()
                        && matches!(state, DestinationState::Failed { .. })) =>
            {
                self.fail("the destination's agent was told to end").await;
                Exit::Returned
            }
            _ => Exit::NotStarted,
        }
    }

    /// A QEMU whose migration failed while no agent was there is of no more use.
    async fn look(&mut self) -> Option<Exit> {
        if self.link.is_some() || self.destination.step() != Some(Step::Ready) {
            return None;
        }
        self.destination.attempt()?;
        match self.destination.state().await {
            DestinationState::Failed { reason } => {
                tracing::warn!(reason, "the migration broke; the guest stays at the source");
                self.fail(&reason).await
            }
            _ => None,
        }
    }

    /// Tells people what is waited for.
    async fn remind(&mut self) {
        let waits = self.arrived_at.is_none() && self.link.is_none();
        if waits && self.destination.state().await == DestinationState::Loaded {
            tracing::warn!(
                "the guest is loaded and paused here; still waiting for the source's word. If \
                 the source's host is certainly dead: pacer resolve --qmp PATH --peer-is-dead"
            );
        }
    }

    async fn reply(&mut self, message: &Message) {
        let Some(link) = &mut self.link else { return };
        if let Err(error) = link.sender.send(message).await {
            tracing::warn!(%error, ?message, "an answer did not reach the source");
        }
    }
}

/// Until `due`; for ever without.
async fn out_of_patience(due: Option<(Time, Exit)>) -> Exit {
    match due {
        Some((at, exit)) => {
            clock::sleep_until(at).await;
            exit
        }
        None => std::future::pending().await,
    }
}
