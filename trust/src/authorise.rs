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
//!   open and close passes in place, which allocates nothing: a pass that is needed for the first time is entered,
//!   closed, before the lock is taken ([`TrustIndex::prepare`]), and it stays until its record is removed.
//!
//! A grant that replaces a grant (another scope, another end) counts like any other once it is durable; until then
//! the peer does not pass, because the new one may be the narrower.
//!
//! The counts of strangers and of rules' grants, the next end and the last removal live here too, for the same reason:
//! they follow every change.
//!
//! Not here: the deny list, which is configuration (`book`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};

use handfast_protocol::{NetworkId, PeerId, Scope, ServiceName, UnixMillis};

use crate::caps::{RuleUse, Strangers};
use crate::census::{Census, Counted};
use crate::networks::Members;
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

/// Of a pass that lets nobody through.
const CLOSED: u64 = u64::MAX;

/// Of a pass that is being changed into one that is not durable yet.
const CHANGING: u64 = u64::MAX - 1;

/// One peer that both ends grant, or have granted.
#[derive(Debug)]
struct Pass {
    /// In which revision its edges last changed. No two openings have the same, so that it also tells whether `until`
    /// belongs to it.
    since: AtomicU64,
    /// When the first of the two grants ends.
    until: AtomicU64,
    /// Bounds, where one of the two has any. Other bounds need another pass.
    bounds: Option<Arc<Bounds>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Bounds {
    inbound: Option<Scope>,
    outbound: Option<Scope>,
    /// In which network the peer must be a member,
    peer_in: Option<NetworkId>,
    /// and in which we.
    we_in: Option<NetworkId>,
}

impl Pass {
    fn closed(bounds: Option<Bounds>) -> Pass {
        Pass { since: AtomicU64::new(CLOSED), until: AtomicU64::new(0), bounds: bounds.map(Arc::new) }
    }

    fn is_open(&self) -> bool {
        self.since.load(Ordering::Relaxed) != CLOSED
    }

    /// For the holder of the store's lock, as `close` is.
    fn open(&self, since: Revision, until: u64) {
        self.since.store(CHANGING, Ordering::Relaxed);
        // Whoever sees the new end sees that the pass is no longer what it was.
        fence(Ordering::Release);
        self.until.store(until, Ordering::Relaxed);
        self.since.store(since.0, Ordering::Release);
    }

    fn close(&self) {
        self.since.store(CLOSED, Ordering::Release);
    }

    /// When it ends, if it is open and durable. A change meanwhile has made it something that is neither.
    fn until(&self, durable: Revision) -> Result<u64, Denied> {
        let since = self.since.load(Ordering::Acquire);
        if since == CLOSED {
            return Err(Denied::NotTrusted);
        }
        let until = self.until.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if since > durable.0 || self.since.load(Ordering::Relaxed) != since {
            return Err(Denied::NotDurable);
        }
        Ok(until)
    }
}

/// The index of the trust store.
#[derive(Default)]
pub struct TrustIndex {
    passes: papaya::HashMap<PeerId, Pass, SeededState>,
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
        let passes = self.passes.pin();
        let pass = passes.get(peer).ok_or(Denied::NotTrusted)?;
        if pass.until(durable)? <= now.0 {
            return Err(Denied::Expired);
        }
        let Some(bounds) = &pass.bounds else {
            return Ok(());
        };
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
        let until = self.passes.pin().get(peer)?.until(Revision(CHANGING - 1)).ok()?;
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
    /// Before the lock is taken for a change to `record`: enters a pass where it needs one that is not there, a closed
    /// one. Without this, the change does so itself, and holds the lock for longer.
    pub fn prepare(&self, peer: &PeerId, record: &TrustRecord) {
        if let Some((ours, theirs)) = grants(record) {
            self.passes.pin().get_or_insert_with(*peer, || Pass::closed(bounds(record, ours, theirs)));
        }
    }

    fn edges_changed(&self, key: &PeerId, new: Option<&TrustRecord>) {
        let passes = self.passes.pin();
        let held = passes.get(key);
        let was_open = held.is_some_and(Pass::is_open);
        let next = new.and_then(|record| Some((record, grants(record)?)));
        match (held, next) {
            (held, Some((record, (ours, theirs)))) => {
                let bounds = bounds(record, ours, theirs);
                match held {
                    Some(held) if held.bounds.as_deref() == bounds.as_ref() => {
                        held.open(record.edges_at, until(ours, theirs));
                    }
                    _ => {
                        let pass = Pass::closed(bounds);
                        pass.open(record.edges_at, until(ours, theirs));
                        passes.insert(*key, pass);
                    }
                }
            }
            (Some(held), None) => {
                held.close();
                if new.is_none() {
                    passes.remove(key);
                }
            }
            (None, None) => {}
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
    fn changed(&self, key: &PeerId, old: Option<&TrustRecord>, new: Option<&Arc<TrustRecord>>, revision: Revision) {
        let new = new.map(|record| &**record);
        if !old.zip(new).is_some_and(|(old, new)| old.has_same_edges(new)) {
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
        self.rules.changed(old, new);
        self.census.changed(old, new);
        match new {
            Some(record) => record.ends_at().into_iter().for_each(|end| self.note_end(end)),
            None => self.removed_at.store(revision.0, Ordering::Release),
        }
    }
}
