//! That what is printed with `--json` is what the committed schemas say: every field is in its schema and every
//! required one is there. The checker knows the words of JSON Schema that our schemas use, and refuses others.

use handfast_protocol::SecretKey;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::control::api::*;

macro_rules! schema {
    ($name:literal) => {
        include_str!(concat!("../../schemas/", $name, ".json"))
    };
}

/// Words that say nothing about validity.
const REMARKS: [&str; 4] = ["$schema", "$id", "title", "description"];

fn fault(schema: &Value, value: &Value, place: &str) -> Option<String> {
    let words = schema.as_object().unwrap();
    words.iter().find_map(|(word, rule)| match word.as_str() {
        "type" => (!has_type(rule, value)).then(|| format!("{place}: {value} is not {rule}")),
        "const" => (rule != value).then(|| format!("{place}: {value} is not {rule}")),
        "enum" => (!rule.as_array().unwrap().contains(value)).then(|| format!("{place}: {value} is none of {rule}")),
        "minimum" => {
            value.as_i64().filter(|value| *value < rule.as_i64().unwrap()).map(|_| format!("{place}: too small"))
        }
        "items" => value.as_array()?.iter().find_map(|item| fault(rule, item, &format!("{place}[]"))),
        "required" => {
            let value = value.as_object()?;
            let missing = rule.as_array().unwrap().iter().find(|key| !value.contains_key(key.as_str().unwrap()))?;
            Some(format!("{place}: {missing} is missing"))
        }
        "properties" => value.as_object()?.iter().find_map(|(key, value)| match rule.get(key) {
            Some(rule) => fault(rule, value, &format!("{place}.{key}")),
            None => Some(format!("{place}.{key} is not in the schema")),
        }),
        // Checked by full validators; here only that it is one.
        "pattern" => (!rule.is_string()).then(|| format!("{place}: a pattern is a string")),
        remark if REMARKS.contains(&remark) => None,
        other => Some(format!("{place}: the checker does not know the word {other}")),
    })
}

fn has_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    rule.as_array().map_or_else(|| is(rule), |names| names.iter().any(is))
}

fn check(schema: &str, reply: impl Serialize) {
    let schema: Value = serde_json::from_str(schema).unwrap();
    let reply = serde_json::to_value(Versioned::new(reply)).unwrap();
    assert_eq!(fault(&schema, &reply, "$"), None);
    // Whatever the schema names is said: nothing is left out where it is null.
    let names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    assert!(names.iter().all(|name| reply.get(name).is_some()), "{names:?} are not all in {reply}");
}

fn id() -> String {
    SecretKey::from_seed(&[1; 32]).peer_id().to_string()
}

fn at() -> String {
    "2026-01-01T00:00:00.000Z".into()
}

#[test]
fn the_checker_finds_faults() {
    let schema: Value = serde_json::from_str(schema!("trust")).unwrap();
    let good = json!({"v": 1, "peer_id": "hf1x", "state": "trusted", "revision": 1, "durable": true});
    let check = |key: &str, value: Option<Value>, says: &str| {
        let mut bad: Map<String, Value> = good.as_object().unwrap().clone();
        match value {
            Some(value) => drop(bad.insert(key.into(), value)),
            None => drop(bad.remove(key)),
        }
        let found = fault(&schema, &Value::Object(bad), "$").unwrap();
        assert!(found.contains(says), "{found}");
    };
    assert_eq!(fault(&schema, &good, "$"), None);
    check("durable", None, "\"durable\" is missing");
    check("state", Some(json!("friend")), "none of");
    check("revision", Some(json!(-1)), "too small");
    check("revision", Some(json!("1")), "is not \"integer\"");
    check("v", Some(json!(2)), "is not 1");
    check("colour", Some(json!("red")), "not in the schema");
}

#[test]
fn replies_to_changes_are_as_their_schemas_say() {
    let state = || "trusted".to_owned();
    check(schema!("trust"), TrustReply { peer_id: id(), state: state(), revision: 1, durable: true });
    let revoked =
        RevokeReply { peer_id: id(), state: state(), revision: 1, durable: true, sessions_closed: 1, delivered: false };
    check(schema!("revoke"), revoked);
    check(schema!("init"), InitReply { peer_id: id(), data_dir: "/d".into(), created: true });
    let hex = "0".repeat(64);
    check(schema!("id"), IdReply { peer_id: id(), short: "hf1xxxxxxxx".into(), hex, did: "did:key:zx".into() });
    check(schema!("ping"), PingReply { peer_id: id(), rtt_us: 1 });
    let ready =
        ReadyReply { event: "ready".into(), peer_id: id(), listen: vec!["[::]:1".into()], control: "/s".into() };
    check(schema!("ready"), ready);
    check(schema!("error"), ErrorReply { error: ApiError::new(ErrorCode::NotFound, "x").hint("y") });
    check(schema!("error"), ErrorReply { error: ApiError::new(ErrorCode::TryAgain, "x") });
}

fn edge() -> EdgeRow {
    EdgeRow {
        kind: "grant".into(),
        epoch: 1,
        issued_at: at(),
        expires_at: Some(at()),
        expired: false,
        scope: Some(vec!["backup".into()]),
        note: "n".into(),
        network: None,
    }
}

#[test]
fn tables_are_as_their_schemas_say() {
    let mut row = PendingRow {
        peer_id: id(),
        short: "hf1xxxxxxxx".into(),
        note: String::new(),
        received_at: at(),
        source: None,
        network: None,
        count: 1,
    };
    check(schema!("pending"), PendingReply { pending: vec![row.clone()] });
    row.source = Some("192.0.2.1:1".into());
    check(schema!("pending"), PendingReply { pending: vec![row] });
    let bare = PeerRow {
        peer_id: id(),
        short: "hf1xxxxxxxx".into(),
        alias: None,
        state: "pending".into(),
        ours: None,
        theirs: Some(edge()),
        addresses: vec!["192.0.2.1:1".into()],
        delivered: None,
        rule: None,
        last_seen: None,
    };
    let full = PeerRow {
        alias: Some("b".into()),
        ours: Some(edge()),
        delivered: Some(true),
        rule: Some("allow".into()),
        last_seen: Some(at()),
        ..bare.clone()
    };
    check(schema!("peers"), PeersReply { peers: vec![bare, full] });
    let active = SessionRow {
        session_id: "00".into(),
        peer_id: id(),
        role: "dialer".into(),
        remote: "192.0.2.1:1".into(),
        state: "active".into(),
        reason: None,
        opened_at: at(),
        closed_at: None,
    };
    let closed =
        SessionRow { state: "closed".into(), reason: Some("lost".into()), closed_at: Some(at()), ..active.clone() };
    check(schema!("sessions"), SessionsReply { sessions: vec![active, closed] });
    check(
        schema!("event"),
        EventRow { seq: 1, at: at(), kind: "trusted".into(), peer_id: Some(id()), cause: "x".into() },
    );
    let file = FileRow {
        file: "trust.hf".into(),
        kind: "trust".into(),
        revision: 1,
        records: 1,
        bytes: 1,
        live_bytes: 1,
        torn_bytes: 0,
        chain: Some("0f".repeat(32)),
        ok: false,
        error: Some("damaged".into()),
    };
    check(schema!("files"), FilesReply { files: vec![file] });
}

#[test]
fn explanations_are_as_their_schemas_say() {
    let step = HistoryRow {
        at: at(),
        cause: "granted".into(),
        actor: "operator".into(),
        revision: 1,
        from: "unknown".into(),
        to: "requested".into(),
    };
    let reply = ExplainReply { peer_id: id(), state: "requested".into(), why: "x".into(), history: vec![step] };
    check(schema!("explain"), reply);
    let status = StatusReply {
        peer_id: id(),
        health: "ok".into(),
        reasons: vec!["x".into()],
        revision: 1,
        durable_revision: 1,
        counts: Counts::default(),
        storage: Storage { last_error: Some("x".into()), ..Storage::default() },
        data_dir: "/d".into(),
        listen: Vec::new(),
        networks: vec![network_row()],
    };
    check(schema!("status"), status);
    check(schema!("recover"), super::recover::RecoverReply::default());
    let row = |ok, hint| super::doctor::CheckRow { check: "clock".into(), ok, found: "x".into(), hint };
    let checks = vec![row(true, None), row(false, Some("y".into()))];
    check(schema!("doctor"), super::doctor::DoctorReply { ok: false, checks });
    let (shell, script) = ("bash".into(), "complete".into());
    check(schema!("completions"), super::manuals::CompletionsReply { shell, script });
    check(schema!("man"), super::manuals::ManReply { dir: "/d".into(), files: vec!["handfast.1".into()] });
    let settings = crate::config::Config::default().shown();
    check(schema!("config"), super::config::ConfigReply { settings });
}

fn network_row() -> NetworkRow {
    NetworkRow {
        network: "hfnet1x".into(),
        name: "lab".into(),
        authority: false,
        role: Some("member".into()),
        standing: "member".into(),
        until: Some(at()),
        joined_at: at(),
        members: 2,
        trusted: 1,
        joining: true,
        rule: true,
    }
}

#[test]
fn replies_about_networks_are_as_their_schemas_say() {
    let (network, name) = (|| "hfnet1x".to_owned(), || "lab".to_owned());
    check(schema!("network"), NetworkReply { network: network(), name: name(), revision: 1, durable: true });
    let expelled = MemberReply {
        network: network(),
        peer_id: id(),
        standing: "expelled".into(),
        revision: 1,
        durable: true,
        sessions_closed: 1,
    };
    check(schema!("member"), expelled);
    let mut ended = network_row();
    (ended.role, ended.until, ended.standing) = (None, None, "ended".into());
    check(schema!("networks"), NetworksReply { networks: vec![network_row(), ended] });
    let mut row = MemberRow {
        peer_id: id(),
        short: "hf1xxxxxxxx".into(),
        standing: "member".into(),
        role: Some("sponsor".into()),
        sponsor: Some(id()),
        until: Some(at()),
        state: Some("trusted".into()),
    };
    check(schema!("members"), MembersReply { network: network(), members: vec![row.clone()] });
    (row.role, row.sponsor, row.until, row.state) = (None, None, None, None);
    check(schema!("members"), MembersReply { network: network(), members: vec![row] });
    let invite = InviteReply {
        ticket: "hfinv1x".into(),
        invite: "00".into(),
        network: network(),
        uses: 1,
        expires_at: at(),
        addresses: vec!["192.0.2.1:1".into()],
        revision: 1,
        durable: true,
    };
    assert!(!format!("{invite:?}").contains("hfinv1"));
    check(schema!("invite"), invite);
    let row = InviteRow {
        invite: "00".into(),
        network: network(),
        uses: 2,
        used: 1,
        made_at: at(),
        expires_at: at(),
        state: "open".into(),
    };
    check(schema!("invites"), InvitesReply { invites: vec![row] });
    check(schema!("invite-revoke"), InviteRevokeReply { invite: "00".into(), used: 1, revision: 1, durable: true });
    let failure = JoinFailure { peer_id: id(), short: "hf1xxxxxxxx".into(), why: "x".into() };
    let joined =
        JoinReply { network: network(), name: name(), members: 2, trusted: 1, under_way: 0, failed: vec![failure] };
    check(schema!("join"), joined);
    let row = UndoRow { peer_id: id(), short: "hf1xxxxxxxx".into(), state: "revoked".into() };
    check(schema!("undo"), UndoReply { rule: "allow".into(), dry_run: true, undone: vec![row], durable: true });
    assert!(!format!("{:?}", JoinRequest { ticket: "hfinv1x".into(), operation_id: None }).contains("hfinv1"));
}

#[test]
fn dumped_records_are_as_their_schemas_say() {
    for (schema, rows) in super::dump::samples() {
        let schema = match schema {
            "trust.hf" => schema!("dump-trust"),
            "invites.hf" => schema!("dump-invites"),
            "peers.hf" => schema!("dump-peers"),
            _ => schema!("dump-sessions"),
        };
        rows.into_iter().for_each(|row| check(schema, row));
    }
}
