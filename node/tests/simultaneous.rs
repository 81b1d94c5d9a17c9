//! Both ends ask at the same moment: always trusted, always one session, never a hang (line 3).
//!
//! `HANDFAST_ROUNDS` sets the number of rounds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Home, Node, control, let_pass, rounds};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Pairs at work at once.
const PAIRS: u64 = 4;

/// Runs `round` for every number below `count`, a few at a time.
fn in_parallel(count: u64, round: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PAIRS {
            scope.spawn(|| {
                while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|number| *number < count) {
                    round(number);
                }
            });
        }
    });
}

/// Both have one session, and it is the same connection.
fn until_one_session(a: &Node, b: &Node) {
    let sides = || -> Option<(serde_json::Value, serde_json::Value)> {
        let active = |node: &Node, peer: &Node| {
            let mut list = node.sessions(&peer.id());
            list.retain(|session| session["state"] == "active");
            if list.len() == 1 { list.pop() } else { None }
        };
        Some((active(a, b)?, active(b, a)?))
    };
    a.until("one session on both ends, dialled by one of them", || {
        sides().filter(|(at_a, at_b)| at_a["role"] != at_b["role"])
    });
}

fn check(a: &Node, b: &Node) {
    a.until_state(&b.id(), "trusted");
    b.until_state(&a.id(), "trusted");
    until_one_session(a, b);
    a.home().ok(["ping", &b.id()]);
    b.home().ok(["ping", &a.id()]);
    assert_eq!((a.active(&b.id()), b.active(&a.id())), (1, 1));
}

#[test]
fn two_that_ask_each_other_at_once_trust_each_other_and_have_one_session() {
    in_parallel(rounds(50), |_| {
        let (a, b) = (Home::new().start(), Home::new().start());
        let together = Barrier::new(2);
        std::thread::scope(|scope| {
            for (here, there) in [(a.home(), b.at()), (b.home(), a.at())] {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    let reply = here.ok(["trust", &there, "--wait", "50s"]);
                    assert_eq!(reply["state"], "trusted");
                });
            }
        });
        check(&a, &b);
        a.until_events(1, "trusted", &b.id());
        b.until_events(1, "trusted", &a.id());
    });
}

#[test]
fn an_approval_while_the_request_is_still_under_way_brings_a_session() {
    in_parallel(rounds(25), |_| {
        let (a, b) = (Home::new().start(), Home::new().start());
        let request = serde_json::json!({ "peer": a.id() });
        let asked = a.home().begin(["trust", &b.at()]);
        // The connection of the request may be closing, and must not be taken for the session.
        b.until("the request", || (b.count("pending", &a.id()) > 0).then_some(()));
        assert_eq!(control::post(b.home().path(), "/v1/trust", &request).unwrap().status, 200);
        asked.done().ok();
        check(&a, &b);
    });
}

#[test]
fn two_that_ask_each_other_at_once_agree_although_one_is_killed_in_the_middle() {
    in_parallel(rounds(12), |round| {
        let mut random = StdRng::seed_from_u64(0x51 + round);
        let moment = Duration::from_micros(random.random_range(0..60_000));
        let (a, b) = (Home::new().start(), Home::new().start());
        let asked = [a.home().begin(["trust", &b.at()]), b.home().begin(["trust", &a.at()])];
        let_pass(moment);
        let b = b.kill_and_restart();
        for command in asked {
            command.done().ok();
        }
        check(&a, &b);
    });
}
