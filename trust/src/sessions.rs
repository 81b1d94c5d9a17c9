//! Sessions: which connections between peers that trust each other there were, and how they ended. Losing the file is
//! safe.
//!
//! Invariants: a session ends once; an end that is recorded wins. One process owns the directory (the kernel lock says
//! so), so an active session of another incarnation is dead by definition: [`Sessions::open`] closes each as orphaned,
//! in one batch. [`CLOSED_MAX`] closed sessions are kept, the oldest go first (BOUND).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use handfast_protocol::{Address, CloseCode, Incarnation, PeerId, UnixMillis};
use serde::{Deserialize, Serialize};

use crate::record::{FileKind, Record, RecordFault, Revision};
use crate::signals::Durable;
use crate::store::Store;
use crate::sync::Lock;
use crate::table::{Table, Urgency};
use crate::trust_record::{decode_versioned, encode_versioned};

/// Closed sessions that are kept.
pub const CLOSED_MAX: usize = 10_000;

/// One session: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Which end dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// We did.
    Dialer,
    /// They did.
    Listener,
}

impl Role {
    /// Its name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Dialer => "dialer",
            Role::Listener => "listener",
        }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EndReason {
    /// We took trust away, or blocked the peer.
    Revoked,
    /// The peer took trust away.
    RevokedByPeer,
    /// A grant came to its end.
    Expired,
    /// Another connection between the two took its place.
    Replaced,
    /// The connection broke, or its task died.
    Lost,
    /// The peer closed it.
    PeerClosed,
    /// This node stopped.
    Stopped,
    /// The node that owned it died.
    Orphaned,
    /// A membership that the trust rested on counts no longer.
    Expelled,
}

impl EndReason {
    /// Its name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::Revoked => "revoked",
            EndReason::RevokedByPeer => "revoked_by_peer",
            EndReason::Expired => "expired",
            EndReason::Replaced => "replaced",
            EndReason::Lost => "lost",
            EndReason::PeerClosed => "peer_closed",
            EndReason::Stopped => "stopped",
            EndReason::Orphaned => "orphaned",
            EndReason::Expelled => "expelled",
        }
    }

    /// What a close by the peer means.
    pub fn of_peers_close(code: CloseCode) -> EndReason {
        match code {
            CloseCode::Revoked | CloseCode::Refused => EndReason::RevokedByPeer,
            CloseCode::Duplicate => EndReason::Replaced,
            _ => EndReason::PeerClosed,
        }
    }
}

/// Whether a session lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionState {
    /// Its connection is up.
    Active,
    /// It ended.
    Closed {
        /// Why.
        reason: EndReason,
        /// When.
        at: UnixMillis,
    },
}

/// One session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// With whom. As bytes: the file's digest chain vouches for them.
    #[serde(with = "handfast_protocol::codec::words")]
    peer: [u8; 32],
    /// Which end dialled.
    pub role: Role,
    /// The other end's address.
    pub remote: Address,
    /// When it began.
    pub opened_at: UnixMillis,
    /// The run of this node that owns it.
    pub incarnation: Incarnation,
    /// Whether it lives.
    pub state: SessionState,
}

impl SessionRecord {
    /// With whom.
    pub fn peer(&self) -> PeerId {
        PeerId::from_stored(self.peer)
    }

    fn closed(&self, reason: EndReason, at: UnixMillis) -> SessionRecord {
        SessionRecord { state: SessionState::Closed { reason, at }, ..self.clone() }
    }

    /// True until it ends.
    pub fn is_active(&self) -> bool {
        self.state == SessionState::Active
    }
}

impl Record for SessionRecord {
    type Key = SessionId;
    type Index = ();
    const KIND: FileKind = FileKind::Sessions;

    fn encode_key(key: &SessionId, out: &mut Vec<u8>) {
        out.extend_from_slice(&key.0);
    }

    fn decode_key(bytes: &[u8]) -> Result<SessionId, RecordFault> {
        bytes.try_into().map(SessionId).map_err(|_| RecordFault::BadKey)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        encode_versioned(self, out);
    }

    fn decode(_: &SessionId, bytes: &[u8]) -> Result<SessionRecord, RecordFault> {
        decode_versioned(bytes)
    }
}

/// The session store with its bounds.
pub struct Sessions {
    store: Store<SessionRecord>,
    incarnation: Incarnation,
    /// Closed sessions, oldest end first.
    closed: Lock<VecDeque<SessionId>>,
}

impl Sessions {
    /// The store under it.
    pub fn store(&self) -> &Store<SessionRecord> {
        &self.store
    }

    /// Takes the recovered store over: closes what a dead run left active. Returns how many those were, and the
    /// revision that must be durable before anybody relies on it.
    pub fn open(store: Store<SessionRecord>, incarnation: Incarnation, now: UnixMillis) -> (Sessions, usize, Revision) {
        let mut closed = Vec::new();
        let mut orphans = Vec::new();
        for (id, record) in store.walk().flatten() {
            match record.state {
                SessionState::Closed { at, .. } => closed.push((at, id)),
                SessionState::Active if record.incarnation != incarnation => {
                    orphans.push((id, Arc::new(record.closed(EndReason::Orphaned, now))));
                }
                SessionState::Active => {}
            }
        }
        closed.sort_unstable();
        let mut closed: VecDeque<SessionId> = closed.into_iter().map(|(_, id)| id).collect();
        closed.extend(orphans.iter().map(|(id, _)| *id));
        let surplus = closed.len().saturating_sub(CLOSED_MAX);
        let surplus: Vec<SessionId> = closed.drain(..surplus).collect();
        let count = orphans.len();
        let revision = store.put_all(orphans, Urgency::Critical).max(store.remove_all(&surplus, |_| true));
        (Sessions { store, incarnation, closed: Lock::new(closed) }, count, revision)
    }

    /// Records that a session began, unless something is recorded of it already.
    pub fn begin(&self, id: SessionId, peer: PeerId, role: Role, remote: Address, now: UnixMillis) -> Revision {
        let record = SessionRecord {
            peer: *peer.as_bytes(),
            role,
            remote,
            opened_at: now,
            incarnation: self.incarnation,
            state: SessionState::Active,
        };
        let record = Arc::new(record);
        let begin = |table: &mut Table<SessionRecord>| {
            if table.get(&id).is_none() {
                table.put_shared(id, record, Urgency::Lazy);
            }
        };
        self.store.write(begin).1
    }

    /// Records that a session ended, unless its end is recorded already.
    pub fn end(&self, id: SessionId, reason: EndReason, now: UnixMillis) -> Revision {
        let ended = loop {
            let Some(before) = self.store.read(|table| table.get(&id).cloned()).filter(|record| record.is_active())
            else {
                break false;
            };
            let closed = Arc::new(before.closed(reason, now));
            if self.store.replace(id, Some(&before), closed, Urgency::Lazy) {
                break true;
            }
        };
        let mut revision = self.store.revision();
        if ended {
            let oldest = self.closed.with(|closed| {
                closed.push_back(id);
                (closed.len() > CLOSED_MAX).then(|| closed.pop_front()).flatten()
            });
            if let Some(oldest) = oldest {
                revision = self.store.write(|table| table.remove(&oldest, Urgency::Lazy)).1;
            }
        }
        revision
    }

    /// All that are kept, in no order.
    pub fn list(&self) -> Vec<(SessionId, Arc<SessionRecord>)> {
        self.store.walk().flatten().collect()
    }

    /// When changes are durable.
    pub fn durable(&self) -> &Durable {
        self.store.durable()
    }

    /// The newest change.
    pub fn revision(&self) -> Revision {
        self.store.revision()
    }
}
