//! A redemption, and an expulsion, with the power cut at every operation of the disk: what was acknowledged is there, and
//! a use is taken with its redemption or not at all.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use handfast_protocol::NoticeKind;
use handfast_protocol::join::JoinReply;
use handfast_trust::Revision;
use handfast_trust::networks::NetKey;
use handfast_trust::sim::{CrashPoint, SimDisk, Subsets};

use crate::support::{NOON, Node, network, notice, peer, secret};

/// A crash point, and what was acknowledged by then.
struct Point {
    crash: CrashPoint,
    acknowledged: Revision,
}

/// Collects the crash points of what `act` does to a node, of which everything before is durable.
fn points(node: &mut Node, act: impl FnOnce(&mut Node)) -> Vec<Point> {
    node.drain();
    let points: Arc<Mutex<Vec<Point>>> = Arc::default();
    let (seen, durable) = (points.clone(), node.networks.durable().clone());
    node.disk().observe(move |crash| {
        seen.lock().unwrap().push(Point { crash: crash.clone(), acknowledged: durable.current() });
    });
    act(node);
    node.drain();
    let last = Point { crash: node.disk().crash_point(), acknowledged: node.networks.durable().current() };
    node.disk().observe(|_| {});
    let mut points = std::mem::take(&mut *points.lock().unwrap());
    points.push(last);
    points
}

/// Every image that the power may leave at a point, each once.
fn images(point: &Point, seed: u64) -> Vec<BTreeMap<String, Vec<u8>>> {
    let mut seen = HashSet::new();
    let mut images = Vec::new();
    for survives in Subsets::new(point.crash.uncertain(), seed) {
        let image = point.crash.image(|effect| survives[effect]);
        if seen.insert(image.clone()) {
            images.push(image);
        }
    }
    images
}

#[test]
fn a_redemption_is_whole_or_was_not_at_every_power_cut() {
    let mut node = Node::founder();
    node.invites(2, 1);
    let ask = |node: &Node, by: u32| match node.networks.redeem(peer(by), network(1), &secret(1), NOON) {
        (JoinReply::Certified(membership), revision) => Ok((*membership, revision)),
        (other, _) => Err(other),
    };
    let mut promised = Vec::new();
    // Two keys, each twice, as after lost replies.
    let points = points(&mut node, |node| {
        for by in [5, 6, 5, 6] {
            promised.push((by, ask(node, by).unwrap()));
            node.drain();
        }
    });
    let mut found = [0; 3];
    for (number, point) in points.iter().enumerate() {
        for image in images(point, number as u64) {
            let node = Node::open(SimDisk::of(image, 512));
            // ATOM: as many uses as redemptions, and each redeemer is a member.
            let (id, invite) = node.networks.invites().remove(0);
            let redeemed = node.networks.redemptions(id);
            assert_eq!(invite.used as usize, redeemed.len(), "at point {number}");
            assert!(redeemed.iter().all(|(who, _)| node.networks.member(network(1), *who).is_some()));
            found[redeemed.len()] += 1;
            // ACK: whose certificate could have been sent gets the very same.
            for (by, (membership, revision)) in &promised {
                if point.acknowledged >= *revision {
                    assert_eq!(ask(&node, *by).map(|(again, _)| again).as_ref(), Ok(membership), "at point {number}");
                }
            }
            // LIVE: both keys get one, nobody else does.
            node.networks.hold_authority(crate::support::authority(1));
            let all = [5, 6, 7].map(|by| ask(&node, by).is_ok());
            assert_eq!(all, [true, true, false], "at point {number}");
            assert_eq!(node.networks.invites()[0].1.used, 2);
        }
    }
    assert!(found.iter().all(|count| *count > 0), "cut before, between and after: {found:?}");
}

/// REV: an expulsion that was acknowledged counts after every power cut, whatever certificates came with it.
#[test]
fn an_acknowledged_expulsion_survives_every_power_cut() {
    let mut node = Node::member();
    let mut promised = Revision::ZERO;
    let points = points(&mut node, |node| {
        node.learns(&[&crate::support::certified(5, 1)]);
        node.hears(&[notice(5, 1, NoticeKind::Expel)]);
        promised = node.networks.store().revision();
        node.learns(&[&crate::support::certified(5, u64::MAX)]);
    });
    let (mut before, mut after) = (0, 0);
    for (number, point) in points.iter().enumerate() {
        for image in images(point, number as u64) {
            let node = Node::open(SimDisk::of(image, 512));
            if point.acknowledged >= promised {
                assert!(!node.counts(5), "at point {number}");
                assert!(node.networks.members().is_expelled(&network(1), &peer(5)));
                after += 1;
            } else {
                before += 1;
            }
            let listed = node.networks.store().read(|table| table.get(&NetKey::Notice(network(1), peer(5))).is_some());
            assert_eq!(listed, node.networks.members().expulsions(&network(1)).count == 1);
        }
    }
    assert!(before > 0 && after > 0);
}

/// ACK: what a killed run has left may be in the page cache alone.
#[test]
fn a_redemption_that_a_killed_run_has_left_is_told_when_it_is_written_anew() {
    let mut node = Node::founder();
    node.invites(2, 1);
    node.drain();
    // With this the floor is written, and not again before the kill.
    node.networks.redeem(peer(6), network(1), &secret(1), NOON);
    node.drain();
    let redeem = |node: &Node| node.networks.redeem(peer(5), network(1), &secret(1), NOON);
    let (first, _) = redeem(&node);
    node.drain();
    let mut node = node.killed();
    let (again, revision) = redeem(&node);
    assert!(again == first && matches!(again, JoinReply::Certified(_)));
    assert!(revision > node.networks.durable().current());
    node.drain();
    assert!(revision <= node.networks.durable().current());
}
