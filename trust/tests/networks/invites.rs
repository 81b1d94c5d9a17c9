//! Invites: who may redeem one, how often, and what the same key gets when it asks again.

use std::sync::{Arc, Barrier};

use handfast_protocol::join::JoinReply;
use handfast_protocol::{JoinRefusal, Membership, NoticeKind, Role, UnixMillis};
use handfast_trust::networks::Invitation;
use handfast_trust::{NetworkRefusal, Networks};

use crate::support::{
    DAY, HOUR, NOON, Node, authority, certificate, certified, network, notice, peer, secret, sponsor,
};

fn redeem(networks: &Networks, by: u32, number: u8, now: UnixMillis) -> Result<Membership, JoinRefusal> {
    match networks.redeem(peer(by), network(1), &secret(number), now).0 {
        JoinReply::Certified(membership) => Ok(*membership),
        JoinReply::Refused(code) => Err(JoinRefusal::from_code(u64::from(code))),
        other => panic!("{other:?}"),
    }
}

fn used(networks: &Networks) -> u32 {
    networks.invites()[0].1.used
}

#[test]
fn the_same_key_always_gets_the_same_certificate_and_uses_are_counted_once() {
    let mut node = Node::founder();
    node.invites(2, 1);
    let first = redeem(&node.networks, 5, 1, NOON).unwrap();
    assert!(first.clone().verify().is_ok() && first.member() == peer(5));
    assert_eq!(redeem(&node.networks, 5, 1, NOON.plus(HOUR)), Ok(first.clone()));
    assert_eq!(used(&node.networks), 1);
    node = node.reopened();
    // The authority's key is not even needed for what was given before.
    assert_eq!(redeem(&node.networks, 5, 1, NOON), Ok(first.clone()));
    assert_eq!(redeem(&node.networks, 6, 1, NOON).map(|_| ()), Ok(()), "a sponsor certifies as well");
    assert_eq!(redeem(&node.networks, 7, 1, NOON), Err(JoinRefusal::Exhausted));
    for now in [NOON, NOON.plus(DAY), UnixMillis(0)] {
        assert_eq!(redeem(&node.networks, 5, 1, now), Ok(first.clone()));
    }
    assert_eq!(used(&node.networks), 2);
    assert!(node.counts(5) && node.counts(6) && !node.counts(7));
}

#[test]
fn each_reason_has_its_own_code() {
    let node = Node::founder();
    node.invites(9, 1);
    let networks = &node.networks;
    let check = |by, number, now, refusal| assert_eq!(redeem(networks, by, number, now), Err(refusal), "{refusal}");
    check(5, 2, NOON, JoinRefusal::Unknown);
    check(5, 1, UnixMillis(NOON.0 - 1), JoinRefusal::NotYetValid);
    check(5, 1, NOON.plus(DAY), JoinRefusal::Expired);
    let elsewhere = networks.redeem(peer(5), network(2), &secret(1), NOON).0;
    assert_eq!(elsewhere, JoinReply::refused(JoinRefusal::WrongNetwork));
    networks.expel(network(1), peer(6), NOON).unwrap();
    check(6, 1, NOON, JoinRefusal::Expelled);
    let mine = redeem(networks, 7, 1, NOON).unwrap();
    networks.revoke_invite(secret(1).id()).unwrap();
    check(5, 1, NOON, JoinRefusal::Revoked);
    assert_eq!(redeem(networks, 7, 1, NOON), Ok(mine));
    assert_eq!(networks.revoke_invite(secret(2).id()), Err(NetworkRefusal::NoSuchInvite));
    networks.expel(network(1), peer(7), NOON).unwrap();
    check(7, 1, NOON, JoinRefusal::Expelled);
    assert_eq!(used(networks), 1);
    assert_eq!(networks.redemptions(secret(1).id()), [(peer(7), NOON)]);
}

#[test]
fn who_cannot_sign_does_not_invite_and_says_so_when_it_comes_to_it() {
    let wanted = |role| Invitation { network: network(1), role, uses: 1, valid_from: NOON, expires_at: NOON.plus(1) };
    let member = Node::member();
    let refused = |node: &Node, role| node.networks.invite(wanted(role), &secret(1), NOON).map(|_| ());
    assert_eq!(refused(&member, Role::Member), Err(NetworkRefusal::CannotIssue));
    assert_eq!(refused(&Node::alone(), Role::Member), Err(NetworkRefusal::NotHere));
    let sponsor = Node::alone();
    sponsor.joins(&certificate(0, 1, Role::Sponsor).by_authority(&authority(1)).unwrap());
    assert_eq!(refused(&sponsor, Role::Sponsor), Err(NetworkRefusal::CannotIssue), "depth one");
    assert_eq!(refused(&sponsor, Role::Member), Ok(()));
    assert_eq!(refused(&sponsor, Role::Member), Err(NetworkRefusal::BadInvite), "one secret, one invite");
    sponsor.hears(&[notice(0, 1, NoticeKind::Expel)]);
    assert_eq!(redeem(&sponsor.networks, 5, 1, NOON), Err(JoinRefusal::CannotIssue));
    let none = Invitation { uses: 0, ..wanted(Role::Member) };
    assert_eq!(Node::founder().networks.invite(none, &secret(1), NOON), Err(NetworkRefusal::BadInvite));
    let backwards = Invitation { expires_at: NOON, ..wanted(Role::Member) };
    assert_eq!(Node::founder().networks.invite(backwards, &secret(1), NOON), Err(NetworkRefusal::BadInvite));
}

#[test]
fn a_sponsors_redeemer_is_believed_elsewhere() {
    let inviter = Node::alone();
    inviter.joins(&certificate(0, 1, Role::Sponsor).by_authority(&authority(1)).unwrap());
    inviter.invites(1, 1);
    let made = redeem(&inviter.networks, 5, 1, NOON).unwrap();
    assert_eq!(made.sponsor(), Some(peer(0)));
    let other = Node::member();
    other.networks.learn([&made], NOON).unwrap();
    assert!(other.counts(5));
    other.learns(&[&sponsor(3), &certified(4, 1)]);
    other.hears(&[notice(0, 1, NoticeKind::Expel)]);
    assert!(!other.counts(5) && other.counts(4));
}

/// Nothing on the disk tells the secret.
#[test]
fn the_secret_is_nowhere_on_the_disk() {
    let mut node = Node::founder();
    node.invites(3, 0xA7);
    redeem(&node.networks, 5, 0xA7, NOON).unwrap();
    node.drain();
    let id = secret(0xA7).id().0;
    let files: Vec<Vec<u8>> = node.disk().names().iter().filter_map(|name| node.disk().content(name)).collect();
    let found = |what: &[u8]| files.iter().any(|bytes| bytes.windows(what.len()).any(|window| window == what));
    assert!(found(&id), "what is looked through is the disk");
    assert!(!found(&[0xA7; 16]));
}

/// Of two keys that redeem the last use at the same moment exactly one wins.
#[test]
fn the_last_use_goes_to_one() {
    let node = Node::founder();
    for round in 0..100_u8 {
        node.invites(1, round);
        let gate = Arc::new(Barrier::new(2));
        let racer = |by: u32| {
            let (networks, gate) = (node.networks.clone(), gate.clone());
            std::thread::spawn(move || {
                gate.wait();
                redeem(&networks, by, round, NOON)
            })
        };
        let racers = [racer(100 + u32::from(round)), racer(300 + u32::from(round))];
        let outcomes = racers.map(|racer| racer.join().unwrap());
        let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert_eq!(refused, [&JoinRefusal::Exhausted], "round {round}");
        let id = secret(round).id();
        assert_eq!(node.networks.redemptions(id).len(), 1);
    }
    assert!(node.networks.invites().iter().all(|(_, invite)| invite.used == 1));
}

/// Many keys at once, and each asks several times: as many certificates as uses, each the same every time.
#[test]
fn a_crowd_takes_exactly_the_uses_there_are() {
    let node = Node::founder();
    node.invites(20, 1);
    let crowd: Vec<_> = (0..4_u32)
        .map(|thread| {
            let networks = node.networks.clone();
            std::thread::spawn(move || {
                // Neighbouring threads share half of their keys.
                let keys = 10 * thread..10 * thread + 20;
                keys.map(|by| (by, redeem(&networks, 1_000 + by, 1, NOON))).collect::<Vec<_>>()
            })
        })
        .collect();
    let mut certified = std::collections::BTreeMap::new();
    for (by, outcome) in crowd.into_iter().flat_map(|thread| thread.join().unwrap()) {
        match outcome {
            Ok(membership) => assert_eq!(certified.entry(by).or_insert_with(|| membership.clone()), &membership),
            Err(refusal) => assert_eq!(refusal, JoinRefusal::Exhausted),
        }
    }
    assert_eq!((certified.len(), used(&node.networks)), (20, 20));
}

/// BOUND, and the way out: ended invites make room when they have been kept long enough.
#[test]
fn invites_are_bounded_and_ended_ones_make_room() {
    let node = Node::founder();
    let invite = |number: u32, now: UnixMillis| {
        let mut bits = [0; 16];
        bits[..4].copy_from_slice(&number.to_le_bytes());
        let valid = Invitation {
            network: network(1),
            role: Role::Member,
            uses: 3,
            valid_from: NOON,
            expires_at: now.plus(HOUR),
        };
        let secret = handfast_protocol::InviteSecret::new(bits);
        node.networks.invite(valid, &secret, now).map(|(id, _)| (id, secret))
    };
    let (id, first) = invite(0, NOON).unwrap();
    node.networks.redeem(peer(5), network(1), &first, NOON);
    for number in 1..1_024 {
        assert!(invite(number, NOON.plus(DAY)).is_ok());
    }
    assert_eq!(invite(1_024, NOON.plus(29 * DAY)).map(|_| ()), Err(NetworkRefusal::TooMany));
    assert!(invite(1_024, NOON.plus(30 * DAY + HOUR)).is_ok());
    assert_eq!(node.networks.redemptions(id), []);
    assert_eq!(node.networks.invites().len(), 1_024);
    assert_eq!(invite(1_025, NOON.plus(30 * DAY + HOUR)).map(|_| ()), Err(NetworkRefusal::TooMany));
}
