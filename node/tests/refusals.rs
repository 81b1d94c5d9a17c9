//! What cannot be done is refused with a clear error and the documented exit code (line 10).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::net::UdpSocket;

use common::{Home, stranger, text};
use handfast_protocol::PeerId;
use serde_json::Value;

#[test]
fn another_key_at_the_dialled_address_is_named_here_and_gets_nothing() {
    let (a, c) = (Home::new().start(), Home::new().start());
    let expected = stranger(1);
    let refused = a.home().refused(4, ["trust", &format!("{expected}@{}", c.addr()), "--wait", "50s"]);
    refused.says(&c.id());
    let explained = a.home().ok(["explain", &expected]);
    assert!(text(&explained["why"]).contains(&c.id()), "{explained:#}");
    assert_eq!(a.peer(&expected)["delivered"], false);
    a.until("the event", || (a.count("contact_failed", &expected) > 0).then_some(()));
    // Over there it is a handshake that failed, of nobody.
    assert_eq!(c.peer(&a.id()), Value::Null);
    assert_eq!(c.home().ok(["pending"])["pending"], Value::Array(Vec::new()));
    assert_eq!(c.events(), Vec::<Value>::new());
    assert!(!c.stderr().contains(&a.id()[..11]), "{}", c.stderr());
    // Nor does the one who was found there get a record here.
    assert_eq!(a.peer(&c.id()), Value::Null);
}

#[test]
fn an_address_that_does_not_answer_is_said_so_in_bounded_time() {
    let a = Home::new().start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = format!("{}@{}", stranger(1), silent.local_addr().unwrap());
    let refused = a.home().refused(5, ["trust", &at, "--wait", "8s"]);
    refused.says("no answer").says("our grant stands");
    let explained = a.home().ok(["explain", &stranger(1)]);
    assert!(text(&explained["why"]).contains("no answer"), "{explained:#}");
    // The grant itself was made, and is tried again.
    assert_eq!(a.state(&stranger(1)), "requested");
    // Without a wait the command does not wait.
    let at = format!("{}@{}", stranger(2), silent.local_addr().unwrap());
    assert_eq!(a.home().ok(["trust", &at])["durable"], true);
}

#[test]
fn the_fault_of_an_earlier_address_does_not_end_the_wait_for_the_next_one() {
    let (a, b, c) = (Home::new().start(), Home::new().start(), Home::new().start());
    b.home().ok(["trust", &a.id()]);
    let wrong = format!("{}@{}", b.id(), c.addr());
    a.home().refused(4, ["trust", &wrong, "--wait", "50s"]).says(&c.addr());
    assert_eq!(a.home().ok(["trust", &b.at(), "--wait", "50s"])["state"], "trusted");
}

#[test]
fn a_wait_that_is_over_before_anything_was_heard_says_so_too() {
    let a = Home::new().start();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = format!("{}@{}", stranger(1), silent.local_addr().unwrap());
    a.home().refused(5, ["trust", &at, "--wait", "1s"]).says("it has not got our request");
    let b = Home::new().start();
    let asked = a.home().begin(["trust", &b.at(), "--wait", "3s"]);
    b.until_state(&a.id(), "pending");
    asked.done().refused(5).says("it has not decided");
}

#[test]
fn a_host_that_does_not_exist_is_said_so() {
    let a = Home::new().start();
    let at = format!("{}@no-such-host.invalid:4433", stranger(1));
    a.home().ok(["trust", &at]);
    a.until("it was tried", || (a.count("contact_failed", &stranger(1)) > 0).then_some(()));
    let explained = a.home().ok(["explain", &stranger(1)]);
    assert!(text(&explained["why"]).contains("does not resolve"), "{explained:#}");
}

#[test]
fn nobody_trusts_or_dials_himself() {
    let a = Home::new().start();
    a.home().refused(4, ["trust", &a.at()]).says("own id");
    a.home().refused(4, ["trust", &a.id(), "--wait", "5s"]).says("own id");
    assert_eq!(a.peer(&a.id()), Value::Null);
    // Another id at our own address is our own key under another name.
    let refused = a.home().refused(4, ["trust", &format!("{}@{}", stranger(1), a.addr()), "--wait", "50s"]);
    refused.says(&a.id());
    assert_eq!(a.active(&stranger(1)), 0);
}

#[test]
fn a_typing_error_in_an_id_is_found() {
    let home = Home::initialised();
    let id = stranger(1);
    for at in [3, 20, id.len() - 1] {
        let mut typed = id.clone().into_bytes();
        typed[at] = if typed[at] == b'q' { b'p' } else { b'q' };
        let typed = String::from_utf8(typed).unwrap();
        home.refused(2, ["trust", &typed]).says("is not a peer").says("copy the whole id");
    }
    // Two characters changed places.
    let mut swapped = id.clone().into_bytes();
    let at = (10..40).find(|at| swapped[*at] != swapped[at + 1]).unwrap();
    swapped.swap(at, at + 1);
    home.refused(2, ["trust", &String::from_utf8(swapped).unwrap()]).says("is not a peer");
    assert_eq!(home.ok(["peers"])["peers"], Value::Array(Vec::new()));
}

#[test]
fn a_peer_that_nobody_knows_is_not_found() {
    let home = Home::initialised();
    let id = stranger(1);
    for command in ["revoke", "reject", "unblock", "explain"] {
        home.refused(3, [command, &id]);
        home.refused(3, [command, "nobody"]).says("handfast peers");
        home.refused(3, [command, &id[..30]]).says("handfast peers");
    }
    home.refused(3, ["trust", "nobody"]).says("alias");
    let node = home.start();
    for command in ["revoke", "reject", "unblock", "explain"] {
        node.home().refused(3, [command, &id]);
        node.home().refused(3, [command, "nobody"]);
    }
    node.home().refused(4, ["ping", &id]);
    node.home().refused(3, ["ping", "nobody"]);
}

/// Two ids with the same first 13 bytes of their keys: more than 20 characters.
fn two_of_one_prefix() -> (String, String) {
    let mut bytes = [7; 32];
    let mut ids = (0_u16..).filter_map(|number| {
        bytes[20..22].copy_from_slice(&number.to_le_bytes());
        PeerId::from_bytes(bytes).ok()
    });
    (ids.next().unwrap().to_string(), ids.next().unwrap().to_string())
}

#[test]
fn a_prefix_of_two_peers_or_one_that_is_too_short_is_refused() {
    let home = Home::initialised();
    let (first, second) = two_of_one_prefix();
    let prefix = &first[..3 + 20];
    home.ok(["trust", &first]);
    assert_eq!(home.ok(["explain", &first[..3 + 8]])["peer_id"], first.as_str());
    home.ok(["trust", &second]);
    home.refused(2, ["revoke", prefix]).says("ambiguous").says(&first).says(&second);
    home.refused(2, ["explain", &first[..3 + 8]]).says("ambiguous");
    // Eight characters are enough to look, twenty to change.
    home.refused(2, ["revoke", &first[..3 + 19]]).says("20 characters");
    home.refused(2, ["explain", &first[..3 + 7]]).says("8 characters");
    let length = (23..60).find(|length| first[..*length] != second[..*length]).unwrap();
    assert_eq!(home.ok(["revoke", &first[..length]])["peer_id"], first.as_str());
    assert_eq!(home.peer(&second)["state"], "requested");
}

#[test]
fn text_that_could_deceive_a_reader_is_refused() {
    let home = Home::initialised();
    let id = stranger(1);
    for note in ["a\nb", "a\u{1b}[31mb", "a\u{202e}b", "a\u{200b}b", "\u{0}"] {
        // An argument cannot hold a zero; everything else must be refused.
        if !note.contains('\0') {
            home.refused(2, ["trust", &id, "--note", note]);
            home.refused(2, ["trust", &id, "--alias", note]);
        }
    }
    home.refused(2, ["trust", &id, "--note", &"x".repeat(257)]).says("256");
    home.ok(["trust", &id, "--note", &"x".repeat(256)]);
}

#[test]
fn what_does_not_exist_is_a_usage_error() {
    let home = Home::initialised();
    for command in [
        &["frobnicate"][..],
        &["trust"],
        &["trust", &stranger(1), "--for", "soon"],
        &["trust", &format!("{}@nowhere", stranger(1))],
        &["revoke", &format!("{}@127.0.0.1:1", stranger(1))],
        &["peers", "--state", "friend"],
    ] {
        home.refused(2, command);
    }
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let home = Home::new();
    for command in [&["peers"][..], &["trust", &stranger(1)], &["store", "check"]] {
        home.refused(1, command).says("does not exist").says("handfast init");
    }
    assert!(!home.path().exists());
}

#[test]
fn a_blocked_peer_is_not_trusted_by_mistake() {
    let home = Home::initialised();
    home.ok(["block", &stranger(1)]);
    home.refused(4, ["trust", &stranger(1)]).says("unblock");
    assert_eq!(home.peer(&stranger(1))["state"], "blocked");
}
