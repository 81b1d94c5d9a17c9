//! The bytes of the records of `invites.hf`, and of a trust record with a sponsor, and what survives a restart.

use handfast_protocol::{InviteId, Kind, NetworkId, PeerId, UnixMillis};
use handfast_trust::networks::{NetKey, NetworkRecord, RedemptionRecord};
use handfast_trust::sim::SimDisk;
use handfast_trust::{
    Actor, Cause, DamageFault, FileKind, Floor, NetRecord, Record, RecordFault, Revision, Rule, StoreError, Transition,
    TrustRecord, TrustState, open_or_make,
};

use crate::common::site;
use crate::support::{DAY, NOON, Node, authority, certified, name, network, peer, secret, sponsored};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes are these, and nothing else reads as the same.
fn check(key: NetKey, record: &NetRecord, golden: &str) {
    let (mut key_bytes, mut bytes) = (Vec::new(), Vec::new());
    NetRecord::encode_key(&key, &mut key_bytes);
    record.encode(&mut bytes);
    assert_eq!(format!("{}\n{}", hex(&key_bytes), hex(&bytes)), golden.trim());
    assert_eq!(NetRecord::decode_key(&key_bytes), Ok(key));
    assert_eq!(NetRecord::decode(&key, &bytes).as_ref(), Ok(record));
    for cut in 0..bytes.len() {
        assert!(NetRecord::decode(&key, &bytes[..cut]).is_err(), "cut at {cut}");
    }
    for cut in 0..key_bytes.len() {
        assert!(NetRecord::decode_key(&key_bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(NetRecord::decode(&key, &[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(NetRecord::decode_key(&[key_bytes.as_slice(), &[0]].concat()).is_err());
    for version in [0, 2, 255] {
        let other: Vec<u8> = [&[version], &bytes[1..]].concat();
        assert_eq!(NetRecord::decode(&key, &other), Err(RecordFault::UnknownTag(u32::from(version))));
    }
}

/// A node with one of each: a network, members, notices, an invite with a redemption.
fn full() -> Node {
    let node = Node::founder();
    node.learns(&[&certified(5, 2), &sponsored(5, 3, 2), &sponsored(6, 1, 2)]);
    node.networks.expel(network(1), peer(6), NOON).unwrap();
    node.invites(3, 1);
    node.networks.redeem(peer(7), network(1), &secret(1), NOON);
    node
}

fn record(node: &Node, key: NetKey) -> NetRecord {
    node.networks.store().read(|table| NetRecord::clone(table.get(&key).unwrap()))
}

#[test]
fn records_have_these_bytes() {
    let node = full();
    let (id, invite): (NetworkId, InviteId) = (network(1), secret(1).id());
    let five: PeerId = peer(5);
    let half_done = NetRecord::Network(NetworkRecord {
        joining: Some(handfast_trust::networks::Joining::new(
            peer(9),
            vec![std::net::SocketAddr::from(([192, 0, 2, 1], 4433)).into()],
        )),
        ..record(&node, NetKey::Network(id)).network().unwrap().clone()
    });
    check(NetKey::Network(id), &half_done, include_str!("golden/network.hex"));
    let key = NetKey::Member(id, five);
    check(key, &record(&node, key), include_str!("golden/member.hex"));
    let key = NetKey::Notice(id, peer(6));
    check(key, &record(&node, key), include_str!("golden/notice.hex"));
    let key = NetKey::Invite(invite);
    check(key, &record(&node, key), include_str!("golden/invite.hex"));
    let key = NetKey::Redemption(invite, peer(7));
    check(key, &record(&node, key), include_str!("golden/redemption.hex"));
    assert_eq!(NetRecord::decode_key(&[6; 33]), Err(RecordFault::UnknownTag(6)));
    let RedemptionRecord { at, .. } = record(&node, key).redemption().unwrap().clone();
    assert_eq!(at, NOON);
}

/// The causes and the actor that came with networks, and the sponsor, which is in front of a record of version 1.
#[test]
fn a_trust_record_with_a_sponsor_has_these_bytes() {
    let causes = [Cause::Expelled, Cause::MembershipEnded, Cause::MembershipRegained, Cause::Undone];
    let transition = |number: usize| Transition {
        at: UnixMillis(number as u64),
        cause: causes[number],
        actor: Actor::Network(network(1)),
        revision: Revision(number as u64),
        from: TrustState::Trusted,
        to: TrustState::Pending,
        digest: None,
    };
    let plain = TrustRecord {
        rule: Some(Rule::Network(network(1))),
        history: (0..4).map(transition).collect(),
        ..TrustRecord::default()
    };
    let record = TrustRecord { sponsor: Some(Box::new(peer(2))), ..plain.clone() };
    let encoded = |record: &TrustRecord| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    };
    let bytes = encoded(&record);
    assert_eq!(hex(&bytes), include_str!("golden/trust_record_sponsored.hex").trim());
    assert_eq!(TrustRecord::decode(&peer(5), &bytes), Ok(record));
    assert_eq!(&bytes[33..], encoded(&plain));
    for cut in 0..bytes.len() {
        assert!(TrustRecord::decode(&peer(5), &bytes[..cut]).is_err(), "cut at {cut}");
    }
}

fn everything(node: &Node) -> Vec<(NetKey, NetRecord)> {
    let mut all: Vec<_> =
        node.networks.store().walk().flatten().map(|(key, record)| (key, NetRecord::clone(&record))).collect();
    all.sort_by_key(|(key, _)| *key);
    all
}

#[test]
fn everything_survives_a_restart() {
    let node = full();
    node.is_told(5, Kind::Grant, 1, None, NOON);
    let (before, held) = (everything(&node), node.networks.members().expulsions(&network(1)));
    let standings: Vec<_> = (0..9).map(|member| node.standing(member, NOON)).collect();
    let (trust, known) = (node.book.record(&peer(5)).unwrap(), node.networks.members().known(&network(1)));
    let node = node.reopened();
    assert_eq!(everything(&node), before);
    assert_eq!(node.networks.members().expulsions(&network(1)), held);
    assert_eq!((0..9).map(|member| node.standing(member, NOON)).collect::<Vec<_>>(), standings);
    assert_eq!(node.networks.members().known(&network(1)), known);
    assert_eq!(node.networks.members().networks()[0].1.name, name("lab"));
    assert_eq!(node.book.record(&peer(5)).unwrap().history, trust.history);
    node.networks.hold_authority(authority(1));
    assert_eq!(node.networks.expel(network(1), peer(5), NOON.plus(DAY)).unwrap().affected, [peer(5)]);
}

/// A directory of an older program has no such file. One that the floor knows of is not made anew.
#[test]
fn the_file_is_made_only_where_nothing_was_acknowledged() {
    let mut disk = SimDisk::default();
    let opened = open_or_make::<NetRecord, _>(&mut disk, &site(), &Floor::default()).unwrap();
    assert_eq!(opened.report.file, FileKind::Invites);
    assert!(open_or_make::<NetRecord, _>(&mut disk, &site(), &Floor::default()).is_ok());
    let mut disk = SimDisk::default();
    let floor = Floor { invites: Revision(1), ..Floor::default() };
    let missing = open_or_make::<NetRecord, _>(&mut disk, &site(), &floor).err();
    assert!(matches!(missing, Some(StoreError::Damaged { fault: DamageFault::Missing, .. })));
}
