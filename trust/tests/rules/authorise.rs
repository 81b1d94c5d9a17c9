//! Who may pass: after a revoke nobody, before the disk has confirmed a grant nobody.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use handfast_protocol::{Kind, Terms};
use handfast_trust::rules::Grant;
use handfast_trust::{Denied, Direction, Purpose, TrustState};

use crate::support::{Act, HOUR, NOON, Node, Peer, note, scope, service, shown, terms};

fn trusting() -> (Node, Peer) {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    (node, peer)
}

fn denied(node: &Node, peer: &Peer) -> Option<Denied> {
    node.book.authorise(&peer.id(), Purpose::Session, Direction::Inbound, NOON).err()
}

#[test]
fn a_grant_counts_once_it_is_durable() {
    let (mut node, peer) = trusting();
    assert_eq!(node.state(&peer, NOON), TrustState::Trusted);
    assert_eq!(denied(&node, &peer), Some(Denied::NotDurable));
    node.drain();
    assert_eq!(denied(&node, &peer), None);
    assert_eq!(denied(&node.reopened(), &peer), None);
}

#[test]
fn a_revoke_counts_at_once() {
    let ends: [Act; 4] = [
        &|node, peer| {
            node.revoke(peer, NOON);
        },
        &|node, peer| {
            node.block(peer, true, NOON);
        },
        &|node, peer| {
            node.hears(peer, &peer.revokes(6), NOON);
        },
        &|node, peer| {
            node.is_proven(peer, &peer.was_told(terms(Kind::Revoke, NOON.0 + 1)), NOON);
        },
    ];
    for end in ends {
        let (mut node, peer) = trusting();
        node.drain();
        assert_eq!(denied(&node, &peer), None);
        end(&node, &peer);
        assert_eq!(denied(&node, &peer), Some(Denied::NotTrusted));
    }
}

#[test]
fn trust_that_is_given_again_counts_once_that_is_durable() {
    let (mut node, peer) = trusting();
    node.drain();
    node.revoke(&peer, NOON);
    node.trust(&peer, NOON);
    assert_eq!(denied(&node, &peer), Some(Denied::NotDurable));
    node.drain();
    node.block(&peer, true, NOON);
    node.block(&peer, false, NOON);
    // The disk may hold the block: only the newer state's durability opens the door.
    assert_eq!(denied(&node, &peer), Some(Denied::NotDurable));
    node.drain();
    assert_eq!(denied(&node, &peer), None);
}

#[test]
fn what_decides_nothing_does_not_interrupt_a_session() {
    let (mut node, peer) = trusting();
    node.drain();
    let holds = node.record(&peer).ours.as_ref().unwrap().held();
    node.book.receipt(peer.id(), holds);
    node.book.trust(peer.id(), &Grant { alias: Some(note("bob")), ..Grant::default() }, NOON).unwrap();
    node.is_proven(&peer, &peer.was_told(terms(Kind::Grant, NOON.0 + 5)), NOON);
    assert_eq!(denied(&node, &peer), None);
}

#[test]
fn a_denied_peer_does_not_pass_whatever_was_granted() {
    let (mut node, peer) = trusting();
    node.drain();
    let deny = [peer.id()].into();
    let node = node.reopened_under(handfast_trust::Policy { deny, ..crate::support::open_policy() });
    assert_eq!(denied(&node, &peer), Some(Denied::NotTrusted));
}

/// What we grant, what they grant; who opens a stream; for which service; whether it may.
const SCOPES: &str = "
    *   *   in  a yes    *   *   out a yes
    a   *   in  a yes    a   *   in  b no     a   *   out b yes
    *   a   out a yes    *   a   out b no     *   a   in  b yes
    a   b   in  a yes    a   b   in  b no     a   b   out a no    a   b   out b yes
    ab  a   in  b yes    ab  a   out b no     ab  a   in  c no
";

#[test]
fn scopes_bound_services_by_direction_and_sessions_not_at_all() {
    let words: Vec<&str> = SCOPES.split_whitespace().collect();
    let parsed = |text: &str| {
        let names: Vec<String> = text.chars().map(String::from).collect();
        (text != "*").then(|| scope(&names.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    for row in words.chunks(5) {
        let (mut node, peer) = (Node::plain(), Peer::new(1));
        node.book.trust(peer.id(), &Grant { scope: parsed(row[0]), ..Grant::default() }, NOON).unwrap();
        node.hears(&peer, &peer.says(Terms { scope: parsed(row[1]), ..terms(Kind::Grant, 5) }), NOON);
        node.drain();
        node = node.reopened();
        let direction = if row[2] == "in" { Direction::Inbound } else { Direction::Outbound };
        let name = service(row[3]);
        let may = |purpose| node.book.authorise(&peer.id(), purpose, direction, NOON);
        let expected = if row[4] == "yes" { Ok(()) } else { Err(Denied::OutOfScope) };
        assert_eq!(may(Purpose::Service(&name)), expected, "{row:?}");
        assert_eq!(may(Purpose::Session), Ok(()));
    }
}

#[test]
fn a_narrower_grant_counts_at_once_against_the_peer() {
    let (mut node, peer) = trusting();
    node.drain();
    node.book.trust(peer.id(), &Grant { scope: Some(scope(&["a"])), ..Grant::default() }, NOON).unwrap();
    let may = |node: &Node, name: &str| {
        let name = service(name);
        node.book.authorise(&peer.id(), Purpose::Service(&name), Direction::Inbound, NOON)
    };
    assert!(may(&node, "b").is_err());
    node.drain();
    assert_eq!((may(&node, "a"), may(&node, "b")), (Ok(()), Err(Denied::OutOfScope)));
}

#[test]
fn the_index_knows_when_the_first_of_the_two_grants_ends() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust_for(&peer, 3 * HOUR, NOON);
    node.hears(&peer, &peer.grants_for(5, 2 * HOUR), NOON);
    let index = node.book.store().index();
    assert_eq!((index.ends_at(&peer.id()), index.trusted()), (Some(NOON.plus(2 * HOUR)), 1));
    node.revoke(&peer, NOON);
    assert_eq!((index.ends_at(&peer.id()), index.trusted()), (None, 0));
}

/// Ends the asking thread, also when an assertion fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One thread grants and revokes, another asks: nothing passes between a revoke's return and the next grant.
#[test]
fn nothing_passes_after_a_revoke_has_returned() {
    let (mut node, peer) = trusting();
    node.drain();
    // Odd: revoked for certain. Even: perhaps trusted.
    let phase = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let book = node.book.clone();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut passed, mut refused) = (0_u64, 0_u64);
            while !stop.load(Ordering::SeqCst) {
                let before = phase.load(Ordering::SeqCst);
                let passes = book.authorise(&peer.id(), Purpose::Session, Direction::Inbound, NOON).is_ok();
                let after = phase.load(Ordering::SeqCst);
                assert!(!(passes && before == after && before % 2 == 1), "passed while revoked");
                passed += u64::from(passes);
                refused += u64::from(!passes);
            }
            (passed, refused)
        });
        let stopping = Stop(&stop);
        for round in 0..500 {
            if round % 2 == 0 {
                node.revoke(&peer, NOON)
            } else {
                node.hears(&peer, &peer.revokes(10 + round), NOON)
            };
            phase.fetch_add(1, Ordering::SeqCst);
            std::thread::yield_now();
            assert!(!node.lets_in(&peer, NOON));
            phase.fetch_add(1, Ordering::SeqCst);
            node.trust(&peer, NOON);
            node.hears(&peer, &peer.grants(10 + round + 1), NOON);
            assert!(!node.lets_in(&peer, NOON), "not durable yet");
            node.drain();
            assert!(node.lets_in(&peer, NOON));
        }
        drop(stopping);
        let (passed, refused) = asking.join().unwrap();
        assert!(passed + refused > 0);
    });
}

/// The operator decides while the peer speaks: neither takes back what the other has said in between.
#[test]
fn decisions_at_the_same_time_lose_nothing() {
    const ROUNDS: u64 = 2_000;
    let (node, peer) = trusting();
    std::thread::scope(|scope| {
        let book = node.book.clone();
        let speaking = peer.clone();
        scope.spawn(move || {
            let held = || book.record(&speaking.id()).and_then(|record| record.theirs.clone()).map(|edge| edge.digest);
            let mut last = held();
            for epoch in 10..10 + ROUNDS {
                let theirs = if epoch % 3 == 0 { speaking.revokes(epoch) } else { speaking.grants(epoch) };
                assert_eq!(held(), last);
                book.merge(speaking.id(), &shown(Some(&theirs), None), None, NOON);
                last = Some(theirs.digest());
                assert_eq!(held(), last);
            }
        });
        let ours = || node.record(&peer).ours.clone().unwrap();
        for round in 0..ROUNDS {
            assert_eq!(ours().terms.epoch, NOON.0 + round);
            if round % 2 == 0 {
                node.revoke(&peer, NOON)
            } else {
                node.trust(&peer, NOON)
            };
            assert_eq!((ours().is_revoke(), ours().terms.epoch), (round % 2 == 0, NOON.0 + 1 + round));
            assert!(!ours().is_revoke() || !node.lets_in(&peer, NOON));
        }
    });
    // Each transition begins where the one before it has led, in the order of their revisions.
    let mut heard = node.heard();
    heard.sort_by_key(|transition| transition.revision);
    assert!(heard.len() as u64 > ROUNDS / 2);
    assert!(heard.windows(2).all(|two| two[0].revision < two[1].revision && two[0].to == two[1].from));
}
