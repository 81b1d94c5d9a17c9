//! What is said to a peer, when, and what is known to have arrived.

use handfast_protocol::exchange::{Disposition, Shown};
use handfast_protocol::{Held, Incarnation, Verified};
use handfast_trust::TrustState;
use handfast_trust::rules::Showing;

use crate::support::{NOON, Node, Peer, answer, me, showing, shown};

fn held(statement: &Verified) -> Held {
    statement.held()
}

#[test]
fn an_answer_says_granted_in_no_other_state_than_trusted() {
    let (peer, rest) = (Peer::new(1), [TrustState::Trusted]);
    let steps: [&dyn Fn(&Node); 6] = [
        &|node| {
            node.hears(&peer, &peer.grants(5), NOON);
        },
        &|node| {
            node.trust(&peer, NOON);
        },
        &|node| {
            node.block(&peer, true, NOON);
        },
        &|node| {
            node.block(&peer, false, NOON);
        },
        &|node| {
            node.hears(&peer, &peer.revokes(6), NOON);
        },
        &|node| {
            node.revoke(&peer, NOON);
        },
    ];
    let node = Node::plain();
    for step in steps {
        step(&node);
        let terms = answer(&node, &peer, &shown(None, None));
        let granted = terms.disposition == Disposition::Granted;
        assert_eq!(granted, rest.contains(&node.state(&peer, NOON)));
    }
}

#[test]
fn an_answer_waits_for_everything_that_it_says() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    let offer = shown(Some(&peer.grants(5)), None);
    node.trust(&peer, NOON);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    let (_, revision) = node.book.answer(peer.id(), &offer, false, &showing(), NOON);
    assert_eq!((revision, updated.revision), (node.book.store().revision(), node.book.store().revision()));
    node.drain();
    // A revoke in between: the answer changes, and so does what it waits for.
    node.revoke(&peer, NOON);
    let (terms, revision) = node.book.answer(peer.id(), &offer, false, &showing(), NOON);
    assert_eq!((terms.disposition, revision), (Disposition::Refused, node.book.store().revision()));
    node.drain();
    // Other peers' changes do not delay it.
    node.trust(&Peer::new(2), NOON);
    let (_, revision) = node.book.answer(peer.id(), &offer, false, &showing(), NOON);
    assert!(revision <= node.book.durable().current());
}

#[test]
fn an_answer_holds_what_is_stored_and_gives_back_what_the_peer_lost() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.revokes(9), NOON);
    let old = shown(Some(&peer.grants(5)), None);
    node.book.merge(peer.id(), &old, None, NOON);
    let terms = answer(&node, &peer, &old);
    assert_eq!(terms.holds, Some(held(&peer.revokes(9))));
    assert_eq!(terms.yours.as_ref(), Some(peer.revokes(9).signed()));
    let current = shown(Some(&peer.revokes(9)), None);
    assert_eq!(answer(&node, &peer, &current).yours, None);
}

#[test]
fn our_address_is_for_peers_that_hold_our_grant() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let record =
        handfast_protocol::AddressRecord { peer: me().peer_id(), addresses: Vec::new(), epoch: 1, expires_at: NOON };
    let showing =
        Showing { incarnation: Incarnation([9; 16]), address: Some(record.sign(&me()).unwrap()), ..showing() };
    let shows = || node.book.answer(peer.id(), &shown(None, None), false, &showing, NOON).0.address.is_some();
    node.hears(&peer, &peer.grants(5), NOON);
    assert!(!shows());
    node.trust(&peer, NOON);
    assert!(shows());
    node.revoke(&peer, NOON);
    assert!(!shows());
}

#[test]
fn delivered_is_what_the_peer_holds_and_a_new_word_is_not_delivered_yet() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let ours = || node.record(&peer).ours.as_ref().unwrap().held();
    node.trust(&peer, NOON);
    let grant = ours();
    node.book.receipt(peer.id(), Held { epoch: 1, ..grant });
    assert!(!node.record(&peer).is_delivered());
    node.book.receipt(peer.id(), grant);
    assert!(node.record(&peer).is_delivered());
    node.revoke(&peer, NOON);
    assert!(!node.record(&peer).is_delivered());
    node.book.receipt(peer.id(), grant);
    assert!(!node.record(&peer).is_delivered(), "the receipt of a former word comes late");
    let answered = Shown { holds: Some(ours()), ..shown(None, None) };
    node.book.merge(peer.id(), &answered, None, NOON);
    assert!(node.record(&peer).is_delivered());
    node.book.receipt(Peer::new(2).id(), grant);
    assert!(!node.knows(&Peer::new(2)));
}

#[test]
fn a_receipt_waits_for_no_disk() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    let granted = node.trust(&peer, NOON);
    node.drain();
    let holds = node.record(&peer).ours.as_ref().map(|edge| edge.held());
    // It is written with the next change, or within a second: losing it costs one repeat.
    let updated = node.book.merge(peer.id(), &Shown { holds, ..shown(None, None) }, None, NOON);
    assert!(node.record(&peer).is_delivered());
    assert_eq!(updated.revision, granted.revision);
    node.drain();
    assert!(node.reopened().record(&peer).is_delivered());
}

#[test]
fn offers_carry_both_edges_and_wait_for_ours() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    let updated = node.hears(&peer, &peer.grants(5), NOON);
    let (parties, offer, revision) = node.book.offer(peer.id(), &showing(), NOON);
    assert_eq!(revision, updated.revision);
    assert_eq!(offer.statement.as_ref(), parties.ours.as_ref().map(Verified::signed));
    assert_eq!(offer.yours.as_ref(), Some(peer.grants(5).signed()));
    assert_eq!((parties.me, parties.peer), (me().peer_id(), peer.id()));
}
