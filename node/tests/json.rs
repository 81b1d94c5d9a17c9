//! `--json` of every command is what the committed schemas say, and the control socket is open to any HTTP client of
//! this user (line 11).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::{Command, Stdio};

use common::{Home, Running, as_another_user, control, disk, friends, schema, skipped, stranger, text};
use serde_json::{Value, json};

/// Runs a command and checks its one line against a schema.
fn check<const N: usize>(home: &Home, schema: &str, command: [&str; N]) -> Value {
    let done = home.run(command);
    let object = done.ok();
    assert_eq!(done.stdout.lines().count(), 1, "{done:#?}");
    schema::check(schema, &object);
    object
}

/// The commands that work with and without a node.
fn check_common(home: &Home, peer: &str) {
    check(home, "id", ["id"]);
    check(home, "init", ["init"]);
    check(home, "trust", ["trust", peer, "--alias", "bob", "--note", "n", "--for", "1h", "--scope", "backup"]);
    check(home, "peers", ["peers"]);
    check(home, "peers", ["peers", "--state", "requested"]);
    check(home, "explain", ["explain", "bob"]);
    check(home, "revoke", ["revoke", "bob", "--note", "n"]);
    check(home, "trust", ["block", peer]);
    check(home, "trust", ["unblock", peer]);
    check(home, "pending", ["pending"]);
    check(home, "sessions", ["sessions"]);
    check(home, "status", ["status"]);
    check(home, "files", ["store", "check"]);
    check(home, "config", ["config", "show"]);
    // What the machine grants is not the test's: whether it is enough is.
    let done = home.run(["doctor"]);
    let doctor = done.object();
    schema::check("doctor", &doctor);
    assert_eq!(done.code, Some(i32::from(doctor["ok"] != true)), "{done:#?}");
    check(home, "completions", ["completions", "bash"]);
    let around = home.path().parent().unwrap().display().to_string();
    check(home, "man", ["man", &around]);
}

fn check_dump(home: &Home) -> Vec<String> {
    let done = home.run(["store", "dump"]);
    assert_eq!(done.code, Some(0), "{done:#?}");
    let rows = done.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut kinds: Vec<String> = rows
        .map(|row| {
            let kind = text(&row["file"]).trim_end_matches(".hf").to_owned();
            schema::check(&format!("dump-{kind}"), &row);
            kind
        })
        .collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

#[test]
fn replies_without_a_node_are_as_their_schemas_say() {
    let home = Home::new();
    assert_eq!(check(&home, "init", ["init"])["created"], true);
    check_common(&home, &stranger(1));
    assert_eq!(check_dump(&home), ["trust"]);
    check(&home, "recover", ["store", "recover"]);
}

#[test]
fn replies_of_a_node_are_as_their_schemas_say() {
    let (a, b) = friends();
    schema::check("ready", a.ready());
    check_common(a.home(), &stranger(1));
    check(a.home(), "ping", ["ping", &b.id()]);
    check(a.home(), "explain", ["explain", &b.id()]);
    let c = Home::new().start();
    c.home().ok(["trust", &a.at(), "--note", "let me in"]);
    a.until_state(&c.id(), "pending");
    let pending = check(a.home(), "pending", ["pending"]);
    assert_eq!(pending["pending"].as_array().unwrap().len(), 1);
    check(a.home(), "revoke", ["reject", &c.id()]);
    let sessions = check(a.home(), "sessions", ["sessions"]);
    assert!(!sessions["sessions"].as_array().unwrap().is_empty());
    let events = a.home().run(["events"]);
    assert!(events.stdout.lines().count() >= 5, "{events:#?}");
    for (number, line) in events.stdout.lines().enumerate() {
        let event: Value = serde_json::from_str(line).unwrap();
        schema::check("event", &event);
        assert_eq!(event["seq"], number as u64 + 1);
    }
    let rest = a.home().run(["events", "--since", "3"]);
    assert_eq!(rest.stdout.lines().next(), events.stdout.lines().nth(3));
    let (a_home, b_id) = (a.home().clone(), b.id());
    a.stop();
    assert_eq!(check_dump(&a_home), ["peers", "sessions", "trust"]);
    assert_eq!(a_home.peer(&b_id)["state"], "trusted");
}

#[test]
fn events_are_followed_until_the_node_stops() {
    let node = Home::new().start();
    let follower = node.home().begin(["events", "--follow"]);
    node.home().ok(["trust", &stranger(1)]);
    node.home().ok(["revoke", &stranger(1)]);
    node.until("both events", || (node.count("revoked", &stranger(1)) == 1).then_some(()));
    node.stop();
    let done = follower.done();
    assert_eq!(done.code, Some(0), "{done:#?}");
    let events = done.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (numbers, kinds): (Vec<_>, Vec<_>) = events.map(|event| (event["seq"].as_u64(), text(&event["kind"]))).unzip();
    assert!(numbers.iter().copied().eq((1..).map(Some).take(numbers.len())), "{numbers:?}");
    assert!(kinds.contains(&"requested".into()) && kinds.contains(&"revoked".into()), "{kinds:?}");
}

#[test]
fn errors_are_one_json_object_on_stderr() {
    let home = Home::initialised();
    // `refused` checks each against the schema of errors.
    let codes = [
        home.refused(2, ["frobnicate"]).code,
        home.refused(2, ["revoke", "hf1qqq"]).code,
        home.refused(3, ["revoke", &stranger(1)]).code,
        home.refused(4, ["trust", &home.id()]).code,
        home.refused(6, ["ping", &stranger(1)]).code,
    ];
    assert_eq!(codes, ["usage", "usage", "not_found", "refused", "no_node"]);
    let node = home.start();
    assert_eq!(home.refused(7, ["run"]).code, "in_use");
    node.stop();
    disk::flip(&home.file("trust.hf"), 0);
    assert_eq!(home.refused(8, ["peers"]).code, "damaged");
}

#[test]
fn any_http_client_of_this_user_is_answered_on_the_control_socket() {
    let node = Home::new().start();
    node.home().ok(["trust", &stranger(1)]);
    let data = node.home().path();
    let reply = control::get(data, "/v1/status").unwrap();
    assert_eq!((reply.status, control::header(&reply.head, "content-type")), (200, Some("application/json")));
    assert_eq!(control::header(&reply.head, "handfast-data-dir"), Some(data.to_str().unwrap()));
    schema::check("status", &reply.json());
    for (path, name) in [("peers", "peers"), ("pending", "pending"), ("sessions", "sessions")] {
        schema::check(name, &node.get(&format!("/v1/{path}")));
    }
    schema::check("explain", &node.get(&format!("/v1/explain?peer={}", stranger(1))));
    let reply = control::post(data, "/v1/revoke", &json!({ "peer": stranger(1) })).unwrap();
    assert_eq!(reply.status, 200);
    schema::check("revoke", &reply.json());
    for (path, body, status) in [
        ("/v1/revoke", json!({ "peer": stranger(2) }), 404),
        ("/v1/revoke", json!({ "pear": stranger(2) }), 400),
        ("/v1/trust", json!({ "peer": "hf1" }), 400),
        ("/v1/frobnicate", json!({}), 404),
    ] {
        let reply = control::post(data, path, &body).unwrap();
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        schema::check("error", &reply.json());
    }
    let metrics = control::get(data, "/metrics").unwrap();
    let kind = control::header(&metrics.head, "content-type").unwrap_or_default();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(metrics.body.contains("handfast_") && metrics.body.ends_with("# EOF\n"), "{}", metrics.body);
}

fn curl(node: &common::Node, path: &str) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "50", "--write-out", "\n%{http_code}", "--unix-socket"]);
    curl.arg(node.home().file("control.sock")).arg(format!("http://localhost{path}"));
    curl.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    curl
}

#[test]
fn curl_gets_the_status() {
    let node = Home::new().start();
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped("there is no curl here");
    }
    let done = Running::begin(curl(&node, "/v1/status")).done();
    let (body, status) = done.stdout.rsplit_once('\n').unwrap();
    assert_eq!((done.code, status), (Some(0), "200"), "{done:#?}");
    schema::check("status", &serde_json::from_str(body).unwrap());
}

#[test]
fn another_users_process_is_refused() {
    let node = Home::new().start();
    let Some(command) = as_another_user(&curl(&node, "/v1/status")) else {
        return skipped("we are not root, and cannot be another user");
    };
    // The directory keeps it out.
    let refused = Running::begin(command).done();
    assert_ne!(refused.code, Some(0), "{refused:#?}");
    // And with every door in the file system open, the node itself does.
    disk::allow(node.home().path().parent().unwrap(), 0o755);
    disk::allow(node.home().path(), 0o755);
    disk::allow(&node.home().file("control.sock"), 0o666);
    let refused = Running::begin(as_another_user(&curl(&node, "/v1/status")).unwrap()).done();
    disk::allow(node.home().path(), 0o700);
    // Some versions of curl notice that the connection has ended before they read the 403 in it.
    assert!(refused.stdout.ends_with("403") || refused.code != Some(0), "{refused:#?}");
    assert!(!refused.stdout.contains(&node.id()), "{refused:#?}");
    assert_eq!(node.get("/v1/status")["health"], "ok");
    assert!(node.stderr().contains("another user was refused"), "{}", node.stderr());
}
