//! Networks from the command line: found, invite, join, expel. One command on each side, and no approval.
#![allow(clippy::disallowed_methods, reason = "tests put files there as an operator would")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{Home, Node, let_pass, rounds, schema, text};
use handfast_protocol::{InviteSecret, SecretKey, Ticket};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

/// A node that has founded a network.
fn founder() -> Node {
    let node = Home::new().start();
    schema::check("network", &node.home().ok(["network", "create", "lab"]));
    node
}

fn ticket(of: &Node, more: &[&str]) -> String {
    let invite = of.home().ok([&["invite", "--network", "lab"], more].concat());
    schema::check("invite", &invite);
    text(&invite["ticket"])
}

fn join(home: &Home, ticket: &str) -> Value {
    let reply = home.ok(["join", ticket]);
    schema::check("join", &reply);
    reply
}

#[test]
fn one_command_on_each_side_and_everybody_trusts_everybody() {
    let a = founder();
    let invited = ticket(&a, &["--uses", "3"]);
    // Through a node that runs.
    let b = Home::new().start();
    let joined = join(b.home(), &invited);
    assert_eq!((&joined["members"], &joined["trusted"]), (&1.into(), &1.into()), "{joined:#}");
    // Without one, and without an identity.
    let c = Home::new();
    let joined = join(&c, &invited);
    assert_eq!((&joined["members"], &joined["trusted"]), (&2.into(), &2.into()), "{joined:#}");
    let c = c.start();
    for (node, others) in [(&a, [&b, &c]), (&b, [&a, &c]), (&c, [&a, &b])] {
        for other in others {
            node.until_state(&other.id(), "trusted");
            node.until_session(&other.id());
            assert_eq!(text(&node.peer(&other.id())["rule"]).split(':').next(), Some("network"));
        }
    }
    let networks = b.home().ok(["network", "list"]);
    schema::check("networks", &networks);
    assert_eq!(networks["networks"][0]["name"], "lab");
    let members = b.home().ok(["network", "members"]);
    schema::check("members", &members);
    assert_eq!(members["members"].as_array().unwrap().len(), 3);
    let invites = a.home().ok(["invite", "list"]);
    schema::check("invites", &invites);
    assert_eq!(invites["invites"][0]["used"], 2);
    schema::check("status", &b.home().ok(["status"]));
}

/// A node that has joined with a ticket of `founder`.
fn joined(founder: &Node) -> Node {
    let node = Home::new().start();
    join(node.home(), &ticket(founder, &[]));
    node
}

#[test]
fn each_refusal_of_a_ticket_has_its_own_code_and_words() {
    let a = founder();
    let home = Home::new().start();
    let home = home.home();
    let expired = ticket(&a, &["--for", "1ms"]);
    home.refused(4, ["join", &expired]).says("the invite has expired");
    let taken_back = ticket(&a, &[]);
    let newest = text(&a.home().ok(["invite", "list"])["invites"][0]["invite"]);
    schema::check("invite-revoke", &a.home().ok(["invite", "revoke", &newest]));
    home.refused(4, ["join", &taken_back]).says("the invite was revoked");
    let mistyped = taken_back.replace('q', "p");
    home.refused(2, ["join", &mistyped]).says("checksum");
    home.refused(2, ["join", "hfinv1"]).says("checksum");
    home.refused(3, ["join", "/nowhere/ticket"]).says("Cannot read a ticket");

    let mut other = ticket(&a, &[]).parse::<Ticket>().unwrap();
    other.secret = InviteSecret::new([7; 16]);
    home.refused(3, ["join", &other.to_text()]).says("no such invite");
    let mut other = ticket(&a, &[]).parse::<Ticket>().unwrap();
    other.network = SecretKey::from_seed(&[9; 32]).network_id();
    home.refused(4, ["join", &other.to_text()]).says("another network");
    // Another node at the inviter's address.
    let mut other = ticket(&a, &[]).parse::<Ticket>().unwrap();
    other.inviter = SecretKey::from_seed(&[9; 32]).peer_id();
    home.refused(4, ["join", &other.to_text()]).says("was not reached");

    let last = ticket(&a, &["--uses", "1"]);
    join(home, &last);
    // The same key may ask again, and takes no second use.
    join(home, &last);
    let third = Home::new().start();
    third.home().refused(4, ["join", &last]).says("invite exhausted");
    a.home().refused(4, ["join", &last]).says("own");
    let invites = a.home().ok(["invite", "list"]);
    assert_eq!((&invites["invites"][0]["used"], &invites["invites"][0]["state"]), (&1.into(), &"exhausted".into()));
    a.home().refused(4, ["network", "create", "lab"]).says("network is called so here");
    home.refused(4, ["network", "expel", &a.id()]).says("authority");
    home.refused(4, ["invite"]).says("sign");
    home.refused(3, ["invite", "--network", "labor"]).says("no network");
}

#[test]
fn an_expulsion_ends_sessions_at_once_and_leaves_alone_what_an_operator_granted() {
    let a = founder();
    let (b, c, d) = (joined(&a), joined(&a), joined(&a));
    for other in [&a, &b, &d] {
        c.until_session(&other.id());
        other.until_session(&c.id());
    }
    // B and C also trust each other by hand: that rests on no network.
    b.home().ok(["trust", &c.id()]);
    c.home().ok(["trust", &b.id(), "--wait", "50s"]);
    b.until_delivered(&c.id());
    c.until_delivered(&b.id());
    let expelled = a.home().ok(["network", "expel", &c.id()]);
    schema::check("member", &expelled);
    assert_eq!((&expelled["standing"], &expelled["sessions_closed"]), (&"expelled".into(), &1.into()));
    a.home().refused(4, ["network", "expel", &c.id()]).says("has said so already");
    for member in [&a, &d] {
        member.until("the session with the expelled is over", || {
            let mut closed = member.sessions(&c.id()).into_iter();
            // The expelled may have heard of it first, and have ended it itself.
            closed.find(|row| row["reason"] == "expelled" || row["reason"] == "peer_closed")
        });
        member.until("no trust", || (member.state(&c.id()) != "trusted").then_some(()));
        assert_eq!(member.active(&c.id()), 0);
    }
    let why = text(&d.home().ok(["explain", &c.id()])["why"]);
    assert!(why.contains("was expelled from it"), "{why}");
    // The expelled learns of it.
    c.until("it knows", || (c.state(&d.id()) != "trusted").then_some(()));
    // What an operator granted stands.
    assert_eq!((b.state(&c.id()), c.state(&b.id())), ("trusted".into(), "trusted".into()));
    // No ticket leads back, and only the authority does.
    c.home().refused(4, ["join", &ticket(&a, &[])]).says("expelled from the network");
    assert_eq!(a.home().ok(["network", "readmit", &c.id()])["standing"], "member");
    for member in [&a, &d] {
        member.until_state(&c.id(), "trusted");
        c.until_state(&member.id(), "trusted");
    }
}

#[test]
fn who_was_readmitted_while_nobody_could_find_it_hears_of_it_by_itself() {
    let a = founder();
    let c = joined(&a);
    c.until_session(&a.id());
    let (id, home) = (c.id(), c.home().clone());
    a.home().ok(["network", "expel", &id]);
    c.until("it knows", || (c.state(&a.id()) != "trusted").then_some(()));
    c.stop();
    a.home().ok(["network", "readmit", &id]);
    // At another port, which nobody knows.
    let c = home.start();
    c.until_state(&a.id(), "trusted");
    a.until_state(&id, "trusted");
    c.until_session(&a.id());
}

#[test]
fn a_member_that_was_down_is_reached_later_also_after_a_crash() {
    let a = founder();
    let b = joined(&a);
    let (b_home, b_id, b_at) = (b.home().clone(), b.id(), b.addr());
    b.stop();
    let c = Home::new().start();
    let reply = join(c.home(), &ticket(&a, &[]));
    assert_eq!((&reply["members"], &reply["trusted"]), (&2.into(), &1.into()), "{reply:#}");
    assert!(text(&reply["failed"][0]["why"]).starts_with("not reached"), "{reply:#}");
    let status = c.home().ok(["status"]);
    assert_eq!((&status["networks"][0]["trusted"], &status["counts"]["undelivered"]), (&1.into(), &1.into()));
    let c = c.kill_and_restart();
    assert_eq!(c.state(&b_id), "requested");
    let b = Node::start(&b_home, &b_at);
    c.until_state(&b.id(), "trusted");
    b.until_state(&c.id(), "trusted");
}

#[test]
fn what_a_rule_granted_is_undone() {
    let a = founder();
    let (b, c) = (joined(&a), joined(&a));
    a.until_session(&b.id());
    a.until_session(&c.id());
    // An operator's own grant is no rule's.
    a.home().ok(["trust", &c.id()]);
    let undo = ["trust", "undo", "--rule", "network:lab", "--since", "1h"];
    let dry = a.home().ok(undo.iter().chain(&["--dry-run"]));
    schema::check("undo", &dry);
    assert_eq!((&dry["undone"][0]["peer_id"], dry["undone"].as_array().unwrap().len()), (&b.id().into(), 1));
    assert_eq!(a.state(&b.id()), "trusted");
    let undone = a.home().ok(undo);
    assert_eq!((&undone["undone"][0]["state"], &undone["durable"]), (&"revoked".into(), &true.into()));
    b.until_state(&a.id(), "refused");
    a.until_no_session(&b.id());
    assert_eq!(a.state(&c.id()), "trusted");
    a.home().refused(2, ["trust", "undo", "--rule", "friends", "--since", "1h"]).says("no such rule");
    assert_eq!(b.home().ok(["network", "leave"])["name"], "lab");
    b.until("it trusts nobody", || (b.state(&c.id()) != "trusted").then_some(()));
    assert!(b.home().ok(["network", "list"])["networks"].as_array().unwrap().is_empty());
}

#[test]
fn the_secret_is_in_no_log_no_file_and_no_process_list() {
    let a_home = Home::new();
    let a = Node::start_with(&a_home, &format!("{}:0", a_home.ip()), &["-vv"]);
    a.home().ok(["network", "create", "lab"]);
    let invited = ticket(&a, &[]);
    let c = Home::new();
    let file = c.beside("ticket");
    std::fs::write(&file, format!("{invited}\n")).unwrap();
    let mut command = c.command(["-vv", "join"]);
    let running = common::Running::begin({
        command.arg(&file);
        command
    });
    let done = running.done();
    assert_eq!(done.code, Some(0), "{done:#?}");
    let secret = handfast_protocol::codec::encode(&invited.parse::<Ticket>().unwrap().secret);
    let shown = [data_encoding::HEXLOWER.encode(&secret), format!("{secret:?}"), invited[6..].to_owned()];
    for log in [&done.stderr, &done.stdout, &a.stderr()] {
        assert!(log.len() > 100 && shown.iter().all(|secret| !log.contains(secret.as_str())));
    }
    a.stop();
    for home in [&a_home, &c] {
        for entry in std::fs::read_dir(home.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_slice()));
        }
    }
}

/// Kills one side while a join is under way, at a seeded moment, and asks again with the same ticket: the same key has
/// one membership, and one use is taken. `tests/join_crash` does so at every named step.
#[test]
fn a_join_that_was_killed_at_any_moment_is_done_by_asking_again() {
    let (mut a, other) = (founder(), Home::new().start());
    // Whoever has joined stays: a join waits until each member was tried.
    let mut members = Vec::new();
    for round in 0..rounds(8) {
        let mut random = StdRng::seed_from_u64(0x301 + round);
        let moment = Duration::from_micros(random.random_range(0..60_000));
        let invited = ticket(&a, &["--uses", "1"]);
        let b = Home::initialised().start();
        let joining = b.home().begin(["join", &invited]);
        let_pass(moment);
        let (again, b) = if round % 2 == 0 {
            a = a.kill_and_restart();
            (joining.done().code, b)
        } else {
            // Without its node the command may run one for itself: that has to end first.
            let home = b.home().clone();
            let at = b.kill();
            (joining.done().code, Node::start(&home, &at))
        };
        // Whatever came of the first try: the inviter may have come back on time.
        assert!(again.is_some(), "round {round}");
        join(b.home(), &invited);
        a.until_state(&b.id(), "trusted");
        b.until_state(&a.id(), "trusted");
        let newest = &a.home().ok(["invite", "list"])["invites"][0];
        assert_eq!((&newest["used"], &newest["uses"]), (&1.into(), &1.into()), "round {round}");
        other.home().refused(4, ["join", &invited]).says("invite exhausted");
        members.push(b);
    }
}

#[test]
fn peers_that_moved_find_each_other_through_a_common_member() {
    let a = founder();
    let (b, c) = (joined(&a), joined(&a));
    b.until_session(&c.id());
    let (b_home, c_home) = (b.home().clone(), c.home().clone());
    b.stop();
    c.stop();
    // Each comes back elsewhere, while the other is away.
    let b = b_home.start();
    a.until_session(&b.id());
    let c = c_home.start();
    b.until_session(&c.id());
    c.until_session(&b.id());
}
