//! What is known of one peer: the two edges, the local flag, and how it came about. The state is derived, never stored.
//!
//! Invariants: an [`Edge`] is a statement that was verified before it was stored. A revoke never expires. Only the
//! functions of `rules` change a record; what they cannot express cannot happen.
//!
//! Sizes (tests pin them): in memory 624 bytes and 88 for each transition, beside notes and scopes; on the disk 432
//! bytes for two plain grants and what led to them, 3,537 at most.
//!
//! Not here: what may change (`rules`), under which lock (`book`), who may pass (`authorise`).

use std::fmt;

use handfast_protocol::codec;
use handfast_protocol::statement::Signature;
use handfast_protocol::{
    Address, Digest, Held, Kind, NetworkId, Note, PeerId, Rank, SignedStatement, Statement, Terms, UnixMillis, Verified,
};
use serde::{Deserialize, Serialize};

use crate::authorise::TrustIndex;
use crate::frame::MAX_RECORD_BYTES;
use crate::networks::{Members, Standing};
use crate::record::{FileKind, Record, RecordFault, Revision};

/// How many transitions a record keeps.
pub const HISTORY_MAX: usize = 16;
/// Longest encoded record of this crate. The largest trust record, with two full statements, a full alias and a full
/// history, takes less than half of it.
pub(crate) const RECORD_BYTES_MAX: usize = 8 * 1024;
/// First byte of an encoded record, so that later versions can add fields.
const RECORD_VERSION: u8 = 1;
/// First byte of a trust record whose grant has a sponsor: the sponsor's 32 bytes follow, then a record of version 1.
const SPONSORED_VERSION: u8 = 2;

const _: () = assert!(RECORD_BYTES_MAX <= MAX_RECORD_BYTES);

/// The winning statement of one side, without the two names, which the place of the record tells.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// What it says.
    pub terms: Terms,
    /// The issuer's signature.
    pub signature: Signature,
    /// Digest of what was signed.
    pub digest: Digest,
    /// When it was stored here, by our clock.
    pub stored_at: UnixMillis,
    /// Its end was observed once: a clock that goes back does not revive it.
    pub expired: bool,
    /// Its issuer has said something else under the same number; counted once in `equivocations`.
    pub equivocal: bool,
}

impl Edge {
    /// The edge that `statement` makes, stored at `now`.
    pub fn new(statement: &Verified, now: UnixMillis) -> Edge {
        Edge {
            terms: statement.terms().clone(),
            signature: statement.signed().signature,
            digest: statement.digest(),
            stored_at: now,
            expired: false,
            equivocal: false,
        }
    }

    /// The statement behind the edge: evidence, to send or to show.
    pub fn statement(&self, issuer: PeerId, subject: PeerId) -> Verified {
        let statement = Statement { issuer, subject, terms: self.terms.clone() };
        SignedStatement { statement, signature: self.signature }.from_stored(self.digest)
    }

    /// Its place in the order of merging.
    pub fn rank(&self) -> Rank {
        Rank { epoch: self.terms.epoch, kind: self.terms.kind, digest: self.digest }
    }

    /// Its name in an exchange.
    pub fn held(&self) -> Held {
        Held { epoch: self.terms.epoch, digest: self.digest }
    }

    /// True for a revoke.
    pub fn is_revoke(&self) -> bool {
        self.terms.kind == Kind::Revoke
    }
}

/// Whose edge it is: that decides by which clock it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// We issued it: it ends at `expires_at`.
    Ours,
    /// The peer issued it: it lasts as long from when we stored it as the peer meant it to last from its issue, so
    /// that a wrong clock over there neither kills nor prolongs it.
    Theirs,
}

impl Edge {
    /// When a grant ends by our clock; `None` for a revoke and for a grant without end.
    pub fn ends_at(&self, side: Side) -> Option<UnixMillis> {
        let expires_at = self.terms.expires_at.filter(|_| !self.is_revoke())?;
        Some(match side {
            Side::Ours => expires_at,
            Side::Theirs => self.stored_at.plus(expires_at.since(self.terms.issued_at)),
        })
    }

    /// True for a grant that has not ended by `now`. One by a network's rule may not count all the same.
    pub fn is_grant_at(&self, side: Side, now: UnixMillis) -> bool {
        !self.is_revoke() && !self.has_ended(side, now)
    }

    /// True for a grant that counts: one that has not ended and, where a network's rule made it, whose subject's
    /// membership there counts.
    pub fn counts(&self, side: Side, view: &View<'_>) -> bool {
        self.is_grant_at(side, view.now)
            && self.terms.network.is_none_or(|network| view.standing(&network, side).counts())
    }

    /// True for a grant whose end has come, or had come once.
    pub fn has_ended(&self, side: Side, now: UnixMillis) -> bool {
        !self.is_revoke() && (self.expired || self.ends_at(side).is_some_and(|end| end <= now))
    }
}

/// From where a record is looked at: what its state depends on besides what it holds.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// By our clock.
    pub now: UnixMillis,
    /// The peer is on the deny list.
    pub denied: bool,
    /// The networks, this node and the peer; without them no grant of a network's rule counts.
    pub members: Option<(&'a Members, PeerId, PeerId)>,
}

impl View<'_> {
    /// A view from outside of all networks.
    pub fn outside(denied: bool, now: UnixMillis) -> View<'static> {
        View { now, denied, members: None }
    }

    /// What the membership is worth that a grant of this side rests on: that of its subject.
    pub fn standing(&self, network: &NetworkId, side: Side) -> Standing {
        self.members.map_or(Standing::NotHere, |(members, me, peer)| {
            let subject = match side {
                Side::Ours => peer,
                Side::Theirs => me,
            };
            members.standing(network, &subject, self.now)
        })
    }
}

/// What follows from two edges, the local flag and the clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum TrustState {
    /// Neither side has said anything that counts.
    Unknown,
    /// We grant; they have not answered.
    Requested,
    /// They grant; we have not decided.
    Pending,
    /// Both grant.
    Trusted,
    /// We revoked or rejected.
    Revoked,
    /// They revoked or rejected.
    Refused,
    /// Nothing of the peer is let in, by a local flag or the deny list.
    Blocked,
}

impl TrustState {
    /// Every state.
    pub const ALL: [TrustState; 7] = [
        TrustState::Unknown,
        TrustState::Requested,
        TrustState::Pending,
        TrustState::Trusted,
        TrustState::Revoked,
        TrustState::Refused,
        TrustState::Blocked,
    ];

    /// Its name in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            TrustState::Unknown => "unknown",
            TrustState::Requested => "requested",
            TrustState::Pending => "pending",
            TrustState::Trusted => "trusted",
            TrustState::Revoked => "revoked",
            TrustState::Refused => "refused",
            TrustState::Blocked => "blocked",
        }
    }
}

impl fmt::Display for TrustState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The rule that made a grant of ours without asking.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Rule {
    /// The key is on the allow list.
    Allow,
    /// Every request is granted.
    AcceptAll,
    /// The subject is a member of this network.
    Network(NetworkId),
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rule::Allow => f.write_str("allow"),
            Rule::AcceptAll => f.write_str("accept_all"),
            Rule::Network(network) => write!(f, "network:{network}"),
        }
    }
}

/// Who made a transition happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Actor {
    /// The operator of this node.
    Operator,
    /// The peer, by a statement of its own.
    Peer,
    /// A rule of this node's policy.
    Rule(Rule),
    /// Time passed.
    Clock,
    /// The bounds on what strangers may make this node keep.
    Caps,
    /// A network: a membership in it began or ceased to count.
    Network(NetworkId),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Operator => f.write_str("operator"),
            Actor::Peer => f.write_str("peer"),
            Actor::Rule(rule) => write!(f, "rule:{rule}"),
            Actor::Clock => f.write_str("clock"),
            Actor::Caps => f.write_str("caps"),
            Actor::Network(network) => write!(f, "network:{network}"),
        }
    }
}

/// What happened to a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Cause {
    /// A grant of ours.
    Granted,
    /// A revoke of ours.
    Revoked,
    /// A revoke of ours that answers a request.
    Rejected,
    /// The local flag was set.
    Blocked,
    /// The local flag was cleared.
    Unblocked,
    /// The peer's grant came.
    TheyGranted,
    /// The peer's revoke came.
    TheyRevoked,
    /// A grant came to its end, or a request waited too long.
    Expired,
    /// A peer showed us a newer revoke of our own: we were restored from an old backup.
    Restored,
    /// An undecided request made room for another one: the caps were full.
    Evicted,
    /// A network's authority has expelled the subject of a grant, or whoever let it in.
    Expelled,
    /// The membership that a grant rests on has ended, or this node has left the network.
    MembershipEnded,
    /// The membership that a grant rests on counts again: a readmission or a new certificate.
    MembershipRegained,
    /// The operator took back what a rule had granted.
    Undone,
}

impl Cause {
    /// Its name in events and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Granted => "granted",
            Cause::Revoked => "revoked",
            Cause::Rejected => "rejected",
            Cause::Blocked => "blocked",
            Cause::Unblocked => "unblocked",
            Cause::TheyGranted => "they_granted",
            Cause::TheyRevoked => "they_revoked",
            Cause::Expired => "expired",
            Cause::Restored => "restored",
            Cause::Evicted => "evicted",
            Cause::Expelled => "expelled",
            Cause::MembershipEnded => "membership_ended",
            Cause::MembershipRegained => "membership_regained",
            Cause::Undone => "undone",
        }
    }
}

/// One change of the state, kept as history.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transition {
    /// When, by our clock.
    pub at: UnixMillis,
    /// What happened.
    pub cause: Cause,
    /// Who did it.
    pub actor: Actor,
    /// The change of the store that it was.
    pub revision: Revision,
    /// The state before.
    pub from: TrustState,
    /// The state after.
    pub to: TrustState,
    /// The statement behind it, where there is one.
    pub digest: Option<Digest>,
}

/// How the peer's requests reached us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Request {
    /// When the first undecided one came.
    pub received_at: UnixMillis,
    /// From where.
    pub source: Option<Address>,
    /// How many different ones came.
    pub count: u32,
}

/// What is known of one peer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TrustRecord {
    /// Our edge.
    pub ours: Option<Edge>,
    /// Their edge.
    pub theirs: Option<Edge>,
    /// The local flag.
    pub blocked: bool,
    /// The operator's name for the peer.
    pub alias: Option<Note>,
    /// Which statement of ours the peer has on its disk.
    pub delivered: Option<Held>,
    /// The greatest epoch of a grant of ours that a peer has proven and that we do not hold.
    pub proven: u64,
    /// The rule that made our grant; absent: an operator.
    pub rule: Option<Rule>,
    /// The undecided request.
    pub request: Option<Request>,
    /// How often the peer said two different things under one number.
    pub equivocations: u32,
    /// The last transitions, oldest first.
    pub history: Vec<Transition>,
    /// The sponsor of the subject of a grant by a network's rule, when it was made: it counts against that sponsor's
    /// budget. Boxed, because most records have none.
    #[serde(skip)]
    pub sponsor: Option<Box<PeerId>>,
    /// The revision in which an edge or the flag last changed; zero for what was read from the file and is durable.
    #[serde(skip)]
    pub edges_at: Revision,
    /// The revision in which anything but `delivered` last changed, or zero: what an operator waits for.
    #[serde(skip)]
    pub changed_at: Revision,
}

impl TrustRecord {
    /// What follows.
    pub fn state(&self, view: &View<'_>) -> TrustState {
        if self.blocked || view.denied {
            return TrustState::Blocked;
        }
        if self.ours.as_ref().is_some_and(Edge::is_revoke) {
            return TrustState::Revoked;
        }
        if self.theirs.as_ref().is_some_and(Edge::is_revoke) {
            return TrustState::Refused;
        }
        let ours = self.ours.as_ref().is_some_and(|edge| edge.counts(Side::Ours, view));
        let theirs = self.theirs.as_ref().is_some_and(|edge| edge.counts(Side::Theirs, view));
        match (ours, theirs) {
            (true, true) => TrustState::Trusted,
            (true, false) => TrustState::Requested,
            (false, true) => TrustState::Pending,
            (false, false) => TrustState::Unknown,
        }
    }

    /// The state that was last told: where the last transition led.
    pub fn told(&self) -> TrustState {
        self.history.last().map_or(TrustState::Unknown, |last| last.to)
    }

    /// True when a membership has begun or ceased to count, and no transition says so yet.
    pub fn is_out_of_step(&self, view: &View<'_>) -> bool {
        self.rests_on_networks() && !view.denied && self.told() != self.state(view)
    }

    /// True when an edge is a grant by a network's rule.
    pub fn rests_on_networks(&self) -> bool {
        let by_network = |edge: &Option<Edge>| edge.as_ref().is_some_and(|edge| edge.terms.network.is_some());
        by_network(&self.ours) || by_network(&self.theirs)
    }

    /// Says which rule made our grant, and who let its subject into the network; none: an operator.
    pub(crate) fn made_by(&mut self, rule: Option<Rule>, sponsor: Option<PeerId>) {
        self.rule = rule;
        self.sponsor = sponsor.filter(|_| rule.is_some()).map(Box::new);
    }

    /// True when nothing that a decision uses differs: both edges, their ends, the local flag.
    pub fn has_same_edges(&self, other: &TrustRecord) -> bool {
        let decisive = |edge: &Option<Edge>| edge.as_ref().map(|edge| (edge.rank(), edge.expired));
        self.blocked == other.blocked
            && decisive(&self.ours) == decisive(&other.ours)
            && decisive(&self.theirs) == decisive(&other.theirs)
    }

    /// True when the peer has our current edge on its disk.
    pub fn is_delivered(&self) -> bool {
        self.ours.as_ref().is_some_and(|edge| self.delivered == Some(edge.held()))
    }

    /// True for a record that strangers can make us keep: nothing of ours is in it.
    pub fn is_strangers(&self) -> bool {
        self.ours.is_none() && !self.blocked && self.alias.is_none() && self.proven == 0
    }

    /// Since when the peer waits for a decision.
    pub fn waits_since(&self) -> UnixMillis {
        let stored_at = self.theirs.as_ref().map(|edge| edge.stored_at);
        self.request.map(|request| request.received_at).or(stored_at).unwrap_or_default()
    }

    /// True when a grant has come to its end and nobody has noted it yet.
    pub fn has_unmarked_end(&self, now: UnixMillis) -> bool {
        self.ends_at().is_some_and(|end| end <= now)
    }

    /// When the first grant of the two ends that has not been marked as expired.
    pub fn ends_at(&self) -> Option<UnixMillis> {
        let end = |edge: &Option<Edge>, side| edge.as_ref().filter(|edge| !edge.expired)?.ends_at(side);
        [end(&self.ours, Side::Ours), end(&self.theirs, Side::Theirs)].into_iter().flatten().min()
    }

    /// Notes a transition, forgetting the oldest when there are too many.
    pub(crate) fn remember(&mut self, transition: Transition) {
        if self.history.len() >= HISTORY_MAX {
            self.history.drain(..=self.history.len() - HISTORY_MAX);
        }
        // A record is copied for each change and then kept: no room for more than it holds.
        self.history.reserve_exact(1);
        self.history.push(transition);
    }
}

/// Encodes a record of this crate: a version byte and the canonical encoding.
pub(crate) fn encode_versioned<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    out.push(RECORD_VERSION);
    codec::encode_into(value, out);
}

/// Reads what [`encode_versioned`] wrote.
pub(crate) fn decode_versioned<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, RecordFault> {
    match bytes.split_first() {
        Some((&RECORD_VERSION, body)) => {
            codec::decode_stored(body, RECORD_BYTES_MAX).map_err(|_| RecordFault::BadValue)
        }
        Some((&version, _)) => Err(RecordFault::UnknownTag(u32::from(version))),
        None => Err(RecordFault::TooShort),
    }
}

/// Reads the 32 bytes of a peer's key from a record file.
pub(crate) fn decode_peer(bytes: &[u8]) -> Result<PeerId, RecordFault> {
    bytes.try_into().map(PeerId::from_stored).map_err(|_| RecordFault::BadKey)
}

impl Record for TrustRecord {
    type Key = PeerId;
    type Index = TrustIndex;
    const KIND: FileKind = FileKind::Trust;

    fn encode_key(key: &PeerId, out: &mut Vec<u8>) {
        out.extend_from_slice(key.as_bytes());
    }

    fn decode_key(bytes: &[u8]) -> Result<PeerId, RecordFault> {
        decode_peer(bytes)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(sponsor) = &self.sponsor {
            out.push(SPONSORED_VERSION);
            out.extend_from_slice(sponsor.as_bytes());
        }
        encode_versioned(self, out);
    }

    fn decode(_: &PeerId, bytes: &[u8]) -> Result<TrustRecord, RecordFault> {
        let Some((&SPONSORED_VERSION, rest)) = bytes.split_first() else {
            return decode_versioned(bytes);
        };
        let (sponsor, body) = rest.split_first_chunk::<32>().ok_or(RecordFault::TooShort)?;
        let sponsor = Some(Box::new(PeerId::from_stored(*sponsor)));
        Ok(TrustRecord { sponsor, ..decode_versioned(body)? })
    }

    fn found_unconfirmed(&mut self, at: Revision) {
        (self.edges_at, self.changed_at) = (at, at);
    }
}
