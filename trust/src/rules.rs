//! What an authentic statement, an operator or the clock does to a record. Pure: record in, record out.
//!
//! Invariants:
//! * An edge only ever moves up in the order of merging (REV): no replay and no old backup of a peer takes a newer
//!   statement back.
//! * Nothing automatic lifts a revoke of ours or renews an expired grant: a rule grants only where we have said
//!   nothing at all. Only [`trust`] by an operator does, with a higher epoch.
//! * A grant of ours that somebody proves to us never grants again; a revoke of ours that somebody proves is back in
//!   force at once.
//!
//! Not here: locks and caps (`book`), signatures from the wire (checked before a [`Verified`] exists).

use handfast_protocol::exchange::{AnswerTerms, Disposition, Shown};
use handfast_protocol::limits::BUSY_RETRY_AFTER_MS;
use handfast_protocol::statement::next_epoch;
use handfast_protocol::{
    Address, Held, Incarnation, Kind, Note, PeerId, Scope, SecretKey, SignedAddressRecord, Statement, Terms,
    UnixMillis, Verified,
};

use crate::record::Revision;
use crate::trust_record::{Actor, Cause, Edge, Request, Rule, Side, Transition, TrustRecord, TrustState};

/// The two ends and the time, for one decision.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// Our key: grants by a rule are signed with it.
    pub key: &'a SecretKey,
    /// The peer.
    pub peer: PeerId,
    /// By our clock.
    pub now: UnixMillis,
    /// The peer is on the deny list.
    pub denied: bool,
}

/// What a stranger's request may do, found before the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admittance {
    /// The rule that grants, with budget left.
    pub rule: Option<Rule>,
    /// A pending place is free.
    pub may_pend: bool,
    /// From where the request came.
    pub source: Option<Address>,
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The record as it is to be stored; `None`: it is to be removed, or never made.
    pub record: Option<TrustRecord>,
    /// The transition, where the state changed.
    pub transition: Option<Transition>,
    /// A request that found no free place.
    pub turned_away: bool,
}

/// Builds the next record and, from the two states, the transition.
struct Change<'a> {
    moment: &'a Moment<'a>,
    before: TrustState,
    record: TrustRecord,
}

impl<'a> Change<'a> {
    fn of(record: Option<&TrustRecord>, moment: &'a Moment<'a>) -> Change<'a> {
        let record = record.cloned().unwrap_or_default();
        Change { before: record.state(moment.denied, moment.now), moment, record }
    }

    fn says(&mut self, terms: Terms) {
        let statement = Statement { issuer: self.moment.key.peer_id(), subject: self.moment.peer, terms };
        // The issuer is the key's own id: signing cannot be refused.
        if let Ok(verified) = statement.sign(self.moment.key) {
            self.record.ours = Some(Edge::new(&verified, self.moment.now));
            self.record.delivered = None;
        }
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
        let to = self.record.state(self.moment.denied, self.moment.now);
        let digest = match cause {
            Cause::TheyGranted | Cause::TheyRevoked => self.record.theirs.as_ref().map(|edge| edge.digest),
            Cause::Blocked | Cause::Unblocked | Cause::Expired => None,
            _ => self.record.ours.as_ref().map(|edge| edge.digest),
        };
        let at = self.moment.now;
        let transition = (to != self.before).then_some(Transition {
            at,
            cause,
            actor,
            revision: Revision::ZERO,
            from: self.before,
            to,
            digest,
        });
        if let Some(transition) = transition {
            self.record.remember(transition);
        }
        if to != TrustState::Pending {
            self.record.request = None;
        }
        let keep = !self.record.is_strangers()
            || self.record.theirs.as_ref().is_some_and(|edge| edge.is_grant_at(Side::Theirs, at));
        Decided { record: keep.then_some(self.record), transition, turned_away: false }
    }
}

/// What the peer showed us in an exchange: its own edge, perhaps one of ours, and which of ours it holds.
pub fn merge(record: Option<&TrustRecord>, shown: &Shown, admittance: &Admittance, moment: &Moment<'_>) -> Decided {
    let mut change = Change::of(record, moment);
    let mut cause = (Cause::TheyGranted, Actor::Peer);
    if merge_ours(&mut change.record, shown.ours.as_ref(), moment.now) {
        cause = (Cause::Restored, Actor::Peer);
    }
    if shown.holds.is_some() && shown.holds == change.record.ours.as_ref().map(Edge::held) {
        change.record.delivered = shown.holds;
    }
    let known = record.is_some_and(|record| record.theirs.is_some());
    if let Some(theirs) = &shown.theirs {
        let is_revoke = theirs.terms().kind == Kind::Revoke;
        let blocked = change.before == TrustState::Blocked;
        let listens = if is_revoke { known || (!blocked && record.is_some()) } else { !blocked };
        if listens && merge_theirs(&mut change.record, theirs, moment.now) {
            cause = (if is_revoke { Cause::TheyRevoked } else { Cause::TheyGranted }, Actor::Peer);
        }
    }
    if let Some(rule) = admittance.rule.filter(|_| waits_for_a_rule(&change.record, moment)) {
        let terms = change.terms(Kind::Grant, Note::default());
        change.says(terms);
        change.record.rule = Some(rule);
        cause = (Cause::Granted, Actor::Rule(rule));
    }
    if change.record.state(moment.denied, moment.now) == TrustState::Pending {
        if record.is_none() && !admittance.may_pend {
            return Decided { record: None, transition: None, turned_away: true };
        }
        note_request(&mut change.record, record, admittance.source, moment.now);
    }
    change.finish(cause.0, cause.1)
}

/// A statement of our own that a peer proved: we were restored from an old backup. True when a revoke came back.
fn merge_ours(record: &mut TrustRecord, shown: Option<&Verified>, now: UnixMillis) -> bool {
    let Some(shown) = shown.filter(|shown| record.ours.as_ref().is_none_or(|ours| shown.rank() > ours.rank())) else {
        return false;
    };
    if shown.terms().kind == Kind::Revoke {
        record.ours = Some(Edge::new(shown, now));
        record.delivered = None;
        record.rule = None;
        return true;
    }
    record.proven = record.proven.max(shown.terms().epoch);
    false
}

/// The peer's own statement. True when its edge changed.
fn merge_theirs(record: &mut TrustRecord, shown: &Verified, now: UnixMillis) -> bool {
    if let Some(theirs) = &record.theirs {
        let (stored, new) = (theirs.rank(), shown.rank());
        if stored.is_equivocation(&new) {
            record.equivocations = record.equivocations.saturating_add(1);
        }
        if new <= stored {
            return false;
        }
    }
    record.theirs = Some(Edge::new(shown, now));
    true
}

/// A rule may grant only where we have said nothing at all, also not what a peer has proven.
fn waits_for_a_rule(record: &TrustRecord, moment: &Moment<'_>) -> bool {
    record.ours.is_none() && record.proven == 0 && record.state(moment.denied, moment.now) == TrustState::Pending
}

fn note_request(record: &mut TrustRecord, before: Option<&TrustRecord>, source: Option<Address>, now: UnixMillis) {
    let new = before.and_then(|record| record.theirs.as_ref()).map(|edge| edge.digest)
        != record.theirs.as_ref().map(|edge| edge.digest);
    let request = record.request.get_or_insert(Request { received_at: now, source, count: 0 });
    if new {
        request.count = request.count.saturating_add(1);
    }
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
    /// A node does not trust itself.
    #[error("this is this node itself")]
    Myself,
}

/// The operator grants trust. A grant that says the same already stays as it is.
///
/// # Errors
/// [`Refusal::Blocked`].
pub fn trust(record: Option<&TrustRecord>, grant: &Grant, moment: &Moment<'_>) -> Result<Decided, Refusal> {
    let mut change = Change::of(record, moment);
    if change.before == TrustState::Blocked {
        return Err(Refusal::Blocked);
    }
    if grant.alias.is_some() {
        change.record.alias = grant.alias.clone();
    }
    let stands = change.record.rule.is_none()
        && grant.for_ms.is_none()
        && change.record.ours.as_ref().is_some_and(|ours| {
            ours.is_grant_at(Side::Ours, moment.now)
                && ours.terms.expires_at.is_none()
                && ours.terms.note == grant.note
                && ours.terms.scope == grant.scope
        });
    if !stands {
        let mut terms = change.terms(Kind::Grant, grant.note.clone());
        terms.expires_at = grant.for_ms.map(|ms| moment.now.plus(ms));
        terms.scope = grant.scope.clone();
        change.says(terms);
        change.record.rule = None;
    }
    Ok(change.finish(Cause::Granted, Actor::Operator))
}

/// The operator takes trust back, or refuses it. A revoke that stands stays as it is, unless a new note is given.
///
/// # Errors
/// [`Refusal::Unknown`] where there is nothing to revoke, [`Refusal::NothingToReject`] for a reject without request.
pub fn revoke(
    record: Option<&TrustRecord>,
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
        change.record.rule = None;
    }
    Ok(change.finish(cause, Actor::Operator))
}

/// The operator sets or clears the local flag.
///
/// # Errors
/// [`Refusal::Unknown`] when there is nothing to unblock.
pub fn block(record: Option<&TrustRecord>, blocked: bool, moment: &Moment<'_>) -> Result<Decided, Refusal> {
    if record.is_none() && !blocked {
        return Err(Refusal::Unknown);
    }
    let mut change = Change::of(record, moment);
    change.record.blocked = blocked;
    Ok(change.finish(if blocked { Cause::Blocked } else { Cause::Unblocked }, Actor::Operator))
}

/// Time passed: grants whose end has come are marked, so that a clock that goes back does not revive them, and a
/// stranger's request that waited too long is dropped.
pub fn expire(record: &TrustRecord, pending_since: UnixMillis, moment: &Moment<'_>) -> Decided {
    let mut before = record.clone();
    // The state before is the one that was in force until now, whatever the clock says by this time.
    for (edge, side) in [(&mut before.ours, Side::Ours), (&mut before.theirs, Side::Theirs)] {
        if let Some(edge) = edge.as_mut().filter(|edge| !edge.expired && edge.has_ended(side, moment.now)) {
            edge.terms.expires_at = None;
        }
    }
    let mut change = Change { before: before.state(moment.denied, moment.now), moment, record: record.clone() };
    for (edge, side) in [(&mut change.record.ours, Side::Ours), (&mut change.record.theirs, Side::Theirs)] {
        if let Some(edge) = edge.as_mut().filter(|edge| edge.has_ended(side, moment.now)) {
            edge.expired = true;
        }
    }
    let waited_too_long = record.request.is_some_and(|request| request.received_at < pending_since);
    if waited_too_long && change.record.is_strangers() {
        change.record.theirs = None;
    }
    change.finish(Cause::Expired, Actor::Clock)
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
}

/// What to answer a peer, from the record as it is now. `shown` is what it offered.
pub fn answer(
    record: Option<&TrustRecord>,
    shown: &Shown,
    turned_away: bool,
    showing: &Showing,
    moment: &Moment<'_>,
) -> AnswerTerms {
    let state = record.map_or(if moment.denied { TrustState::Blocked } else { TrustState::Unknown }, |record| {
        record.state(moment.denied, moment.now)
    });
    let disposition = match state {
        TrustState::Trusted => Disposition::Granted,
        TrustState::Pending => Disposition::Pending,
        TrustState::Revoked | TrustState::Blocked => Disposition::Refused,
        TrustState::Unknown if turned_away => Disposition::Busy { retry_after_ms: BUSY_RETRY_AFTER_MS as u32 },
        TrustState::Unknown | TrustState::Requested | TrustState::Refused => Disposition::Noted,
    };
    let incarnation = showing.incarnation;
    let refused = AnswerTerms { disposition, holds: None, statement: None, yours: None, incarnation, address: None };
    let (Some(record), false) = (record, state == TrustState::Blocked) else {
        return refused;
    };
    let me = moment.key.peer_id();
    let news = |ours: &&Edge| shown.ours.as_ref().is_none_or(|held| held.rank() < ours.rank());
    let older = |theirs: &&Edge| shown.theirs.as_ref().is_none_or(|offered| offered.rank() < theirs.rank());
    let holds_our_grant = record.ours.as_ref().is_some_and(|ours| ours.is_grant_at(Side::Ours, moment.now));
    AnswerTerms {
        holds: record.theirs.as_ref().map(Edge::held),
        statement: record.ours.as_ref().filter(news).map(|ours| ours.statement(me, moment.peer).signed().clone()),
        yours: record.theirs.as_ref().filter(older).map(|theirs| theirs.statement(moment.peer, me).signed().clone()),
        address: showing.address.clone().filter(|_| holds_our_grant),
        ..refused
    }
}
