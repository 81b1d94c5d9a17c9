//! What a killed run has left is not durable because it is read: a sync of it may have failed (ACK, REV, EARLY).

use handfast_protocol::Note;
use handfast_trust::{Cause, Denied, Direction, Purpose, Revision};

use crate::support::{NOON, Node, Peer, answer_at, showing, shown};

/// A node whose peer 1 is trusted and whose peer 2 has revoked, killed before the floor vouched for either.
fn killed() -> (Node, Peer, Peer) {
    let mut node = Node::plain();
    let (trusted, revoking) = (Peer::new(1), Peer::new(2));
    for peer in [&trusted, &revoking] {
        node.trust(peer, NOON);
        node.hears(peer, &peer.grants(1), NOON);
    }
    node.hears(&revoking, &revoking.revokes(2), NOON);
    node.drain();
    (node.killed(), trusted, revoking)
}

fn durable(node: &Node) -> Revision {
    node.book.durable().current()
}

#[test]
fn a_repeat_is_answered_when_what_was_found_is_written_anew() {
    let (mut node, trusted, revoking) = killed();
    assert!(durable(&node) < node.book.store().revision(), "not vouched for");
    let repeats = [shown(Some(&revoking.revokes(2)), None), shown(Some(&trusted.grants(1)), None)];
    for (peer, repeat) in [&revoking, &trusted].into_iter().zip(&repeats) {
        let merged = node.book.merge(peer.id(), repeat, None, NOON);
        assert!(merged.transition.is_none() && merged.revision > durable(&node), "{merged:?}");
        assert!(answer_at(&node, peer, repeat) > durable(&node));
        assert!(node.book.offer(peer.id(), &showing(), NOON).2 > durable(&node), "nor is it offered as durable");
    }
    let again = node.book.revoke(revoking.id(), &Note::default(), Cause::Revoked, NOON).unwrap();
    let once_more = node.book.revoke(revoking.id(), &Note::default(), Cause::Revoked, NOON).unwrap();
    assert!(once_more.transition.is_none() && once_more.revision > durable(&node));
    node.drain();
    assert!(durable(&node) >= again.revision);
    for (peer, repeat) in [&revoking, &trusted].into_iter().zip(&repeats) {
        assert!(answer_at(&node, peer, repeat) <= durable(&node));
    }
}

#[test]
fn a_grant_that_was_found_counts_when_it_is_written_anew_and_a_revocation_at_once() {
    let (mut node, trusted, revoking) = killed();
    let asked = |node: &Node, peer: &Peer| node.book.authorise(&peer.id(), Purpose::Session, Direction::Inbound, NOON);
    assert_eq!(asked(&node, &trusted), Err(Denied::NotDurable));
    assert_eq!(asked(&node, &revoking), Err(Denied::NotTrusted));
    node.drain();
    assert_eq!(asked(&node, &trusted), Ok(()));
    assert_eq!(asked(&node, &revoking), Err(Denied::NotTrusted));
}
