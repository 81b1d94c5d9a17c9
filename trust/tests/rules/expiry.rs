//! Grants end: ours by our clock, theirs by their length; an end that was noticed stays.

use handfast_protocol::{Kind, Terms, UnixMillis};
use handfast_trust::{Actor, Cause, Denied, Direction, Purpose, TrustState};

use crate::support::{Act, DAY, HOUR, MINUTE, NOON, Node, Peer, SECOND, showing, shown, terms};

/// The peer and this node trust each other; ours ends after an hour, or theirs, or neither.
fn trusting(ours: Option<u64>, theirs: Option<u64>) -> (Node, Peer) {
    let (node, peer) = (Node::plain(), Peer::new(1));
    match ours {
        Some(ms) => node.trust_for(&peer, ms, NOON),
        None => node.trust(&peer, NOON),
    };
    node.hears(&peer, &theirs.map_or_else(|| peer.grants(5), |ms| peer.grants_for(5, ms)), NOON);
    assert_eq!(node.state(&peer, NOON), TrustState::Trusted);
    node.heard();
    (node, peer)
}

#[test]
fn our_grant_ends_by_our_clock() {
    let (node, peer) = trusting(Some(HOUR), None);
    assert_eq!(node.state(&peer, NOON.plus(HOUR - 1)), TrustState::Trusted);
    assert_eq!(node.state(&peer, NOON.plus(HOUR)), TrustState::Pending);
    assert_eq!(node.book.expire(NOON.plus(HOUR - 1)), []);
    assert_eq!(node.book.expire(NOON.plus(HOUR)), [peer.id()]);
    let transition = node.heard()[0];
    assert_eq!((transition.cause, transition.actor), (Cause::Expired, Actor::Clock));
    assert_eq!((transition.from, transition.to), (TrustState::Trusted, TrustState::Pending));
    assert_eq!(node.book.expire(NOON.plus(HOUR)), []);
    assert!(node.heard().is_empty(), "one event, however often time passes");
}

#[test]
fn their_grant_lasts_as_long_as_they_meant_from_when_it_was_stored() {
    // Their clock is seven hours ahead of ours: neither that nor a repeat prolongs it.
    let (node, peer) = trusting(None, Some(HOUR));
    node.hears(&peer, &peer.grants_for(5, HOUR), NOON.plus(50 * MINUTE));
    assert_eq!(node.state(&peer, NOON.plus(HOUR - 1)), TrustState::Trusted);
    assert_eq!(node.book.expire(NOON.plus(HOUR)), [peer.id()]);
    assert_eq!(node.state(&peer, NOON), TrustState::Requested);
}

#[test]
fn a_clock_set_back_does_not_revive_what_has_ended() {
    for (ours, theirs) in [(Some(HOUR), None), (None, Some(HOUR)), (Some(HOUR), Some(HOUR))] {
        let (node, peer) = trusting(ours, theirs);
        node.book.expire(NOON.plus(DAY));
        let state = node.state(&peer, NOON.plus(DAY));
        assert_ne!(state, TrustState::Trusted);
        let mut node = node.reopened();
        node.drain();
        assert_eq!(node.state(&peer, NOON), state);
        assert!(!node.lets_in(&peer, NOON));
        node.hears(&peer, &theirs.map_or_else(|| peer.grants(5), |ms| peer.grants_for(5, ms)), NOON);
        assert_eq!(node.state(&peer, NOON), state);
    }
}

/// Whatever looks at a record in the moment of its end records it, before the periodic look does.
#[test]
fn an_end_that_anybody_was_told_of_is_recorded() {
    let late = NOON.plus(2 * HOUR);
    let looks: [Act; 5] = [
        &|node, peer| {
            let denied = node.book.authorise(&peer.id(), Purpose::Session, Direction::Inbound, late);
            assert_eq!(denied, Err(Denied::Expired));
        },
        &|node, peer| {
            node.hears(peer, &peer.grants(5), late);
        },
        &|node, peer| {
            node.book.answer(peer.id(), &shown(None, None), false, &showing(), late);
        },
        &|node, peer| {
            node.book.offer(peer.id(), &showing(), late);
        },
        &|node, peer| {
            node.block(peer, false, late);
        },
    ];
    for look in looks {
        let (mut node, peer) = trusting(Some(HOUR), None);
        node.drain();
        assert!(node.lets_in(&peer, NOON));
        look(&node, &peer);
        assert!(!node.lets_in(&peer, NOON), "the clock was set back");
        assert_eq!(node.state(&peer, NOON), TrustState::Pending);
        assert_eq!(node.events(), [(Cause::Expired, TrustState::Pending)]);
        // Who cuts connections still learns of it.
        assert_eq!(node.book.expire(late), [peer.id()]);
        assert_eq!(node.book.expire(late), []);
    }
}

#[test]
fn an_end_and_a_word_at_the_same_time_are_two_events_in_order() {
    let (node, peer) = trusting(None, Some(HOUR));
    let updated = node.hears(&peer, &peer.revokes(6), NOON.plus(2 * HOUR));
    assert_eq!(updated.transition.unwrap().from, TrustState::Requested);
    assert_eq!(node.events(), [(Cause::Expired, TrustState::Requested), (Cause::TheyRevoked, TrustState::Refused)]);
}

#[test]
fn what_was_granted_anew_before_anybody_looked_is_not_cut() {
    let (node, peer) = trusting(None, Some(HOUR));
    let updated = node.hears(&peer, &peer.grants_for(6, HOUR), NOON.plus(2 * HOUR));
    assert_eq!(updated.state, TrustState::Trusted);
    assert_eq!(node.book.expire(NOON.plus(2 * HOUR)), []);
}

#[test]
fn no_rule_renews_our_expired_grant() {
    let peer = Peer::new(1);
    let node = Node::new(handfast_trust::Policy {
        accept_all: true,
        allow: [peer.id()].into(),
        ..crate::support::open_policy()
    });
    node.trust_for(&peer, HOUR, NOON);
    for (epoch, now) in [(5, NOON.plus(2 * HOUR)), (6, NOON.plus(3 * HOUR)), (7, NOON)] {
        assert_eq!(node.hears(&peer, &peer.grants(epoch), now).state, TrustState::Pending, "{now:?}");
    }
    assert_eq!(node.trust(&peer, NOON.plus(2 * HOUR)).state, TrustState::Trusted);
}

#[test]
fn a_revoke_with_an_end_never_ends() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    let revoke = peer.says(Terms { expires_at: Some(UnixMillis(6)), ..terms(Kind::Revoke, 5) });
    node.hears(&peer, &revoke, NOON);
    assert_eq!(node.book.expire(UnixMillis(u64::MAX)), []);
    assert_eq!(node.state(&peer, UnixMillis(u64::MAX)), TrustState::Refused);
}

#[test]
fn a_strangers_grant_that_has_ended_is_removed() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants_for(5, HOUR), NOON);
    node.heard();
    assert_eq!(node.book.expire(NOON.plus(HOUR)), [peer.id()]);
    assert!(!node.knows(&peer));
    let heard = node.heard();
    assert_eq!((heard[0].cause, heard[0].to), (Cause::Expired, TrustState::Unknown));
    assert_eq!(heard[0].revision, node.book.store().revision());
    // One that ends before it begins never counts.
    let backwards = Terms { issued_at: NOON, expires_at: Some(UnixMillis(1)), ..terms(Kind::Grant, 9) };
    node.hears(&peer, &peer.says(backwards), NOON);
    assert!(!node.knows(&peer));
}

#[test]
fn a_request_waits_for_thirty_days() {
    let (node, peer, decided) = (Node::plain(), Peer::new(1), Peer::new(2));
    node.hears(&peer, &peer.grants(5), NOON);
    node.hears(&decided, &decided.grants(5), NOON);
    node.trust(&decided, NOON);
    // Asking again does not start the time anew.
    node.hears(&peer, &peer.grants(6), NOON.plus(20 * DAY));
    assert_eq!(node.book.expire(NOON.plus(30 * DAY)), []);
    assert_eq!(node.book.expire(NOON.plus(30 * DAY + 1)), [peer.id()]);
    assert!(!node.knows(&peer));
    assert_eq!(node.state(&decided, NOON), TrustState::Trusted);
}

#[test]
fn a_denied_request_does_not_wait_for_ever_either() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.hears(&peer, &peer.grants(5), NOON);
    let deny = [peer.id()].into();
    let node = node.reopened_under(handfast_trust::Policy { deny, ..crate::support::open_policy() });
    node.hears(&peer, &peer.grants(6), NOON);
    node.book.expire(NOON.plus(31 * DAY));
    assert!(!node.knows(&peer));
}

#[test]
fn a_grant_of_ours_that_has_ended_is_neither_offered_nor_answered() {
    // Whoever stores it for the first time would count its length from then.
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust_for(&peer, HOUR, NOON);
    let says = |now| {
        let offer = node.book.offer(peer.id(), &showing(), now).1;
        let answer = node.book.answer(peer.id(), &shown(None, None), false, &showing(), now).0;
        (offer.statement.is_some(), answer.statement.is_some())
    };
    assert_eq!(says(NOON), (true, true));
    assert_eq!(says(NOON.plus(HOUR)), (false, false));
    node.revoke(&peer, NOON);
    assert_eq!(says(NOON.plus(DAY)), (true, true));
}

#[test]
fn every_end_is_noticed_though_only_some_are_due() {
    let node = Node::plain();
    let peers: Vec<Peer> = (1..=300).map(Peer::new).collect();
    for (number, peer) in peers.iter().enumerate() {
        node.trust_for(peer, (number as u64 * 7 % 10 + 1) * MINUTE, NOON);
    }
    let mut ended = 0;
    for minute in 1..=10 {
        assert_eq!(node.book.store().index().next_end(), Some(NOON.plus(minute * MINUTE)));
        assert_eq!(node.book.expire(NOON.plus(minute * MINUTE - SECOND)), []);
        let now = NOON.plus(minute * MINUTE);
        let fallen = node.book.expire(now);
        assert_eq!(fallen.len(), 30);
        assert!(
            peers.iter().filter(|peer| fallen.contains(&peer.id())).all(|peer| node
                .record(peer)
                .ours
                .as_ref()
                .unwrap()
                .expired)
        );
        ended += fallen.len();
    }
    assert_eq!(ended, peers.len());
    assert!(!node.book.store().index().has_ending_grants());
}
