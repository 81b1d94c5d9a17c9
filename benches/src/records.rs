//! Peers and records like those of a node: two edges, a delivered statement, two transitions of history.
//!
//! Signatures are bytes that nobody checks, except where a benchmark says that it verifies: the core stores what was
//! verified before.

use anyhow::Result;
use handfast_protocol::exchange::Shown;
use handfast_protocol::statement::Signature;
use handfast_protocol::{
    Digest, Held, Incarnation, Kind, Note, PeerId, SecretKey, SignedStatement, Statement, Terms, UnixMillis, Verified,
};
use handfast_trust::{
    Actor, Cause, Edge, FileKind, Record, RecordFault, Revision, Transition, TrustRecord, TrustState,
};

/// A moment in 2026 that all records share.
pub const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

/// The peer with this number: 32 bytes that are spread like those of a key.
#[must_use]
pub fn peer(number: u64) -> PeerId {
    PeerId::from_stored(spread_bytes(number))
}

/// 32 bytes from a number, all different (splitmix64).
#[must_use]
pub fn spread_bytes(number: u64) -> [u8; 32] {
    let mut out = [0; 32];
    let mut state = number.wrapping_mul(4);
    for chunk in out.chunks_exact_mut(8) {
        state = state.wrapping_add(1);
        chunk.copy_from_slice(&mix(state).to_le_bytes());
    }
    out
}

/// The finalizer of splitmix64: a permutation of the 64-bit numbers.
#[must_use]
pub const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that look random, the same in every run.
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// The sequence of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// A number below `end`, which must not be zero.
    pub const fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        ((mix(self.0) as u128 * end as u128) >> 64) as usize
    }

    /// One of so many peers.
    #[must_use]
    pub fn peer(&mut self, peers: usize) -> PeerId {
        peer(self.below(peers) as u64)
    }
}

/// What a statement says.
#[must_use]
pub fn terms(kind: Kind, epoch: u64) -> Terms {
    Terms { kind, epoch, issued_at: NOW, expires_at: None, scope: None, network: None, note: Note::default() }
}

fn edge(issuer: u64, subject: u64, kind: Kind, epoch: u64) -> Edge {
    Edge::new(&verified(peer(issuer), peer(subject), kind, epoch), NOW)
}

/// The record of a peer that we grant, and that granted (`Grant`) or revoked (`Revoke`) in `epoch`.
#[must_use]
pub fn record(kind: Kind, epoch: u64) -> TrustRecord {
    let (ours, theirs) = (edge(0, 1, Kind::Grant, 1), edge(1, 0, kind, epoch));
    let transition = |cause, from, to, digest| Transition {
        at: NOW,
        cause,
        actor: Actor::Operator,
        revision: Revision(epoch),
        from,
        to,
        digest: Some(digest),
    };
    let last = match kind {
        Kind::Grant => transition(Cause::TheyGranted, TrustState::Requested, TrustState::Trusted, theirs.digest),
        Kind::Revoke => transition(Cause::TheyRevoked, TrustState::Trusted, TrustState::Refused, theirs.digest),
    };
    TrustRecord {
        delivered: Some(Held { epoch: 1, digest: ours.digest }),
        history: vec![transition(Cause::Granted, TrustState::Unknown, TrustState::Requested, ours.digest), last],
        ours: Some(ours),
        theirs: Some(theirs),
        ..TrustRecord::default()
    }
}

/// How many bytes that record has on the disk.
#[must_use]
pub fn encoded_bytes(record: &TrustRecord) -> usize {
    let mut out = Vec::new();
    record.encode(&mut out);
    out.len()
}

/// What an exchange hands to the rules when the peer said `theirs`.
#[must_use]
pub const fn shown(theirs: Verified) -> Shown {
    Shown {
        theirs: Some(theirs),
        ours: None,
        holds: None,
        incarnation: Incarnation([7; 16]),
        address: None,
        networks: Vec::new(),
    }
}

/// A statement of `issuer` about `subject` that counts as verified.
#[must_use]
pub fn verified(issuer: PeerId, subject: PeerId, kind: Kind, epoch: u64) -> Verified {
    let statement = Statement { issuer, subject, terms: terms(kind, epoch) };
    SignedStatement { statement, signature: Signature([0x5a; 64]) }.from_stored(Digest(spread_bytes(epoch)))
}

/// A statement with a true signature that is still to be checked.
///
/// # Errors
/// None, as long as a key signs for itself.
pub fn signed(key: &SecretKey, subject: PeerId, kind: Kind, epoch: u64) -> Result<SignedStatement> {
    let statement = Statement { issuer: key.peer_id(), subject, terms: terms(kind, epoch) };
    Ok(statement.sign(key)?.signed().clone())
}

/// A record of plain bytes, for comparisons with engines that know nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain(pub Box<[u8]>);

impl Record for Plain {
    type Key = [u8; 32];
    type Index = ();
    const KIND: FileKind = FileKind::Invites;

    fn encode_key(key: &[u8; 32], out: &mut Vec<u8>) {
        out.extend_from_slice(key);
    }

    fn decode_key(bytes: &[u8]) -> Result<[u8; 32], RecordFault> {
        bytes.try_into().map_err(|_| RecordFault::BadKey)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }

    fn decode(_: &[u8; 32], bytes: &[u8]) -> Result<Self, RecordFault> {
        Ok(Self(bytes.into()))
    }
}
