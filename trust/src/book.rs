//! The trust store with its rules: every change of a trust record goes through [`Book::update`].
//!
//! A change is prepared outside the lock, from a copy-on-write snapshot of the one record (signing takes 15 us, the
//! lock is held for one). Inside the lock it is stored only if the record is still that snapshot; otherwise it is
//! prepared again. So every decision rests on the record that it replaces, and the lock never sees a signature.
//!
//! Thread: any. The observer is called after the lock's release, once for each transition.
//!
//! Not here: the disk (the store's drainer), connections (the node cuts them when `update` has returned).

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use handfast_protocol::exchange::{AnswerTerms, Parties, Shown};
use handfast_protocol::{Address, Held, Kind, Note, PeerId, SecretKey, UnixMillis};

use crate::authorise::{Denied, Direction, Purpose};
use crate::caps::SourcePrefix;
use crate::record::Revision;
use crate::rules::{self, Admittance, Decided, Grant, Moment, Refusal, Showing};
use crate::signals::Durable;
use crate::store::Store;
use crate::sync::Lock;
use crate::table::Urgency;
use crate::trust_record::{Cause, Rule, Transition, TrustRecord, TrustState};

/// How long a request waits for a decision: 30 days.
pub const PENDING_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// What this node grants without asking, and how much strangers may make it keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Keys that are treated as blocked.
    pub deny: HashSet<PeerId>,
    /// Keys whose requests are granted.
    pub allow: HashSet<PeerId>,
    /// Every request is granted.
    pub accept_all: bool,
    /// Grants that one rule may make in an hour.
    pub grants_per_hour: u64,
    /// Grants of one rule that may stand.
    pub grants_total: u64,
    /// Records without an edge of ours, in all.
    pub pending_total: u64,
    /// The same, from one source prefix.
    pub pending_per_source: u64,
    /// New ones in a second, in all.
    pub pending_new_per_second: u64,
}

/// Hears of each transition, after the lock is released. Must not block.
pub type Observer = Box<dyn Fn(&PeerId, &Transition) + Send + Sync>;

/// The trust store with its rules. See the module.
pub struct Book {
    store: Store<TrustRecord>,
    key: SecretKey,
    policy: Policy,
    observer: Observer,
    newcomers: Lock<Newcomers>,
}

/// New pending places of the current second.
#[derive(Default)]
struct Newcomers {
    second: u64,
    count: u64,
}

/// What a change did.
#[derive(Clone, Debug)]
pub struct Updated {
    /// The state now.
    pub state: TrustState,
    /// The transition, where the state changed.
    pub transition: Option<Transition>,
    /// What must be durable before anybody may be told.
    pub revision: Revision,
    /// A request that found no free place.
    pub turned_away: bool,
}

impl Book {
    /// The book over a recovered store. `key` is this node's.
    pub fn new(store: Store<TrustRecord>, key: SecretKey, policy: Policy, observer: Observer) -> Book {
        Book { store, key, policy, observer, newcomers: Lock::new(Newcomers::default()) }
    }

    /// This node.
    pub fn me(&self) -> PeerId {
        self.key.peer_id()
    }

    /// The store under it.
    pub fn store(&self) -> &Store<TrustRecord> {
        &self.store
    }

    /// When changes are durable.
    pub fn durable(&self) -> &Durable {
        self.store.durable()
    }

    /// The record of a peer, as it is now.
    pub fn record(&self, peer: &PeerId) -> Option<Arc<TrustRecord>> {
        self.store.read(|table| table.get(peer).cloned())
    }

    /// The state of a peer at `now`.
    pub fn state(&self, peer: &PeerId, now: UnixMillis) -> TrustState {
        let record = self.record(peer);
        let empty = TrustRecord::default();
        record.as_deref().unwrap_or(&empty).state(self.is_denied(peer), now)
    }

    /// True for keys on the deny list.
    pub fn is_denied(&self, peer: &PeerId) -> bool {
        !self.policy.deny.is_empty() && self.policy.deny.contains(peer)
    }

    /// Whether `peer` may pass. Lock-free; see [`crate::authorise`].
    ///
    /// # Errors
    /// The first reason of [`Denied`].
    pub fn authorise(
        &self,
        peer: &PeerId,
        purpose: Purpose<'_>,
        direction: Direction,
        now: UnixMillis,
    ) -> Result<(), Denied> {
        if self.is_denied(peer) {
            return Err(Denied::NotTrusted);
        }
        self.store.index().authorise(peer, purpose, direction, self.store.durable().current(), now)
    }

    /// The two ends of an exchange with `peer`, with what is stored of both edges.
    pub fn parties(&self, peer: PeerId) -> Parties {
        let (me, record) = (self.me(), self.record(&peer));
        let record = record.as_deref();
        let ours = record.and_then(|record| Some(record.ours.as_ref()?.statement(me, peer)));
        let theirs = record.and_then(|record| Some(record.theirs.as_ref()?.statement(peer, me)));
        Parties { me, peer, ours, theirs }
    }

    /// What the peer showed us in an exchange. See [`rules::merge`].
    pub fn merge(&self, peer: PeerId, shown: &Shown, source: Option<SocketAddr>, now: UnixMillis) -> Updated {
        let admittance = self.admit(&peer, shown, source, now);
        let updated = self.update(peer, now, |record, moment| {
            Ok::<_, std::convert::Infallible>(rules::merge(record, shown, &admittance, moment))
        });
        match updated {
            Ok(updated) => updated,
            Err(never) => match never {},
        }
    }

    /// What to answer, and the revision that it rests on. See [`rules::answer`].
    pub fn answer(
        &self,
        peer: PeerId,
        shown: &Shown,
        turned_away: bool,
        showing: &Showing,
        now: UnixMillis,
    ) -> (AnswerTerms, Revision) {
        let record = self.record(&peer);
        let terms = rules::answer(record.as_deref(), shown, turned_away, showing, &self.moment(peer, now));
        // Without a record nothing is promised; a removal before it must be durable all the same.
        (terms, record.map_or(self.store.revision(), |record| record.edges_at))
    }

    /// The operator grants trust. See [`rules::trust`].
    ///
    /// # Errors
    /// [`Refusal::Myself`] and [`Refusal::Blocked`].
    pub fn trust(&self, peer: PeerId, grant: &Grant, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, |record, moment| rules::trust(record, grant, moment))
    }

    /// The operator takes trust back (`Cause::Revoked`) or refuses it (`Cause::Rejected`). See [`rules::revoke`].
    ///
    /// # Errors
    /// [`Refusal::Unknown`], [`Refusal::NothingToReject`] and [`Refusal::Myself`].
    pub fn revoke(&self, peer: PeerId, note: &Note, cause: Cause, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, |record, moment| rules::revoke(record, note, cause, moment))
    }

    /// The operator sets or clears the local flag. See [`rules::block`].
    ///
    /// # Errors
    /// [`Refusal::Unknown`] and [`Refusal::Myself`].
    pub fn block(&self, peer: PeerId, blocked: bool, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, |record, moment| rules::block(record, blocked, moment))
    }

    /// Notes which statement of ours the peer has made durable.
    pub fn receipt(&self, peer: PeerId, holds: Held) {
        self.store.write(|table| {
            if let Some(new) = table.get(&peer).and_then(|record| rules::receipt(record, holds)) {
                table.put(peer, new, Urgency::Lazy);
            }
        });
    }

    /// Marks what has come to its end by `now`: grants, and requests that waited too long. Returns whose state fell.
    pub fn expire(&self, now: UnixMillis) -> Vec<PeerId> {
        let pending_since = UnixMillis(now.0.saturating_sub(PENDING_MS_MAX));
        let mut due = self.store.index().strangers.older_than(pending_since);
        if self.store.index().has_ending_grants() {
            let ended = |record: &TrustRecord| record.ends_at().is_some_and(|end| end <= now);
            due.extend(self.store.walk().flatten().filter(|(_, record)| ended(record)).map(|(peer, _)| peer));
        }
        due.retain(|peer| {
            let updated = self.update(*peer, now, |record, moment| match record {
                Some(record) => Ok(rules::expire(record, pending_since, moment)),
                None => Err(Refusal::Unknown),
            });
            updated.is_ok_and(|updated| updated.transition.is_some())
        });
        due
    }

    fn not_myself(&self, peer: &PeerId) -> Result<(), Refusal> {
        if *peer == self.me() { Err(Refusal::Myself) } else { Ok(()) }
    }

    fn moment(&self, peer: PeerId, now: UnixMillis) -> Moment<'_> {
        Moment { key: &self.key, peer, now, denied: self.is_denied(&peer) }
    }

    /// Prepares a change from the record as it is and stores it if the record still is; otherwise prepares it again.
    fn update<E>(
        &self,
        peer: PeerId,
        now: UnixMillis,
        mut decide: impl FnMut(Option<&TrustRecord>, &Moment<'_>) -> Result<Decided, E>,
    ) -> Result<Updated, E> {
        let moment = self.moment(peer, now);
        loop {
            let before = self.record(&peer);
            let decided = decide(before.as_deref(), &moment)?;
            let turned_away = decided.turned_away;
            if let Some((record, transition, revision)) = self.store_if_unchanged(peer, before.as_ref(), decided) {
                if let Some(transition) = &transition {
                    (self.observer)(&peer, transition);
                }
                let unknown = if moment.denied { TrustState::Blocked } else { TrustState::Unknown };
                let state = record.map_or(unknown, |record| record.state(moment.denied, now));
                return Ok(Updated { state, transition, revision, turned_away });
            }
        }
    }

    /// The one place that changes a trust record. `None`: the record is no longer `before`.
    fn store_if_unchanged(
        &self,
        peer: PeerId,
        before: Option<&Arc<TrustRecord>>,
        decided: Decided,
    ) -> Option<(Option<TrustRecord>, Option<Transition>, Revision)> {
        let Decided { record, mut transition, .. } = decided;
        if record.as_ref() == before.map(|before| &**before) {
            let revision = before.map_or(self.store.revision(), |record| record.edges_at);
            return Some((record, transition, revision));
        }
        let kept = record.clone();
        let (stored, _) = self.store.write(|table| {
            let current = table.get(&peer);
            let same = match (current, before) {
                (None, None) => true,
                (Some(current), Some(before)) => Arc::ptr_eq(current, before),
                _ => false,
            };
            if !same {
                return None;
            }
            let revision = table.revision().next();
            let mut edges_at = revision;
            match record {
                Some(mut record) => {
                    if let Some(before) = before.filter(|before| before.has_same_edges(&record)) {
                        edges_at = before.edges_at;
                    }
                    record.edges_at = edges_at;
                    if let (Some(transition), Some(last)) = (&mut transition, record.history.last_mut()) {
                        (transition.revision, last.revision) = (revision, revision);
                    }
                    table.put(peer, record, Urgency::Critical);
                }
                None => drop(table.remove(&peer, Urgency::Critical)),
            }
            Some((transition, edges_at.max(if transition.is_some() { revision } else { edges_at })))
        });
        stored.map(|(transition, revision)| (kept, transition, revision))
    }

    /// What a request of `peer` may do, if it turns out to be one: the rule that grants it, or a pending place.
    fn admit(&self, peer: &PeerId, shown: &Shown, source: Option<SocketAddr>, now: UnixMillis) -> Admittance {
        let mut admittance = Admittance { rule: None, may_pend: true, source: source.map(Address::from) };
        let asks = shown.theirs.as_ref().is_some_and(|theirs| theirs.terms().kind == Kind::Grant);
        let record = self.record(peer);
        if !asks || record.as_ref().is_some_and(|record| record.ours.is_some()) {
            return admittance;
        }
        admittance.rule = self.rule_for(peer, now);
        if record.is_none() && admittance.rule.is_none() {
            admittance.may_pend = self.take_pending_place(source.map(SourcePrefix::of), now);
        }
        admittance
    }

    /// The first rule of the policy that names `peer` and has budget left.
    fn rule_for(&self, peer: &PeerId, now: UnixMillis) -> Option<Rule> {
        let allowed = self.policy.allow.contains(peer).then_some(Rule::Allow);
        let accepted = self.policy.accept_all.then_some(Rule::AcceptAll);
        let has_budget = |rule: &Rule| {
            let (standing, last_hour) = self.store.index().grants_of(rule, now);
            standing < self.policy.grants_total && last_hour < self.policy.grants_per_hour
        };
        [allowed, accepted].into_iter().flatten().find(has_budget)
    }

    /// Makes room for one more stranger, if the caps allow: evicts the oldest of a larger source when all is full.
    fn take_pending_place(&self, source: Option<SourcePrefix>, now: UnixMillis) -> bool {
        let strangers = &self.store.index().strangers;
        if strangers.of_source(source) >= self.policy.pending_per_source {
            return false;
        }
        let second = now.0 / 1_000;
        let within_rate = self.newcomers.with(|newcomers| {
            if newcomers.second != second {
                *newcomers = Newcomers { second, count: 0 };
            }
            newcomers.count += 1;
            newcomers.count <= self.policy.pending_new_per_second
        });
        if !within_rate {
            return false;
        }
        if strangers.total() < self.policy.pending_total {
            return true;
        }
        let Some(victim) = strangers.evictable(source) else {
            return false;
        };
        self.store.write(|table| {
            let is_stranger = table.get(&victim).is_some_and(|record| record.is_strangers());
            is_stranger && table.remove(&victim, Urgency::Critical).is_some()
        });
        true
    }
}
