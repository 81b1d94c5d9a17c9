//! A session ends with its connection, in whatever order its opening and the connection's end happen.

#![allow(clippy::unwrap_used, reason = "what fails in a suite is to be seen")]

mod nodes;

use handfast::bare_node::BareNode;
use handfast::engine::DIAL_DEADLINE;
use handfast::registry::{Promotion, Registration};
use handfast_protocol::Incarnation;
use handfast_trust::{EndReason, Role, SessionId};
use nodes::Home;

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
