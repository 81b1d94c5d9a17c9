//! What the operator decides, and what a node that was restored from an old copy makes of its own words.

use handfast_protocol::{Kind, Note, UnixMillis};
use handfast_trust::rules::{Grant, Refusal};
use handfast_trust::trust_record::HISTORY_MAX;
use handfast_trust::{Cause, Policy, TrustState};

use crate::support::{HOUR, NOON, Node, Peer, SECOND, did, note, open_policy, scope, shown, terms};

#[test]
fn trust_again_changes_nothing_unless_the_terms_or_the_provenance_do() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let plain = Grant::default();
    let noted = Grant { note: note("hello"), ..plain.clone() };
    let scoped = Grant { scope: Some(scope(&["a"])), ..noted.clone() };
    let ending = Grant { for_ms: Some(HOUR), ..scoped.clone() };
    let epoch = |grant: &Grant, now| {
        node.book.trust(peer.id(), grant, now).unwrap();
        node.record(&peer).ours.as_ref().unwrap().terms.epoch
    };
    let mut last = epoch(&plain, NOON);
    for grant in [noted, scoped, ending.clone(), plain.clone()] {
        let new = epoch(&grant, NOON);
        assert_eq!(new, last + 1, "{grant:?}");
        assert_eq!(epoch(&grant, NOON), new, "{grant:?} again");
        last = new;
    }
    assert_eq!(node.heard().len(), 1, "none of that was a change of the state");
    let first = epoch(&ending, NOON);
    assert!(epoch(&ending, NOON.plus(SECOND)) > first, "later means another end");
}

#[test]
fn a_grant_that_has_ended_when_it_comes_is_one_event_at_most() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    node.hears(&peer, &peer.grants_for(6, 0), NOON);
    assert_eq!(node.state(&peer, NOON), TrustState::Requested);
    node.hears(&peer, &peer.grants_for(6, 0), NOON);
    node.book.expire(NOON);
    node.trust_for(&peer, 0, NOON);
    node.book.expire(NOON);
    let states: Vec<TrustState> = node.events().into_iter().map(|(_, to)| to).collect();
    use TrustState::{Requested, Trusted, Unknown};
    assert_eq!(states, [Requested, Trusted, Requested, Unknown]);
}

#[test]
fn trust_makes_a_rules_grant_the_operators() {
    let peer = Peer::new(1);
    let node = Node::allowing(&[&peer]);
    node.hears(&peer, &peer.grants(5), NOON);
    let by_rule = node.record(&peer).ours.clone().unwrap();
    assert_eq!(did(&node.trust(&peer, NOON)), None);
    let record = node.record(&peer);
    assert_eq!(record.rule, None);
    assert!(record.ours.as_ref().unwrap().rank() > by_rule.rank());
}

#[test]
fn trust_of_a_blocked_peer_is_refused() {
    let (flagged, listed) = (Peer::new(1), Peer::new(2));
    let node = Node::denying(&[&listed]);
    node.block(&flagged, true, NOON);
    for peer in [&flagged, &listed] {
        let refusal = node.book.trust(peer.id(), &Grant::default(), NOON).unwrap_err();
        assert_eq!(refusal, Refusal::Blocked);
    }
    assert!(node.record(&flagged).ours.is_none() && !node.knows(&listed));
}

#[test]
fn trust_lifts_our_revoke_with_a_higher_epoch() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    node.revoke(&peer, NOON);
    let revoke = node.record(&peer).ours.clone().unwrap();
    // Also when the clock was set back since.
    let updated = node.trust(&peer, UnixMillis(7));
    assert_eq!(did(&updated), Some((Cause::Granted, TrustState::Revoked, TrustState::Trusted)));
    assert!(node.record(&peer).ours.as_ref().unwrap().rank() > revoke.rank());
}

#[test]
fn an_alias_is_durable_before_the_operator_is_told() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.drain();
    let named = Grant { alias: Some(note("bob")), ..Grant::default() };
    let first = node.book.trust(peer.id(), &named, NOON).unwrap();
    let again = node.book.trust(peer.id(), &named, NOON).unwrap();
    for updated in [first, again] {
        assert!(updated.revision > node.book.durable().current());
    }
    // The grant itself did not change: it goes on counting meanwhile.
    assert!(node.record(&peer).edges_at <= node.book.durable().current());
}

#[test]
fn revoke_stands_unless_a_new_note_is_given() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let revoke = |text| {
        node.book.revoke(peer.id(), &note(text), Cause::Revoked, NOON).unwrap();
        node.record(&peer).ours.as_ref().unwrap().terms.clone()
    };
    node.trust(&peer, NOON);
    let first = revoke("");
    assert_eq!(revoke(""), first);
    let noted = revoke("why");
    assert_eq!((noted.epoch, noted.note.as_str()), (first.epoch + 1, "why"));
    assert_eq!((revoke("why"), revoke("")), (noted.clone(), noted));
    assert_eq!(node.events(), [(Cause::Granted, TrustState::Requested), (Cause::Revoked, TrustState::Revoked)]);
}

#[test]
fn there_must_be_something_to_revoke_reject_or_unblock() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let revoke = |cause| node.book.revoke(peer.id(), &Note::default(), cause, NOON).map(|updated| updated.state);
    assert_eq!(revoke(Cause::Revoked).unwrap_err(), Refusal::Unknown);
    assert_eq!(revoke(Cause::Rejected).unwrap_err(), Refusal::Unknown);
    assert_eq!(node.book.block(peer.id(), false, NOON).unwrap_err(), Refusal::Unknown);
    node.block(&peer, true, NOON);
    assert_eq!(revoke(Cause::Rejected).unwrap_err(), Refusal::NothingToReject);
    node.block(&peer, false, NOON);
    assert!(!node.knows(&peer), "nothing is left of a block that is lifted");
    node.hears(&peer, &peer.grants(5), NOON);
    assert_eq!(revoke(Cause::Rejected).unwrap(), TrustState::Revoked);
}

#[test]
fn a_block_is_one_event_and_so_is_its_end() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    node.heard();
    for _ in 0..2 {
        node.block(&peer, true, NOON);
    }
    for _ in 0..2 {
        node.block(&peer, false, NOON);
    }
    assert_eq!(node.events(), [(Cause::Blocked, TrustState::Blocked), (Cause::Unblocked, TrustState::Trusted)]);
}

#[test]
fn a_record_keeps_its_last_sixteen_transitions() {
    let (mut node, peer) = (Node::plain(), Peer::new(1));
    let mut all = Vec::new();
    for round in 0..20 {
        node.trust(&peer, NOON.plus(round));
        node.revoke(&peer, NOON.plus(round));
        all.extend(node.heard());
    }
    assert_eq!((all.len(), HISTORY_MAX), (40, 16));
    assert_eq!(node.record(&peer).history, all[24..]);
    let digest = node.record(&peer).ours.as_ref().unwrap().digest;
    assert_eq!(all[39].digest, Some(digest));
    assert!(all.windows(2).all(|two| two[0].revision < two[1].revision && two[0].to == two[1].from));
    node.drain();
    assert_eq!(node.reopened().record(&peer).history, all[24..]);
}

// Restored from an old copy.

#[test]
fn a_newer_revoke_of_ours_that_is_proven_is_in_force_again() {
    let peer = Peer::new(1);
    // Together with news of the peer's: what took trust away is our own word.
    for news in [None, Some(peer.grants(6)), Some(peer.revokes(6))] {
        let node = Node::plain();
        node.trust(&peer, NOON);
        assert_eq!(node.hears(&peer, &peer.grants(5), NOON).state, TrustState::Trusted);
        node.heard();
        let revoke = peer.was_told(terms(Kind::Revoke, NOON.0 + 9));
        let updated = node.book.merge(peer.id(), &shown(news.as_ref(), Some(&revoke)), None, NOON);
        assert_eq!(did(&updated), Some((Cause::Restored, TrustState::Trusted, TrustState::Revoked)));
        assert_eq!(updated.transition.unwrap().digest, Some(revoke.digest()));
        assert_eq!(node.heard().len(), 1);
        node.trust(&peer, NOON);
        assert!(node.record(&peer).ours.as_ref().unwrap().terms.epoch > NOON.0 + 9);
    }
}

#[test]
fn a_newer_revoke_of_ours_is_taken_where_nothing_is_known_any_more() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let revoke = peer.was_told(terms(Kind::Revoke, 50));
    assert_eq!(node.is_proven(&peer, &revoke, NOON).state, TrustState::Revoked);
}

#[test]
fn a_newer_grant_of_ours_that_is_proven_only_raises_the_epoch() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    node.revoke(&peer, NOON);
    node.heard();
    let before = node.record(&peer).ours.clone();
    let proof = peer.was_told(terms(Kind::Grant, NOON.0 + 99));
    assert_eq!(did(&node.is_proven(&peer, &proof, NOON)), None);
    assert_eq!((node.state(&peer, NOON), &node.record(&peer).ours), (TrustState::Revoked, &before));
    node.book.revoke(peer.id(), &note("again"), Cause::Revoked, NOON).unwrap();
    assert_eq!(node.record(&peer).ours.as_ref().unwrap().terms.epoch, NOON.0 + 100);
}

#[test]
fn what_was_proven_survives_a_restart_and_full_caps() {
    let peer = Peer::new(1);
    let node = Node::new(Policy { pending_total: 0, ..open_policy() });
    let proof = peer.was_told(terms(Kind::Grant, NOON.0 + 99));
    let both = shown(Some(&peer.grants(5)), Some(&proof));
    assert!(!node.book.merge(peer.id(), &both, None, NOON).turned_away, "it is no stranger");
    let node = node.reopened();
    node.trust(&peer, NOON);
    assert_eq!(node.record(&peer).ours.as_ref().unwrap().terms.epoch, NOON.0 + 100);
}

#[test]
fn their_revoke_is_kept_by_a_node_that_had_granted_and_forgot() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    let proof = peer.was_told(terms(Kind::Grant, 50));
    let both = shown(Some(&peer.revokes(5)), Some(&proof));
    assert_eq!(node.book.merge(peer.id(), &both, None, NOON).state, TrustState::Refused);
}
