//! SIGTERM: what was acknowledged is on the disk, nothing hangs, and nothing is written without a change (line 7).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use common::{Home, Node, PATIENCE, control, disk, friends, stranger, text};
use rustix::process::Signal;
use serde_json::json;

const GRANTS: u64 = 1_000;
const CLIENTS: usize = 8;

/// Grants until the node refuses to hear more, and returns whom it was told to have granted.
fn grant_until_it_stops(home: &Home, next: &AtomicU64, in_the_middle: &SyncSender<()>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let peer = stranger(number);
        match control::post(home.path(), "/v1/trust", &json!({ "peer": peer })) {
            Ok(reply) if reply.status == 200 && reply.json()["durable"] == true => acknowledged.push(peer),
            Ok(reply) => panic!("{reply:?}"),
            Err(_) => return acknowledged,
        }
        if number == GRANTS / 2 {
            in_the_middle.send(()).unwrap();
        }
    }
}

#[test]
fn sigterm_in_a_burst_of_a_thousand_grants_keeps_everything_acknowledged() {
    let node = Home::new().start();
    let home = node.home().clone();
    let next = AtomicU64::new(0);
    let (in_the_middle, middle) = sync_channel(1);
    let (done, acknowledged) = std::thread::scope(|scope| {
        let grant = || grant_until_it_stops(&home, &next, &in_the_middle);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(grant)).collect();
        middle.recv_timeout(PATIENCE).expect("half of the burst");
        let done = node.stop();
        let lists = clients.into_iter().map(|client| client.join().unwrap());
        (done, lists.flatten().collect::<BTreeSet<String>>())
    });
    assert!(done.stderr.contains("stopping"), "{done:#?}");
    assert!(acknowledged.len() as u64 > GRANTS / 2 - CLIENTS as u64);
    let list = home.ok(["peers"]);
    let found: BTreeSet<String> = list["peers"].as_array().unwrap().iter().map(|row| text(&row["peer_id"])).collect();
    let lost: Vec<&String> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "{} of {} acknowledged grants are lost", lost.len(), acknowledged.len());
    let node = Node::start(&home, &format!("{}:0", home.ip()));
    assert_eq!(node.get("/v1/status")["counts"]["requested"], found.len());
}

#[test]
fn a_second_sigterm_ends_a_node_that_is_stopping_at_once() {
    let mut node = Home::new().start();
    let home = node.home().clone();
    home.ok(["trust", &stranger(1)]);
    // Somebody waits for a peer that never comes: replies under way get a moment, unless the operator insists.
    let waiting = home.begin(["trust", &stranger(2), "--wait", "1h"]);
    node.until("the wait began", || (node.count("requested", &stranger(2)) == 1).then_some(()));
    node.signal(Signal::TERM);
    node.until("the node stops", || node.stderr().contains("stopping").then_some(()));
    node.signal(Signal::TERM);
    let done = node.ended();
    assert_eq!(done.code, Some(1), "{done:#?}");
    assert!(done.stderr.contains("second signal"), "{done:#?}");
    drop(waiting);
    assert_eq!(home.peer(&stranger(1))["state"], "requested");
}

#[test]
fn sigint_stops_as_sigterm_does() {
    let mut node = Home::new().start();
    node.signal(Signal::INT);
    assert_eq!(node.ended().code, Some(0));
}

#[test]
fn a_stop_is_told_to_the_peer_and_recorded_by_both() {
    let (a, b) = friends();
    let (home, b_id) = (a.home().clone(), b.id());
    let a_id = a.id();
    a.stop();
    b.until_no_session(&a_id);
    assert_eq!(b.sessions(&a_id)[0]["reason"], "peer_closed");
    assert_eq!(b.state(&a_id), "trusted");
    let sessions = home.ok(["sessions"]);
    let rows = sessions["sessions"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["peer_id"] == b_id.as_str() && row["reason"] == "stopped"), "{rows:#?}");
}

#[test]
fn after_a_clean_stop_start_and_stop_without_a_change_touch_no_file() {
    let (a, b) = friends();
    let (home, addr) = (a.home().clone(), a.addr());
    home.ok(["trust", &stranger(1), "--alias", "nobody"]);
    home.ok(["revoke", &stranger(1)]);
    b.stop();
    a.stop();
    let before = disk::stamps_of(&home);
    for name in ["floor", "identity.pem", "peers.hf", "sessions.hf", "trust.hf"] {
        assert!(before.contains_key(name), "{name} is not in {:?}", before.keys());
    }
    for _ in 0..2 {
        Node::start(&home, &addr).stop();
    }
    // Looking changes nothing either.
    for command in [&["peers"][..], &["pending"], &["sessions"], &["status"], &["store", "check"]] {
        home.ok(command);
    }
    let after = disk::stamps_of(&home);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, stamp) in &before {
        assert!(after[name] == *stamp, "{name} has changed");
    }
}
