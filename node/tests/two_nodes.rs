//! Two nodes agree to trust each other, from the command line to the disk and the wire (lines 2, 4 and 9).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Home, Node, PATIENCE, disk, friends, text};
use handfast::config::Config;
use handfast::identity_file;
use handfast::transport::Transport;
use handfast_protocol::codec::{self, Deframer};
use handfast_protocol::exchange::{Disposition, Initiator, InitiatorInput, InitiatorOutput, Offer, Parties};
use handfast_protocol::limits::FRAME_BYTES_MAX;
use handfast_protocol::stream::{Extensions, Head, Ping, StreamKind};
use handfast_protocol::{Incarnation, Kind, PeerId, RefuseCode, ServiceName};
use serde_json::Value;

fn kind_and_epoch(edge: &Value) -> (String, u64) {
    (text(&edge["kind"]), edge["epoch"].as_u64().unwrap())
}

#[test]
fn a_request_is_requested_here_and_pending_there_with_note_address_and_time() {
    let (a, b) = (Home::new().start(), Home::new().start());
    let reply = a.home().ok(["trust", &b.at(), "--note", "Ann, room 12"]);
    assert_eq!((&reply["state"], &reply["durable"]), (&Value::from("requested"), &Value::from(true)));
    b.until_state(&a.id(), "pending");
    let pending = b.home().ok(["pending"]);
    let rows = pending["pending"].as_array().unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["peer_id"], a.id());
    assert_eq!(rows[0]["note"], "Ann, room 12");
    assert_eq!(rows[0]["source"], a.addr());
    assert!(text(&rows[0]["received_at"]).ends_with('Z'));
    a.until_delivered(&b.id());
    assert_eq!(a.state(&b.id()), "requested");
    assert_eq!((a.active(&b.id()), b.active(&a.id())), (0, 0));
}

#[test]
fn an_approval_makes_both_trusted_with_one_event_and_one_session_each_and_ping_works() {
    let (a, b) = friends();
    for (node, peer) in [(&a, b.id()), (&b, a.id())] {
        assert_eq!(node.state(&peer), "trusted");
        node.until_events(1, "trusted", &peer);
        node.until_events(1, "session_opened", &peer);
        assert_eq!(node.sessions(&peer).len(), 1);
        assert_eq!(node.active(&peer), 1);
        assert_eq!(node.home().ok(["sessions"])["sessions"].as_array().unwrap().len(), 1);
    }
    assert_eq!(a.home().ok(["ping", &b.id()])["peer_id"], b.id());
    assert_eq!(b.home().ok(["ping", &a.id()])["peer_id"], a.id());
    let roles = [&a.sessions(&b.id())[0]["role"], &b.sessions(&a.id())[0]["role"]].map(text);
    assert!(roles.contains(&"dialer".into()) && roles.contains(&"listener".into()), "{roles:?}");
}

#[test]
fn a_revoke_is_durable_cuts_both_sessions_and_is_known_to_the_other_side() {
    let (a, b) = friends();
    let reply = b.home().ok(["revoke", &a.id(), "--note", "stolen"]);
    assert_eq!((&reply["state"], &reply["durable"]), (&Value::from("revoked"), &Value::from(true)));
    assert_eq!(reply["sessions_closed"], 1);
    a.until_state(&b.id(), "refused");
    a.until_no_session(&b.id());
    let reasons = [&a.sessions(&b.id())[0]["reason"], &b.sessions(&a.id())[0]["reason"]].map(text);
    assert_eq!(reasons, ["revoked_by_peer", "revoked"], "{:#?} {:#?}", a.events(), b.events());
    assert!(text(&a.home().ok(["explain", &b.id()])["why"]).contains("stolen"));
    // Nothing but an exchange.
    a.home().refused(4, ["ping", &b.id()]);
    b.home().refused(4, ["ping", &a.id()]);
}

#[test]
fn a_revoke_that_was_answered_outlives_the_very_next_moment() {
    let (a, b) = friends();
    b.home().ok(["revoke", &a.id()]);
    let b = b.kill_and_restart();
    assert_eq!(b.state(&a.id()), "revoked");
    a.until_state(&b.id(), "refused");
    a.until_no_session(&b.id());
}

#[test]
fn the_next_offer_of_a_revoked_peer_is_refused_and_changes_nothing() {
    let (a, b) = friends();
    b.home().ok(["revoke", &a.id()]);
    a.until_state(&b.id(), "refused");
    b.until_events(1, "session_closed", &a.id());
    let (ours, seen) = (kind_and_epoch(&b.peer(&a.id())["ours"]), b.events().len());
    // A new statement, so that there is something to offer.
    let reply = a.home().ok(["trust", &b.id(), "--note", "please"]);
    assert_eq!(reply["state"], "refused");
    a.until_delivered(&b.id());
    let row = b.peer(&a.id());
    assert_eq!(row["theirs"]["note"], "please");
    assert_eq!((text(&row["state"]), kind_and_epoch(&row["ours"])), ("revoked".into(), ours.clone()));
    assert_eq!(kind_and_epoch(&a.peer(&b.id())["theirs"]), ours, "the answer brings the revoke");
    assert_eq!(a.state(&b.id()), "refused");
    assert_eq!((a.active(&b.id()), b.active(&a.id())), (0, 0));
    assert_eq!(b.events().len(), seen, "{:#?}", b.events());
    assert_eq!(b.home().ok(["pending"])["pending"], Value::Array(Vec::new()));
}

/// The peer that `home` belongs to, driven by hand: a transport, and its id.
fn by_hand(home: &Home) -> (Transport, PeerId) {
    let key = identity_file::load(home.path()).unwrap();
    let listen = format!("{}:0", home.ip()).parse().unwrap();
    (Transport::bind(&[listen], &key, &Config::default().transport()).unwrap(), key.peer_id())
}

type Stream = (quinn::SendStream, quinn::RecvStream);

/// Opens a stream and sends these frames.
async fn open(connection: &quinn::Connection, frames: &[u8]) -> Stream {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(frames).await.unwrap();
    (send, recv)
}

/// The first frame that comes back, or the code of the refusal.
async fn answer(stream: &mut Stream) -> Result<Vec<u8>, u64> {
    let mut deframer = Deframer::new(FRAME_BYTES_MAX);
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = deframer.next_frame().unwrap() {
            return Ok(frame);
        }
        match stream.1.read(&mut buffer).await {
            Ok(Some(read)) => deframer.push(&buffer[..read]),
            Err(quinn::ReadError::Reset(code)) => return Err(code.into_inner()),
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(connection: &quinn::Connection, frames: &[u8]) -> Result<Vec<u8>, u64> {
    answer(&mut open(connection, frames).await).await
}

fn ping() -> Vec<u8> {
    [codec::frame(&Head::new(StreamKind::Ping)), codec::frame(&Ping { nonce: 7 })].concat()
}

/// The opener of an exchange that has nothing to say, and the frames with which it begins.
fn exchange(me: PeerId, peer: PeerId) -> (Initiator, Vec<u8>) {
    let offer = Offer {
        statement: None,
        yours: None,
        incarnation: Incarnation([7; 16]),
        address: None,
        extensions: Extensions::default(),
    };
    let (machine, frame) = Initiator::start(Parties { me, peer, ours: None, theirs: None }, &offer);
    (machine, [codec::frame(&Head::new(StreamKind::Exchange)), frame].concat())
}

/// B, which has revoked A; and A's directory, whose node has stopped.
fn revoked() -> (Home, Node) {
    let (a, b) = friends();
    b.home().ok(["revoke", &a.id(), "--note", "bye"]);
    a.until_state(&b.id(), "refused");
    let home = a.home().clone();
    a.stop();
    (home, b)
}

const NOT_AUTHORISED: Result<Vec<u8>, u64> = Err(5);

#[tokio::test]
async fn of_a_revoked_peer_nothing_but_an_exchange_is_let_in_and_that_is_answered_with_the_revoke() {
    assert_eq!(RefuseCode::NotAuthorised.code(), 5);
    let (home, b) = revoked();
    let (transport, me) = by_hand(&home);
    let b_id = b.id().parse().unwrap();
    let connection = transport.dial(&b_id, b.addr().parse().unwrap(), PATIENCE).await.unwrap();
    assert_eq!(ask(&connection, &ping()).await, NOT_AUTHORISED);
    let service = StreamKind::Service(ServiceName::new("backup").unwrap());
    assert_eq!(ask(&connection, &codec::frame(&Head::new(service))).await, NOT_AUTHORISED);

    let (mut machine, frames) = exchange(me, b_id);
    let answer = ask(&connection, &frames).await.expect("an exchange is answered");
    let InitiatorOutput::Merge(shown) = machine.handle(InitiatorInput::Frame(answer)) else {
        panic!("the answer brings something to merge");
    };
    let revoke = shown.theirs.expect("the answer brings their statement");
    assert_eq!((revoke.terms().kind, revoke.terms().note.as_str()), (Kind::Revoke, "bye"));
    let holds = Some(revoke.held());
    assert_eq!(machine.handle(InitiatorInput::Merged { holds, revision: 1 }), InitiatorOutput::AwaitDurable(1));
    let InitiatorOutput::Finish { result, .. } = machine.handle(InitiatorInput::Durable(1)) else {
        panic!("the exchange is over");
    };
    assert_eq!(result.unwrap().disposition, Disposition::Refused);
    assert_eq!((b.state(&me.to_string()).as_str(), b.active(&me.to_string())), ("revoked", 0));
}

#[tokio::test]
async fn an_exchange_waits_for_the_one_before_it_instead_of_being_turned_away() {
    let (home, b) = revoked();
    let (transport, me) = by_hand(&home);
    let b_id = b.id().parse().unwrap();
    let connection = transport.dial(&b_id, b.addr().parse().unwrap(), PATIENCE).await.unwrap();
    let (_, frames) = exchange(me, b_id);
    let mut first = open(&connection, &frames).await;
    answer(&mut first).await.expect("an answer, for which a receipt is owed");
    let mut second = open(&connection, &frames).await;
    // The second is there: what was sent after it is answered.
    assert_eq!(ask(&connection, &ping()).await, NOT_AUTHORISED);
    first.0.finish().unwrap();
    answer(&mut second).await.expect("its turn comes");
}

#[test]
fn a_peer_that_lost_its_knowledge_of_the_revoke_is_answered_with_it() {
    let (a, b) = friends();
    let addr = a.addr();
    let home = a.home().clone();
    a.stop();
    let old = home.beside("old");
    disk::copy(&home, &old);
    let a = Node::start(&home, &addr);
    b.until_session(&a.id());
    b.home().ok(["revoke", &a.id(), "--note", "bye"]);
    a.until_state(&b.id(), "refused");
    a.stop();
    disk::put_back(&home, &old);
    // It believes that the two trust each other, and dials.
    let a = Node::start(&home, &addr);
    a.until_state(&b.id(), "refused");
    assert_eq!(a.peer(&b.id())["theirs"]["note"], "bye");
    a.until_no_session(&b.id());
    b.until_no_session(&a.id());
    assert_eq!(b.state(&a.id()), "revoked");
}

#[test]
fn only_trust_by_the_one_who_revoked_lifts_it_without_the_other_doing_anything() {
    let (a, b) = friends();
    b.home().ok(["revoke", &a.id()]);
    a.until_state(&b.id(), "refused");
    let before = b.peer(&a.id())["ours"]["epoch"].as_u64().unwrap();
    let reply = b.home().ok(["trust", &a.id(), "--wait", "50s"]);
    assert_eq!(reply["state"], "trusted");
    a.until_state(&b.id(), "trusted");
    a.until_session(&b.id());
    b.until_session(&a.id());
    assert!(b.peer(&a.id())["ours"]["epoch"].as_u64().unwrap() > before);
    a.until_events(2, "trusted", &b.id());
    b.until_events(2, "trusted", &a.id());
    assert_eq!(a.home().ok(["ping", &b.id()])["peer_id"], b.id());
}

#[test]
fn a_rejected_request_is_refused_over_there() {
    let (a, b) = (Home::new().start(), Home::new().start());
    a.home().ok(["trust", &b.at()]);
    b.until_state(&a.id(), "pending");
    let reply = b.home().ok(["reject", &a.id(), "--note", "not one of ours"]);
    assert_eq!((&reply["state"], &reply["durable"]), (&Value::from("revoked"), &Value::from(true)));
    a.until_state(&b.id(), "refused");
    assert_eq!(a.peer(&b.id())["theirs"]["note"], "not one of ours");
}

#[test]
fn a_blocked_peer_is_cut_and_comes_back_only_by_unblock() {
    let (a, b) = friends();
    b.home().ok(["block", &a.id()]);
    assert_eq!(b.state(&a.id()), "blocked");
    b.until_no_session(&a.id());
    a.until_no_session(&b.id());
    b.home().refused(4, ["trust", &a.id()]).says("unblock");
    a.home().run(["ping", &b.id()]);
    assert_eq!(b.active(&a.id()), 0);
    assert_eq!(b.home().ok(["unblock", &a.id()])["state"], "trusted");
    b.home().ok(["ping", &a.id()]);
}

#[test]
fn a_grant_made_while_the_peer_was_down_is_delivered_without_a_command_once_it_is_back() {
    let b = Home::new().start();
    let (b_home, b_id, b_at, b_addr) = (b.home().clone(), b.id(), b.at(), b.addr());
    b.stop();
    let a = Home::new().start();
    a.home().ok(["trust", &b_at, "--note", "while you were out"]);
    a.until("an attempt fails", || (a.count("contact_failed", &b_id) > 0).then_some(()));
    assert_eq!(a.peer(&b_id)["delivered"], false);
    let b = Node::start(&b_home, &b_addr);
    b.until_state(&a.id(), "pending");
    a.until_delivered(&b_id);
    // Delivered means: on the disk over there, whatever happens to it.
    let (a_id, _gone) = (a.id(), a.kill());
    let b = b.kill_and_restart();
    assert_eq!(b.peer(&a_id)["theirs"]["note"], "while you were out");
}

#[test]
fn a_revoke_made_while_the_peer_was_down_is_delivered_without_a_command_once_it_is_back() {
    let (a, b) = friends();
    let (b_home, b_id, b_addr) = (b.home().clone(), b.id(), b.addr());
    b.stop();
    a.until_no_session(&b_id);
    let reply = a.home().ok(["revoke", &b_id]);
    assert_eq!((&reply["durable"], &reply["delivered"]), (&Value::from(true), &Value::from(false)));
    assert_eq!(a.peer(&b_id)["delivered"], false);
    let b = Node::start(&b_home, &b_addr);
    b.until_state(&a.id(), "refused");
    a.until_delivered(&b_id);
    let a_id = a.id();
    a.kill();
    let b = b.kill_and_restart();
    assert_eq!(b.state(&a_id), "refused");
}

#[test]
fn what_was_decided_without_a_node_is_delivered_by_the_next_one() {
    let (a, b) = friends();
    let (a_home, a_addr) = (a.home().clone(), a.addr());
    let a_id = a.id();
    a.stop();
    a_home.ok(["revoke", &b.id(), "--note", "decided alone"]);
    assert_eq!(a_home.peer(&b.id())["delivered"], false);
    let a = Node::start(&a_home, &a_addr);
    b.until_state(&a_id, "refused");
    a.until_delivered(&b.id());
    assert_eq!(b.peer(&a_id)["theirs"]["note"], "decided alone");
}

#[test]
fn a_restored_old_directory_learns_of_its_own_newer_revoke() {
    let (a, b) = friends();
    let (home, addr) = (a.home().clone(), a.addr());
    a.stop();
    let old = home.beside("old");
    disk::copy(&home, &old);
    let a = Node::start(&home, &addr);
    a.home().ok(["revoke", &b.id(), "--note", "the newer word"]);
    a.until_delivered(&b.id());
    let revoke = kind_and_epoch(&a.peer(&b.id())["ours"]);
    a.stop();
    disk::put_back(&home, &old);
    assert_eq!(home.peer(&b.id())["state"], "trusted", "the old directory knows nothing of it");

    let a = Node::start(&home, &addr);
    a.until_state(&b.id(), "revoked");
    a.until_no_session(&b.id());
    let row = a.peer(&b.id());
    assert_eq!(kind_and_epoch(&row["ours"]), revoke);
    assert_eq!(row["ours"]["note"], "the newer word");
    let explained = a.home().ok(["explain", &b.id()]);
    assert!(text(&explained["why"]).contains("after a restore"), "{explained:#}");
    assert_eq!(b.state(&a.id()), "refused");
    // Our next word is newer than all of it.
    a.home().ok(["trust", &b.id(), "--wait", "50s"]);
    assert!(a.peer(&b.id())["ours"]["epoch"].as_u64().unwrap() > revoke.1);
    b.until_state(&a.id(), "trusted");
}

#[test]
fn a_restored_old_directory_does_not_grant_again_and_its_epochs_move_past_the_newer_grant() {
    let (a, b) = friends();
    a.home().ok(["revoke", &b.id()]);
    a.until_delivered(&b.id());
    let (home, addr) = (a.home().clone(), a.addr());
    a.stop();
    let old = home.beside("old");
    disk::copy(&home, &old);
    let a = Node::start(&home, &addr);
    a.home().ok(["trust", &b.id(), "--wait", "50s"]);
    a.until_delivered(&b.id());
    b.until_state(&a.id(), "trusted");
    let grant = kind_and_epoch(&a.peer(&b.id())["ours"]);
    a.stop();
    disk::put_back(&home, &old);

    // B holds the grant and dials; what it shows raises the epoch, and grants nothing.
    let a = Node::start(&home, &addr);
    b.home().run(["ping", &a.id()]);
    a.until("the proof arrives", || a.stderr().contains("newer").then_some(()));
    assert_eq!(a.state(&b.id()), "revoked");
    assert_eq!(a.active(&b.id()), 0);
    a.home().ok(["revoke", &b.id(), "--note", "again"]);
    let again = kind_and_epoch(&a.peer(&b.id())["ours"]);
    assert!(again.0 == "revoke" && again.1 > grant.1, "{again:?} against {grant:?}");
    b.until_state(&a.id(), "refused");
}
