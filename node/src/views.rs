//! Records as rows of the control API. Pure.

use std::net::SocketAddr;

use handfast_protocol::text::escaped;
use handfast_protocol::{Kind, PeerId, UnixMillis};
use handfast_trust::trust_record::{Edge, Side, Transition, TrustRecord, TrustState};
use handfast_trust::{Actor, Cause, PeerRecord, SessionId, SessionRecord, SessionState, Standing, View};

use crate::clock::rfc3339;
use crate::control::api::{EdgeRow, HistoryRow, PeerRow, PendingRow, SessionRow};

pub fn edge_row(edge: &Edge, side: Side, now: UnixMillis) -> EdgeRow {
    let scope = edge.terms.scope.as_ref();
    EdgeRow {
        kind: match edge.terms.kind {
            Kind::Grant => "grant".to_owned(),
            Kind::Revoke => "revoke".to_owned(),
        },
        epoch: edge.terms.epoch,
        issued_at: rfc3339(edge.terms.issued_at),
        expires_at: edge.ends_at(side).map(rfc3339),
        expired: edge.has_ended(side, now),
        scope: scope.map(|scope| scope.services().iter().map(|service| service.as_str().to_owned()).collect()),
        note: edge.terms.note.as_str().to_owned(),
        network: edge.terms.network.map(|network| network.to_string()),
    }
}

pub fn peer_row(peer: &PeerId, record: &TrustRecord, place: Option<&PeerRecord>, view: &View<'_>) -> PeerRow {
    let mut addresses: Vec<String> = place.and_then(|place| place.typed.clone()).into_iter().collect();
    for address in place.map(PeerRecord::dialable).unwrap_or_default() {
        let shown = SocketAddr::from(address).to_string();
        if !addresses.contains(&shown) {
            addresses.push(shown);
        }
    }
    PeerRow {
        peer_id: peer.to_string(),
        short: peer.short(),
        alias: record.alias.as_ref().map(|alias| alias.as_str().to_owned()),
        state: record.state(view).to_string(),
        ours: record.ours.as_ref().map(|edge| edge_row(edge, Side::Ours, view.now)),
        theirs: record.theirs.as_ref().map(|edge| edge_row(edge, Side::Theirs, view.now)),
        addresses,
        delivered: record.ours.as_ref().map(|_| record.is_delivered()),
        rule: record.rule.map(|rule| rule.to_string()),
        last_seen: place.and_then(|place| place.last_seen).map(rfc3339),
    }
}

pub fn pending_row(peer: &PeerId, record: &TrustRecord) -> PendingRow {
    let theirs = record.theirs.as_ref();
    let received_at = record.request.map(|request| request.received_at).or(theirs.map(|edge| edge.stored_at));
    PendingRow {
        peer_id: peer.to_string(),
        short: peer.short(),
        note: theirs.map(|edge| edge.terms.note.as_str().to_owned()).unwrap_or_default(),
        received_at: rfc3339(received_at.unwrap_or_default()),
        source: record.request.and_then(|request| request.source).map(|source| SocketAddr::from(source).to_string()),
        network: theirs.and_then(|edge| edge.terms.network).map(|network| network.to_string()),
        count: record.request.map_or(1, |request| request.count),
    }
}

pub fn session_row(id: &SessionId, record: &SessionRecord) -> SessionRow {
    let (state, reason, closed_at) = match record.state {
        SessionState::Active => ("active", None, None),
        SessionState::Closed { reason, at } => ("closed", Some(reason.as_str().to_owned()), Some(rfc3339(at))),
    };
    SessionRow {
        session_id: id.to_string(),
        peer_id: record.peer().to_string(),
        role: record.role.as_str().to_owned(),
        remote: SocketAddr::from(record.remote).to_string(),
        state: state.to_owned(),
        reason,
        opened_at: rfc3339(record.opened_at),
        closed_at,
    }
}

pub fn history_row(transition: &Transition) -> HistoryRow {
    HistoryRow {
        at: rfc3339(transition.at),
        cause: transition.cause.as_str().to_owned(),
        actor: transition.actor.to_string(),
        revision: transition.revision.0,
        from: transition.from.to_string(),
        to: transition.to.to_string(),
    }
}

/// One sentence: why the state is what it is.
pub fn why(record: &TrustRecord, view: &View<'_>) -> String {
    let note = |edge: &Option<Edge>| {
        let note = edge.as_ref().map(|edge| escaped(edge.terms.note.as_str())).filter(|note| !note.is_empty());
        note.map_or(String::new(), |note| format!(", with the note \"{note}\""))
    };
    let expired = |edge: &Option<Edge>, side| edge.as_ref().is_some_and(|edge: &Edge| edge.has_ended(side, view.now));
    if let Some(why) = why_no_membership(record, view) {
        return why;
    }
    match record.state(view) {
        TrustState::Blocked if view.denied => "The peer is on this node's deny list.".to_owned(),
        TrustState::Blocked => "The operator has blocked the peer; unblock it to decide anew.".to_owned(),
        TrustState::Revoked => {
            let how = match record.history.iter().rev().find(|t| t.to == TrustState::Revoked).map(|t| t.cause) {
                Some(Cause::Rejected) => "rejected the request",
                Some(Cause::Restored) => "revoked trust; the peer showed us our own, newer revoke after a restore",
                _ => "revoked trust",
            };
            format!("We {how}{}; only `handfast trust` here changes that.", note(&record.ours))
        }
        TrustState::Refused => format!("The peer has revoked or rejected our trust{}.", note(&record.theirs)),
        TrustState::Trusted => {
            let by = record.rule.map_or("our operator".to_owned(), |rule| format!("our rule {rule}"));
            format!("Both sides grant trust: ours by {by}, theirs{}.", note(&record.theirs))
        }
        TrustState::Requested if expired(&record.theirs, Side::Theirs) => {
            "We grant trust; the peer's grant has expired.".to_owned()
        }
        TrustState::Requested if record.is_delivered() => {
            "We grant trust and the peer knows; it has not decided yet.".to_owned()
        }
        TrustState::Requested => "We grant trust, but the peer has not got our request yet.".to_owned(),
        TrustState::Pending if expired(&record.ours, Side::Ours) => {
            format!(
                "The peer grants trust{}; our own grant has expired and waits for us to renew it.",
                note(&record.theirs)
            )
        }
        TrustState::Pending => {
            format!("The peer grants trust{} and waits for our decision.", note(&record.theirs))
        }
        TrustState::Unknown if record.ours.is_some() || record.theirs.is_some() => {
            "What was granted has expired.".to_owned()
        }
        TrustState::Unknown => "Neither side has said anything.".to_owned(),
    }
}

/// Where a grant by a network's rule stands and a membership that it rests on does not count: that.
fn why_no_membership(record: &TrustRecord, view: &View<'_>) -> Option<String> {
    if record.blocked || view.denied || [&record.ours, &record.theirs].into_iter().flatten().any(Edge::is_revoke) {
        return None;
    }
    let missing = |edge: &Option<Edge>, side, who: &str| {
        let edge = edge.as_ref().filter(|edge| edge.is_grant_at(side, view.now) && !edge.counts(side, view))?;
        let network = edge.terms.network?;
        let how = match view.standing(&network, side) {
            Standing::Expelled => format!("{who} was expelled from it"),
            Standing::SponsorExpelled => format!("the sponsor that let {who} in was expelled from it"),
            Standing::Ended => format!("the certificate of {who} has ended"),
            Standing::NotHere => "this node is not in it".to_owned(),
            Standing::Unknown | Standing::Member { .. } => format!("no certificate of {who} is known here"),
        };
        Some(format!("A grant rests on the network {network}, and does not count: {how}."))
    };
    missing(&record.ours, Side::Ours, "the peer").or_else(|| missing(&record.theirs, Side::Theirs, "this node"))
}

/// The cause and the actor of a transition, for the event log.
pub fn event_cause(transition: &Transition) -> String {
    match transition.actor {
        Actor::Rule(rule) => format!("{} by rule:{rule}", transition.cause.as_str()),
        actor => format!("{} by {actor}", transition.cause.as_str()),
    }
}
