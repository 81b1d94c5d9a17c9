//! Signed sentences: "I, issuer, grant trust to (or revoke trust from) subject".
//!
//! Invariants: no field that a decision uses is outside the signature; a statement has one encoding; a [`Verified`]
//! exists only for a signature that `verify_strict` accepted, or that was accepted before and whose bytes a record
//! file vouches for. Merging is a join over [`Rank`]: commutative, associative, idempotent, so replay, reordering and
//! duplication cannot change what is believed.
//!
//! Not here: what follows from two edges (crate `handfast-trust`).

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::codec;
use crate::identity::{NetworkId, PeerId, SecretKey};
use crate::limits::{EPOCH_CLOCK_MAX, SCOPE_SERVICES_MAX};
use crate::text::{Note, ServiceName};

/// What precedes the encoding of a statement under its signature.
const STATEMENT_DOMAIN: &[u8] = b"handfast/1/statement";

/// Milliseconds since 1970-01-01T00:00:00Z, as the issuer's clock shows them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// This instant `ms` later, at most the end of time.
    #[must_use]
    pub fn plus(self, ms: u64) -> UnixMillis {
        UnixMillis(self.0.saturating_add(ms))
    }

    /// Milliseconds from `earlier` to this; 0 when the clock went back.
    pub fn since(self, earlier: UnixMillis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The two kinds. A revoke outranks a grant of the same epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Trust is given.
    Grant,
    /// Trust is taken away, or refused.
    Revoke,
}

/// BLAKE3 of the bytes that a statement's signature covers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(#[serde(with = "codec::words")] pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// Which services a grant is for: 1 to [`SCOPE_SERVICES_MAX`] names, sorted, each once.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(into = "Vec<ServiceName>")]
pub struct Scope(Box<[ServiceName]>);

/// Why a list of services is not a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeFault {
    /// An empty scope would be a grant of nothing.
    #[error("a scope names at least one service")]
    Empty,
    /// More names than allowed.
    #[error("a scope names at most {SCOPE_SERVICES_MAX} services")]
    TooMany,
    /// On the wire the names come sorted, each once.
    #[error("the services of a scope are not sorted and distinct")]
    NotSorted,
}

impl Scope {
    /// The scope of these services, in any order.
    ///
    /// # Errors
    /// [`ScopeFault::Empty`] and [`ScopeFault::TooMany`].
    pub fn new(mut services: Vec<ServiceName>) -> Result<Scope, ScopeFault> {
        services.sort();
        services.dedup();
        Scope::try_from(services)
    }

    /// True when the scope names `service`.
    pub fn contains(&self, service: &ServiceName) -> bool {
        self.0.binary_search(service).is_ok()
    }

    /// The names, sorted.
    pub fn services(&self) -> &[ServiceName] {
        &self.0
    }
}

impl TryFrom<Vec<ServiceName>> for Scope {
    type Error = ScopeFault;
    fn try_from(services: Vec<ServiceName>) -> Result<Scope, ScopeFault> {
        match services.len() {
            0 => Err(ScopeFault::Empty),
            n if n > SCOPE_SERVICES_MAX => Err(ScopeFault::TooMany),
            _ if !services.is_sorted_by(|a, b| a < b) => Err(ScopeFault::NotSorted),
            _ => Ok(Scope(services.into())),
        }
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scope, D::Error> {
        let services = codec::bounded_list::<_, _, SCOPE_SERVICES_MAX>(deserializer)?;
        Scope::try_from(services).map_err(D::Error::custom)
    }
}

impl From<Scope> for Vec<ServiceName> {
    fn from(scope: Scope) -> Vec<ServiceName> {
        scope.0.into()
    }
}

/// What a statement says, without who says it of whom.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Terms {
    /// Grant or revoke.
    pub kind: Kind,
    /// Number of the statement on its edge; greater wins. See [`next_epoch`].
    pub epoch: u64,
    /// When it was issued, by the issuer's clock.
    pub issued_at: UnixMillis,
    /// From when on a grant counts as absent, by the issuer's clock.
    pub expires_at: Option<UnixMillis>,
    /// The services that the grant is for; absent: all.
    pub scope: Option<Scope>,
    /// The network whose rule made the grant; absent: an operator or another rule.
    pub network: Option<NetworkId>,
    /// A remark for the operator on the other side.
    pub note: Note,
}

/// "I, `issuer`, say `terms` of `subject`."
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Statement {
    /// Whose statement it is. Only the issuer moves this edge.
    pub issuer: PeerId,
    /// Whom it is about.
    pub subject: PeerId,
    /// What it says.
    pub terms: Terms,
}

impl Statement {
    /// The bytes that the signature covers.
    fn message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(320);
        message.extend_from_slice(STATEMENT_DOMAIN);
        codec::encode_into(self, &mut message);
        message
    }

    /// Signs the statement with the issuer's key.
    ///
    /// # Errors
    /// [`StatementFault::WrongParty`] when `key` is not the issuer's.
    pub fn sign(self, key: &SecretKey) -> Result<Verified, StatementFault> {
        if key.peer_id() != self.issuer {
            return Err(StatementFault::WrongParty);
        }
        let message = self.message();
        let signature = Signature(key.sign(&message));
        let digest = Digest(blake3::hash(&message).into());
        Ok(Verified { statement: SignedStatement { statement: self, signature }, digest })
    }
}

/// An Ed25519 signature (RFC 8032): 64 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature(#[serde(with = "codec::words")] pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", data_encoding::HEXLOWER.encode(&self.0[..4]))
    }
}

/// Why a statement is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatementFault {
    /// Issuer or subject is not who it must be.
    #[error("the statement is not between these two peers")]
    WrongParty,
    /// The signature does not match.
    #[error("the signature of the statement does not match")]
    BadSignature,
}

/// A statement with a signature that nobody has checked yet: what comes from the wire.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedStatement {
    /// The sentence.
    pub statement: Statement,
    /// The issuer's signature over the domain and the canonical encoding of the sentence.
    pub signature: Signature,
}

impl SignedStatement {
    /// Believes the statement if it is `issuer`'s about `subject` and the signature holds. `known`, an edge that was
    /// verified before, saves the check when it is the very same statement and signature.
    ///
    /// # Errors
    /// Every [`StatementFault`].
    pub fn verify(
        self,
        issuer: &PeerId,
        subject: &PeerId,
        known: Option<&Verified>,
    ) -> Result<Verified, StatementFault> {
        if self.statement.issuer != *issuer || self.statement.subject != *subject || issuer == subject {
            return Err(StatementFault::WrongParty);
        }
        if let Some(known) = known.filter(|known| known.statement == self) {
            return Ok(known.clone());
        }
        let message = self.statement.message();
        if !issuer.verify(&message, &self.signature.0) {
            return Err(StatementFault::BadSignature);
        }
        let digest = Digest(blake3::hash(&message).into());
        Ok(Verified { statement: self, digest })
    }

    /// Takes a statement whose signature was checked before it was stored, from bytes that a digest chain vouches for.
    /// A wrong yes here would be believed: nothing but a record file may call it.
    pub fn from_stored(self, digest: Digest) -> Verified {
        Verified { statement: self, digest }
    }
}

/// A statement whose signature holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    statement: SignedStatement,
    digest: Digest,
}

impl Verified {
    /// The statement with its signature: the evidence, to send or to show.
    pub fn signed(&self) -> &SignedStatement {
        &self.statement
    }

    /// What it says.
    pub fn terms(&self) -> &Terms {
        &self.statement.statement.terms
    }

    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its place in the order of merging.
    pub fn rank(&self) -> Rank {
        Rank { epoch: self.terms().epoch, kind: self.terms().kind, digest: self.digest }
    }

    /// Its name in an exchange.
    pub fn held(&self) -> Held {
        Held { epoch: self.terms().epoch, digest: self.digest }
    }
}

/// The order in which statements of one edge replace each other: the greatest wins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rank {
    /// First the epoch,
    pub epoch: u64,
    /// then revoke over grant,
    pub kind: Kind,
    /// then the digest, which decides nothing but that both ends decide alike.
    pub digest: Digest,
}

impl Rank {
    /// True when one issuer said two different things under one number.
    pub fn is_equivocation(&self, other: &Rank) -> bool {
        self.epoch == other.epoch && self.kind == other.kind && self.digest != other.digest
    }
}

/// Names one statement of a known edge.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Held {
    /// Its epoch.
    pub epoch: u64,
    /// Its digest.
    pub digest: Digest,
}

/// The epoch of a new statement: past what is stored, past what a peer has proven that we said, and at the clock
/// where that is greater, so that an issuer restored from an old backup is heard again.
pub fn next_epoch(stored: Option<u64>, proven: u64, now: UnixMillis) -> u64 {
    let after = |epoch: u64| epoch.saturating_add(1);
    stored.map_or(0, after).max(after(proven)).max(now.0.min(EPOCH_CLOCK_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::STATEMENT_BYTES_MAX;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn terms(kind: Kind, epoch: u64, note: &str) -> Terms {
        Terms {
            kind,
            epoch,
            issued_at: UnixMillis(1_700_000_000_000),
            expires_at: None,
            scope: None,
            network: None,
            note: Note::new(note).unwrap(),
        }
    }

    fn signed(kind: Kind, epoch: u64, note: &str) -> Verified {
        let statement =
            Statement { issuer: key(1).peer_id(), subject: key(2).peer_id(), terms: terms(kind, epoch, note) };
        statement.sign(&key(1)).unwrap()
    }

    #[test]
    fn a_statement_is_believed_only_between_its_parties() {
        let (a, b, c) = (key(1).peer_id(), key(2).peer_id(), key(3).peer_id());
        let claim = || signed(Kind::Grant, 1, "").signed().clone();
        assert!(claim().verify(&a, &b, None).is_ok());
        for (issuer, subject) in [(b, a), (a, c), (c, b), (a, a)] {
            assert_eq!(claim().verify(&issuer, &subject, None), Err(StatementFault::WrongParty));
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let (a, b) = (key(1).peer_id(), key(2).peer_id());
        let mut full = signed(Kind::Grant, 77, "a note").signed().statement.clone();
        full.terms.expires_at = Some(UnixMillis(1_800_000_000_000));
        full.terms.scope = Some(Scope::new(vec![ServiceName::new("backup").unwrap()]).unwrap());
        full.terms.network = Some(NetworkId::from_stored(*key(9).peer_id().as_bytes()));
        let bytes = codec::encode(full.sign(&key(1)).unwrap().signed());
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let believed = codec::decode::<SignedStatement>(&changed, STATEMENT_BYTES_MAX)
                .is_ok_and(|claim| claim.verify(&a, &b, None).is_ok());
            assert!(!believed, "bit {bit}");
        }
    }

    #[test]
    fn a_known_statement_with_another_signature_is_checked() {
        let (a, b) = (key(1).peer_id(), key(2).peer_id());
        let known = signed(Kind::Grant, 1, "");
        let mut forged = known.signed().clone();
        forged.signature.0[0] ^= 1;
        assert_eq!(forged.verify(&a, &b, Some(&known)), Err(StatementFault::BadSignature));
        assert_eq!(known.signed().clone().verify(&a, &b, Some(&known)), Ok(known));
    }

    #[test]
    fn the_largest_statement_fits_its_limit() {
        let name = |i: u8| ServiceName::new(&format!("{i}{}", "x".repeat(31))).unwrap();
        let mut terms = terms(Kind::Revoke, u64::MAX, &"n".repeat(256));
        terms.expires_at = Some(UnixMillis(u64::MAX));
        terms.scope = Some(Scope::new((0..8).map(name).collect()).unwrap());
        terms.network = Some(NetworkId::from_stored(*key(9).peer_id().as_bytes()));
        let statement = Statement { issuer: key(1).peer_id(), subject: key(2).peer_id(), terms };
        assert_eq!(codec::encode(statement.sign(&key(1)).unwrap().signed()).len(), STATEMENT_BYTES_MAX);
    }

    #[test]
    fn a_scope_on_the_wire_is_sorted_and_distinct() {
        let names = |list: &[&str]| list.iter().map(|n| ServiceName::new(n).unwrap()).collect::<Vec<_>>();
        let check = |list: &[&str], fault| {
            assert_eq!(codec::decode::<Scope>(&codec::encode(&names(list)), 512).is_ok(), fault);
        };
        check(&["a", "b"], true);
        check(&["b", "a"], false);
        check(&["a", "a"], false);
        check(&[], false);
        assert!(Scope::new(names(&["b", "a", "a"])).is_ok());
    }

    #[test]
    fn the_next_epoch_is_past_everything_known() {
        assert_eq!(next_epoch(None, 0, UnixMillis(5)), 5);
        assert_eq!(next_epoch(Some(9), 0, UnixMillis(5)), 10);
        assert_eq!(next_epoch(Some(9), 20, UnixMillis(5)), 21);
        assert_eq!(next_epoch(None, 0, UnixMillis(u64::MAX)), EPOCH_CLOCK_MAX);
        assert_eq!(next_epoch(Some(u64::MAX), 0, UnixMillis(5)), u64::MAX);
    }
}
