//! kill -9 at any moment: whatever a command had confirmed is there after the restart (line 6).
//!
//! `HANDFAST_ROUNDS` sets the number of rounds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Home, Node, friends, let_pass, rounds, row_of, stranger, text};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

/// Commands at work at once.
const COMMANDERS: u64 = 3;

/// What is known of one peer: the edge that the last confirmed command made, and whether a later one was not confirmed.
#[derive(Clone, Copy, Debug)]
struct Known {
    confirmed: Option<&'static str>,
    open: bool,
}

/// Grants and revokes until it is over. Every peer is this commander's own.
fn command_on(home: &Home, first: u64, over: &AtomicBool) -> BTreeMap<String, Known> {
    let mut known = BTreeMap::new();
    for number in first.. {
        for (verb, edge) in [("trust", "grant"), ("revoke", "revoke")] {
            if over.load(Ordering::Relaxed) {
                return known;
            }
            // Every other peer stays granted.
            if verb == "revoke" && number % 2 == 0 {
                continue;
            }
            let peer = stranger(number);
            let entry = known.entry(peer.clone()).or_insert(Known { confirmed: None, open: true });
            entry.open = true;
            if home.run([verb, &peer]).code == Some(0) {
                *entry = Known { confirmed: Some(edge), open: false };
            }
        }
    }
    known
}

fn check(peers: &Value, known: &BTreeMap<String, Known>) {
    for (peer, known) in known {
        let row = row_of(peers, peer);
        let found = row["ours"]["kind"].as_str();
        let expected = found == known.confirmed;
        assert!(expected || known.open, "{peer}: {known:?} was confirmed, found {row:#}");
    }
}

#[test]
fn every_confirmed_change_outlives_kill_9_at_any_moment() {
    let home = Home::initialised();
    let mut known = BTreeMap::new();
    let mut at = format!("{}:0", home.ip());
    for round in 0..rounds(25) {
        let mut random = StdRng::seed_from_u64(0x1c11 + round);
        let moment = Duration::from_micros(random.random_range(0..250_000));
        let node = Node::start(&home, &at);
        check(&node.get("/v1/peers"), &known);
        let over = AtomicBool::new(false);
        let made: Vec<_> = std::thread::scope(|scope| {
            let commanders: Vec<_> = (0..COMMANDERS)
                .map(|number| {
                    let first = (round * COMMANDERS + number) * 10_000;
                    let (home, over) = (&home, &over);
                    scope.spawn(move || command_on(home, first, over))
                })
                .collect();
            let_pass(moment);
            at = node.kill();
            over.store(true, Ordering::Relaxed);
            commanders.into_iter().map(|commander| commander.join().unwrap()).collect()
        });
        known.extend(made.into_iter().flatten());
    }
    let confirmed = known.values().filter(|known| known.confirmed.is_some()).count();
    assert!(confirmed > 0, "nothing was confirmed in any round");
    let node = Node::start(&home, &at);
    check(&node.get("/v1/peers"), &known);
    assert_eq!(node.home().ok(["store", "check"])["files"][0]["ok"], true);
}

/// The sessions that the disk knows, by their ids.
fn on_disk(home: &Home) -> BTreeMap<String, Value> {
    let dump = home.run(["store", "dump"]);
    assert_eq!(dump.code, Some(0), "{dump:#?}");
    let rows = dump.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    rows.filter(|row| row["file"] == "sessions.hf").map(|row| (text(&row["session_id"]), row)).collect()
}

#[test]
fn sessions_of_a_killed_run_are_closed_as_orphaned_once() {
    let (a, b) = friends();
    let session = text(&a.sessions(&b.id())[0]["session_id"]);
    a.until("the session is on the disk", || on_disk(a.home()).contains_key(&session).then_some(()));
    let a = a.kill_and_restart();
    let find = |node: &Node| {
        let mut found: Vec<Value> = node.sessions(&b.id());
        found.retain(|row| row["session_id"] == session.as_str());
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    let closed = find(&a);
    assert_eq!((text(&closed["state"]), text(&closed["reason"])), ("closed".into(), "orphaned".into()));
    // The two find each other again, in a session of this run.
    let next = text(&a.until_session(&b.id())["session_id"]);
    assert_ne!(next, session);
    a.until("the new session is on the disk", || on_disk(a.home()).contains_key(&next).then_some(()));
    // Neither a clean restart nor another crash closes it again.
    let a = a.restart();
    assert_eq!(find(&a), closed);
    let a = a.kill_and_restart();
    assert_eq!(find(&a), closed);
    let a_home = a.home().clone();
    a.stop();
    assert_eq!(on_disk(&a_home)[&session]["state"], "closed");
}
