//! Live connections by peer, and which of them is the session.
//!
//! Invariants:
//! * A connection is registered *before* its trust is checked, so a revoke cannot slip between: it either finds the
//!   connection here, or the connection finds the revoke.
//! * At most one session a peer. Both ends keep the same connection: one with a new run of the other end replaces the
//!   older ones; otherwise the one that the smaller PeerId dialled stays; of two dialled by the same end, the later.
//! * A session's record is opened and ended here alone, and ends when the link's guard drops, whatever killed its task.
//!
//! The lock is held for map operations only: never across an await or a record store's disk. Cutting sets a flag that
//! every stream of the link watches; it works from any thread at once. Closing the connection itself is left to the
//! link's own task.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_protocol::{CloseCode, Incarnation, PeerId};
use handfast_trust::{EndReason, Role, SessionId, Sessions};
use tokio::sync::{Notify, Semaphore, watch};

use crate::admission::Slot;
use crate::clock::unix_now;
use crate::events::EventLog;
use crate::transport::{Berth, canonical};

/// Connections that one peer may have at once: one each way, and one each that replaces it.
pub const LINKS_PER_PEER_MAX: usize = 4;

/// What a link's tasks are to do. Both only ever turn on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Orders {
    /// No application stream any more: from now on nothing of it is read, written or begun.
    pub cut: bool,
    /// Let running exchanges finish, then close with this code.
    pub close: Option<CloseCode>,
}

/// One authenticated connection.
pub struct Link {
    pub id: u64,
    pub peer: PeerId,
    pub role: Role,
    pub connection: quinn::Connection,
    /// One exchange at a time in each direction.
    pub inbound_exchange: Semaphore,
    pub outbound_exchange: Semaphore,
    /// And one join conversation.
    pub inbound_join: Semaphore,
    pub outbound_join: Semaphore,
    pub services: Arc<Semaphore>,
    orders: watch::Sender<Orders>,
    state: Mutex<LinkState>,
}

#[derive(Default)]
struct LinkState {
    session: Option<SessionId>,
    incarnation: Option<Incarnation>,
    /// What admission reserved for it, and where it is worked for, until it is a session.
    paid_by: Option<(Slot, Berth)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held left a map of plain values: still usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// What this link's tasks are to do, as it changes.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.orders.subscribe()
    }

    /// Lets running exchanges finish, then closes. The first code stays.
    pub fn retire(&self, code: CloseCode) {
        self.orders.send_if_modified(|orders| orders.close.is_none() && orders.close.replace(code).is_none());
    }

    /// Ends every application stream at once, from any thread.
    pub fn cut(&self) {
        self.orders.send_if_modified(|orders| !std::mem::replace(&mut orders.cut, true));
    }

    /// True until the link is to close: exchanges still go over it, also when it is cut.
    pub fn is_open(&self) -> bool {
        self.orders.borrow().close.is_none() && self.connection.close_reason().is_none()
    }

    /// True until the link is cut or retired.
    pub fn is_serving(&self) -> bool {
        *self.orders.borrow() == Orders::default()
    }

    /// Waits until no conversation runs on it but services.
    pub async fn quiet(&self) {
        for turn in [&self.inbound_exchange, &self.outbound_exchange, &self.inbound_join, &self.outbound_join] {
            drop(turn.acquire().await);
        }
    }

    /// True while a conversation other than a service runs on it.
    pub fn is_conversing(&self) -> bool {
        let turns = [&self.inbound_exchange, &self.outbound_exchange, &self.inbound_join, &self.outbound_join];
        turns.into_iter().any(|turn| turn.available_permits() == 0)
    }

    /// True while this link is the session.
    pub fn is_session(&self) -> bool {
        locked(&self.state).session.is_some()
    }

    /// Notified when it is to end because others need its permit; never for one that has none.
    pub fn gives_way(&self) -> Arc<Notify> {
        locked(&self.state).paid_by.as_ref().map(|(slot, _)| slot.gives_way()).unwrap_or_default()
    }

    /// True while it holds what admission reserved for it.
    pub fn holds_permit(&self) -> bool {
        locked(&self.state).paid_by.is_some()
    }

    /// An exchange on it came to its end.
    pub fn answered(&self, now: Duration) {
        if let Some((slot, _)) = &mut locked(&self.state).paid_by {
            slot.answered(now);
        }
    }

    /// The run of the other end, once an exchange has shown it.
    pub fn incarnation(&self) -> Option<Incarnation> {
        locked(&self.state).incarnation
    }
}

/// What [`Registry::promote`] decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Promotion {
    /// The link is the session now.
    Opened,
    /// It was already.
    Already,
    /// Another link stays the session; this one retires.
    Duplicate,
    /// The link was cut or closed meanwhile.
    Gone,
}

/// See the module.
pub struct Registry {
    me: PeerId,
    links: Mutex<HashMap<PeerId, Vec<Arc<Link>>>>,
    next_id: AtomicU64,
    link_count: AtomicU64,
    session_count: AtomicU64,
    sessions: Arc<Sessions>,
    events: Arc<EventLog>,
}

/// Takes its link out of the registry when the link's task ends, however it ends.
pub struct Registration {
    registry: Arc<Registry>,
    pub link: Arc<Link>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.remove(&self.link);
    }
}

impl Registry {
    pub fn new(me: PeerId, sessions: Arc<Sessions>, events: Arc<EventLog>) -> Registry {
        Registry {
            me,
            links: Mutex::default(),
            next_id: AtomicU64::new(1),
            link_count: AtomicU64::new(0),
            session_count: AtomicU64::new(0),
            sessions,
            events,
        }
    }

    /// Registers a connection whose peer TLS has proven, with what admission reserved for it. `None`: the peer has too
    /// many already.
    pub fn register(
        self: &Arc<Registry>,
        peer: PeerId,
        role: Role,
        connection: quinn::Connection,
        paid_by: Option<(Slot, Berth)>,
    ) -> Option<Registration> {
        let link = Arc::new(Link {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            peer,
            role,
            connection,
            inbound_exchange: Semaphore::new(1),
            outbound_exchange: Semaphore::new(1),
            inbound_join: Semaphore::new(1),
            outbound_join: Semaphore::new(1),
            services: Arc::new(Semaphore::new(handfast_protocol::limits::SERVICE_STREAMS_MAX as usize)),
            orders: watch::Sender::new(Orders::default()),
            state: Mutex::new(LinkState { paid_by, ..LinkState::default() }),
        });
        let mut links = locked(&self.links);
        let of_peer = links.entry(peer).or_default();
        if of_peer.len() >= LINKS_PER_PEER_MAX {
            return None;
        }
        of_peer.push(link.clone());
        self.link_count.fetch_add(1, Ordering::Relaxed);
        Some(Registration { registry: self.clone(), link })
    }

    /// Live links of a peer.
    pub fn links(&self, peer: &PeerId) -> Vec<Arc<Link>> {
        locked(&self.links).get(peer).cloned().unwrap_or_default()
    }

    /// The session of a peer.
    pub fn session(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.links(peer).into_iter().find(|link| link.is_session())
    }

    /// How many sessions there are, and how many connections.
    pub fn counts(&self) -> (u64, u64) {
        (self.session_count.load(Ordering::Relaxed), self.link_count.load(Ordering::Relaxed))
    }

    /// Peers with a session.
    pub fn session_peers(&self) -> Vec<PeerId> {
        let links = locked(&self.links);
        links.iter().filter(|(_, list)| list.iter().any(|link| link.is_session())).map(|(peer, _)| *peer).collect()
    }

    /// Makes `link` the session, or finds that another one stays. The caller has seen that the two trust each other,
    /// and checks again afterwards: a revoke in between has either cut the link or is seen then.
    pub fn promote(&self, link: &Arc<Link>, incarnation: Incarnation, id: SessionId) -> Promotion {
        let mut replaced = Vec::new();
        let paid_by;
        {
            let links = locked(&self.links);
            let Some(of_peer) = links.get(&link.peer).filter(|list| list.iter().any(|l| l.id == link.id)) else {
                return Promotion::Gone;
            };
            if !link.is_serving() {
                return Promotion::Gone;
            }
            locked(&link.state).incarnation = Some(incarnation);
            if link.is_session() {
                return Promotion::Already;
            }
            for other in of_peer.iter().filter(|other| other.id != link.id) {
                let mut state = locked(&other.state);
                if state.session.is_none() {
                    continue;
                }
                if state.incarnation == Some(incarnation) && !self.wins(link, other) {
                    drop(state);
                    link.retire(CloseCode::Duplicate);
                    return Promotion::Duplicate;
                }
                replaced.extend(state.session.take());
                drop(state);
                other.retire(CloseCode::Duplicate);
            }
            // The record first: an end that comes at once must find it.
            let remote = canonical(link.connection.remote_address());
            self.sessions.begin(id, link.peer, link.role, remote.into(), unix_now());
            let mut state = locked(&link.state);
            state.session = Some(id);
            paid_by = state.paid_by.take();
            drop(state);
            self.session_count.fetch_add(1, Ordering::Relaxed);
        }
        if let Some((_slot, berth)) = paid_by {
            berth.calm();
        }
        for old in replaced {
            self.session_count.fetch_sub(1, Ordering::Relaxed);
            self.sessions.end(old, EndReason::Replaced, unix_now());
            self.events.push("session_closed", Some(link.peer), EndReason::Replaced.as_str());
        }
        self.events.push("session_opened", Some(link.peer), link.role.as_str());
        Promotion::Opened
    }

    /// Of two links with the same run of the other end.
    fn wins(&self, new: &Link, old: &Link) -> bool {
        if new.role == old.role {
            return new.id > old.id;
        }
        let smaller_dials = if self.me < new.peer { Role::Dialer } else { Role::Listener };
        new.role == smaller_dials
    }

    /// Ends everything of a peer but its exchanges: at once, from any thread. Returns how many sessions that ended.
    pub fn cut(&self, peer: &PeerId, reason: EndReason) -> u32 {
        let links = self.links(peer);
        let mut ended = 0;
        for link in links {
            link.cut();
            ended += u32::from(self.end_session(&link, reason));
        }
        ended
    }

    fn end_session(&self, link: &Link, reason: EndReason) -> bool {
        let session = locked(&link.state).session.take();
        let Some(id) = session else {
            return false;
        };
        self.session_count.fetch_sub(1, Ordering::Relaxed);
        self.sessions.end(id, reason, unix_now());
        self.events.push("session_closed", Some(link.peer), reason.as_str());
        true
    }

    /// Ends the session of a link whose connection has ended. False when it was none.
    pub fn ended(&self, link: &Link, reason: EndReason) -> bool {
        self.end_session(link, reason)
    }

    /// Waits until no exchange runs on any link, at most `patience`.
    pub async fn quiet(&self, patience: Duration) {
        let all: Vec<Arc<Link>> = locked(&self.links).values().flatten().cloned().collect();
        let until = tokio::time::Instant::now() + patience;
        for link in all {
            // Who does not finish in time is cancelled: it promised nothing that is not on the disk.
            let _ = tokio::time::timeout_at(until, link.quiet()).await;
        }
    }

    /// Out of the map first: whoever promotes it at this moment has found it there and is ended below, or does not.
    fn remove(&self, link: &Link) {
        {
            let mut links = locked(&self.links);
            if let Some(of_peer) = links.get_mut(&link.peer) {
                of_peer.retain(|other| other.id != link.id);
                if of_peer.is_empty() {
                    links.remove(&link.peer);
                }
            }
        }
        self.end_session(link, EndReason::Lost);
        // Streams that are still ending may hold the link; the permit is free now.
        drop(locked(&link.state).paid_by.take());
        self.link_count.fetch_sub(1, Ordering::Relaxed);
    }
}
