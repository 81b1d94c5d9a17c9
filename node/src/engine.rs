//! The handshake engine: what connects book, registry and transport. Every change of trust in a running node ends in
//! [`Engine::settle`], which cuts, delivers and says so.
//!
//! Threads: everything that touches quinn runs on the data runtime. What an operator's command needs at once (the book,
//! cutting) works from any thread.
//!
//! Not here: the accept loop and streams (`links`), retries (`outbox`), what an operator may ask (`operations`).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handfast_protocol::exchange::{Agreement, ExchangeFault, Shown, Standing};
use handfast_protocol::{
    Address, AddressRecord, CloseCode, Incarnation, PeerId, SecretKey, SignedAddressRecord, UnixMillis, Verified,
};
use handfast_trust::peers::{self, DIAL_ADDRESSES_MAX};
use handfast_trust::rules::Showing;
use handfast_trust::trust_record::{Cause, Edge, Side, TrustState};
use handfast_trust::{
    Book, DegradedReason, Denied, Direction, EndReason, HealthCell, Networks, PeerRecord, Purpose, Role, SessionId,
    Sessions, Store, Transition, Updated,
};

use crate::admission::{Admission, FRIEND_FOR, FRIEND_PLACES_MAX};
use crate::clock::{MonotonicClock, unix_now};
use crate::config::Config;
use crate::dial_budget::DialBudget;
use crate::driver::{self, Exchanged};
use crate::entropy;
use crate::events::EventLog;
use crate::join::upkeep::UpkeepBell;
use crate::links::{self, PingFault};
use crate::outbox::OutboxBell;
use crate::reachable;
use crate::registry::{Link, Promotion, Registry};
use crate::resolve::Resolver;
use crate::service::Services;
use crate::transport::{Berths, CloseReason, DialError, Transport, canonical, close_reason};

/// How long one address may take to answer a dial.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// How long a revoke waits for the disk, and then for the old connection, before it closes that connection.
const REVOKE_PATIENCE: Duration = Duration::from_millis(200);
/// How long our own address record is good for, and after what part of that it is made anew.
const ADDRESS_LIFE_MS: u64 = 7 * 24 * 3_600_000;
const ADDRESS_RENEWAL_MS: u64 = 24 * 3_600_000;

/// Peers whose last failure is remembered.
const FAULTS_MAX: usize = 4_096;

/// Why a peer was not reached, for the local operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ContactFault {
    /// Nobody has said where the peer is.
    #[error("no address of the peer is known")]
    NoAddress,
    /// The name does not resolve.
    #[error("the name of the peer's host does not resolve")]
    NoSuchHost,
    /// It was dialled in vain too often, on somebody's word alone.
    #[error("{0} was dialled in vain too often; it is left alone for a while")]
    TooOften(SocketAddr),
    /// No address led to the peer; the last failure.
    #[error("{at}: {fault}")]
    Dial {
        /// Where.
        at: SocketAddr,
        /// How.
        fault: DialError,
    },
    /// The connection stands, the exchange over it failed.
    #[error("{0}")]
    Exchange(ExchangeFault),
    /// The peer closed the connection with that: it has blocked us.
    #[error("the peer refuses to be contacted")]
    Refused,
    /// Too many connections with this peer already.
    #[error("too many connections with this peer")]
    TooMany,
    /// The peer is blocked here, or the node is stopping.
    #[error("the peer is not to be contacted")]
    NotAllowed,
    /// The two do not trust each other.
    #[error("{0}")]
    Denied(Denied),
    /// The exchange brought no session.
    #[error("the peer did not agree to a session")]
    NoSession,
    /// The session stands, the ping over it failed.
    #[error("{0}")]
    Ping(PingFault),
}

/// See the module.
pub struct Engine {
    pub book: Book,
    pub peers: Store<PeerRecord>,
    pub sessions: Arc<Sessions>,
    pub events: Arc<EventLog>,
    pub registry: Arc<Registry>,
    pub transport: Transport,
    pub services: Services,
    pub incarnation: Incarnation,
    pub config: Config,
    pub clock: Arc<MonotonicClock>,
    pub health: HealthCell,
    pub outbox: OutboxBell,
    pub networks: Arc<Networks>,
    pub upkeep: UpkeepBell,
    dials: DialBudget,
    pub admission: Arc<Admission>,
    pub berths: Berths,
    key: SecretKey,
    own_address: Mutex<Option<(UnixMillis, SignedAddressRecord)>>,
    resolver: Resolver,
    flights: Mutex<HashMap<PeerId, Arc<Flight>>>,
    faults: Mutex<HashMap<PeerId, ContactFault>>,
}

/// The contacts with one peer, one at a time.
#[derive(Default)]
struct Flight {
    turn: tokio::sync::Mutex<()>,
    /// The operator has said something new of the peer since the one that runs began.
    is_overtaken: AtomicBool,
}

/// Whether the peer has closed the connection because it will hear nothing of us.
fn is_refused(link: &Link) -> bool {
    let reason = link.connection.close_reason();
    reason.is_some_and(|reason| close_reason(&reason) == CloseReason::Peer(CloseCode::Refused))
}

/// What an engine is made of.
pub struct Parts {
    pub book: Book,
    pub peers: Store<PeerRecord>,
    pub sessions: Arc<Sessions>,
    pub events: Arc<EventLog>,
    pub transport: Transport,
    pub incarnation: Incarnation,
    pub config: Config,
    pub clock: Arc<MonotonicClock>,
    pub health: HealthCell,
    pub outbox: OutboxBell,
    pub networks: Arc<Networks>,
    pub admission: Arc<Admission>,
    pub berths: Berths,
    pub key: SecretKey,
}

impl Engine {
    pub fn new(parts: Parts) -> Engine {
        let registry = Arc::new(Registry::new(parts.book.me(), parts.sessions.clone(), parts.events.clone()));
        Engine {
            registry,
            book: parts.book.with_networks(parts.networks.clone()),
            networks: parts.networks,
            upkeep: UpkeepBell::default(),
            dials: DialBudget::default(),
            peers: parts.peers,
            sessions: parts.sessions,
            events: parts.events,
            transport: parts.transport,
            services: Services::default(),
            incarnation: parts.incarnation,
            config: parts.config,
            clock: parts.clock,
            health: parts.health,
            outbox: parts.outbox,
            admission: parts.admission,
            berths: parts.berths,
            key: parts.key,
            own_address: Mutex::default(),
            resolver: Resolver::default(),
            flights: Mutex::default(),
            faults: Mutex::default(),
        }
    }

    /// After a start, friends are expected where they were last, for as long as they would have been without it.
    pub fn expect_friends(&self) {
        let (now, clock) = (unix_now(), self.clock.now().0);
        let mut friends: Vec<_> = self
            .peers
            .walk()
            .flatten()
            .filter_map(|(peer, record)| {
                let (at, seen) = record.observed.zip(record.last_seen)?;
                let left = FRIEND_FOR.checked_sub(Duration::from_millis(now.since(seen)))?;
                let trusted = self.book.authorise(&peer, Purpose::Session, Direction::Inbound, now);
                trusted.is_ok().then_some((left, peer, at))
            })
            .collect();
        // Where there are more than are kept: those that were seen last.
        friends.sort_unstable_by(|a, b| b.cmp(a));
        for (left, peer, at) in friends.into_iter().take(FRIEND_PLACES_MAX) {
            self.admission.expect(peer, SocketAddr::from(at).ip(), clock + left);
        }
    }

    /// Why the disk is not to be relied on now.
    pub fn degraded(&self) -> Option<DegradedReason> {
        self.health.snapshot().degraded(self.clock.now())
    }

    /// This node, as it shows itself to a peer with which it shares these networks.
    pub fn showing(&self, networks: Vec<Standing>) -> Showing {
        Showing { incarnation: self.incarnation, address: self.address_record(), networks }
    }

    /// Where this node can be reached, signed.
    pub fn address_record(&self) -> Option<SignedAddressRecord> {
        let now = unix_now();
        let mut cached = self.own_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made_at, record)) = cached.as_ref()
            && now.since(*made_at) < ADDRESS_RENEWAL_MS
        {
            return Some(record.clone());
        }
        let addresses = reachable::addresses(&self.config.advertise, &self.transport.local_addrs());
        if addresses.is_empty() {
            return None;
        }
        let record =
            AddressRecord { peer: self.book.me(), addresses, epoch: now.0, expires_at: now.plus(ADDRESS_LIFE_MS) };
        let signed = record.sign(&self.key).ok()?;
        *cached = Some((now, signed.clone()));
        Some(signed)
    }

    /// Takes in what the peer showed on `link`.
    pub fn merge(&self, link: &Link, shown: &Shown) -> Updated {
        let now = unix_now();
        let remote = canonical(link.connection.remote_address());
        let updated = self.book.merge(link.peer, shown, Some(remote), now);
        if self.book.record(&link.peer).is_some() {
            let local_too = self.config.dial_local_addresses || remote.ip().is_loopback();
            peers::update(&self.peers, link.peer, |record| {
                record.last_seen = Some(now);
                record.observed = Some(remote.into());
                if let Some(address) = &shown.address {
                    record.take_signed(address, local_too);
                }
            });
        }
        // Our own word goes with the answer that follows, or was offered before: it is not rung for here, or a peer that
        // keeps none of it would be asked again and again.
        self.cut(link.peer, &updated);
        updated
    }

    /// Carries out what a change of trust asks for: cuts at once, and lets the outbox deliver. Returns how many sessions
    /// ended. Any thread.
    pub fn settle(&self, peer: PeerId, updated: &Updated) -> u32 {
        let ended = self.cut(peer, updated);
        self.deliver(peer);
        ended
    }

    /// Rings for the peer if our edge is owed to it.
    pub fn deliver(&self, peer: PeerId) {
        if self.owes(&peer) {
            self.outbox.ring(peer);
        }
    }

    fn cut(&self, peer: PeerId, updated: &Updated) -> u32 {
        let mut ended = 0;
        // An end that somebody noticed before, and has not carried out yet, is carried out with what comes after it.
        let is_left = || self.registry.session(&peer).is_some();
        let falls =
            |change: &Transition| change.from == TrustState::Trusted || change.to != TrustState::Trusted && is_left();
        if let Some(fall) = updated.transition.filter(falls) {
            let reason = match fall.cause {
                Cause::TheyRevoked => EndReason::RevokedByPeer,
                Cause::Expired => EndReason::Expired,
                Cause::Expelled | Cause::MembershipEnded => EndReason::Expelled,
                _ => EndReason::Revoked,
            };
            ended = self.registry.cut(&peer, reason);
        }
        ended
    }

    /// True if what the peer says is what we hold of it already.
    pub fn holds(&self, peer: &PeerId, shown: &Shown) -> bool {
        let held = self.book.record(peer).and_then(|record| record.theirs.as_ref().map(Edge::held));
        held.is_some() && held == shown.theirs.as_ref().map(Verified::held)
    }

    /// True while our edge is not on the peer's disk and is worth delivering.
    pub fn owes(&self, peer: &PeerId) -> bool {
        let now = unix_now();
        self.book.record(peer).is_some_and(|record| {
            !record.blocked
                && !record.is_delivered()
                && record.ours.as_ref().is_some_and(|ours| ours.is_revoke() || ours.is_grant_at(Side::Ours, now))
        })
    }

    /// What follows from an exchange that has ended on `link`: a session, or the end of the connection.
    pub fn after_exchange(&self, link: &Arc<Link>, exchanged: &Exchanged, opened_here: bool) {
        let now = unix_now();
        if exchanged.result.is_ok() {
            link.answered(self.clock.now().0);
        }
        let trusted = || self.book.authorise(&link.peer, Purpose::Session, Direction::Inbound, now).is_ok();
        // Both ends judge by the same word, the Answer's: otherwise one would keep a connection that the other drops.
        if let Some(incarnation) = exchanged.incarnation.filter(|_| exchanged.granted)
            && trusted()
            && let Ok(id) = entropy::bytes().map(SessionId)
        {
            let ip = link.connection.remote_address().ip();
            self.admission.befriend(link.peer, ip, self.clock.now().0);
            let promotion = self.registry.promote(link, incarnation, id);
            // Registered before trust is checked again: a revoke in between either found the session and cut it, or
            // is seen here.
            if promotion == Promotion::Opened && !trusted() {
                self.registry.ended(link, EndReason::Revoked);
                link.retire(CloseCode::Done);
            }
            // The other end, or an exchange before this one, has closed or cut the connection meanwhile: on another one, then.
            // This one must not be taken for it.
            if promotion == Promotion::Gone {
                link.retire(CloseCode::Done);
            }
            if promotion == Promotion::Gone && trusted() && self.registry.session(&link.peer).is_none() {
                self.outbox.reopen(link.peer);
            }
            return;
        }
        // Who opens an exchange and hangs in it, or breaks it, has no more time on this connection.
        let hangs = exchanged.result.is_err() && !exchanged.says_later() && !link.is_session();
        if hangs || (opened_here && !(link.is_session() && exchanged.says_later())) {
            link.retire(CloseCode::Done);
        }
    }

    /// Offers what we say to `peer`, over its session or a new connection. One at a time for each peer; who waited looks
    /// whether it is still owed. `demand`: also when nothing is owed.
    pub async fn contact(self: &Arc<Engine>, peer: PeerId, demand: bool) -> Result<Option<Agreement>, ContactFault> {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            flights.entry(peer).or_default().clone()
        };
        let result = {
            let _turn = flight.turn.lock().await;
            flight.is_overtaken.store(false, Ordering::Relaxed);
            let needed = self.owes(&peer) || (demand && self.registry.session(&peer).is_none());
            let result = if needed { self.contact_now(peer).await.map(Some) } else { Ok(None) };
            self.note_fault(&peer, result.as_ref().err(), &flight);
            result
        };
        drop(flight);
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&peer).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&peer);
        }
        result
    }

    /// How the last attempt to reach a peer failed, while it is the last.
    pub fn last_fault(&self, peer: &PeerId) -> Option<ContactFault> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).get(peer).copied()
    }

    /// What the operator says of a peer is tried anew: how attempts failed that began before does not count any more.
    pub fn forget_fault(&self, peer: &PeerId) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.remove(peer);
        if let Some(flight) = self.flights.lock().unwrap_or_else(PoisonError::into_inner).get(peer) {
            flight.is_overtaken.store(true, Ordering::Relaxed);
        }
    }

    fn note_fault(&self, peer: &PeerId, fault: Option<&ContactFault>, flight: &Flight) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if flight.is_overtaken.load(Ordering::Relaxed) {
            return;
        }
        let before = match fault {
            Some(fault) if faults.len() < FAULTS_MAX || faults.contains_key(peer) => faults.insert(*peer, *fault),
            _ => faults.remove(peer),
        };
        drop(faults);
        if matches!(fault, Some(ContactFault::Dial { .. } | ContactFault::NoAddress)) {
            self.upkeep.lost(self.networks.members().networks_of(peer));
        }
        // Where nobody has said where the peer is, nothing was tried.
        let tried = fault.filter(|fault| **fault != ContactFault::NoAddress);
        if let Some(fault) = tried.filter(|fault| before.as_ref() != Some(fault)) {
            self.events.push("contact_failed", Some(*peer), &fault.to_string());
        }
    }

    async fn contact_now(self: &Arc<Engine>, peer: PeerId) -> Result<Agreement, ContactFault> {
        if self.book.state(&peer, unix_now()) == TrustState::Blocked {
            return Err(ContactFault::NotAllowed);
        }
        let link = self.link_to(peer, &[]).await?;
        let ours = || self.book.record(&peer).and_then(|record| record.ours.as_ref().map(Edge::held));
        let before = ours();
        let exchanged = self.exchange_over(&link).await;
        if ours() != before {
            self.deliver(peer);
        }
        match exchanged.result {
            Ok(Some(agreement)) => Ok(agreement),
            Ok(None) => Err(ContactFault::Exchange(ExchangeFault::Closed)),
            Err(_) if is_refused(&link) => Err(ContactFault::Refused),
            Err(fault) => Err(ContactFault::Exchange(fault)),
        }
    }

    /// A connection with `peer`: one that is open, or a new one. `more` addresses are tried first.
    pub async fn link_to(self: &Arc<Engine>, peer: PeerId, more: &[Address]) -> Result<Arc<Link>, ContactFault> {
        let open = self.registry.links(&peer).into_iter().find(|link| link.is_open());
        match open {
            Some(link) => Ok(link),
            None => self.dial(peer, more).await,
        }
    }

    /// An exchange that is opened here, with all that follows from it.
    pub async fn exchange_over(self: &Arc<Engine>, link: &Arc<Link>) -> Exchanged {
        let exchanged = driver::initiate(self, link).await;
        self.catch_up(link, &exchanged).await;
        // A member that lacks expulsions of ours is about to fetch them: then the connection ends when it is idle.
        let is_done = self.networks.members().networks_of(&link.peer).is_empty();
        self.after_exchange(link, &exchanged, is_done);
        exchanged
    }

    /// Dials the addresses that are known of `peer`, one after the other, until one leads to it.
    async fn dial(self: &Arc<Engine>, peer: PeerId, more: &[Address]) -> Result<Arc<Link>, ContactFault> {
        let (known, unresolved) = self.addresses(&peer).await;
        let claims = self.peers.read(|table| table.get(&peer).map(|record| record.claims()).unwrap_or_default());
        let mut addresses: Vec<SocketAddr> = more.iter().copied().map(SocketAddr::from).collect();
        addresses.extend(known.into_iter().filter(|at| !more.contains(&Address::from(*at))));
        let mut last = if unresolved { ContactFault::NoSuchHost } else { ContactFault::NoAddress };
        for at in addresses {
            let claimed = claims.contains(&Address::from(at));
            if claimed && !self.dials.take(at, self.clock.now().0) {
                last = ContactFault::TooOften(at);
                continue;
            }
            match self.transport.dial(&peer, at, DIAL_DEADLINE).await {
                Ok(connection) => {
                    if claimed {
                        self.dials.reached(at);
                    }
                    let Some(registration) = self.registry.register(peer, Role::Dialer, connection, None) else {
                        return Err(ContactFault::TooMany);
                    };
                    let link = registration.link.clone();
                    links::spawn(self.clone(), registration);
                    return Ok(link);
                }
                // Another key at one address is what the operator must hear of, whatever the next address says.
                Err(fault) if !matches!(last, ContactFault::Dial { fault: DialError::WrongKey { .. }, .. }) => {
                    last = ContactFault::Dial { at, fault };
                }
                Err(_) => {}
            }
        }
        Err(last)
    }

    /// Where to dial: what the operator typed first. And whether a name did not resolve.
    async fn addresses(&self, peer: &PeerId) -> (Vec<SocketAddr>, bool) {
        let Some(record) = self.peers.read(|table| table.get(peer).cloned()) else {
            return (Vec::new(), false);
        };
        let mut list = Vec::new();
        let mut unresolved = false;
        if let Some(typed) = &record.typed {
            match self.resolver.resolve(typed).await {
                Some(resolved) => list.extend(resolved),
                None => unresolved = true,
            }
        }
        for address in record.dialable() {
            let at = SocketAddr::from(address);
            if !list.contains(&at) {
                list.push(at);
            }
        }
        list.truncate(DIAL_ADDRESSES_MAX);
        (list, unresolved)
    }

    /// Tells a peer whose trust we took away, over the connection that it has, and closes all of them. The streams are
    /// cut already. Whether the word arrives or not: the connections close, and the outbox does the rest.
    pub async fn close_revoked(self: &Arc<Engine>, peer: PeerId) {
        let links = self.registry.links(&peer);
        if links.is_empty() {
            return;
        }
        // The disk first, at most half of the time; then the word itself.
        let _ = tokio::time::timeout(2 * REVOKE_PATIENCE, self.contact(peer, false)).await;
        let blocked = self.book.state(&peer, unix_now()) == TrustState::Blocked;
        let code = if blocked { CloseCode::Refused } else { CloseCode::Revoked };
        for link in links {
            link.connection.close(quinn::VarInt::from_u32(code.code()), b"");
        }
    }

    /// Marks what has expired and ends what rested on it.
    pub fn expire(&self) {
        for peer in self.book.expire(unix_now()) {
            self.registry.cut(&peer, EndReason::Expired);
            for link in self.registry.links(&peer) {
                link.retire(CloseCode::Done);
            }
        }
    }
}
