//! What an authentic statement, an operator or the clock does to a record. Pure: record in, record out.
//!
//! Invariants:
//! * An edge only ever moves up in the order of merging (REV): no replay and no old backup of a peer takes a newer
//!   statement back.
//! * Nothing automatic lifts a revoke of ours or renews an expired grant: a rule grants only where we have said
//!   nothing at all. Only [`trust`] by an operator does, with a higher epoch.
//! * A grant of ours that somebody proves to us never grants again; a revoke of ours that somebody proves is back in
//!   force at once.
//! * A decision judges ends by the clock it is given; an end that has come is recorded by [`expire`] before any other
//!   decision changes the record (`book`).
//!
//! Not here: locks and caps (`book`), signatures from the wire (checked before a [`Verified`] exists).

use std::sync::Arc;

use handfast_protocol::exchange::{AnswerTerms, Disposition, Offer, Shown, networks_shown};
use handfast_protocol::limits::BUSY_RETRY_AFTER_MS;
use handfast_protocol::statement::next_epoch;
use handfast_protocol::{
    Address, Held, Incarnation, Kind, Note, PeerId, Scope, SecretKey, SignedAddressRecord, SignedStatement, Statement,
    Terms, UnixMillis, Verified,
};

use crate::networks::{Members, Standing};
use crate::record::Revision;
use crate::trust_record::{Actor, Cause, Edge, Request, Rule, Side, Transition, TrustRecord, TrustState, View};

/// The two ends and the time, for one decision.
#[derive(Clone, Copy)]
pub struct Moment<'a> {
    /// Our key: grants by a rule are signed with it.
    pub key: &'a SecretKey,
    /// The peer.
    pub peer: PeerId,
    /// By our clock.
    pub now: UnixMillis,
    /// The peer is on the deny list.
    pub denied: bool,
    /// Whose membership counts; `None`: this node is in no network.
    pub members: Option<&'a Members>,
}

impl<'a> Moment<'a> {
    /// As a record's state is looked at.
    pub fn view(&self) -> View<'a> {
        let members = self.members.map(|members| (members, self.key.peer_id(), self.peer));
        View { now: self.now, denied: self.denied, members }
    }
}

/// What a stranger's request may do, found before the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admittance {
    /// The rule that grants, with budget left.
    pub rule: Option<Rule>,
    /// Who let the peer into the network of that rule; none: its authority, or it is no network's.
    pub sponsor: Option<PeerId>,
    /// A stranger may make this node store something.
    pub may_pend: bool,
    /// From where the request came.
    pub source: Option<Address>,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The record as it is to be stored; `None`: it is to be removed, or never made.
    pub record: Option<Arc<TrustRecord>>,
    /// The transition, where the state changed.
    pub transition: Option<Transition>,
    /// A request that found no free place.
    pub turned_away: bool,
}

impl Decided {
    /// Everything stays as it is.
    pub(crate) fn unchanged(record: Option<&Arc<TrustRecord>>) -> Decided {
        Decided { record: record.cloned(), transition: None, turned_away: false }
    }
}

/// Builds the next record and, from the two states, the transition. The record is the stored one until something in it
/// changes, and is copied then.
struct Change<'a> {
    moment: &'a Moment<'a>,
    before: TrustState,
    record: Arc<TrustRecord>,
}

impl<'a> Change<'a> {
    fn of(record: Option<&Arc<TrustRecord>>, moment: &'a Moment<'a>) -> Change<'a> {
        let record = record.cloned().unwrap_or_default();
        Change { before: record.state(&moment.view()), moment, record }
    }

    /// The next record, to change it.
    fn next(&mut self) -> &mut TrustRecord {
        Arc::make_mut(&mut self.record)
    }

    fn says(&mut self, terms: Terms) {
        let statement = Statement { issuer: self.moment.key.peer_id(), subject: self.moment.peer, terms };
        // The issuer is the key's own id: signing cannot be refused.
        if let Ok(verified) = statement.sign(self.moment.key) {
            let edge = stored(&verified, Side::Ours, self.moment.now);
            let next = self.next();
            next.ours = Some(edge);
            next.delivered = None;
        }
    }

    fn grants_by(&mut self, rule: Rule, sponsor: Option<PeerId>) {
        let mut terms = self.terms(Kind::Grant, Note::default());
        if let Rule::Network(network) = rule {
            terms.network = Some(network);
        }
        self.says(terms);
        self.next().made_by(Some(rule), sponsor);
    }

    fn terms(&self, kind: Kind, note: Note) -> Terms {
        let stored = self.record.ours.as_ref().map(|edge| edge.terms.epoch);
        Terms {
            kind,
            epoch: next_epoch(stored, self.record.proven, self.moment.now),
            issued_at: self.moment.now,
            expires_at: None,
            scope: None,
            network: None,
            note,
        }
    }

    fn finish(mut self, cause: Cause, actor: Actor) -> Decided {
        let at = self.moment.now;
        let next = self.record.state(&self.moment.view());
        match next {
            // Also when no request has led here: our own grant has ended, or the peer was unblocked.
            TrustState::Pending if self.record.request.is_none() => {
                let received_at = self.record.theirs.as_ref().map_or(at, |edge| edge.stored_at);
                self.next().request = Some(Request { received_at, source: None, count: 1 });
            }
            TrustState::Pending | TrustState::Blocked => {}
            _ if self.record.request.is_some() => self.next().request = None,
            _ => {}
        }
        let record = &self.record;
        let keep = !record.is_strangers()
            || record.theirs.as_ref().is_some_and(|edge| edge.counts(Side::Theirs, &self.moment.view()));
        let to = if keep { next } else { absent(self.moment) };
        let digest = match cause {
            Cause::TheyGranted | Cause::TheyRevoked => record.theirs.as_ref().map(|edge| edge.digest),
            Cause::Blocked | Cause::Unblocked | Cause::Expired | Cause::Evicted => None,
            Cause::Expelled | Cause::MembershipEnded | Cause::MembershipRegained => None,
            Cause::Granted | Cause::Revoked | Cause::Rejected | Cause::Restored | Cause::Undone => {
                record.ours.as_ref().map(|edge| edge.digest)
            }
        };
        let from = self.before;
        let transition =
            (to != from).then_some(Transition { at, cause, actor, revision: Revision::ZERO, from, to, digest });
        if let Some(transition) = transition {
            self.next().remember(transition);
        }
        Decided { record: keep.then_some(self.record), transition, turned_away: false }
    }
}

/// The edge of a statement that comes now. One that has ended already never counted: its end is no event of its own.
fn stored(statement: &Verified, side: Side, now: UnixMillis) -> Edge {
    let edge = Edge::new(statement, now);
    Edge { expired: edge.has_ended(side, now), ..edge }
}

/// The state of a peer without record.
pub(crate) fn absent(moment: &Moment<'_>) -> TrustState {
    if moment.denied { TrustState::Blocked } else { TrustState::Unknown }
}

/// A second look at what the exchange has checked: a statement of other parties would be stored at the wrong place.
fn between(statement: Option<&Verified>, issuer: PeerId, subject: PeerId) -> Option<&Verified> {
    statement.filter(|shown| {
        let said = &shown.signed().statement;
        said.issuer == issuer && said.subject == subject && issuer != subject
    })
}

/// What the peer showed us in an exchange: its own edge, perhaps one of ours, and which of ours it holds.
pub fn merge(
    record: Option<&Arc<TrustRecord>>,
    shown: &Shown,
    admittance: &Admittance,
    moment: &Moment<'_>,
) -> Decided {
    let (me, peer, now) = (moment.key.peer_id(), moment.peer, moment.now);
    let mut change = Change::of(record, moment);
    let restored = merge_ours(&mut change, between(shown.ours.as_ref(), me, peer), now);
    let mut cause = (if restored { Cause::Restored } else { Cause::TheyGranted }, Actor::Peer);
    let is_delivered = shown.holds.is_some() && shown.holds == change.record.ours.as_ref().map(Edge::held);
    if is_delivered && change.record.delivered != shown.holds {
        change.next().delivered = shown.holds;
    }
    let mut news = false;
    if let Some(theirs) = between(shown.theirs.as_ref(), peer, me).filter(|theirs| listens(&change, theirs)) {
        news = merge_theirs(&mut change, theirs, now);
        if news && !restored && theirs.terms().kind == Kind::Revoke {
            cause.0 = Cause::TheyRevoked;
        }
    }
    if let Some(rule) = admittance.rule.filter(|rule| waits_for_a_rule(&change.record, rule, moment)) {
        change.grants_by(rule, admittance.sponsor);
        cause = (Cause::Granted, Actor::Rule(rule));
    }
    if news && change.record.state(&moment.view()) == TrustState::Pending {
        if change.record.is_strangers() && !admittance.may_pend {
            return Decided { turned_away: true, ..Decided::unchanged(record) };
        }
        let first = Request { received_at: now, source: admittance.source, count: 0 };
        let request = change.next().request.get_or_insert(first);
        request.count = request.count.saturating_add(1);
    }
    change.finish(cause.0, cause.1)
}

/// Whether a statement of the peer is heard at all: a stranger's revoke is not worth a record, and from a blocked peer
/// only a revoke of what is known counts.
fn listens(change: &Change<'_>, theirs: &Verified) -> bool {
    let blocked = change.before == TrustState::Blocked;
    match theirs.terms().kind {
        Kind::Grant => !blocked,
        Kind::Revoke => change.record.theirs.is_some() || (!blocked && !change.record.is_strangers()),
    }
}

/// A statement of our own that a peer proved: we were restored from an old backup. True when a revoke came back.
fn merge_ours(change: &mut Change<'_>, shown: Option<&Verified>, now: UnixMillis) -> bool {
    let ours = change.record.ours.as_ref();
    let Some(shown) = shown.filter(|shown| ours.is_none_or(|ours| shown.rank() > ours.rank())) else {
        return false;
    };
    if shown.terms().kind == Kind::Revoke {
        let next = change.next();
        next.ours = Some(stored(shown, Side::Ours, now));
        next.delivered = None;
        next.made_by(None, None);
        return true;
    }
    if change.record.proven < shown.terms().epoch {
        change.next().proven = shown.terms().epoch;
    }
    false
}

/// The peer's own statement. True when its edge changed.
fn merge_theirs(change: &mut Change<'_>, shown: &Verified, now: UnixMillis) -> bool {
    let mut edge = stored(shown, Side::Theirs, now);
    if let Some(theirs) = &change.record.theirs {
        let (stored, new) = (theirs.rank(), shown.rank());
        let was_equivocal = theirs.equivocal;
        let is_equivocation = stored.is_equivocation(&new);
        // Once for each number, so that repeating it changes nothing.
        if is_equivocation && !was_equivocal {
            let next = change.next();
            next.equivocations = next.equivocations.saturating_add(1);
            if let Some(theirs) = &mut next.theirs {
                theirs.equivocal = true;
            }
        }
        edge.equivocal |= is_equivocation;
        if new <= stored {
            return false;
        }
    }
    change.next().theirs = Some(edge);
    true
}

/// A rule may grant only where we have said nothing at all, also not what a peer has proven; or where all that we have
/// said is the grant of another network's rule, which no longer counts.
fn waits_for_a_rule(record: &TrustRecord, rule: &Rule, moment: &Moment<'_>) -> bool {
    may_be_granted_by(record, rule, moment) && record.state(&moment.view()) == TrustState::Pending
}

fn may_be_granted_by(record: &TrustRecord, rule: &Rule, moment: &Moment<'_>) -> bool {
    let idle = |ours: &Edge| {
        let by_another = matches!(record.rule, Some(Rule::Network(_))) && record.rule != Some(*rule);
        by_another
            && matches!(rule, Rule::Network(_))
            && ours.is_grant_at(Side::Ours, moment.now)
            && !ours.counts(Side::Ours, &moment.view())
    };
    record.proven == 0 && record.ours.as_ref().is_none_or(idle)
}

/// A network's rule grants to a member before that has asked: this node has just joined, or learnt of it. Where we have
/// said something already, or they have refused us, nothing changes.
pub fn enlist(record: Option<&Arc<TrustRecord>>, rule: Rule, sponsor: Option<PeerId>, moment: &Moment<'_>) -> Decided {
    let mut change = Change::of(record, moment);
    let undecided = matches!(change.before, TrustState::Unknown | TrustState::Pending);
    if !undecided || !may_be_granted_by(&change.record, &rule, moment) {
        return Decided::unchanged(record);
    }
    change.grants_by(rule, sponsor);
    change.finish(Cause::Granted, Actor::Rule(rule))
}

/// The operator takes back what a rule granted since `since`. Whatever else the record holds stays as it is.
pub fn undo(record: Option<&Arc<TrustRecord>>, rule: &Rule, since: UnixMillis, moment: &Moment<'_>) -> Decided {
    let Some(stored) = record.filter(|record| is_to_be_undone(record, rule, since)) else {
        return Decided::unchanged(record);
    };
    let mut change = Change::of(Some(stored), moment);
    let terms = change.terms(Kind::Revoke, Note::default());
    change.says(terms);
    change.next().made_by(None, None);
    change.finish(Cause::Undone, Actor::Operator)
}

/// True for a grant that stands, which `rule` made, and which was stored at `since` or later.
pub fn is_to_be_undone(record: &TrustRecord, rule: &Rule, since: UnixMillis) -> bool {
    let since_then = |ours: &Edge| !ours.is_revoke() && ours.stored_at >= since;
    record.rule.as_ref() == Some(rule) && record.ours.as_ref().is_some_and(since_then)
}

/// A membership that a grant rests on has begun or ceased to count: the history says so, the edges stay as they are.
pub fn reconcile(record: &Arc<TrustRecord>, moment: &Moment<'_>) -> Decided {
    let view = moment.view();
    let change = Change { before: record.told(), moment, record: Arc::clone(record) };
    let standing = |edge: Option<&Edge>, side| {
        let network = edge.filter(|edge| edge.is_grant_at(side, moment.now))?.terms.network?;
        Some((network, view.standing(&network, side)))
    };
    let standings = [standing(record.ours.as_ref(), Side::Ours), standing(record.theirs.as_ref(), Side::Theirs)];
    let gone = || standings.iter().flatten().find(|(_, standing)| !standing.counts());
    let (cause, network) = match gone().or(standings.iter().flatten().next()) {
        Some((network, Standing::Expelled | Standing::SponsorExpelled)) => (Cause::Expelled, Some(*network)),
        Some((network, standing)) if standing.counts() => (Cause::MembershipRegained, Some(*network)),
        Some((network, _)) => (Cause::MembershipEnded, Some(*network)),
        None => (Cause::MembershipEnded, None),
    };
    change.finish(cause, network.map_or(Actor::Clock, Actor::Network))
}

/// What the operator wants granted.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Grant {
    /// A remark for the peer's operator.
    pub note: Note,
    /// A name for the peer, if it is to be changed.
    pub alias: Option<Note>,
    /// How long the grant lasts, in milliseconds.
    pub for_ms: Option<u64>,
    /// For which services.
    pub scope: Option<Scope>,
}

/// Why an operator's wish is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// First unblock, or take it off the deny list.
    #[error("the peer is blocked")]
    Blocked,
    /// Nothing is known of the peer.
    #[error("nothing is known of this peer")]
    Unknown,
    /// There is no statement of the peer to answer.
    #[error("the peer has not requested anything")]
    NothingToReject,
    /// The peer is not a member of the network, or we are not, or its rule is off.
    #[error("the rule of the network does not name this peer")]
    NotNamed,
    /// The rule's budget is used up.
    #[error("the budget of the rule is used up")]
    NoBudget,
    /// A node does not trust itself.
    #[error("this is this node itself")]
    Myself,
}

/// The operator grants trust. A grant that says the same already stays as it is.
///
/// # Errors
/// [`Refusal::Blocked`].
pub fn trust(record: Option<&Arc<TrustRecord>>, grant: &Grant, moment: &Moment<'_>) -> Result<Decided, Refusal> {
    let mut change = Change::of(record, moment);
    if change.before == TrustState::Blocked {
        return Err(Refusal::Blocked);
    }
    if grant.alias.is_some() && change.record.alias != grant.alias {
        change.next().alias = grant.alias.clone();
    }
    let expires_at = grant.for_ms.map(|ms| moment.now.plus(ms));
    let stands = change.record.rule.is_none()
        && change.record.ours.as_ref().is_some_and(|ours| {
            ours.is_grant_at(Side::Ours, moment.now)
                && ours.terms.expires_at == expires_at
                && ours.terms.note == grant.note
                && ours.terms.scope == grant.scope
        });
    if !stands {
        let mut terms = change.terms(Kind::Grant, grant.note.clone());
        terms.expires_at = expires_at;
        terms.scope = grant.scope.clone();
        change.says(terms);
        change.next().made_by(None, None);
    }
    Ok(change.finish(Cause::Granted, Actor::Operator))
}

/// The operator takes trust back, or refuses it. A revoke that stands stays as it is, unless a new note is given.
///
/// # Errors
/// [`Refusal::Unknown`] where there is nothing to revoke, [`Refusal::NothingToReject`] for a reject without request.
pub fn revoke(
    record: Option<&Arc<TrustRecord>>,
    note: &Note,
    cause: Cause,
    moment: &Moment<'_>,
) -> Result<Decided, Refusal> {
    let Some(stored) = record else {
        return Err(Refusal::Unknown);
    };
    if cause == Cause::Rejected && stored.theirs.is_none() && stored.ours.is_none() {
        return Err(Refusal::NothingToReject);
    }
    let mut change = Change::of(record, moment);
    let stands =
        stored.ours.as_ref().is_some_and(|ours| ours.is_revoke() && (note.is_empty() || ours.terms.note == *note));
    if !stands {
        let terms = change.terms(Kind::Revoke, note.clone());
        change.says(terms);
        change.next().made_by(None, None);
    }
    Ok(change.finish(cause, Actor::Operator))
}

/// The operator sets or clears the local flag.
///
/// # Errors
/// [`Refusal::Unknown`] when there is nothing to unblock.
pub fn block(record: Option<&Arc<TrustRecord>>, blocked: bool, moment: &Moment<'_>) -> Result<Decided, Refusal> {
    if record.is_none() && !blocked {
        return Err(Refusal::Unknown);
    }
    let mut change = Change::of(record, moment);
    if change.record.blocked != blocked {
        change.next().blocked = blocked;
    }
    Ok(change.finish(if blocked { Cause::Blocked } else { Cause::Unblocked }, Actor::Operator))
}

/// Time passed: grants whose end has come are marked, so that a clock that goes back does not revive them, and a
/// stranger's request that waited too long is dropped.
pub fn expire(record: &Arc<TrustRecord>, pending_since: UnixMillis, moment: &Moment<'_>) -> Decided {
    let mut before = (**record).clone();
    // The state before is the one that was in force until now, whatever the clock says by this time.
    for (edge, side) in [(&mut before.ours, Side::Ours), (&mut before.theirs, Side::Theirs)] {
        if let Some(edge) = edge.as_mut().filter(|edge| !edge.expired && edge.has_ended(side, moment.now)) {
            edge.terms.expires_at = None;
        }
    }
    let mut change = Change { before: before.state(&moment.view()), moment, record: Arc::clone(record) };
    let next = change.next();
    for (edge, side) in [(&mut next.ours, Side::Ours), (&mut next.theirs, Side::Theirs)] {
        if let Some(edge) = edge.as_mut().filter(|edge| edge.has_ended(side, moment.now)) {
            edge.expired = true;
        }
    }
    if next.is_strangers() && record.waits_since() < pending_since {
        next.theirs = None;
    }
    change.finish(Cause::Expired, Actor::Clock)
}

/// A stranger's request makes room for another one. Nothing else is ever evicted.
pub fn evict(record: Option<&Arc<TrustRecord>>, moment: &Moment<'_>) -> Decided {
    let mut change = Change::of(record, moment);
    if change.record.is_strangers() && change.record.theirs.is_some() {
        change.next().theirs = None;
    }
    change.finish(Cause::Evicted, Actor::Caps)
}

/// Which statement of ours the peer has made durable, by its receipt. `None` when that is no news.
pub fn receipt(record: &TrustRecord, holds: Held) -> Option<TrustRecord> {
    let current = record.ours.as_ref()?.held();
    (holds == current && record.delivered != Some(holds))
        .then(|| TrustRecord { delivered: Some(holds), ..record.clone() })
}

/// This node, as it shows itself in answers.
#[derive(Clone, Debug)]
pub struct Showing {
    /// This run.
    pub incarnation: Incarnation,
    /// Where we can be reached.
    pub address: Option<SignedAddressRecord>,
    /// Our place in the networks that the peer is in too, as far as we know; see `Networks::standings_with`.
    pub networks: Vec<handfast_protocol::Standing>,
}

/// What we say when we open an exchange. A grant of ours that does not count is not offered: of one that has ended, whoever
/// stores it for the first time would count its life from then.
pub fn offer(record: Option<&TrustRecord>, showing: &Showing, moment: &Moment<'_>) -> Offer {
    let me = moment.key.peer_id();
    let ours = record.and_then(|record| record.ours.as_ref());
    let theirs = record.and_then(|record| record.theirs.as_ref());
    Offer {
        statement: ours.filter(|ours| worth_saying(ours, moment)).map(|ours| signed(ours, me, moment.peer)),
        yours: theirs.map(|theirs| signed(theirs, moment.peer, me)),
        incarnation: showing.incarnation,
        address: showing.address.clone(),
        extensions: networks_shown(&showing.networks),
    }
}

fn worth_saying(ours: &Edge, moment: &Moment<'_>) -> bool {
    ours.is_revoke() || ours.counts(Side::Ours, &moment.view())
}

fn signed(edge: &Edge, issuer: PeerId, subject: PeerId) -> SignedStatement {
    SignedStatement { statement: Statement { issuer, subject, terms: edge.terms.clone() }, signature: edge.signature }
}

/// What to answer a peer, from the record as it is now. `shown` is what it offered.
pub fn answer(
    record: Option<&TrustRecord>,
    shown: &Shown,
    turned_away: bool,
    showing: &Showing,
    moment: &Moment<'_>,
) -> AnswerTerms {
    let state = record.map_or(absent(moment), |record| record.state(&moment.view()));
    let disposition = match state {
        TrustState::Trusted => Disposition::Granted,
        TrustState::Pending => Disposition::Pending,
        TrustState::Revoked | TrustState::Blocked => Disposition::Refused,
        TrustState::Unknown if turned_away => Disposition::Busy { retry_after_ms: BUSY_RETRY_AFTER_MS as u32 },
        TrustState::Unknown | TrustState::Requested | TrustState::Refused => Disposition::Noted,
    };
    let incarnation = showing.incarnation;
    let refused = AnswerTerms {
        disposition,
        holds: None,
        statement: None,
        yours: None,
        incarnation,
        address: None,
        networks: Vec::new(),
    };
    let (Some(record), false) = (record, state == TrustState::Blocked) else {
        return refused;
    };
    let me = moment.key.peer_id();
    let news = |ours: &&Edge| shown.ours.as_ref().is_none_or(|held| held.rank() < ours.rank());
    let older = |theirs: &&Edge| shown.theirs.as_ref().is_none_or(|offered| offered.rank() < theirs.rank());
    let said = record.ours.as_ref().filter(|ours| worth_saying(ours, moment));
    let holds_our_grant = said.is_some_and(|ours| ours.counts(Side::Ours, &moment.view()));
    AnswerTerms {
        holds: record.theirs.as_ref().map(Edge::held),
        statement: said.filter(news).map(|ours| signed(ours, me, moment.peer)),
        yours: record.theirs.as_ref().filter(older).map(|theirs| signed(theirs, moment.peer, me)),
        address: showing.address.clone().filter(|_| holds_our_grant),
        networks: showing.networks.clone(),
        ..refused
    }
}
