//! What an operator may do, in one place: the control API calls it in a running node, a command calls it alone. The same
//! stores, the same rules, the same replies; alone there is only nobody to tell, and the next node delivers.
//!
//! Thread: control, or a command's own. Nothing here touches quinn: what needs it is spawned on the data runtime.
//!
//! Invariant ACK: a reply that says `durable:true` has awaited the disk.

mod networks;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::{Note, PeerId, Scope, ServiceName};
use handfast_trust::peers;
use handfast_trust::rules::{Grant, Refusal};
use handfast_trust::trust_record::{Cause, TrustRecord, TrustState};
use handfast_trust::{
    Book, DirectoryLock, DurabilityError, Durable, FileKind, HealthCell, Networks, PeerRecord, Policy, Revision,
    Sessions, Store, Updated,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::clock::{MonotonicClock, unix_now};
use crate::config::Config;
use crate::control::api::{
    ApiError, Counts, ErrorCode, ExplainReply, PeerRequest, PeersReply, PendingReply, PingReply, RevokeReply,
    SessionsReply, StatusReply, Storage, TrustReply, TrustRequest,
};
use crate::control::metrics::Measured;
use crate::data_dir::DataDir;
use crate::engine::{ContactFault, Engine};
use crate::entropy;
use crate::links::{self, PingFault};
use crate::names::{self, Purpose};
use crate::stores::{self, Stores};
use crate::transport::DialError;
use crate::views;

/// How long an operator's change waits for the disk before it is "in force, not durable".
const DURABLE_PATIENCE: Duration = Duration::from_secs(5);
/// How long the reply to a revoke waits at most for the word to the peer, beyond the disk, where that is asked for.
pub const TELL_PATIENCE: Duration = Duration::from_millis(600);

/// The running node behind an operator.
pub struct Live {
    pub engine: Arc<Engine>,
    pub data: tokio::runtime::Handle,
}

enum Who {
    Live(Live),
    Alone { book: Box<Book>, stores: Box<Stores>, sessions: Sessions, config: Box<Config> },
}

/// See the module.
pub struct Operator {
    who: Who,
    clock: Arc<MonotonicClock>,
    health: HealthCell,
    peers: Store<PeerRecord>,
    networks: Arc<Networks>,
    data_dir: PathBuf,
    /// Places for those who wait for a peer's trust.
    waits: Semaphore,
}

/// How many may wait for a peer's trust at a time: connections and work are left for those who change something.
pub const WAITS_MAX: usize = 16;

/// The policy that a configuration asks for.
pub fn policy(config: &Config) -> Policy {
    Policy {
        deny: config.policy_deny.iter().copied().collect(),
        allow: config.policy_allow.iter().copied().collect(),
        accept_all: config.policy_accept_all,
        grants_per_hour: config.policy_grants_per_hour,
        grants_total: config.policy_grants_total,
        grants_per_sponsor: config.policy_grants_per_sponsor,
        pending_total: config.pending_total,
        pending_per_source: config.pending_per_source,
        pending_new_per_second: config.pending_new_per_second,
    }
}

impl Operator {
    /// The operator of a running node.
    pub fn of_node(live: Live, data_dir: &DataDir) -> Operator {
        let engine = &live.engine;
        Operator {
            clock: engine.clock.clone(),
            health: engine.health.clone(),
            peers: engine.peers.clone(),
            networks: engine.networks.clone(),
            data_dir: data_dir.path().to_path_buf(),
            who: Who::Live(live),
            waits: Semaphore::new(WAITS_MAX),
        }
    }

    /// An operator without a node, under the directory's lock. [`Operator::close_alone`] drains and leaves.
    ///
    /// # Errors
    /// Whatever keeps the stores from opening.
    pub fn open_alone(dir: &DataDir, config: &Config, lock: DirectoryLock) -> Result<Operator, ApiError> {
        let stores::Opened { key, networks, stores, clock } = stores::open_all(dir, lock)?;
        let (sessions, _, _) = Sessions::open(stores.sessions.clone(), entropy::incarnation()?, unix_now());
        let book = Book::new(stores.trust.clone(), key, policy(config), Box::new(|_, _| {}));
        let book = book.with_networks(networks.clone());
        Ok(Operator {
            clock,
            health: stores.health(),
            peers: stores.peers.clone(),
            networks,
            data_dir: dir.path().to_path_buf(),
            who: Who::Alone {
                book: Box::new(book),
                stores: Box::new(stores),
                sessions,
                config: Box::new(config.clone()),
            },
            waits: Semaphore::new(WAITS_MAX),
        })
    }

    /// Writes what is left and releases the directory.
    ///
    /// # Errors
    /// `NotDurable` when something could not be written.
    pub fn close_alone(self) -> Result<(), ApiError> {
        match self.who {
            Who::Alone { stores, .. } => stores.close().map(|_| ()),
            Who::Live(_) => Ok(()),
        }
    }

    fn book(&self) -> &Book {
        match &self.who {
            Who::Live(live) => &live.engine.book,
            Who::Alone { book, .. } => book,
        }
    }

    async fn peer(&self, text: &str, purpose: Purpose) -> Result<PeerId, ApiError> {
        names::resolve(self.book().store(), text, purpose).await
    }

    fn live(&self) -> Option<&Live> {
        match &self.who {
            Who::Live(live) => Some(live),
            Who::Alone { .. } => None,
        }
    }

    /// Issues our grant.
    ///
    /// # Errors
    /// `Usage` for text that is not allowed, `NotFound`, `Refused` for a blocked peer; with a wait `TimedOut`,
    /// `Refused` when the peer cannot be reached at all, or `TryAgain`, and nothing is done, when many wait already.
    pub async fn trust(&self, request: &TrustRequest) -> Result<TrustReply, ApiError> {
        let peer = self.peer(&request.peer, Purpose::Change).await?;
        let grant = grant_of(self.book(), peer, request).await?;
        let address = request.address.as_deref().map(names::host_and_port).transpose()?;
        if request.wait_ms.is_some() && self.live().is_none() {
            return Err(ApiError::new(ErrorCode::NoNode, "No node is running, so nobody can wait for the peer.")
                .hint("start one with `handfast run`, or leave --wait out"));
        }
        let _place = request.wait_ms.map(|_| self.place_to_wait()).transpose()?;
        let updated = self.book().trust(peer, &grant, unix_now()).map_err(|refusal| refused(refusal, &peer))?;
        if let Some(address) = address {
            peers::update(&self.peers, peer, |record| record.typed = Some(address.clone()));
        }
        if let Some(live) = self.live() {
            live.engine.forget_fault(&peer);
        }
        let mut reply = self.acknowledged(peer, &updated).await;
        if let (Some(live), Some(wait_ms)) = (self.live(), request.wait_ms) {
            wait_until_trusted(live, &peer, wait_ms).await?;
            reply.state = self.book().state(&peer, unix_now()).to_string();
        }
        Ok(reply)
    }

    fn place_to_wait(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.waits.try_acquire().map_err(|_| {
            let error = ApiError::new(ErrorCode::TryAgain, format!("{WAITS_MAX} commands wait for peers already."));
            error.hint("leave --wait out: the node goes on asking by itself")
        })
    }

    /// Refuses a request.
    ///
    /// # Errors
    /// `NotFound`, or `Refused` when there is nothing to reject.
    pub async fn reject(&self, request: &PeerRequest) -> Result<RevokeReply, ApiError> {
        self.take_back(request, Cause::Rejected).await
    }

    /// Takes trust back: cuts at once, answers when durable, and where that is asked for when the peer knows as well.
    ///
    /// # Errors
    /// `NotFound` for a peer that nothing is known of.
    pub async fn revoke(&self, request: &PeerRequest) -> Result<RevokeReply, ApiError> {
        self.take_back(request, Cause::Revoked).await
    }

    async fn take_back(&self, request: &PeerRequest, cause: Cause) -> Result<RevokeReply, ApiError> {
        let peer = self.peer(&request.peer, Purpose::Change).await?;
        let note = names::note(request.note.as_deref().unwrap_or_default())?;
        let updated = self.book().revoke(peer, &note, cause, unix_now()).map_err(|refusal| refused(refusal, &peer))?;
        let (sessions_closed, told) = self.cut(peer, &updated);
        let durable = self.durable(updated.revision).await;
        tell(told, request.wait_ms).await;
        let delivered = self.book().record(&peer).is_some_and(|record| record.is_delivered());
        let state = updated.state.to_string();
        Ok(RevokeReply {
            peer_id: peer.to_string(),
            state,
            revision: updated.revision.0,
            durable,
            sessions_closed,
            delivered,
        })
    }

    /// Lets nothing of the peer in any more.
    ///
    /// # Errors
    /// `Usage` for a bad id, `NotFound` for an unknown alias or prefix.
    pub async fn block(&self, request: &PeerRequest) -> Result<TrustReply, ApiError> {
        let peer = self.peer(&request.peer, Purpose::Change).await?;
        let updated = self.book().block(peer, true, unix_now()).map_err(|refusal| refused(refusal, &peer))?;
        self.cut(peer, &updated);
        Ok(self.acknowledged(peer, &updated).await)
    }

    /// Clears the local flag.
    ///
    /// # Errors
    /// `NotFound` for a peer that nothing is known of.
    pub async fn unblock(&self, request: &PeerRequest) -> Result<TrustReply, ApiError> {
        let peer = self.peer(&request.peer, Purpose::Change).await?;
        let updated = self.book().block(peer, false, unix_now()).map_err(|refusal| refused(refusal, &peer))?;
        Ok(self.acknowledged(peer, &updated).await)
    }

    /// Ends what the peer has, at once, and begins to tell it. Returns how many sessions that ended.
    fn cut(&self, peer: PeerId, updated: &Updated) -> (u32, Option<tokio::task::JoinHandle<()>>) {
        let Some(live) = self.live() else {
            return (0, None);
        };
        let ended = live.engine.settle(peer, updated);
        let engine = live.engine.clone();
        let told = live.data.spawn(async move { Box::pin(engine.close_revoked(peer)).await });
        (ended, Some(told))
    }

    /// The reply to a change of one peer, once the disk has it, or has had its time.
    async fn acknowledged(&self, peer: PeerId, updated: &Updated) -> TrustReply {
        if let Some(live) = self.live() {
            live.engine.settle(peer, updated);
        }
        let durable = self.durable(updated.revision).await;
        let state = self.book().state(&peer, unix_now()).to_string();
        TrustReply { peer_id: peer.to_string(), state, revision: updated.revision.0, durable }
    }

    async fn durable(&self, revision: Revision) -> bool {
        reached_in_time(self.book().durable(), revision).await
    }

    /// Requests that wait for a decision, oldest first.
    pub fn pending(&self) -> PendingReply {
        let now = unix_now();
        let mut rows: Vec<_> = self.records(|peer, record| {
            (self.book().state_of(peer, record, now) == TrustState::Pending).then(|| views::pending_row(peer, record))
        });
        rows.sort_by(|a, b| (&a.received_at, &a.peer_id).cmp(&(&b.received_at, &b.peer_id)));
        PendingReply { pending: rows }
    }

    /// All records, or those in one state.
    ///
    /// # Errors
    /// `Usage` for a state that does not exist.
    pub fn peers(&self, state: Option<&str>) -> Result<PeersReply, ApiError> {
        let wanted = state
            .map(|name| {
                TrustState::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| {
                    let names: Vec<_> = TrustState::ALL.iter().map(|state| state.as_str()).collect();
                    ApiError::new(ErrorCode::Usage, format!("There is no state `{name}`."))
                        .hint(format!("the states are {}", names.join(", ")))
                })
            })
            .transpose()?;
        let now = unix_now();
        let mut rows = self.records(|peer, record| {
            let place = self.peers.read(|table| table.get(peer).cloned());
            let view = self.book().view(*peer, now);
            let shown = wanted.is_none_or(|wanted| record.state(&view) == wanted);
            shown.then(|| views::peer_row(peer, record, place.as_deref(), &view))
        });
        rows.sort_by(|a, b| a.peer_id.cmp(&b.peer_id));
        Ok(PeersReply { peers: rows })
    }

    fn records<T>(&self, mut row: impl FnMut(&PeerId, &TrustRecord) -> Option<T>) -> Vec<T> {
        self.book().store().walk().flatten().filter_map(|(peer, record)| row(&peer, &record)).collect()
    }

    /// Live and closed sessions, newest first.
    pub fn sessions(&self) -> SessionsReply {
        let mut list = match &self.who {
            Who::Live(live) => live.engine.sessions.list(),
            Who::Alone { sessions, .. } => sessions.list(),
        };
        list.sort_by(|(a_id, a), (b_id, b)| (b.opened_at, b_id).cmp(&(a.opened_at, a_id)));
        SessionsReply { sessions: list.iter().map(|(id, record)| views::session_row(id, record)).collect() }
    }

    /// Why a peer is in its state, and how it came there.
    ///
    /// # Errors
    /// `NotFound` for a peer that nothing is known of.
    pub fn explain(&self, peer: &str) -> Result<ExplainReply, ApiError> {
        let peer = names::look_up(self.book().store(), peer, Purpose::Look)?;
        let record = self.book().record(&peer).ok_or_else(|| refused(Refusal::Unknown, &peer))?;
        let view = self.book().view(peer, unix_now());
        let mut why = views::why(&record, &view);
        if let Some(fault) = self.live().and_then(|live| live.engine.last_fault(&peer)) {
            why.push_str(&format!(" The last attempt to reach it failed: {fault}."));
        }
        Ok(ExplainReply {
            peer_id: peer.to_string(),
            state: record.state(&view).to_string(),
            why,
            history: record.history.iter().map(views::history_row).collect(),
        })
    }

    /// Health and counts, and how far this node is in its networks: that walks their rosters.
    pub fn status(&self) -> StatusReply {
        StatusReply { networks: self.network_list().networks, ..self.status_at_once() }
    }

    /// Health and counts alone. Costs no more with many records.
    pub fn status_at_once(&self) -> StatusReply {
        let health = self.health.snapshot();
        let degraded = health.degraded(self.clock.now());
        let mut reasons: Vec<String> = degraded.iter().map(ToString::to_string).collect();
        if health.floor_failing {
            reasons.push("the floor file cannot be written".to_owned());
        }
        StatusReply {
            peer_id: self.book().me().to_string(),
            health: if degraded.is_some() { "degraded" } else { "ok" }.to_owned(),
            reasons,
            revision: self.book().store().revision().0,
            durable_revision: self.book().durable().current().0,
            counts: self.counts(),
            storage: Storage {
                failures_in_a_row: health.failures_in_a_row,
                last_error: health.last_error.map(|(file, error)| format!("{file}: {error}")),
                fsyncs: health.syncs,
                bytes_written: health.bytes_appended + health.bytes_checkpointed,
                checkpoints: health.checkpoints,
            },
            data_dir: self.data_dir.display().to_string(),
            listen: self.live().map_or(Vec::new(), |live| {
                live.engine.transport.local_addrs().iter().map(ToString::to_string).collect()
            }),
            networks: Vec::new(),
        }
    }

    /// What only metrics show.
    pub fn measured(&self) -> Measured {
        let sessions = match &self.who {
            Who::Live(live) => &live.engine.sessions,
            Who::Alone { sessions, .. } => sessions,
        };
        Measured {
            holds: vec![
                (FileKind::Trust, self.book().store().hold_times()),
                (FileKind::Invites, self.networks.store().hold_times()),
                (FileKind::Peers, self.peers.hold_times()),
                (FileKind::Sessions, sessions.store().hold_times()),
            ],
            admission: self.live().map(|live| (live.engine.admission.counts(), live.engine.admission.in_use())),
        }
    }

    fn counts(&self) -> Counts {
        let counted = self.book().census();
        let mut counts = Counts {
            trusted: counted.of(TrustState::Trusted),
            pending: counted.of(TrustState::Pending),
            requested: counted.of(TrustState::Requested),
            revoked: counted.of(TrustState::Revoked),
            refused: counted.of(TrustState::Refused),
            blocked: counted.of(TrustState::Blocked),
            undelivered: counted.undelivered,
            ..Counts::default()
        };
        if let Some(live) = self.live() {
            counts.sessions = live.engine.registry.counts().0;
            let in_use = live.engine.admission.in_use();
            counts.half_open = u64::from(in_use.half_open);
            counts.under_way = u64::from(in_use.friends) + u64::from(in_use.strangers);
        }
        counts
    }

    /// One authenticated round trip to a trusted peer, over its session or a new one.
    ///
    /// # Errors
    /// `NoNode`, `Refused` for a peer that is not trusted or has another key, `TimedOut`, `Failure`.
    pub async fn ping(&self, request: &PeerRequest) -> Result<PingReply, ApiError> {
        let Some(live) = self.live() else {
            return Err(
                ApiError::new(ErrorCode::NoNode, "No node is running here.").hint("start one with `handfast run`")
            );
        };
        let peer = self.peer(&request.peer, Purpose::Look).await?;
        let nonce = u64::from_le_bytes(entropy::bytes()?);
        let engine = live.engine.clone();
        let task = live.data.spawn(async move { Box::pin(engine.ping(peer, nonce)).await });
        match task.await {
            Ok(Ok(round_trip)) => {
                let rtt_us = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
                Ok(PingReply { peer_id: peer.to_string(), rtt_us })
            }
            Ok(Err(fault)) => Err(unreached(&peer, fault)),
            Err(_) => Err(ApiError::new(ErrorCode::Failure, "The node is stopping.")),
        }
    }
}

impl Engine {
    async fn ping(self: &Arc<Engine>, peer: PeerId, nonce: u64) -> Result<Duration, ContactFault> {
        self.may_ping(&peer)?;
        let answer = match self.registry.session(&peer) {
            Some(link) => links::ping(&link.connection, nonce).await,
            None => Err(PingFault::Ended),
        };
        // Two that have dialled each other may not have agreed yet which connection stays: an exchange settles it.
        if answer != Err(PingFault::Ended) {
            return answer.map_err(ContactFault::Ping);
        }
        self.contact(peer, true).await?;
        // The exchange may have ended what it was to bring.
        self.may_ping(&peer)?;
        let link = self.registry.session(&peer).ok_or(ContactFault::NoSession)?;
        links::ping(&link.connection, nonce).await.map_err(ContactFault::Ping)
    }

    fn may_ping(&self, peer: &PeerId) -> Result<(), ContactFault> {
        use handfast_trust::{Direction, Purpose};
        self.book.authorise(peer, Purpose::Session, Direction::Outbound, unix_now()).map_err(ContactFault::Denied)
    }
}

/// Waits for the disk, without the distances that writes keep for many at once. A failed attempt is not the end: the
/// drainer goes on, and so does the wait.
async fn reached_in_time(durable: &Durable, revision: Revision) -> bool {
    let until = Instant::now() + DURABLE_PATIENCE;
    loop {
        match timeout_at(until, durable.reached_at_once(revision)).await {
            Ok(Ok(())) => return true,
            Ok(Err(DurabilityError::Failed(_))) => {}
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}

async fn tell(told: Option<tokio::task::JoinHandle<()>>, wait_ms: Option<u64>) {
    if let (Some(told), Some(wait_ms)) = (told, wait_ms) {
        // Late is not lost: the outbox delivers what this did not.
        let _ = tokio::time::timeout(Duration::from_millis(wait_ms).min(TELL_PATIENCE), told).await;
    }
}

async fn grant_of(book: &Book, peer: PeerId, request: &TrustRequest) -> Result<Grant, ApiError> {
    let alias = match &request.alias {
        Some(alias) => Some(names::new_alias(book.store(), peer, alias).await?),
        None => None,
    };
    let usage = |error: &dyn std::fmt::Display| ApiError::new(ErrorCode::Usage, format!("--scope: {error}."));
    let services: Result<Vec<ServiceName>, _> = request.scope.iter().map(|name| ServiceName::new(name)).collect();
    let services = services.map_err(|error| usage(&error))?;
    let scope = if services.is_empty() { None } else { Some(Scope::new(services).map_err(|error| usage(&error))?) };
    if request.for_ms == Some(0) {
        return Err(ApiError::new(ErrorCode::Usage, "A grant lasts longer than no time."));
    }
    let note: Note = names::note(request.note.as_deref().unwrap_or_default())?;
    Ok(Grant { note, alias, for_ms: request.for_ms, scope })
}

fn refused(refusal: Refusal, peer: &PeerId) -> ApiError {
    let short = peer.short();
    match refusal {
        Refusal::Blocked => ApiError::new(ErrorCode::Refused, format!("{short} is blocked."))
            .hint(format!("run `handfast unblock {peer}` first, or take it off the deny list")),
        Refusal::Unknown => ApiError::new(ErrorCode::NotFound, format!("Nothing is known of {short}."))
            .hint("`handfast peers` lists who is known; `handfast block` keeps a peer out before it comes"),
        Refusal::NothingToReject => ApiError::new(ErrorCode::NotFound, format!("{short} has not requested anything."))
            .hint("`handfast pending` lists the requests"),
        Refusal::NotNamed | Refusal::NoBudget => ApiError::new(ErrorCode::Refused, format!("{short}: {refusal}.")),
        Refusal::Myself => ApiError::new(ErrorCode::Refused, "This is this node's own id."),
    }
}

fn unreached(peer: &PeerId, fault: ContactFault) -> ApiError {
    let code = match fault {
        ContactFault::Dial { fault: DialError::TimedOut, .. } | ContactFault::Ping(PingFault::TimedOut) => {
            ErrorCode::TimedOut
        }
        ContactFault::Dial { fault: DialError::WrongKey { .. }, .. }
        | ContactFault::Denied(_)
        | ContactFault::Refused
        | ContactFault::NotAllowed => ErrorCode::Refused,
        ContactFault::NoAddress => ErrorCode::NotFound,
        _ => ErrorCode::Failure,
    };
    let error = ApiError::new(code, format!("{} was not reached: {fault}.", peer.short()));
    match fault {
        ContactFault::NoAddress => error.hint(format!("give one: handfast trust {peer}@HOST:PORT")),
        ContactFault::Denied(_) => error.hint(format!("`handfast explain {}` says why", peer.short())),
        _ => error,
    }
}

/// Waits until the two trust each other, or the time is up, or it is plain that waiting is useless.
async fn wait_until_trusted(live: &Live, peer: &PeerId, wait_ms: u64) -> Result<(), ApiError> {
    let until = Instant::now() + Duration::from_millis(wait_ms);
    loop {
        let seen = live.engine.events.newest();
        let state = live.engine.book.state(peer, unix_now());
        let fault = live.engine.last_fault(peer);
        match (state, fault) {
            (TrustState::Trusted, _) => return Ok(()),
            (TrustState::Revoked | TrustState::Blocked, _) => {
                return Err(ApiError::new(ErrorCode::Refused, format!("{} is {state} now.", peer.short())));
            }
            (_, Some(fault @ ContactFault::Dial { fault: DialError::WrongKey { .. } | DialError::Myself, .. })) => {
                return Err(unreached(peer, fault));
            }
            _ => {}
        }
        if timeout_at(until, live.engine.events.wait_past(seen)).await.is_err() {
            let why = match (fault, state) {
                (Some(fault), _) => format!("the last attempt to reach it failed: {fault}"),
                (None, TrustState::Refused) => "it has refused us".to_owned(),
                (None, _) if live.engine.owes(peer) => "it has not got our request".to_owned(),
                (None, _) => "it has not decided".to_owned(),
            };
            let message = format!("{} does not trust us yet: {why}.", peer.short());
            return Err(ApiError::new(ErrorCode::TimedOut, message).hint(
                "our grant stands and is delivered when the peer can be reached; `handfast explain` shows more",
            ));
        }
    }
}
