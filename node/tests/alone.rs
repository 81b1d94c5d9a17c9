//! Without a node a command acts on the directory itself, under its lock; with one, through it (line 5).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Home, Node, Running, stranger, text};
use handfast::clock::MonotonicClock;

#[test]
fn every_decision_can_be_made_and_looked_at_without_a_node() {
    let home = Home::initialised();
    let [granted, revoked, blocked] = [1, 2, 3].map(stranger);
    let reply = home.ok(["trust", &granted, "--alias", "bob", "--note", "hello", "--for", "30d", "--scope", "backup"]);
    assert_eq!((text(&reply["state"]), reply["durable"].as_bool()), ("requested".into(), Some(true)));
    home.ok(["trust", &revoked]);
    assert_eq!(home.ok(["revoke", &revoked, "--note", "gone"])["state"], "revoked");
    assert_eq!(home.ok(["block", &blocked])["state"], "blocked");
    assert_eq!(home.ok(["unblock", &blocked])["state"], "unknown");
    home.ok(["block", &blocked]);

    let states: Vec<String> =
        [&granted, &revoked, &blocked].map(|peer| text(&home.peer(peer)["state"])).into_iter().collect();
    assert_eq!(states, ["requested", "revoked", "blocked"]);
    let row = home.peer(&granted);
    assert_eq!((text(&row["alias"]), text(&row["ours"]["note"])), ("bob".into(), "hello".into()));
    assert_eq!(row["ours"]["scope"], serde_json::json!(["backup"]));
    assert_eq!(home.ok(["explain", "bob"])["state"], "requested");
    assert_eq!(home.ok(["pending"])["pending"], serde_json::json!([]));
    assert_eq!(home.ok(["sessions"])["sessions"], serde_json::json!([]));
    assert_eq!(home.ok(["status"])["counts"]["requested"], 1);
    let files = home.ok(["store", "check"]);
    assert!(files["files"].as_array().unwrap().iter().all(|file| file["ok"] == true), "{files:#}");
    // What needs a node says so.
    home.refused(6, ["ping", "bob"]).says("handfast run");
    home.refused(6, ["events"]).says("handfast run");
    home.refused(6, ["trust", "bob", "--wait", "1s"]).says("handfast run");
}

#[test]
fn a_request_that_came_while_a_node_ran_is_rejected_without_one() {
    let (a, b) = (Home::new().start(), Home::new().start());
    a.home().ok(["trust", &b.at(), "--note", "please"]);
    b.until_state(&a.id(), "pending");
    let home = b.home().clone();
    b.stop();
    let pending = home.ok(["pending"]);
    assert_eq!((&pending["pending"][0]["peer_id"], &pending["pending"][0]["note"]), (&a.id().into(), &"please".into()));
    assert_eq!(home.ok(["reject", &a.id()])["state"], "revoked");
    assert_eq!(home.ok(["pending"])["pending"], serde_json::json!([]));
}

#[test]
fn of_fifty_commands_at_once_every_change_is_there() {
    let home = Home::initialised();
    let peers: Vec<String> = (0..50).map(stranger).collect();
    let commands: Vec<Running> = peers.iter().map(|peer| home.begin(["trust", peer])).collect();
    for command in commands {
        assert_eq!(command.done().ok()["durable"], true);
    }
    let list = home.ok(["peers", "--state", "requested"]);
    let mut found: Vec<String> = list["peers"].as_array().unwrap().iter().map(|row| text(&row["peer_id"])).collect();
    let mut expected = peers;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn commands_go_through_while_a_node_starts_and_stops() {
    let home = Home::initialised();
    let over = AtomicBool::new(false);
    let made: Vec<String> = std::thread::scope(|scope| {
        let commanders: Vec<_> = (0..3)
            .map(|number| {
                let (home, over) = (&home, &over);
                scope.spawn(move || {
                    let mut made = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let peer = stranger(number * 10_000 + made.len() as u64);
                        let reply = home.ok(["trust", &peer]);
                        assert_eq!(
                            (text(&reply["state"]), text(&reply["peer_id"])),
                            ("requested".into(), peer.clone())
                        );
                        made.push(peer);
                    }
                    made
                })
            })
            .collect();
        let mut at = format!("{}:0", home.ip());
        for _ in 0..5 {
            let node = Node::start(&home, &at);
            at = node.addr();
            // Some go through the node, some come while it stops.
            let granted = || node.events().iter().filter(|event| event["kind"] == "requested").count();
            node.until("a few commands", || (granted() >= 5).then_some(()));
            node.stop();
        }
        over.store(true, Ordering::Relaxed);
        commanders.into_iter().flat_map(|commander| commander.join().unwrap()).collect()
    });
    assert!(made.len() >= 25);
    for peer in &made {
        assert_eq!(home.peer(peer)["state"], "requested", "{peer}");
    }
}

#[test]
fn a_command_with_a_node_goes_through_it() {
    let node = Home::new().start();
    let peer = stranger(1);
    let reply = node.home().ok(["trust", &peer]);
    assert_eq!(reply["durable"], true);
    node.until("its event", || (node.count("requested", &peer) == 1).then_some(()));
    node.home().ok(["revoke", &peer]);
    node.until("its event", || (node.count("revoked", &peer) == 1).then_some(()));
}

#[test]
fn a_second_node_is_refused_at_once_naming_the_first_which_goes_on() {
    let node = Home::new().start();
    let home = node.home();
    home.ok(["trust", &stranger(1)]);
    let clock = MonotonicClock::start();
    let refused = home.refused(7, ["run", "--listen", &format!("{}:0", home.ip())]);
    refused.says(&node.pid().to_string()).says("node");
    assert!(clock.now().0 < Duration::from_secs(5), "it waited");
    assert_eq!(home.ok(["status"])["listen"][0], node.addr());
    assert_eq!(node.state(&stranger(1)), "requested");
    home.ok(["revoke", &stranger(1)]);
    node.until("its event", || (node.count("revoked", &stranger(1)) == 1).then_some(()));
}
