//! `store dump`: every record that can be read, as one JSON object a line. Reads only, needs no node, and goes on
//! where a file is damaged: what is shown then is what is left.

mod invites;

use std::ops::ControlFlow;

use handfast_protocol::text::escaped;
use handfast_protocol::{Kind, PeerId, UnixMillis};
use handfast_trust::{
    Edge, Medium, NetRecord, PeerRecord, RealDir, Record, SessionRecord, SessionState, Side, TrustRecord, View,
    salvage_last,
};
use serde_json::{Value, json};

use super::store::check_all;
use super::{Context, Verdict};
use crate::clock::{rfc3339, unix_now};
use crate::control::api::{ApiError, ErrorCode};
use crate::data_dir::Access;
use crate::output::Reader;

pub(super) fn dump(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let directory = context.directory(Access::Own)?;
    let checked = check_all(&directory)?;
    let mut medium = RealDir::open(directory.path())?;
    let mut print = |row: Value| context.output.row(&row, |row| escaped(&row.to_string()));
    let now = unix_now();
    let _ = dump_file::<TrustRecord>(&mut medium, &mut print, |peer, record| trust_row(peer, record, now))?
        == Reader::Gone
        || dump_file::<NetRecord>(&mut medium, &mut print, invites::row)? == Reader::Gone
        || dump_file::<PeerRecord>(&mut medium, &mut print, peer_row)? == Reader::Gone
        || dump_file::<SessionRecord>(&mut medium, &mut print, |id, record| session_row(&id.to_string(), record))?
            == Reader::Gone;
    let Some(damaged) = checked.iter().find(|row| !row.ok) else { return Ok(Verdict::Done) };
    let message = damaged.error.clone().unwrap_or_default();
    Err(ApiError::new(ErrorCode::Damaged, message).hint("what could be read was shown; it is not all"))
}

fn dump_file<R: Record>(
    medium: &mut RealDir,
    print: &mut impl FnMut(Value) -> Result<Reader, ApiError>,
    row: impl Fn(&R::Key, &R) -> Value,
) -> Result<Reader, ApiError> {
    let file = R::KIND.file_name();
    if !medium.exists(file)? {
        return Ok(Reader::Listening);
    }
    let mut printed = Ok(Reader::Listening);
    salvage_last(medium, R::KIND, |key, bytes| {
        // What does not decode is in the report of the check.
        let decoded = R::decode_key(key).and_then(|key| R::decode(&key, bytes).map(|record| (key, record)));
        let Ok((key, record)) = decoded else { return ControlFlow::Continue(()) };
        let mut row = row(&key, &record);
        row["file"] = json!(file);
        printed = print(row);
        if matches!(printed, Ok(Reader::Listening)) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    printed
}

fn trust_row(peer: &PeerId, record: &TrustRecord, now: UnixMillis) -> Value {
    let history = record.history.iter().map(|step| {
        json!({
            "at": rfc3339(step.at),
            "cause": step.cause.as_str(),
            "actor": step.actor.to_string(),
            "revision": step.revision.0,
            "from": step.from.as_str(),
            "to": step.to.as_str(),
            "statement": step.digest.map(|digest| digest.to_string()),
        })
    });
    json!({
        "peer_id": peer.to_string(),
        "state": record.state(&View::outside(false, now)).as_str(),
        "ours": record.ours.as_ref().map(|edge| edge_row(edge, Side::Ours, now)),
        "theirs": record.theirs.as_ref().map(|edge| edge_row(edge, Side::Theirs, now)),
        "blocked": record.blocked,
        "alias": record.alias.as_ref().map(|alias| alias.as_str()),
        "delivered": record.ours.as_ref().map(|_| record.is_delivered()),
        "proven": record.proven,
        "rule": record.rule.map(|rule| rule.to_string()),
        "request": record.request.map(|request| json!({
            "received_at": rfc3339(request.received_at),
            "source": request.source.map(|at| std::net::SocketAddr::from(at).to_string()),
            "count": request.count,
        })),
        "equivocations": record.equivocations,
        "history": history.collect::<Vec<_>>(),
    })
}

fn edge_row(edge: &Edge, side: Side, now: UnixMillis) -> Value {
    let terms = &edge.terms;
    let scope = terms.scope.as_ref();
    json!({
        "kind": match terms.kind { Kind::Grant => "grant", Kind::Revoke => "revoke" },
        "epoch": terms.epoch,
        "issued_at": rfc3339(terms.issued_at),
        "expires_at": terms.expires_at.map(rfc3339),
        "expired": edge.has_ended(side, now),
        "scope": scope.map(|scope| scope.services().iter().map(|name| name.as_str()).collect::<Vec<_>>()),
        "note": terms.note.as_str(),
        "network": terms.network.map(|network| network.to_string()),
        "stored_at": rfc3339(edge.stored_at),
        "digest": edge.digest.to_string(),
        "signature": data_encoding::HEXLOWER.encode(&edge.signature.0),
    })
}

fn peer_row(peer: &PeerId, record: &PeerRecord) -> Value {
    let show = |at: &handfast_protocol::Address| std::net::SocketAddr::from(*at).to_string();
    json!({
        "peer_id": peer.to_string(),
        "typed": record.typed,
        "signed": record.signed.iter().map(show).collect::<Vec<_>>(),
        "signed_epoch": record.signed_epoch,
        "observed": record.observed.as_ref().map(show),
        "last_seen": record.last_seen.map(rfc3339),
    })
}

fn session_row(id: &str, record: &SessionRecord) -> Value {
    let (state, reason, closed_at) = match record.state {
        SessionState::Active => ("active", None, None),
        SessionState::Closed { reason, at } => ("closed", Some(reason.as_str()), Some(rfc3339(at))),
    };
    json!({
        "session_id": id,
        "peer_id": record.peer().to_string(),
        "role": record.role.as_str(),
        "remote": std::net::SocketAddr::from(record.remote).to_string(),
        "state": state,
        "reason": reason,
        "opened_at": rfc3339(record.opened_at),
        "closed_at": closed_at,
        "incarnation": record.incarnation.to_string(),
    })
}

/// Rows of every kind, bare and full, for the test of their schemas.
#[cfg(test)]
pub(super) fn samples() -> Vec<(&'static str, Vec<Value>)> {
    use handfast_protocol::{Digest, Incarnation, Note, Scope, SecretKey, ServiceName, Statement, Terms};
    use handfast_trust::trust_record::Request;
    use handfast_trust::{Actor, Cause, EndReason, Revision, Role, Rule, SessionId, Transition, TrustState};

    let now = UnixMillis(1_700_000_000_000);
    let (me, peer) = (SecretKey::from_seed(&[1; 32]), SecretKey::from_seed(&[2; 32]).peer_id());
    let address = handfast_protocol::Address::from(std::net::SocketAddr::from(([192, 0, 2, 1], 9)));
    let terms = Terms {
        kind: Kind::Grant,
        epoch: 5,
        issued_at: now,
        expires_at: Some(now.plus(1)),
        scope: Scope::new(vec![ServiceName::new("backup").unwrap()]).ok(),
        network: None,
        note: Note::new("hello").unwrap(),
    };
    let statement = Statement { issuer: me.peer_id(), subject: peer, terms }.sign(&me).unwrap();
    let step = Transition {
        at: now,
        cause: Cause::Granted,
        actor: Actor::Rule(Rule::Allow),
        revision: Revision(1),
        from: TrustState::Pending,
        to: TrustState::Trusted,
        digest: Some(Digest([1; 32])),
    };
    let full = TrustRecord {
        ours: Some(Edge::new(&statement, now)),
        alias: Note::new("b").ok(),
        rule: Some(Rule::Allow),
        request: Some(Request { received_at: now, source: Some(address), count: 1 }),
        history: vec![step],
        ..TrustRecord::default()
    };
    let place = PeerRecord {
        typed: Some("host:1".into()),
        signed: vec![address],
        observed: Some(address),
        last_seen: Some(now),
        ..PeerRecord::default()
    };
    let rows = |file, rows: Vec<Value>| {
        let named = rows.into_iter().map(|mut row| {
            row["file"] = json!(file);
            row
        });
        (file, named.collect())
    };
    let session = |state| {
        // Only the session store makes such records; a tuple has the same encoding.
        let mut bytes = vec![1];
        let fields = (*peer.as_bytes(), Role::Dialer, address, now, Incarnation([1; 16]), state);
        handfast_protocol::codec::encode_into(&fields, &mut bytes);
        let id = SessionId([1; 16]);
        session_row(&id.to_string(), &SessionRecord::decode(&id, &bytes).unwrap())
    };
    vec![
        rows("trust.hf", vec![trust_row(&peer, &TrustRecord::default(), now), trust_row(&peer, &full, now)]),
        rows("invites.hf", invites::samples()),
        rows("peers.hf", vec![peer_row(&peer, &PeerRecord::default()), peer_row(&peer, &place)]),
        rows(
            "sessions.hf",
            vec![session(SessionState::Active), session(SessionState::Closed { reason: EndReason::Lost, at: now })],
        ),
    ]
}
