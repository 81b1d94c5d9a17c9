//! `pending`, `peers`, `sessions`, `explain`, `status`, `ping`: what an operator looks at.

use super::backend::{Backend, Call, query_value};
use super::{Context, Verdict};
use crate::cli::{PeerArgs, PeersArgs};
use crate::control::api::*;
use crate::output::{counted, or_dash, table};
use handfast_protocol::text::escaped;

pub(super) async fn pending(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "pending")?;
    let reply = backend.ask(Call::get("/v1/pending"), async |operator| Ok(operator.pending())).await?;
    context.output.reply(&reply, pending_text)?;
    Ok(Verdict::Done)
}

pub(super) async fn peers(context: &Context<'_>, arguments: &PeersArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "peers")?;
    let state = arguments.state.as_deref();
    let query = state.map(|state| format!("?state={}", query_value(state))).unwrap_or_default();
    let call = Call::get(format!("/v1/peers{query}"));
    let reply = backend.ask(call, async |operator| operator.peers(state)).await?;
    context.output.reply(&reply, |reply| peers_text(reply, state))?;
    Ok(Verdict::Done)
}

pub(super) async fn sessions(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "sessions")?;
    let reply = backend.ask(Call::get("/v1/sessions"), async |operator| Ok(operator.sessions())).await?;
    context.output.reply(&reply, sessions_text)?;
    Ok(Verdict::Done)
}

pub(super) async fn explain(context: &Context<'_>, arguments: &PeerArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "explain")?;
    let call = Call::get(format!("/v1/explain?peer={}", query_value(&arguments.peer)));
    let reply = backend.ask(call, async |operator| operator.explain(&arguments.peer)).await?;
    context.output.reply(&reply, explain_text)?;
    Ok(Verdict::Done)
}

pub(super) async fn status(context: &Context<'_>) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "status")?;
    let reply = backend.ask(Call::get("/v1/status"), async |operator| Ok(operator.status())).await?;
    context.output.reply(&reply, status_text)?;
    Ok(Verdict::Done)
}

pub(super) async fn ping(context: &Context<'_>, arguments: &PeerArgs) -> Result<Verdict, ApiError> {
    let mut backend = Backend::new(context, "ping")?;
    let request = PeerRequest { peer: arguments.peer.clone(), ..PeerRequest::default() };
    let call = Call::post("/v1/ping", &request);
    let reply: PingReply = backend.ask_node(call, "a ping needs its connection to the peer").await?;
    context.output.reply(&reply, ping_text)?;
    Ok(Verdict::Done)
}

fn pending_text(reply: &PendingReply) -> String {
    if reply.pending.is_empty() {
        return "No requests to decide.".into();
    }
    let rows = reply.pending.iter().map(|row| {
        let source = or_dash(row.source.as_deref());
        let note = if row.note.is_empty() { String::new() } else { format!("\"{}\"", row.note) };
        vec![row.peer_id.clone(), row.received_at.clone(), source, row.count.to_string(), note]
    });
    let mut text = table(&["PEER", "RECEIVED", "FROM", "ASKED", "NOTE"], &["PEER"], rows);
    text.push_str("\nApprove: handfast trust PEER. Refuse: handfast reject PEER. A note is the peer's own claim.");
    text
}

fn peers_text(reply: &PeersReply, state: Option<&str>) -> String {
    if reply.peers.is_empty() {
        return match state {
            Some(state) => format!("No peers are {state}."),
            None => "No peers yet. Ask one for trust: handfast trust PEER@HOST:PORT".into(),
        };
    }
    let rows = reply.peers.iter().map(|row| {
        let delivered = row.delivered.map(|delivered| if delivered { "yes" } else { "not yet" });
        vec![
            row.peer_id.clone(),
            or_dash(row.alias.as_deref()),
            row.state.clone(),
            edge_text(row.ours.as_ref()),
            edge_text(row.theirs.as_ref()),
            or_dash(delivered),
            or_dash(row.last_seen.as_deref()),
        ]
    });
    table(&["PEER", "ALIAS", "STATE", "OURS", "THEIRS", "DELIVERED", "LAST SEEN"], &["PEER"], rows)
}

/// `grant`, `grant until T`, `grant (expired)`, `revoke`.
fn edge_text(edge: Option<&EdgeRow>) -> String {
    let Some(edge) = edge else { return "-".into() };
    let mut text = edge.kind.clone();
    match &edge.expires_at {
        Some(_) if edge.expired => text.push_str(" (expired)"),
        Some(at) => text.push_str(&format!(" until {at}")),
        None => {}
    }
    if let Some(scope) = edge.scope.as_ref().filter(|scope| !scope.is_empty()) {
        text.push_str(&format!(" for {}", scope.join(", ")));
    }
    text
}

fn sessions_text(reply: &SessionsReply) -> String {
    if reply.sessions.is_empty() {
        return "No sessions.".into();
    }
    let rows = reply.sessions.iter().map(|row| {
        let state = match &row.reason {
            Some(reason) if row.state == "closed" => format!("closed ({reason})"),
            _ => row.state.clone(),
        };
        vec![
            row.peer_id.clone(),
            row.role.clone(),
            row.remote.clone(),
            state,
            row.opened_at.clone(),
            or_dash(row.closed_at.as_deref()),
        ]
    });
    table(&["PEER", "ROLE", "REMOTE", "STATE", "OPENED", "CLOSED"], &["PEER"], rows)
}

fn explain_text(reply: &ExplainReply) -> String {
    let mut text = format!("{}: {}\n{}\n", escaped(&reply.peer_id), escaped(&reply.state), escaped(&reply.why));
    if !reply.history.is_empty() {
        let rows = reply.history.iter().map(|row| {
            let change = format!("{} -> {}", row.from, row.to);
            vec![row.at.clone(), change, row.actor.clone(), row.cause.clone(), row.revision.to_string()]
        });
        text.push('\n');
        text.push_str(&table(&["AT", "CHANGE", "BY", "CAUSE", "REVISION"], &["AT", "CHANGE"], rows));
    }
    text
}

fn status_text(reply: &StatusReply) -> String {
    let counts = &reply.counts;
    let mut rows = vec![
        ("Peer", reply.peer_id.clone()),
        ("Data directory", reply.data_dir.clone()),
        (
            "Listening on",
            if reply.listen.is_empty() { "nothing: no node is running".into() } else { reply.listen.join(", ") },
        ),
        ("Health", reply.health.clone()),
        ("Revision", format!("{}, on the disk up to {}", reply.revision, reply.durable_revision)),
        (
            "Peers",
            format!(
                "{} trusted, {} pending, {} requested, {} revoked, {} refused, {} blocked",
                counts.trusted, counts.pending, counts.requested, counts.revoked, counts.refused, counts.blocked
            ),
        ),
        ("Sessions", counts.sessions.to_string()),
    ];
    if counts.undelivered > 0 {
        rows.push(("Not delivered", counted(counts.undelivered, "statement", "statements")));
    }
    for network in &reply.networks {
        let joining = if network.joining { ", still joining" } else { "" };
        let value = format!("{}: {} of {} members trusted{joining}", network.name, network.trusted, network.members);
        rows.push(("Network", value));
    }
    if let Some(error) = &reply.storage.last_error {
        let failures = counted(u64::from(reply.storage.failures_in_a_row), "failure", "failures");
        rows.push(("Disk", format!("{error} ({failures} in a row)")));
    }
    let mut text = String::new();
    for (name, value) in rows {
        text.push_str(&format!("{:<16}{}\n", format!("{name}:"), escaped(&value)));
    }
    for reason in &reply.reasons {
        text.push_str(&format!("{:<16}{}\n", "", escaped(reason)));
    }
    text
}

fn ping_text(reply: &PingReply) -> String {
    let (ms, rest) = (reply.rtt_us / 1_000, reply.rtt_us % 1_000);
    format!("{} answered in {ms}.{rest:03} ms.", escaped(&reply.peer_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_strangers_are_shown_escaped() {
        let row = PendingRow {
            peer_id: "hf1stranger".into(),
            short: "hf1s".into(),
            note: "trust me\u{202e}\u{1b}[2J".into(),
            received_at: "2026-01-01T00:00:00.000Z".into(),
            source: Some("192.0.2.1:9".into()),
            network: None,
            count: 2,
        };
        let text = pending_text(&PendingReply { pending: vec![row] });
        assert!(text.contains("\"trust me\\u{202e}\\u{1b}[2J\""), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'));
        assert!(text.contains("Approve: handfast trust PEER"));
        assert_eq!(pending_text(&PendingReply { pending: Vec::new() }), "No requests to decide.");
    }

    #[test]
    fn edges_read_as_a_phrase() {
        let mut edge = EdgeRow {
            kind: "grant".into(),
            epoch: 1,
            issued_at: String::new(),
            expires_at: None,
            expired: false,
            scope: None,
            note: String::new(),
            network: None,
        };
        assert_eq!(edge_text(None), "-");
        assert_eq!(edge_text(Some(&edge)), "grant");
        edge.expires_at = Some("T".into());
        edge.scope = Some(vec!["backup".into(), "logs".into()]);
        assert_eq!(edge_text(Some(&edge)), "grant until T for backup, logs");
        edge.expired = true;
        edge.scope = None;
        assert_eq!(edge_text(Some(&edge)), "grant (expired)");
    }

    #[test]
    fn status_says_that_no_node_runs() {
        let reply = StatusReply {
            peer_id: "hf1me".into(),
            health: "degraded".into(),
            reasons: vec!["writing fails".into()],
            revision: 9,
            durable_revision: 7,
            counts: Counts { trusted: 2, undelivered: 1, ..Counts::default() },
            storage: Storage { failures_in_a_row: 3, last_error: Some("no space".into()), ..Storage::default() },
            data_dir: "/d".into(),
            listen: Vec::new(),
            networks: Vec::new(),
        };
        let text = status_text(&reply);
        for part in ["no node is running", "9, on the disk up to 7", "2 trusted", "1 statement", "writing fails"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_round_trip_is_shown_in_milliseconds() {
        let reply = PingReply { peer_id: "hf1x".into(), rtt_us: 12_034 };
        assert_eq!(ping_text(&reply), "hf1x answered in 12.034 ms.");
    }
}
