//! Who may pass, answered without a lock: the index that the store keeps inside its own lock, for every change.
//!
//! Invariants:
//! * NOW: a pass is open only while both edges grant and nothing blocks. It is closed before the lock of the change that
//!   ends it is released, so from that instant nothing is authorised.
//! * A grant by a network's rule passes only while the memberships count that it rests on. That is asked at each look,
//!   of an index that changes inside the lock of the networks: an expulsion or an end cuts without a change here.
//! * EARLY for grants: a pass carries the revision in which its edges last changed and counts only once that revision
//!   is durable. Losing a grant is safe, losing a revocation is not.
//! * It never waits: not behind writers, not behind the disk. Writers are the store's lock holders, one at a time. They
//!   open and close passes in place (`passes`); a pass, once entered, stays until its record is removed.
//! * Bounds (a scope, a membership) lie beside the pass, with the revision that they belong to: those of another
//!   revision than the pass's are not taken for its own.
//!
//! A grant that replaces a grant (another scope, another end) counts like any other once it is durable; until then
//! the peer does not pass, because the new one may be the narrower.
//!
//! The counts of strangers and of rules' grants, the next end and the last removal live here too, for the same reason:
//! they follow every change.
//!
//! Not here: the deny list, which is configuration (`book`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use handfast_protocol::{NetworkId, PeerId, Scope, ServiceName, UnixMillis};

use crate::caps::{RuleUse, Strangers};
use crate::census::{Census, Counted};
use crate::networks::Members;
use crate::passes::{Open, Passes, Shut};
use crate::record::{Index, Revision};
use crate::seeded::SeededState;
use crate::trust_record::{Edge, Rule, Side, TrustRecord, TrustState};

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
    /// A grant is a network's, and a membership there does not count.
    #[error("a membership in the network does not count")]
    NotAMember,
}

#[derive(Debug)]
struct Bounds {
    /// Of which opening of the pass.
    since: Revision,
    inbound: Option<Scope>,
    outbound: Option<Scope>,
    /// In which network the peer must be a member,
    peer_in: Option<NetworkId>,
    /// and in which we.
    we_in: Option<NetworkId>,
}

/// The index of the trust store.
#[derive(Default)]
pub struct TrustIndex {
    passes: Passes,
    /// Of those passes that have any.
    bounds: papaya::HashMap<PeerId, Arc<Bounds>, SeededState>,
    /// How many of them are open.
    open: AtomicUsize,
    /// How many of them a membership holds up, as far as was told.
    idle: AtomicU64,
    pub(crate) strangers: Strangers,
    pub(crate) rules: RuleUse,
    census: Census,
    /// No grant that is not marked as expired ends before; `u64::MAX`: none ends. May be too early, never too late.
    next_end: NextEnd,
    /// The revision of the last removal.
    removed_at: AtomicU64,
}

struct NextEnd(AtomicU64);

impl Default for NextEnd {
    fn default() -> NextEnd {
        NextEnd(AtomicU64::new(u64::MAX))
    }
}

impl TrustIndex {
    /// Whether `peer` may pass, given what is durable and whose membership counts (and who we are). About 20 ns, and a
    /// few lookups more for a grant by a network's rule; never waits.
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
        members: Option<(&Members, PeerId)>,
    ) -> Result<(), Denied> {
        let open = self.passes.look(peer).ok_or(Denied::NotTrusted)?.map_err(|shut| match shut {
            Shut::Closed => Denied::NotTrusted,
            Shut::Changing => Denied::NotDurable,
        })?;
        if open.since > durable {
            return Err(Denied::NotDurable);
        }
        if open.until <= now.0 {
            return Err(Denied::Expired);
        }
        if !open.bounded {
            return Ok(());
        }
        let bounds = self.bounds.pin();
        // Those of another opening: the pass has been changed since.
        let bounds = bounds.get(peer).filter(|bounds| bounds.since == open.since).ok_or(Denied::NotDurable)?;
        let is_in = |network: &Option<NetworkId>, subject: fn(&PeerId, PeerId) -> PeerId| {
            let Some(network) = network else {
                return true;
            };
            members.is_some_and(|(members, me)| members.counts(network, &subject(peer, me), now))
        };
        if !is_in(&bounds.peer_in, |peer, _| *peer) || !is_in(&bounds.we_in, |_, me| me) {
            return Err(Denied::NotAMember);
        }
        let Purpose::Service(service) = purpose else {
            return Ok(());
        };
        let scope = match direction {
            Direction::Inbound => &bounds.inbound,
            Direction::Outbound => &bounds.outbound,
        };
        if scope.as_ref().is_none_or(|scope| scope.contains(service)) { Ok(()) } else { Err(Denied::OutOfScope) }
    }

    /// When the first of the two grants of a trusted peer ends.
    pub fn ends_at(&self, peer: &PeerId) -> Option<UnixMillis> {
        let until = self.passes.look(peer)?.ok()?.until;
        Some(until).filter(|until| *until != u64::MAX).map(UnixMillis)
    }

    /// How many peers both ends grant, and no membership holds that up, as far as it was told.
    pub fn trusted(&self) -> usize {
        self.open.load(Ordering::Relaxed).saturating_sub(self.idle.load(Ordering::Relaxed) as usize)
    }

    /// How many peers there are in each state.
    pub fn census(&self) -> Counted {
        self.census.counted()
    }

    /// How many standing grants `rule` has made, and how many of them within the last hour.
    pub fn grants_of(&self, rule: &Rule, now: UnixMillis) -> (u64, u64) {
        self.rules.count(rule, now)
    }

    /// True when some grant may come to its end one day.
    pub fn has_ending_grants(&self) -> bool {
        self.next_end().is_some()
    }

    /// No grant comes to its end before this.
    pub fn next_end(&self) -> Option<UnixMillis> {
        Some(self.next_end.0.load(Ordering::Acquire)).filter(|end| *end != u64::MAX).map(UnixMillis)
    }

    /// True when a grant may have ended by `now`. Then the caller looks at all records, and has the ends that are still
    /// to come noted again.
    pub(crate) fn take_ends(&self, now: UnixMillis) -> bool {
        self.next_end().is_some_and(|end| end <= now) && {
            self.next_end.0.store(u64::MAX, Ordering::Release);
            true
        }
    }

    pub(crate) fn note_end(&self, end: UnixMillis) {
        self.next_end.0.fetch_min(end.0, Ordering::AcqRel);
    }

    /// The revision that removed a record last.
    pub(crate) fn removed_at(&self) -> Revision {
        Revision(self.removed_at.load(Ordering::Acquire))
    }
}

/// The two grants, if nothing but a membership can be missing.
fn grants(record: &TrustRecord) -> Option<(&Edge, &Edge)> {
    let counts = |edge: &&Edge| !edge.is_revoke() && !edge.expired;
    let ours = record.ours.as_ref().filter(counts)?;
    let theirs = record.theirs.as_ref().filter(counts)?;
    (!record.blocked).then_some((ours, theirs))
}

fn bounds(record: &TrustRecord, ours: &Edge, theirs: &Edge) -> Option<Bounds> {
    let bounded = ours.terms.scope.is_some() || theirs.terms.scope.is_some() || record.rests_on_networks();
    bounded.then(|| Bounds {
        since: record.edges_at,
        inbound: ours.terms.scope.clone(),
        outbound: theirs.terms.scope.clone(),
        peer_in: ours.terms.network,
        we_in: theirs.terms.network,
    })
}

fn until(ours: &Edge, theirs: &Edge) -> u64 {
    let end = |at: Option<UnixMillis>| at.map_or(u64::MAX, |at| at.0);
    end(ours.ends_at(Side::Ours)).min(end(theirs.ends_at(Side::Theirs)))
}

/// A pass that a membership holds up, as the last transition told it.
fn is_idle(record: Option<&TrustRecord>) -> bool {
    record.is_some_and(|record| {
        record.rests_on_networks() && record.told() != TrustState::Trusted && grants(record).is_some()
    })
}

impl TrustIndex {
    fn edges_changed(&self, key: &PeerId, new: Option<&TrustRecord>) {
        let next = new.and_then(|record| Some((record, grants(record)?)));
        let pass = if next.is_some() { self.passes.enter(key) } else { self.passes.find(key) };
        let Some(pass) = pass else { return };
        let (was_open, was_bounded) = (pass.is_open(), pass.is_bounded());
        if let Some((record, (ours, theirs))) = next {
            let bounds = bounds(record, ours, theirs);
            let open = Open { since: record.edges_at, until: until(ours, theirs), bounded: bounds.is_some() };
            pass.begin_change();
            if let Some(bounds) = bounds {
                self.bounds.pin().insert(*key, Arc::new(bounds));
            }
            pass.open(open);
        } else {
            pass.close();
        }
        if was_bounded && !pass.is_bounded() {
            self.bounds.pin().remove(key);
        }
        if new.is_none() {
            self.passes.remove(key);
        }
        match (was_open, next.is_some()) {
            (false, true) => {
                self.open.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.open.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Index<TrustRecord> for TrustIndex {
    fn expect(&self, records: usize) {
        self.passes.expect(records);
    }

    fn restock(&self) {
        self.passes.restock();
    }

    fn touch<'a>(&self, peers: impl Iterator<Item = &'a PeerId>) {
        self.passes.touch(peers);
    }

    fn changed(&self, key: &PeerId, old: Option<&TrustRecord>, new: Option<&Arc<TrustRecord>>, revision: Revision) {
        let new = new.map(|record| &**record);
        // Most changes show in the first of the two, which costs less to look at.
        if !old.zip(new).is_some_and(|(old, new)| old.edges_at == new.edges_at && old.has_same_edges(new)) {
            self.edges_changed(key, new);
        }
        match (is_idle(old), is_idle(new)) {
            (false, true) => {
                self.idle.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => {
                self.idle.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        self.strangers.changed(key, old, new);
        self.rules.changed(old, new, revision != Revision::ZERO);
        self.census.changed(old, new);
        match new {
            Some(record) => record.ends_at().into_iter().for_each(|end| self.note_end(end)),
            None => self.removed_at.store(revision.0, Ordering::Release),
        }
    }
}
