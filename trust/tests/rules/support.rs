//! A node's book on a simulated disk, and peers that sign what a test wants them to say.

use std::net::SocketAddr;
use std::sync::Arc;

use handfast_protocol::exchange::{AnswerTerms, Shown};
use handfast_protocol::{
    Incarnation, Kind, Note, PeerId, Scope, SecretKey, ServiceName, Statement, Terms, UnixMillis, Verified,
};
use handfast_trust::rules::{Grant, Showing};
use handfast_trust::{Book, Cause, Direction, Policy, Purpose, Revision, Transition, TrustRecord, TrustState, Updated};

pub(crate) use crate::common::{DAY, HOUR, MINUTE, NOON, key, me, open_policy};
use crate::common::{Ground, begin};

pub(crate) const SECOND: u64 = 1_000;

pub(crate) fn note(text: &str) -> Note {
    Note::new(text).unwrap()
}

pub(crate) fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

pub(crate) fn scope(names: &[&str]) -> Scope {
    Scope::new(names.iter().map(|name| service(name)).collect()).unwrap()
}

pub(crate) fn at(text: &str) -> Option<SocketAddr> {
    Some(text.parse().unwrap())
}

/// Plain terms: no end, every service, no note.
pub(crate) fn terms(kind: Kind, epoch: u64) -> Terms {
    Terms {
        kind,
        epoch,
        issued_at: UnixMillis(epoch),
        expires_at: None,
        scope: None,
        network: None,
        note: Note::default(),
    }
}

pub(crate) fn says(issuer: &SecretKey, subject: PeerId, terms: Terms) -> Verified {
    Statement { issuer: issuer.peer_id(), subject, terms }.sign(issuer).unwrap()
}

/// A peer, by its key.
#[derive(Clone)]
pub(crate) struct Peer(pub(crate) SecretKey);

impl Peer {
    pub(crate) fn new(number: u32) -> Peer {
        Peer(key(number))
    }

    pub(crate) fn id(&self) -> PeerId {
        self.0.peer_id()
    }

    /// What the peer says of this node.
    pub(crate) fn says(&self, terms: Terms) -> Verified {
        says(&self.0, me().peer_id(), terms)
    }

    pub(crate) fn grants(&self, epoch: u64) -> Verified {
        self.says(terms(Kind::Grant, epoch))
    }

    pub(crate) fn revokes(&self, epoch: u64) -> Verified {
        self.says(terms(Kind::Revoke, epoch))
    }

    /// A grant that lasts so long, by a clock that is hours ahead of ours: only the length may matter.
    pub(crate) fn grants_for(&self, epoch: u64, ms: u64) -> Verified {
        let issued_at = NOON.plus(7 * HOUR);
        self.says(Terms { issued_at, expires_at: Some(issued_at.plus(ms)), ..terms(Kind::Grant, epoch) })
    }

    /// What this node said of the peer, as somebody else would prove it.
    pub(crate) fn was_told(&self, terms: Terms) -> Verified {
        says(&me(), self.id(), terms)
    }
}

pub(crate) fn shown(theirs: Option<&Verified>, ours: Option<&Verified>) -> Shown {
    Shown {
        theirs: theirs.cloned(),
        ours: ours.cloned(),
        holds: None,
        incarnation: Incarnation([1; 16]),
        address: None,
        networks: Vec::new(),
    }
}

pub(crate) fn showing() -> Showing {
    Showing { incarnation: Incarnation([9; 16]), address: None, networks: Vec::new() }
}

/// Something that happens to a peer of a node.
pub(crate) type Act<'a> = &'a dyn Fn(&Node, &Peer);

/// A book and what it stands on.
pub(crate) struct Node {
    pub(crate) book: Arc<Book>,
    ground: Ground,
    policy: Policy,
}

impl Node {
    pub(crate) fn new(policy: Policy) -> Node {
        Node::over(Ground::fresh(begin::<TrustRecord>), policy)
    }

    /// A node that grants nothing by itself and has room for all.
    pub(crate) fn plain() -> Node {
        Node::new(open_policy())
    }

    /// A node whose rule grants to these.
    pub(crate) fn allowing(peers: &[&Peer]) -> Node {
        Node::new(Policy { allow: peers.iter().map(|peer| peer.id()).collect(), ..open_policy() })
    }

    /// A node that denies these.
    pub(crate) fn denying(peers: &[&Peer]) -> Node {
        Node::new(Policy { deny: peers.iter().map(|peer| peer.id()).collect(), ..open_policy() })
    }

    fn over(mut ground: Ground, policy: Policy) -> Node {
        let book = Book::new(ground.open(), me(), policy.clone(), ground.observer());
        Node { book: Arc::new(book), ground, policy }
    }

    /// Has everything written.
    pub(crate) fn drain(&mut self) {
        let book = &self.book;
        self.ground.drain(|| book.durable().current() >= book.store().revision());
    }

    /// Stops and starts again, perhaps under another policy.
    pub(crate) fn reopened_under(self, policy: Policy) -> Node {
        Node::over(self.ground.restarted(), policy)
    }

    /// Starts again after a kill.
    pub(crate) fn killed(self) -> Node {
        Node::over(self.ground.killed(), self.policy)
    }

    pub(crate) fn reopened(self) -> Node {
        let policy = self.policy.clone();
        self.reopened_under(policy)
    }

    /// The transitions since the last call.
    pub(crate) fn heard(&self) -> Vec<Transition> {
        self.ground.heard()
    }

    /// Of those the causes, with where they led.
    pub(crate) fn events(&self) -> Vec<(Cause, TrustState)> {
        self.ground.events()
    }

    pub(crate) fn hears(&self, peer: &Peer, theirs: &Verified, now: UnixMillis) -> Updated {
        self.book.merge(peer.id(), &shown(Some(theirs), None), at("192.0.2.1:9"), now)
    }

    /// A peer proves what we said.
    pub(crate) fn is_proven(&self, peer: &Peer, ours: &Verified, now: UnixMillis) -> Updated {
        self.book.merge(peer.id(), &shown(None, Some(ours)), at("192.0.2.1:9"), now)
    }

    pub(crate) fn trust(&self, peer: &Peer, now: UnixMillis) -> Updated {
        self.book.trust(peer.id(), &Grant::default(), now).unwrap()
    }

    pub(crate) fn trust_for(&self, peer: &Peer, ms: u64, now: UnixMillis) -> Updated {
        self.book.trust(peer.id(), &Grant { for_ms: Some(ms), ..Grant::default() }, now).unwrap()
    }

    pub(crate) fn revoke(&self, peer: &Peer, now: UnixMillis) -> Updated {
        self.book.revoke(peer.id(), &Note::default(), Cause::Revoked, now).unwrap()
    }

    pub(crate) fn block(&self, peer: &Peer, blocked: bool, now: UnixMillis) -> Updated {
        self.book.block(peer.id(), blocked, now).unwrap()
    }

    pub(crate) fn state(&self, peer: &Peer, now: UnixMillis) -> TrustState {
        self.book.state(&peer.id(), now)
    }

    pub(crate) fn record(&self, peer: &Peer) -> Arc<TrustRecord> {
        self.book.record(&peer.id()).unwrap()
    }

    pub(crate) fn knows(&self, peer: &Peer) -> bool {
        self.book.record(&peer.id()).is_some()
    }

    /// Whether a session of the peer may go on.
    pub(crate) fn lets_in(&self, peer: &Peer, now: UnixMillis) -> bool {
        self.book.authorise(&peer.id(), Purpose::Session, Direction::Inbound, now).is_ok()
    }
}

/// What a node would answer to an offer.
pub(crate) fn answer(node: &Node, peer: &Peer, shown: &Shown) -> AnswerTerms {
    node.book.answer(peer.id(), shown, false, &showing(), NOON).0
}

/// The revision that such an answer waits for.
pub(crate) fn answer_at(node: &Node, peer: &Peer, shown: &Shown) -> Revision {
    node.book.answer(peer.id(), shown, false, &showing(), NOON).1
}

/// The transition that a change was.
pub(crate) fn did(updated: &Updated) -> Option<(Cause, TrustState, TrustState)> {
    updated.transition.map(|transition| (transition.cause, transition.from, transition.to))
}
