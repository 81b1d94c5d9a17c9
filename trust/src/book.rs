//! The trust store with its rules: every change of a trust record goes through `Book::update`.
//!
//! A change is prepared outside the lock, from a copy-on-write snapshot of the one record (signing takes 15 us, the
//! lock is held for one). Inside the lock it is stored only if the record is still that snapshot and the caps still
//! have room; otherwise it is prepared again. So every decision rests on the record that it replaces, and the lock never
//! sees a signature.
//!
//! An end that has come is recorded, as a change of its own, before anything else is decided about the record, and by
//! the refusal that it causes: a clock that goes back does not revive what anybody was told had ended. So is a
//! membership that has begun or ceased to count (`by_network`): the state follows it at once, the history at the next look.
//!
//! Thread: any. The observer is called after the lock's release, once for each transition.
//!
//! Not here: the disk (the store's drainer), connections (the node cuts them when `update` has returned).

mod by_network;
mod next;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use handfast_protocol::exchange::{AnswerTerms, Offer, Parties, Shown};
use handfast_protocol::{Address, Held, Kind, Note, PeerId, SecretKey, UnixMillis, Verified};

pub use self::by_network::Reconciled;
use self::next::{Next, is_bought_by_a_stranger};
use crate::authorise::{Denied, Direction, Purpose};
use crate::caps::SourcePrefix;
use crate::census::Counted;
use crate::networks::Networks;
use crate::record::Revision;
use crate::rules::{self, Admittance, Decided, Grant, Moment, Refusal, Showing};
use crate::signals::Durable;
use crate::store::Store;
use crate::sync::Lock;
use crate::table::Urgency;
use crate::trust_record::{Actor, Cause, Edge, Rule, Transition, TrustRecord, TrustState, View};

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
    /// Grants of a network's rule that may stand of the members that one sponsor let in.
    pub grants_per_sponsor: u64,
    /// Records without an edge of ours, in all.
    pub pending_total: u64,
    /// The same, from one source prefix.
    pub pending_per_source: u64,
    /// New ones in a second, in all.
    pub pending_new_per_second: u64,
}

/// Hears of each transition, after the lock is released. Must not block. Two transitions of one peer that different
/// threads caused may be heard in either order; their revisions tell which was first.
pub type Observer = Box<dyn Fn(&PeerId, &Transition) + Send + Sync>;

/// The trust store with its rules. See the module.
pub struct Book {
    store: Store<TrustRecord>,
    key: SecretKey,
    policy: Policy,
    networks: Option<Arc<Networks>>,
    observer: Observer,
    newcomers: Lock<Newcomers>,
    /// What recovery found, where a sync has not confirmed all of it. A checkpoint is one thing: which of its records are
    /// beyond the floor, it does not say.
    unconfirmed: Revision,
    /// Whose state fell because time passed, since [`Book::expire`] was asked last.
    fallen: Lock<Vec<PeerId>>,
}

/// What strangers had stored in the current second.
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
    /// What must be durable before anybody may be told: covers all that the record says, except what is `delivered`.
    pub revision: Revision,
    /// Which statement of the peer is stored with that revision.
    pub holds: Option<Held>,
    /// A request that found no free place.
    pub turned_away: bool,
}

impl Book {
    /// The book over a recovered store, of a node that is in no network. `key` is this node's.
    pub fn new(store: Store<TrustRecord>, key: SecretKey, policy: Policy, observer: Observer) -> Book {
        let (newcomers, fallen) = (Lock::new(Newcomers::default()), Lock::new(Vec::new()));
        let is_confirmed = store.durable().current() >= store.revision();
        let unconfirmed = if is_confirmed { Revision::ZERO } else { store.revision() };
        Book { store, key, policy, networks: None, observer, newcomers, unconfirmed, fallen }
    }

    /// The book of a node with these networks.
    #[must_use]
    pub fn with_networks(self, networks: Arc<Networks>) -> Book {
        Book { networks: Some(networks), ..self }
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
        self.state_of(peer, record.as_deref().unwrap_or(&empty), now)
    }

    /// The state that a record of `peer` has at `now`.
    pub fn state_of(&self, peer: &PeerId, record: &TrustRecord, now: UnixMillis) -> TrustState {
        record.state(&self.view(*peer, now))
    }

    /// From where records of `peer` are looked at.
    pub fn view(&self, peer: PeerId, now: UnixMillis) -> View<'_> {
        self.moment(peer, now).view()
    }

    /// How many peers there are in each state. Costs no more for a large table.
    pub fn census(&self) -> Counted {
        let mut counted = self.store.index().census();
        for peer in &self.policy.deny {
            if let Some(record) = self.record(peer) {
                counted.moved(record.counted_as(), TrustState::Blocked);
            }
        }
        counted
    }

    /// True for keys on the deny list.
    pub fn is_denied(&self, peer: &PeerId) -> bool {
        !self.policy.deny.is_empty() && self.policy.deny.contains(peer)
    }

    /// Whether `peer` may pass. Lock-free, except for a refusal because of an end, which records it the first time, or of a
    /// membership, which looks whether there is something to record; see [`crate::authorise`].
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
        let members = self.networks.as_deref().map(|networks| (networks.members(), self.me()));
        let durable = self.store.durable().current();
        let outcome = self.store.index().authorise(peer, purpose, direction, durable, now, members);
        if matches!(outcome, Err(Denied::Expired | Denied::NotAMember)) {
            self.mark_ends(*peer, now);
        }
        outcome
    }

    /// The two ends of an exchange with `peer`, with what is stored of both edges.
    pub fn parties(&self, peer: PeerId) -> Parties {
        self.parties_of(peer, self.record(&peer).as_deref())
    }

    fn parties_of(&self, peer: PeerId, record: Option<&TrustRecord>) -> Parties {
        let me = self.me();
        let verified = |edge: Option<&Edge>, issuer, subject| -> Option<Verified> {
            edge.map(|edge| edge.statement(issuer, subject))
        };
        let ours = verified(record.and_then(|record| record.ours.as_ref()), me, peer);
        let theirs = verified(record.and_then(|record| record.theirs.as_ref()), peer, me);
        Parties { me, peer, ours, theirs }
    }

    /// What to say when we open an exchange, and the revision that must be durable before it leaves. See
    /// [`rules::offer`].
    pub fn offer(&self, peer: PeerId, showing: &Showing, now: UnixMillis) -> (Parties, Offer, Revision) {
        self.mark_ends(peer, now);
        let record = self.record(&peer);
        let record = record.as_deref();
        let offer = rules::offer(record, showing, &self.moment(peer, now));
        (self.parties_of(peer, record), offer, self.edges_at(record))
    }

    /// What the peer showed us in an exchange. See [`rules::merge`].
    pub fn merge(&self, peer: PeerId, shown: &Shown, source: Option<SocketAddr>, now: UnixMillis) -> Updated {
        let asks = shown.theirs.as_ref().is_some_and(|theirs| theirs.terms().kind == Kind::Grant);
        let mut within_rate = None;
        let mut proven = false;
        let updated = self.update(peer, now, Bounds::Caps, |stored, moment| {
            let record = stored.map(|record| &**record);
            let undecided = record.is_none_or(|record| record.ours.is_none() || record.rests_on_networks());
            let (rule, sponsor) = if asks && undecided { self.rule_for(record, &peer, now) } else { None }.unzip();
            let sponsor = sponsor.flatten();
            let mut admittance = Admittance { rule, sponsor, may_pend: true, source: source.map(Address::from) };
            let mut decided = rules::merge(stored, shown, &admittance, moment);
            if is_bought_by_a_stranger(record, &decided)
                && !self.has_place_for(record, source, &mut within_rate, moment.now)
            {
                admittance.may_pend = false;
                decided = rules::merge(stored, shown, &admittance, moment);
            }
            let epoch = |record: Option<&TrustRecord>| record.map_or(0, |record| record.proven);
            proven = epoch(decided.record.as_deref()) > epoch(record);
            Ok::<_, std::convert::Infallible>(decided)
        });
        let updated = match updated {
            Ok(updated) => updated,
            Err(never) => match never {},
        };
        if proven || updated.transition.is_some_and(|transition| transition.cause == Cause::Restored) {
            tracing::warn!(
                peer = peer.short(),
                revision = updated.revision.0,
                granted = proven,
                "the peer holds a newer statement of ours than we do: this node was restored from an old copy"
            );
        }
        updated
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
        self.mark_ends(peer, now);
        let record = self.record(&peer);
        let record = record.as_deref();
        let terms = rules::answer(record, shown, turned_away, showing, &self.moment(peer, now));
        (terms, self.edges_at(record))
    }

    /// The revision of what is said about a peer. Where there is no record, a removal must be durable all the same.
    fn edges_at(&self, record: Option<&TrustRecord>) -> Revision {
        let at = record.map_or_else(|| self.store.index().removed_at(), |record| record.edges_at);
        at.max(self.unconfirmed)
    }

    /// The operator grants trust. See [`rules::trust`].
    ///
    /// # Errors
    /// [`Refusal::Myself`] and [`Refusal::Blocked`].
    pub fn trust(&self, peer: PeerId, grant: &Grant, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, Bounds::None, |record, moment| rules::trust(record, grant, moment))
    }

    /// The operator takes trust back (`Cause::Revoked`) or refuses it (`Cause::Rejected`). See [`rules::revoke`].
    ///
    /// # Errors
    /// [`Refusal::Unknown`], [`Refusal::NothingToReject`] and [`Refusal::Myself`].
    pub fn revoke(&self, peer: PeerId, note: &Note, cause: Cause, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, Bounds::None, |record, moment| rules::revoke(record, note, cause, moment))
    }

    /// The operator sets or clears the local flag. See [`rules::block`].
    ///
    /// # Errors
    /// [`Refusal::Unknown`] and [`Refusal::Myself`].
    pub fn block(&self, peer: PeerId, blocked: bool, now: UnixMillis) -> Result<Updated, Refusal> {
        self.not_myself(&peer)?;
        self.update(peer, now, Bounds::None, |record, moment| rules::block(record, blocked, moment))
    }

    /// Notes which statement of ours the peer has made durable.
    pub fn receipt(&self, peer: PeerId, holds: Held) {
        // No state follows from it: any time will do.
        let moment = self.moment(peer, UnixMillis::default());
        loop {
            let before = self.record(&peer);
            let Some(record) = before.as_ref().and_then(|record| rules::receipt(record, holds)) else {
                return;
            };
            let decided = Decided { record: Some(Arc::new(record)), transition: None, turned_away: false };
            if self.store_if_unchanged(before.as_ref(), decided, Bounds::None, &moment).is_some() {
                return;
            }
        }
    }

    /// Marks what has come to its end by `now`: grants, and requests that waited too long. Returns whose state fell
    /// through the passing of time since this was asked last, whoever noticed it first.
    pub fn expire(&self, now: UnixMillis) -> Vec<PeerId> {
        if let Some(networks) = &self.networks {
            self.resting_on(&networks.expire(now)).into_iter().for_each(|peer| self.mark_ends(peer, now));
        }
        let index = self.store.index();
        let pending_since = UnixMillis(now.0.saturating_sub(PENDING_MS_MAX));
        let mut due = index.strangers.older_than(pending_since);
        if index.take_ends(now) {
            for (peer, record) in self.store.walk().flatten() {
                match record.ends_at() {
                    Some(end) if end <= now => due.push(peer),
                    Some(end) => index.note_end(end),
                    None => {}
                }
            }
        }
        for peer in due {
            let _ = self.update(peer, now, Bounds::None, |record, moment| {
                record.map(|record| rules::expire(record, pending_since, moment)).ok_or(Refusal::Unknown)
            });
        }
        let mut fallen = self.fallen.with(std::mem::take);
        fallen.sort_unstable();
        fallen.dedup();
        // What was granted anew in the meantime has not fallen.
        fallen.retain(|peer| self.state(peer, now) != TrustState::Trusted);
        fallen
    }

    /// Records ends that have come, if any, and what has become of memberships.
    fn mark_ends(&self, peer: PeerId, now: UnixMillis) {
        let view = self.view(peer, now);
        if self.record(&peer).is_some_and(|record| record.has_unmarked_end(now) || record.is_out_of_step(&view)) {
            let _ = self.update(peer, now, Bounds::None, |record, _| {
                Ok::<_, std::convert::Infallible>(Decided::unchanged(record))
            });
        }
    }

    fn not_myself(&self, peer: &PeerId) -> Result<(), Refusal> {
        if *peer == self.me() { Err(Refusal::Myself) } else { Ok(()) }
    }

    fn moment(&self, peer: PeerId, now: UnixMillis) -> Moment<'_> {
        let members = self.networks.as_deref().map(Networks::members);
        Moment { key: &self.key, peer, now, denied: self.is_denied(&peer), members }
    }

    /// Prepares a change from the record as it is and stores it if the record still is; otherwise prepares it again. An
    /// end that has come is stored first, as a change of its own.
    fn update<E>(
        &self,
        peer: PeerId,
        now: UnixMillis,
        bounds: Bounds,
        mut decide: impl FnMut(Option<&Arc<TrustRecord>>, &Moment<'_>) -> Result<Decided, E>,
    ) -> Result<Updated, E> {
        let moment = self.moment(peer, now);
        loop {
            let before = self.record(&peer);
            if let Some(ended) = before.as_ref().filter(|record| record.has_unmarked_end(now)) {
                let decided = rules::expire(ended, UnixMillis::default(), &moment);
                self.store_if_unchanged(before.as_ref(), decided, Bounds::None, &moment);
                continue;
            }
            if let Some(record) = before.as_ref().filter(|record| record.is_out_of_step(&moment.view())) {
                self.note_ends_of_memberships(record, &moment);
                let decided = rules::reconcile(record, &moment);
                self.store_if_unchanged(before.as_ref(), decided, Bounds::None, &moment);
                continue;
            }
            let decided = decide(before.as_ref(), &moment)?;
            if let Some(updated) = self.store_if_unchanged(before.as_ref(), decided, bounds, &moment) {
                return Ok(updated);
            }
        }
    }

    /// The one place that changes a trust record. `None`: the record is no longer `before`, or a cap has been reached.
    fn store_if_unchanged(
        &self,
        before: Option<&Arc<TrustRecord>>,
        decided: Decided,
        bounds: Bounds,
        moment: &Moment<'_>,
    ) -> Option<Updated> {
        let Decided { record, mut transition, turned_away } = decided;
        let mut updated = Updated {
            state: record.as_ref().map_or(rules::absent(moment), |record| record.state(&moment.view())),
            transition,
            revision: before
                .map_or_else(|| self.store.index().removed_at(), |before| before.changed_at)
                .max(self.unconfirmed),
            holds: record.as_ref().and_then(|record| Some(record.theirs.as_ref()?.held())),
            turned_away,
        };
        let mut next = match (record, before) {
            (None, None) => return Some(updated),
            (None, Some(_)) => None,
            (Some(record), before) => match Next::new(before, record) {
                None => return Some(updated),
                next => next,
            },
        };
        let mut removed = None;
        let (stored, _) = self.store.write(|table| {
            let same = table.still_holds(&moment.peer, before);
            if !same || (bounds == Bounds::Caps && !self.has_room(before, next.as_ref(), moment.now)) {
                return false;
            }
            let revision = table.revision().next();
            if let Some(transition) = &mut transition {
                transition.revision = revision;
            }
            match next.take() {
                Some(next) => next.put(table, moment.peer, transition, &mut updated.revision),
                None => {
                    updated.revision = revision;
                    removed = table.remove(&moment.peer, Urgency::Critical);
                }
            }
            true
        });
        drop(removed);
        if !stored {
            return None;
        }
        updated.transition = transition;
        if let Some(transition) = &transition {
            if matches!(transition.actor, Actor::Clock | Actor::Network(_)) {
                self.fallen.with(|fallen| fallen.push(moment.peer));
            }
            (self.observer)(&moment.peer, transition);
        }
        Some(updated)
    }

    /// Inside the lock: whether the caps that the change was prepared for still hold.
    fn has_room(&self, before: Option<&Arc<TrustRecord>>, next: Option<&Next>, now: UnixMillis) -> bool {
        let Some(next) = next else {
            return true;
        };
        let before = before.map(|before| &**before);
        let (total, of_source) = (self.policy.pending_total, self.policy.pending_per_source);
        let granted = next.record.rule.filter(|rule| before.is_none_or(|before| before.rule != Some(*rule)));
        self.store.index().strangers.has_room(before, &next.record, total, of_source)
            && granted.is_none_or(|rule| self.has_budget(&rule, next.record.sponsor.as_deref(), now))
    }

    /// The first rule of the policy that names `peer` and has budget left, and the sponsor against whose budget it goes.
    fn rule_for(&self, record: Option<&TrustRecord>, peer: &PeerId, now: UnixMillis) -> Option<(Rule, Option<PeerId>)> {
        // What a network's rule granted may only pass to another network.
        let decided = record.is_some_and(|record| record.ours.is_some());
        let allowed = (!decided && self.policy.allow.contains(peer)).then_some((Rule::Allow, None));
        let accepted = (!decided && self.policy.accept_all).then_some((Rule::AcceptAll, None));
        let rules = allowed.into_iter().chain(self.networks_naming(peer, now)).chain(accepted);
        rules.into_iter().find(|(rule, sponsor)| self.has_budget(rule, sponsor.as_ref(), now))
    }

    fn has_budget(&self, rule: &Rule, sponsor: Option<&PeerId>, now: UnixMillis) -> bool {
        let (standing, last_hour) = self.store.index().grants_of(rule, now);
        standing < self.policy.grants_total
            && last_hour < self.policy.grants_per_hour
            && self.has_budget_of_sponsor(rule, sponsor, now)
    }

    /// Whether strangers may make this node store once more: in this second, and, for a record that is new, at all.
    /// Evicts the oldest of a larger source when all is full. `within_rate` is what this request was told before.
    fn has_place_for(
        &self,
        record: Option<&TrustRecord>,
        source: Option<SocketAddr>,
        within_rate: &mut Option<bool>,
        now: UnixMillis,
    ) -> bool {
        let strangers = &self.store.index().strangers;
        let source = source.map(SourcePrefix::of);
        let is_new = record.is_none();
        if is_new && strangers.of_source(source) >= self.policy.pending_per_source {
            return false;
        }
        if !*within_rate.get_or_insert_with(|| self.is_within_rate(now)) {
            return false;
        }
        if !is_new || strangers.total() < self.policy.pending_total {
            return true;
        }
        let Some(victim) = strangers.evictable(source) else {
            return false;
        };
        let _ = self.update(victim, now, Bounds::None, |record, moment| {
            Ok::<_, std::convert::Infallible>(rules::evict(record, moment))
        });
        true
    }

    fn is_within_rate(&self, now: UnixMillis) -> bool {
        let second = now.0 / 1_000;
        self.newcomers.with(|newcomers| {
            if newcomers.second != second {
                *newcomers = Newcomers { second, count: 0 };
            }
            newcomers.count = newcomers.count.saturating_add(1);
            newcomers.count <= self.policy.pending_new_per_second
        })
    }
}

/// Whether a change must still be within the caps when it is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bounds {
    /// A stranger may have caused it.
    Caps,
    /// The operator or the clock did.
    None,
}
