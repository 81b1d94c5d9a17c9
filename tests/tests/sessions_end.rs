//! A session ends with its connection, in whatever order its opening and the connection's end happen.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use handfast::bare_node::BareNode;
use handfast::clock::unix_now;
use handfast::engine::DIAL_DEADLINE;
use handfast::registry::{Promotion, Registration};
use handfast::transport::{CloseReason, close_reason};
use handfast::{driver, links};
use handfast_protocol::stream::{Head, StreamKind};
use handfast_protocol::{CloseCode, Incarnation, Note, codec};
use handfast_trust::rules::Grant;
use handfast_trust::trust_record::{Cause, TrustState};
use handfast_trust::{EndReason, Role, SessionId};
use nodes::{Home, PATIENCE, until};
use tokio::time::timeout;

/// A handshake and three exchanges bring some ten; whoever asks over the same connection until it is idle, some seventy.
const DATAGRAMS_OF_A_FEW_EXCHANGES: u64 = 40;

/// A connection from one node to the other, registered there, whose task is this test.
async fn registered(from: &BareNode, to: &BareNode) -> Registration {
    let (from, to) = (from.engine(), to.engine());
    let peer = to.book.me();
    let connection = from.transport.dial(&peer, to.transport.local_addrs()[0], DIAL_DEADLINE).await.unwrap();
    from.registry.register(peer, Role::Dialer, connection, None).unwrap()
}

#[tokio::test]
async fn a_session_that_is_opened_while_its_connection_ends_ends_with_it() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(|home| home.start_bare(|_| {}));
    let registry = &a.engine().registry;
    let promote = |of: &Registration, id: u8| registry.promote(&of.link, Incarnation([1; 16]), SessionId([id; 16]));
    let open = || a.engine().sessions.list().iter().filter(|(_, record)| record.is_active()).count();

    // Opened, then the connection's end.
    let registration = registered(&a, &b).await;
    assert_eq!(promote(&registration, 1), Promotion::Opened);
    assert_eq!((registry.counts(), open()), ((1, 1), 1));
    assert!(registry.ended(&registration.link, EndReason::Lost));
    drop(registration);
    assert_eq!((registry.counts(), open()), ((0, 0), 0));

    // Its task has seen the connection end and found no session; then it is opened; then the task is done.
    let registration = registered(&a, &b).await;
    assert!(!registry.ended(&registration.link, EndReason::Lost));
    assert_eq!(promote(&registration, 2), Promotion::Opened);
    drop(registration);
    assert_eq!((registry.counts(), open()), ((0, 0), 0));

    // Its task is done; an exchange that was on it comes too late.
    let registration = registered(&a, &b).await;
    let link = registration.link.clone();
    drop(registration);
    assert_eq!(registry.promote(&link, Incarnation([1; 16]), SessionId([3; 16])), Promotion::Gone);
    assert_eq!((registry.counts(), open()), ((0, 0), 0));
    for node in [a, b] {
        node.end_tasks();
        node.close().unwrap();
    }
}

#[tokio::test]
async fn a_session_that_outlived_trust_ends_with_the_next_change_of_it() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(|home| home.start_bare(|_| {}));
    let engine = a.engine();
    let (from, to) = (&a, &b);
    let session = |id: u8| async move {
        let registration = registered(from, to).await;
        assert_eq!(
            engine.registry.promote(&registration.link, Incarnation([1; 16]), SessionId([id; 16])),
            Promotion::Opened
        );
        registration
    };
    let b_id = homes[1].peer;

    // Its end was written down by whoever noticed it, and nobody has cut the session yet.
    let registration = session(1).await;
    engine.book.trust(b_id, &Grant::default(), unix_now()).unwrap();
    let revoked = engine.book.revoke(b_id, &Note::default(), Cause::Revoked, unix_now()).unwrap();
    assert_ne!(revoked.transition.unwrap().from, TrustState::Trusted);
    assert_eq!((engine.settle(b_id, &revoked), engine.registry.counts().0), (1, 0));
    drop(registration);

    let registration = session(2).await;
    assert_eq!(engine.membership_changed(&[]), 0);
    assert_eq!((engine.membership_changed(&[b_id]), engine.registry.counts().0), (1, 0));
    drop(registration);
    for node in [a, b] {
        node.end_tasks();
        node.close().unwrap();
    }
}

#[tokio::test]
async fn who_revokes_and_grants_again_over_one_connection_gets_a_session_on_another_one() {
    // B is the one that dials again without waiting.
    let mut homes = [Home::new(), Home::new()];
    homes.sort_by_key(|home| std::cmp::Reverse(home.peer));
    let a = homes[0].start_bare(|_| {});
    let b = homes[1].start_bare(|config| config.policy_allow = vec![homes[0].peer]);
    let (a_id, b_id) = (homes[0].peer, homes[1].peer);
    let session = || b.engine().registry.session(&a_id);
    let grant = || a.engine().book.trust(b_id, &Grant::default(), unix_now()).unwrap();

    // A changes its mind without closing anything, as a node of another make might.
    grant();
    let registration = registered(&a, &b).await;
    let link = registration.link.clone();
    links::spawn(a.engine().clone(), registration);
    driver::initiate(a.engine(), &link).await.result.unwrap();
    until("a session", || session().is_some()).await;
    a.engine().book.revoke(b_id, &Note::default(), Cause::Revoked, unix_now()).unwrap();
    driver::initiate(a.engine(), &link).await.result.unwrap();
    assert!(session().is_none());
    grant();
    assert!(driver::initiate(a.engine(), &link).await.granted);

    // B does not ask over the connection that it has cut, again and again: it lets it go and dials.
    timeout(PATIENCE, link.connection.closed()).await.unwrap();
    let received = link.connection.stats().udp_rx.datagrams;
    assert!(received < DATAGRAMS_OF_A_FEW_EXCHANGES, "{received}");
    until("a session again", || session().is_some_and(|session| session.role == Role::Dialer)).await;
    for node in [a, b] {
        node.end_tasks();
        node.close().unwrap();
    }
}

#[tokio::test]
async fn a_stranger_whose_connection_is_about_to_close_makes_way_at_once() {
    let homes = [Home::new(), Home::new()];
    let [a, b] = [&homes[0], &homes[1]].map(|home| home.start_bare(|_| {}));
    let registration = registered(&a, &b).await;
    let connection = registration.link.connection.clone();
    // An exchange that is begun and goes no further keeps the connection until its deadline.
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&codec::frame(&Head::new(StreamKind::Exchange))).await.unwrap();
    let theirs = || b.engine().registry.links(&homes[0].peer).pop();
    until("the exchange is under way", || theirs().is_some_and(|link| link.is_conversing())).await;
    let link = theirs().unwrap();
    link.retire(CloseCode::Done);
    link.gives_way().notify_one();
    let closed = timeout(PATIENCE, connection.closed()).await.unwrap();
    assert_eq!(close_reason(&closed), CloseReason::Peer(CloseCode::Busy));
    drop(registration);
    for node in [a, b] {
        node.end_tasks();
        node.close().unwrap();
    }
}
