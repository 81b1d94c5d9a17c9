//! The rules of design section 3, one by one.

use handfast_protocol::exchange::{AnswerTerms, Disposition};
use handfast_protocol::{Kind, Note, Terms};
use handfast_trust::rules::{self, Grant, Refusal};
use handfast_trust::{Actor, Cause, Policy, Rule, TrustState};

use crate::support::{
    DAY, HOUR, NOON, Node, Peer, SECOND, answer, at, did, me, note, open_policy, says, showing, shown, terms,
};

// Rule 1: authenticity. Signatures are the protocol's; the rules look at the parties again.

#[test]
fn a_statement_of_other_parties_stores_nothing() {
    let (node, peer, other) = (Node::plain(), Peer::new(1), Peer::new(2));
    let to_other = says(&peer.0, other.id(), terms(Kind::Grant, 5));
    for theirs in [&other.grants(5), &to_other] {
        let updated = node.hears(&peer, theirs, NOON);
        assert_eq!((updated.state, did(&updated)), (TrustState::Unknown, None));
    }
    node.is_proven(&peer, &other.was_told(terms(Kind::Revoke, 5)), NOON);
    assert!(!node.knows(&peer) && !node.knows(&other));
}

#[test]
fn a_node_neither_trusts_nor_blocks_itself() {
    let node = Node::plain();
    let myself = me().peer_id();
    assert_eq!(node.book.trust(myself, &Grant::default(), NOON).unwrap_err(), Refusal::Myself);
    assert_eq!(node.book.revoke(myself, &Note::default(), Cause::Revoked, NOON).unwrap_err(), Refusal::Myself);
    assert_eq!(node.book.block(myself, true, NOON).unwrap_err(), Refusal::Myself);
    assert!(node.book.record(&myself).is_none());
}

// Rule 2: blocked.

#[test]
fn from_a_blocked_peer_a_revoke_merges_into_a_known_edge() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants(5), NOON);
    node.block(&peer, true, NOON);
    node.heard();
    node.hears(&peer, &peer.grants(6), NOON);
    assert_eq!(node.record(&peer).theirs.as_ref().unwrap().terms.epoch, 5);
    let updated = node.hears(&peer, &peer.revokes(7), NOON);
    assert_eq!((updated.state, did(&updated)), (TrustState::Blocked, None));
    assert!(node.record(&peer).theirs.as_ref().unwrap().is_revoke());
    assert!(node.heard().is_empty());
}

#[test]
fn from_a_blocked_peer_without_an_edge_nothing_is_stored() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.block(&peer, true, NOON);
    let before = node.record(&peer);
    node.hears(&peer, &peer.revokes(7), NOON);
    node.hears(&peer, &peer.grants(8), NOON);
    assert_eq!(node.record(&peer), before);
}

#[test]
fn from_a_denied_stranger_nothing_is_stored() {
    let peer = Peer::new(1);
    let node = Node::denying(&[&peer]);
    for theirs in [peer.grants(5), peer.revokes(6)] {
        assert_eq!(node.hears(&peer, &theirs, NOON).state, TrustState::Blocked);
    }
    assert!(!node.knows(&peer));
}

#[test]
fn a_blocked_peer_hears_nothing_but_the_generic_refusal() {
    let generic = AnswerTerms {
        disposition: Disposition::Refused,
        holds: None,
        statement: None,
        yours: None,
        incarnation: showing().incarnation,
        address: None,
        networks: Vec::new(),
    };
    let (flagged, listed, stranger) = (Peer::new(1), Peer::new(2), Peer::new(3));
    let node = Node::plain();
    for peer in [&flagged, &listed] {
        node.trust(peer, NOON);
        node.hears(peer, &peer.grants(5), NOON);
    }
    node.block(&flagged, true, NOON);
    let deny = [listed.id(), stranger.id()].into_iter().collect();
    let node = node.reopened_under(Policy { deny, ..open_policy() });
    for peer in [flagged, listed, stranger] {
        for theirs in [peer.grants(6), peer.revokes(7)] {
            let offer = shown(Some(&theirs), None);
            node.book.merge(peer.id(), &offer, None, NOON);
            assert_eq!(answer(&node, &peer, &offer), generic);
        }
    }
}

#[test]
fn our_own_newer_revoke_is_taken_from_a_blocked_peer_too() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.block(&peer, true, NOON);
    node.is_proven(&peer, &peer.was_told(terms(Kind::Revoke, NOON.0 + 1)), NOON);
    assert_eq!(node.block(&peer, false, NOON).state, TrustState::Revoked);
}

// Rule 3: merging.

#[test]
fn an_older_statement_of_theirs_is_ignored() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.revokes(9), NOON);
    let before = node.record(&peer);
    for older in [peer.grants(8), peer.grants(9), peer.revokes(9)] {
        assert_eq!(did(&node.hears(&peer, &older, NOON)), None);
    }
    assert_eq!(node.record(&peer), before);
}

#[test]
fn a_repeat_is_answered_from_what_is_held_and_changes_nothing() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    let offer = shown(Some(&peer.grants(5)), None);
    let first = node.book.merge(peer.id(), &offer, at("192.0.2.1:9"), NOON);
    node.drain();
    let revision = node.book.store().revision();
    let again = node.book.merge(peer.id(), &offer, at("198.51.100.1:9"), NOON.plus(DAY));
    assert_eq!((again.state, did(&again), again.revision), (TrustState::Pending, None, first.revision));
    assert_eq!(node.book.store().revision(), revision);
    let request = node.record(&peer).request.unwrap();
    assert_eq!((request.count, request.received_at), (1, NOON));
}

#[test]
fn equivocation_is_counted_once_for_each_number_however_often_it_is_repeated() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    let say = |text| peer.says(Terms { note: note(text), ..terms(Kind::Grant, 5) });
    node.trust(&peer, NOON);
    let all = [say("a"), say("b"), say("c")];
    all.iter().for_each(|one| {
        node.hears(&peer, one, NOON);
    });
    assert_eq!(node.record(&peer).equivocations, 1);
    node.drain();
    let revision = node.book.store().revision();
    // Otherwise a peer could have the disk synced by repeating itself.
    for one in all.iter().cycle().take(20) {
        node.hears(&peer, one, NOON);
    }
    assert_eq!(node.book.store().revision(), revision);
    node.hears(&peer, &peer.grants(6), NOON);
    node.hears(&peer, &peer.says(Terms { note: note("a"), ..terms(Kind::Grant, 6) }), NOON);
    assert_eq!(node.record(&peer).equivocations, 2);
}

#[test]
fn a_grant_and_a_revoke_of_one_number_are_no_equivocation_and_the_revoke_wins() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.revokes(5), NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    assert_eq!(node.state(&peer, NOON), TrustState::Refused);
    assert_eq!(node.record(&peer).equivocations, 0);
}

// Rule 4: their revoke.

#[test]
fn their_revoke_ends_trust_with_one_event() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    assert_eq!(node.events(), [(Cause::Granted, TrustState::Requested), (Cause::TheyGranted, TrustState::Trusted)]);
    let revoke = peer.revokes(6);
    let updated = node.hears(&peer, &revoke, NOON);
    assert_eq!(did(&updated), Some((Cause::TheyRevoked, TrustState::Trusted, TrustState::Refused)));
    let transition = updated.transition.unwrap();
    assert_eq!((transition.actor, transition.digest), (Actor::Peer, Some(revoke.digest())));
    node.hears(&peer, &revoke, NOON);
    assert_eq!(node.events(), [(Cause::TheyRevoked, TrustState::Refused)]);
}

#[test]
fn a_strangers_revoke_stores_nothing_and_is_noted() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let offer = shown(Some(&peer.revokes(6)), None);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    assert_eq!((updated.state, did(&updated), updated.holds), (TrustState::Unknown, None, None));
    assert!(!node.knows(&peer));
    assert_eq!(node.book.store().revision().0, 0);
    let terms = answer(&node, &peer, &offer);
    assert_eq!((terms.disposition, terms.holds), (Disposition::Noted, None));
    assert!(node.heard().is_empty());
}

#[test]
fn a_request_that_is_taken_back_leaves_nothing_and_the_answer_waits_for_its_removal() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants(5), NOON);
    node.drain();
    node.heard();
    let offer = shown(Some(&peer.revokes(6)), None);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    // The state that follows is that of a stranger: that is what the next one starts from.
    assert_eq!(did(&updated), Some((Cause::TheyRevoked, TrustState::Pending, TrustState::Unknown)));
    assert_eq!((updated.state, updated.transition.unwrap().revision), (TrustState::Unknown, updated.revision));
    assert!(!node.knows(&peer));
    let (_, revision) = node.book.answer(peer.id(), &offer, false, &showing(), NOON);
    assert_eq!(revision, updated.revision);
    assert!(revision > node.book.durable().current());
    // So does the answer to a repeat.
    assert_eq!(node.book.merge(peer.id(), &offer, None, NOON).revision, revision);
    node.hears(&peer, &peer.grants(7), NOON);
    assert_eq!(node.events(), [(Cause::TheyRevoked, TrustState::Unknown), (Cause::TheyGranted, TrustState::Pending)]);
}

// Rule 5: their grant meets a word of ours.

#[test]
fn their_grant_completes_ours() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    let offer = shown(Some(&peer.grants(5)), None);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    assert_eq!(did(&updated), Some((Cause::TheyGranted, TrustState::Requested, TrustState::Trusted)));
    assert_eq!(answer(&node, &peer, &offer).disposition, Disposition::Granted);
}

#[test]
fn a_peer_that_we_revoked_is_answered_with_our_revoke() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    node.revoke(&peer, NOON);
    let offer = shown(Some(&peer.grants(6)), None);
    assert_eq!(did(&node.book.merge(peer.id(), &offer, None, NOON)), None);
    let terms = answer(&node, &peer, &offer);
    assert_eq!(terms.disposition, Disposition::Refused);
    assert_eq!(terms.statement.unwrap().statement.terms.kind, Kind::Revoke);
    assert_eq!(terms.holds.unwrap().epoch, 6);
    // Whoever holds it already is not sent it again.
    let holds = node.record(&peer).ours.as_ref().unwrap().statement(me().peer_id(), peer.id());
    assert_eq!(answer(&node, &peer, &shown(Some(&peer.grants(6)), Some(&holds))).statement, None);
}

#[test]
fn a_rule_never_lifts_our_own_revoke() {
    let peer = Peer::new(1);
    for policy in [open_policy(), Policy { accept_all: true, ..open_policy() }] {
        let node = Node::new(Policy { allow: [peer.id()].into(), ..policy });
        node.hears(&peer, &peer.grants(5), NOON);
        assert_eq!(node.state(&peer, NOON), TrustState::Trusted);
        node.revoke(&peer, NOON);
        for theirs in [peer.grants(6), peer.revokes(7), peer.grants(8)] {
            assert_eq!(node.hears(&peer, &theirs, NOON).state, TrustState::Revoked);
        }
        assert_eq!(node.record(&peer).rule, None);
    }
}

/// Whatever the policy says: the pure rule does not depend on who asks it.
#[test]
fn a_rule_that_is_named_all_the_same_grants_only_where_nothing_was_said() {
    let (node, peer, key) = (Node::plain(), Peer::new(1), me());
    let later = NOON.plus(HOUR);
    let moment = rules::Moment { key: &key, peer: peer.id(), now: later, denied: false, members: None };
    let admittance = rules::Admittance { rule: Some(Rule::AcceptAll), sponsor: None, may_pend: true, source: None };
    let grants = |node: &Node| {
        let record = node.book.record(&peer.id());
        let offer = shown(Some(&peer.grants(NOON.0)), None);
        let record = rules::merge(record.as_ref(), &offer, &admittance, &moment).record.unwrap();
        record.ours.as_ref().is_some_and(|ours| ours.is_grant_at(handfast_trust::Side::Ours, later))
    };
    assert!(grants(&node));
    node.trust_for(&peer, 1, NOON);
    assert!(!grants(&node), "our grant has ended");
    node.book.expire(later);
    assert!(!grants(&node), "and that was noticed");
    node.revoke(&peer, later);
    assert!(!grants(&node), "we have revoked");
    let node = Node::plain();
    node.block(&peer, true, NOON);
    assert!(!grants(&node), "the peer is blocked");
}

#[test]
fn a_rule_never_grants_after_a_proven_grant_of_ours() {
    let peer = Peer::new(1);
    let node = Node::allowing(&[&peer]);
    // An old backup: nothing is known, but the peer proves that we had granted. We may have revoked since.
    let proof = peer.was_told(terms(Kind::Grant, 50));
    let updated = node.book.merge(peer.id(), &shown(Some(&peer.grants(5)), Some(&proof)), None, NOON);
    assert_eq!(updated.state, TrustState::Pending);
    assert_eq!(node.record(&peer).ours, None);
    assert_eq!(node.hears(&peer, &peer.grants(6), NOON).state, TrustState::Pending);
}

// Rule 6: their grant, nothing of ours.

#[test]
fn a_strangers_grant_waits() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let offer = shown(Some(&peer.grants(5)), None);
    let updated = node.book.merge(peer.id(), &offer, at("[2001:db8::1]:9"), NOON);
    assert_eq!(did(&updated), Some((Cause::TheyGranted, TrustState::Unknown, TrustState::Pending)));
    let terms = answer(&node, &peer, &offer);
    assert_eq!((terms.disposition, terms.holds), (Disposition::Pending, updated.holds));
    let request = node.record(&peer).request.unwrap();
    assert_eq!(std::net::SocketAddr::from(request.source.unwrap()), at("[2001:db8::1]:9").unwrap());
}

#[test]
fn requests_are_counted_and_the_first_one_dates_them() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    for (number, epoch) in [(1, 5), (2, 6), (2, 6), (3, 7), (3, 5)] {
        node.hears(&peer, &peer.grants(epoch), NOON.plus(epoch * SECOND));
        let request = node.record(&peer).request.unwrap();
        assert_eq!((request.count, request.received_at), (number, NOON.plus(5 * SECOND)));
    }
    node.trust(&peer, NOON);
    assert_eq!(node.record(&peer).request, None);
}

#[test]
fn a_request_survives_a_block() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants(5), NOON);
    let request = node.record(&peer).request;
    node.block(&peer, true, NOON.plus(HOUR));
    node.block(&peer, false, NOON.plus(2 * HOUR));
    assert_eq!((node.state(&peer, NOON), node.record(&peer).request), (TrustState::Pending, request));
    assert!(request.unwrap().source.is_some());
}

#[test]
fn a_peer_whose_request_returns_by_itself_is_listed_with_a_time() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust_for(&peer, HOUR, NOON);
    node.hears(&peer, &peer.grants(5), NOON.plus(SECOND));
    node.book.expire(NOON.plus(2 * HOUR));
    assert_eq!(node.state(&peer, NOON), TrustState::Pending);
    let request = node.record(&peer).request.unwrap();
    assert_eq!((request.received_at, request.count), (NOON.plus(SECOND), 1));
}

#[test]
fn a_rule_grants_with_its_name_in_one_event() {
    let peer = Peer::new(1);
    let node = Node::allowing(&[&peer]);
    let offer = shown(Some(&peer.grants(5)), None);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    assert_eq!(did(&updated), Some((Cause::Granted, TrustState::Unknown, TrustState::Trusted)));
    assert_eq!(updated.transition.unwrap().actor, Actor::Rule(Rule::Allow));
    assert_eq!(node.record(&peer).rule, Some(Rule::Allow));
    assert_eq!(node.heard().len(), 1);
    assert!(answer(&node, &peer, &offer).statement.is_some());
}

#[test]
fn a_repeated_request_is_granted_once_a_rule_names_the_peer() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants(5), NOON);
    let node = node.reopened_under(Policy { allow: [peer.id()].into(), ..open_policy() });
    let updated = node.hears(&peer, &peer.grants(5), NOON);
    assert_eq!(did(&updated), Some((Cause::Granted, TrustState::Pending, TrustState::Trusted)));
}

#[test]
fn a_grant_by_a_networks_rule_counts_for_nothing_without_a_membership() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let network = Some(handfast_protocol::NetworkId::from_stored([7; 32]));
    let claim = peer.says(Terms { network, ..terms(Kind::Grant, 5) });
    node.hears(&peer, &claim, NOON);
    assert!(!node.knows(&peer), "a stranger's grant that does not count is not kept");
    node.trust(&peer, NOON);
    assert_eq!(node.hears(&peer, &claim, NOON).state, TrustState::Requested);
}
