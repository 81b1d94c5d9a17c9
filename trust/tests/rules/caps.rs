//! What strangers and rules may use up.

use std::net::SocketAddr;

use handfast_trust::rules::Grant;
use handfast_trust::{Actor, Cause, Policy, TrustState, Updated};

use crate::support::{HOUR, MINUTE, NOON, Node, Peer, SECOND, at, open_policy, shown};
use handfast_protocol::UnixMillis;

fn ask(node: &Node, number: u32, source: Option<SocketAddr>, now: UnixMillis) -> Updated {
    let peer = Peer::new(number);
    node.book.merge(peer.id(), &shown(Some(&peer.grants(5)), None), source, now)
}

fn waiting(node: &Node, numbers: impl Iterator<Item = u32>) -> Vec<u32> {
    numbers.filter(|number| node.knows(&Peer::new(*number))).collect()
}

/// Caps, the sources that ask one after the other, and which of them wait in the end (numbered from 1).
const TABLE: &[(u64, u64, &str, &[u32])] = &[
    // All of one /24 share its places.
    (9, 2, "192.0.2.1 192.0.2.1 192.0.2.254", &[1, 2]),
    (9, 2, "192.0.2.1 192.0.2.1 192.0.3.1", &[1, 2, 3]),
    // All of one /48, and not of two.
    (9, 1, "2001:db8:1:1::1 2001:db8:1:2::1", &[1]),
    (9, 1, "2001:db8:1:1::1 2001:db8:2:1::1", &[1, 2]),
    // An IPv4 address is one, however it is written.
    (9, 1, "192.0.2.1 ::ffff:192.0.2.9", &[1]),
    // Full: the oldest of the source that has most makes room.
    (3, 3, "192.0.2.1 198.51.100.1 192.0.2.2 203.0.113.1", &[2, 3, 4]),
    // Of two such sources, the oldest of both.
    (4, 3, "198.51.100.1 192.0.2.1 192.0.2.2 198.51.100.2 203.0.113.1", &[2, 3, 4, 5]),
    (4, 3, "192.0.2.1 198.51.100.1 192.0.2.2 198.51.100.2 203.0.113.1", &[2, 3, 4, 5]),
    // Nobody pushes out a source that has no more than its own.
    (2, 2, "192.0.2.1 192.0.2.2 192.0.2.3", &[1, 2]),
    (2, 2, "192.0.2.1 198.51.100.1 192.0.2.3", &[1, 2]),
    (2, 2, "192.0.2.1 198.51.100.1 203.0.113.1", &[2, 3]),
    (0, 2, "192.0.2.1", &[]),
    (9, 0, "192.0.2.1", &[]),
];

#[test]
fn strangers_share_places_by_source() {
    for (pending_total, pending_per_source, sources, expected) in TABLE {
        let node = Node::new(Policy {
            pending_total: *pending_total,
            pending_per_source: *pending_per_source,
            ..open_policy()
        });
        let mut count = 0;
        for (number, source) in (1..).zip(sources.split_whitespace()) {
            let source = SocketAddr::new(source.parse().unwrap(), 9);
            let updated = ask(&node, number, Some(source), NOON.plus(u64::from(number)));
            assert_eq!(updated.turned_away, !node.knows(&Peer::new(number)));
            count = number;
        }
        assert_eq!(waiting(&node, 1..=count), *expected, "{sources}");
        assert!(node.book.store().read(|table| table.len() as u64) <= *pending_total);
    }
}

#[test]
fn who_is_turned_away_is_told_to_come_again_and_leaves_nothing() {
    let node = Node::new(Policy { pending_total: 0, ..open_policy() });
    let peer = Peer::new(1);
    let offer = shown(Some(&peer.grants(5)), None);
    let updated = node.book.merge(peer.id(), &offer, None, NOON);
    assert!(updated.turned_away);
    assert_eq!((updated.state, updated.transition), (TrustState::Unknown, None));
    let (terms, _) = node.book.answer(peer.id(), &offer, updated.turned_away, &crate::support::showing(), NOON);
    assert!(matches!(terms.disposition, handfast_protocol::exchange::Disposition::Busy { .. }));
    assert_eq!(node.book.store().revision().0, 0);
}

#[test]
fn an_eviction_is_one_event() {
    let node = Node::new(Policy { pending_total: 2, ..open_policy() });
    ask(&node, 1, at("192.0.2.1:1"), NOON);
    ask(&node, 2, at("192.0.2.2:1"), NOON);
    node.heard();
    ask(&node, 3, at("203.0.113.1:1"), NOON);
    let heard = node.heard();
    assert_eq!((heard[0].cause, heard[0].actor), (Cause::Evicted, Actor::Caps));
    assert_eq!((heard[0].from, heard[0].to), (TrustState::Pending, TrustState::Unknown));
    assert_eq!((heard.len(), heard[1].to), (2, TrustState::Pending));
    assert!(heard[0].revision.0 > 0);
}

#[test]
fn what_we_have_decided_is_never_evicted_and_takes_no_place() {
    let node = Node::new(Policy { pending_total: 1, ..open_policy() });
    let [trusted, revoked, blocked, named] = [1, 2, 3, 4].map(Peer::new);
    node.block(&blocked, true, NOON);
    node.book.trust(named.id(), &Grant::default(), NOON).unwrap();
    for (peer, grants) in [(&trusted, true), (&revoked, false)] {
        ask(&node, if grants { 1 } else { 2 }, at("192.0.2.1:1"), NOON);
        if grants {
            node.trust(peer, NOON)
        } else {
            node.revoke(peer, NOON)
        };
    }
    for number in 10..20 {
        ask(&node, number, Some(SocketAddr::from(([203, 0, number as u8, 1], 1))), NOON);
    }
    for peer in [&trusted, &revoked, &blocked, &named] {
        assert!(node.knows(peer));
    }
    assert_eq!(waiting(&node, 10..20).len(), 1);
}

/// Full caps never stop a revoke, a grant that we wait for, or a rule.
#[test]
fn full_caps_stop_nothing_but_new_requests() {
    let (known, awaited, allowed) = (Peer::new(1), Peer::new(2), Peer::new(3));
    let node = Node::new(Policy {
        pending_total: 1,
        pending_per_source: 1,
        pending_new_per_second: 1,
        allow: [allowed.id()].into(),
        ..open_policy()
    });
    ask(&node, 1, at("192.0.2.1:1"), NOON);
    assert!(ask(&node, 4, at("192.0.2.1:1"), NOON).turned_away);
    node.trust(&awaited, NOON);
    assert_eq!(ask(&node, 2, at("192.0.2.1:1"), NOON).state, TrustState::Trusted);
    assert_eq!(ask(&node, 3, at("192.0.2.1:1"), NOON).state, TrustState::Trusted);
    node.hears(&known, &known.revokes(9), NOON);
    assert!(!node.knows(&known));
}

#[test]
fn strangers_have_the_disk_written_ten_times_a_second_at_most() {
    let node = Node::new(Policy { pending_new_per_second: 10, ..open_policy() });
    let stored = || node.book.store().revision().0;
    for number in 1..=50 {
        ask(&node, number, Some(SocketAddr::from(([192, 0, number as u8, 1], 1))), NOON);
    }
    assert_eq!(stored(), 10);
    // Nor by saying something new in a place that they have.
    let peer = Peer::new(1);
    for epoch in 10..50 {
        node.hears(&peer, &peer.grants(epoch), NOON);
    }
    assert_eq!(stored(), 10);
    assert_eq!(node.record(&peer).theirs.as_ref().unwrap().terms.epoch, 5);
    node.hears(&peer, &peer.grants(50), NOON.plus(SECOND));
    assert_eq!((stored(), node.record(&peer).request.unwrap().count), (11, 2));
}

#[test]
fn blocked_peers_and_grants_that_do_not_count_use_nothing_up() {
    let denied: Vec<Peer> = (100..120).map(Peer::new).collect();
    let node = Node::new(Policy {
        deny: denied.iter().map(Peer::id).collect(),
        pending_new_per_second: 1,
        pending_total: 1,
        ..open_policy()
    });
    ask(&node, 1, at("192.0.2.1:1"), NOON);
    ask(&node, 2, at("192.0.2.2:1"), NOON.plus(SECOND));
    let now = NOON.plus(2 * SECOND);
    for peer in &denied {
        node.hears(peer, &peer.grants(5), now);
    }
    let ended = Peer::new(3);
    node.hears(&ended, &ended.grants_for(5, 0), now);
    assert!(node.knows(&Peer::new(1)), "nobody was evicted for them");
    node.hears(&Peer::new(1), &Peer::new(1).revokes(9), now);
    assert!(!ask(&node, 4, at("198.51.100.1:1"), now).turned_away, "the second's place is still there");
}

#[test]
fn requests_at_the_same_time_do_not_overrun_a_cap() {
    let allowed: Vec<u32> = (1_000..1_400).collect();
    let node = Node::new(Policy {
        pending_total: 100,
        pending_per_source: 30,
        grants_total: 50,
        allow: allowed.iter().map(|number| Peer::new(*number).id()).collect(),
        ..open_policy()
    });
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let node = &node.book;
            scope.spawn(move || {
                for number in 0..100 {
                    for peer in [Peer::new(thread * 100 + number + 1), Peer::new(1_000 + thread * 100 + number)] {
                        let source = SocketAddr::from(([192, 0, (number % 7) as u8, 1], 1));
                        node.merge(peer.id(), &shown(Some(&peer.grants(5)), None), Some(source), NOON);
                        let records = node.store().read(|table| table.len());
                        assert!(records <= 150, "{records}");
                    }
                }
            });
        }
    });
    let granted = allowed.iter().filter(|number| node.state(&Peer::new(**number), NOON) == TrustState::Trusted);
    assert_eq!(granted.count(), 50);
}

#[test]
fn a_rules_budget_is_what_it_has_granted_and_survives_reopening() {
    let policy = Policy { accept_all: true, grants_total: 3, grants_per_hour: 100, ..open_policy() };
    let node = Node::new(policy);
    let states = |node: &Node, numbers: std::ops::RangeInclusive<u32>| -> Vec<TrustState> {
        numbers.map(|number| ask(node, number, at("192.0.2.1:1"), NOON.plus(HOUR * u64::from(number))).state).collect()
    };
    assert_eq!(states(&node, 1..=2), [TrustState::Trusted; 2]);
    let node = node.reopened();
    assert_eq!(states(&node, 3..=5), [TrustState::Trusted, TrustState::Pending, TrustState::Pending]);
    // What no longer stands is no longer counted: one was revoked, one is the operator's now.
    node.revoke(&Peer::new(1), NOON);
    node.trust(&Peer::new(2), NOON);
    let node = node.reopened();
    assert_eq!(states(&node, 4..=6), [TrustState::Trusted, TrustState::Trusted, TrustState::Pending]);
}

#[test]
fn a_rules_budget_by_the_hour_survives_reopening_and_a_clock_set_back() {
    let policy = Policy { accept_all: true, grants_per_hour: 3, ..open_policy() };
    let mut node = Node::new(policy);
    let mut number = 0;
    let mut granted = |node: &Node, now| {
        number += 1;
        ask(node, number, at("192.0.2.1:1"), now).state == TrustState::Trusted
    };
    let begin = NOON.plus(HOUR);
    for (minutes, expected) in [(0, true), (10, true), (20, true), (30, false), (59, false)] {
        assert_eq!(granted(&node, begin.plus(minutes * MINUTE)), expected, "{minutes}");
        node = node.reopened();
    }
    // Set back by less than an hour: nothing is won.
    assert!(!granted(&node, NOON.plus(45 * MINUTE)));
    for (minutes, expected) in [(61, true), (62, false), (71, true), (72, false), (200, true)] {
        assert_eq!(granted(&node, begin.plus(minutes * MINUTE)), expected, "{minutes}");
    }
    // Set back by most of a day, to minutes that share their places in the count with later ones.
    let long_before = UnixMillis(begin.0 - 20 * 64 * MINUTE);
    let back: Vec<bool> = (0..5).map(|ten| granted(&node, long_before.plus(ten * 10 * MINUTE))).collect();
    assert_eq!(back, [true, true, true, false, false]);
}

#[test]
fn the_first_rule_with_budget_left_grants() {
    let node = Node::new(Policy {
        accept_all: true,
        allow: [Peer::new(1).id(), Peer::new(2).id()].into(),
        grants_total: 1,
        ..open_policy()
    });
    let rules: Vec<Option<handfast_trust::Rule>> = (1..=3)
        .map(|number| {
            ask(&node, number, None, NOON);
            node.record(&Peer::new(number)).rule
        })
        .collect();
    assert_eq!(rules, [Some(handfast_trust::Rule::Allow), Some(handfast_trust::Rule::AcceptAll), None]);
}
