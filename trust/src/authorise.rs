//! Who may pass, answered without a lock: the index that the store keeps inside its own lock, for every change.
//!
//! Invariants:
//! * NOW: an entry exists only while both edges grant and nothing blocks. It is gone before the lock of the change that
//!   ends it is released, so from that instant nothing is authorised.
//! * EARLY for grants: an entry carries the revision in which its edges last changed and counts only once that revision
//!   is durable. Losing a grant is safe, losing a revocation is not.
//! * It never waits: not behind writers, not behind the disk. Writers are the store's lock holders, one at a time.
//!
//! The counts of strangers and of rules' grants live here too, for the same reason: they follow every change.
//!
//! Not here: the deny list, which is configuration (`book`).

use std::collections::hash_map::RandomState;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use handfast_protocol::{PeerId, Scope, ServiceName, UnixMillis};

use crate::caps::{RuleUse, Strangers};
use crate::record::{Index, Revision};
use crate::trust_record::{Rule, Side, TrustRecord};

/// Which way a stream was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// By the peer: our grant's scope bounds it.
    Inbound,
    /// By us: their grant's scope bounds it.
    Outbound,
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose<'a> {
    /// A session as such: dials, pings. Every trusted peer may.
    Session,
    /// An application's stream.
    Service(&'a ServiceName),
}

/// Why somebody may not pass. For the local operator; strangers learn only that they may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The two do not trust each other.
    #[error("the peer is not trusted")]
    NotTrusted,
    /// They do, but the disk has not confirmed it yet.
    #[error("the grant is not durable yet")]
    NotDurable,
    /// A grant has ended.
    #[error("a grant has expired")]
    Expired,
    /// The scope does not name the service.
    #[error("the grant is not for this service")]
    OutOfScope,
}

/// One peer that both ends grant.
#[derive(Clone, Debug)]
struct Pass {
    /// In which revision its edges last changed.
    since: Revision,
    /// When the first of the two grants ends.
    until: u64,
    /// Bounds, where one of the two has any.
    scopes: Option<Arc<Scopes>>,
}

#[derive(Debug)]
struct Scopes {
    inbound: Option<Scope>,
    outbound: Option<Scope>,
}

/// The index of the trust store.
#[derive(Default)]
pub struct TrustIndex {
    passes: papaya::HashMap<PeerId, Pass, RandomState>,
    pub(crate) strangers: Strangers,
    pub(crate) rules: RuleUse,
    /// Records with a grant that has an end and has not been marked as expired.
    ending: AtomicU64,
}

impl TrustIndex {
    /// Whether `peer` may pass, given what is durable. About 20 ns; never waits.
    ///
    /// # Errors
    /// The first reason that holds, of [`Denied`].
    pub fn authorise(
        &self,
        peer: &PeerId,
        purpose: Purpose<'_>,
        direction: Direction,
        durable: Revision,
        now: UnixMillis,
    ) -> Result<(), Denied> {
        let passes = self.passes.pin();
        let pass = passes.get(peer).ok_or(Denied::NotTrusted)?;
        if pass.since > durable {
            return Err(Denied::NotDurable);
        }
        if pass.until <= now.0 {
            return Err(Denied::Expired);
        }
        let (Purpose::Service(service), Some(scopes)) = (purpose, &pass.scopes) else {
            return Ok(());
        };
        let scope = match direction {
            Direction::Inbound => &scopes.inbound,
            Direction::Outbound => &scopes.outbound,
        };
        if scope.as_ref().is_none_or(|scope| scope.contains(service)) { Ok(()) } else { Err(Denied::OutOfScope) }
    }

    /// When the first of the two grants of a trusted peer ends.
    pub fn ends_at(&self, peer: &PeerId) -> Option<UnixMillis> {
        self.passes.pin().get(peer).map(|pass| pass.until).filter(|until| *until != u64::MAX).map(UnixMillis)
    }

    /// How many peers both ends grant.
    pub fn trusted(&self) -> usize {
        self.passes.len()
    }

    /// True when some grant may come to its end one day.
    pub fn has_ending_grants(&self) -> bool {
        self.ending.load(Ordering::Relaxed) > 0
    }
}

fn pass(record: &TrustRecord, since: Revision) -> Option<Pass> {
    let counts = |edge: &&crate::trust_record::Edge| !edge.is_revoke() && !edge.expired && edge.terms.network.is_none();
    let ours = record.ours.as_ref().filter(counts)?;
    let theirs = record.theirs.as_ref().filter(counts)?;
    if record.blocked {
        return None;
    }
    let end = |at: Option<UnixMillis>| at.map_or(u64::MAX, |at| at.0);
    let scoped = ours.terms.scope.is_some() || theirs.terms.scope.is_some();
    let scopes =
        scoped.then(|| Arc::new(Scopes { inbound: ours.terms.scope.clone(), outbound: theirs.terms.scope.clone() }));
    Some(Pass { since, until: end(ours.ends_at(Side::Ours)).min(end(theirs.ends_at(Side::Theirs))), scopes })
}

impl Index<TrustRecord> for TrustIndex {
    fn changed(&self, key: &PeerId, old: Option<&TrustRecord>, new: Option<&Arc<TrustRecord>>, _: Revision) {
        let new = new.map(|record| &**record);
        if !old.zip(new).is_some_and(|(old, new)| old.has_same_edges(new)) {
            let passes = self.passes.pin();
            match new.and_then(|record| pass(record, record.edges_at)) {
                Some(pass) => passes.insert(*key, pass),
                None => passes.remove(key),
            };
        }
        self.strangers.changed(key, old, new);
        self.rules.changed(old, new);
        let ends = |record: Option<&TrustRecord>| u64::from(record.is_some_and(|record| record.ends_at().is_some()));
        self.ending.fetch_add(ends(new).wrapping_sub(ends(old)), Ordering::Relaxed);
    }
}

impl TrustIndex {
    /// How many standing grants `rule` has made, and how many of them within the last hour.
    pub fn grants_of(&self, rule: &Rule, now: UnixMillis) -> (u64, u64) {
        self.rules.count(rule, now)
    }
}
