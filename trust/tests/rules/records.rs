//! The bytes of records: whoever changes them breaks every data directory.

use std::net::SocketAddr;
use std::sync::Arc;

use handfast_protocol::exchange::Shown;
use handfast_protocol::statement::Signature;
use handfast_protocol::{Address, Digest, Held, Incarnation, Kind, NetworkId, Terms, UnixMillis};
use handfast_trust::sim::{SimClock, SimDisk};
use handfast_trust::trust_record::{HISTORY_MAX, Request};
use handfast_trust::{
    Actor, Cause, Drainer, Edge, EndReason, Floor, Opened, PeerRecord, Record, RecordFault, Revision, Role, Rule,
    SessionId, SessionRecord, Sessions, Site, Transition, TrustRecord, TrustState, open_or_begin_anew,
};

use crate::support::{NOON, Node, Peer, key, note, scope, shown, terms};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encoded<R: Record>(record: &R) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

/// The bytes are these, they read back as the same record, and nothing else does.
fn check<R: Record + PartialEq + std::fmt::Debug>(key: &R::Key, record: &R, golden: &str) {
    let bytes = encoded(record);
    assert_eq!(hex(&bytes), golden.trim());
    assert_eq!(R::decode(key, &bytes).as_ref(), Ok(record));
    for version in [0, 3, 255] {
        let other: Vec<u8> = [&[version], &bytes[1..]].concat();
        assert_eq!(R::decode(key, &other), Err(RecordFault::UnknownTag(u32::from(version))));
    }
    for cut in 0..bytes.len() {
        assert!(R::decode(key, &bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert!(R::decode(key, &[bytes.as_slice(), &[0]].concat()).is_err());
    let mut key_bytes = Vec::new();
    R::encode_key(key, &mut key_bytes);
    assert_eq!(R::decode_key(&key_bytes), Ok(*key));
    assert!(R::decode_key(&key_bytes[1..]).is_err());
}

fn network(number: u8) -> NetworkId {
    NetworkId::from_stored(*key(number.into()).peer_id().as_bytes())
}

fn source() -> Option<Address> {
    Some(Address::from(SocketAddr::from(([192, 0, 2, 1], 4433))))
}

fn edge(kind: Kind, fill: u8) -> Edge {
    let terms = Terms {
        kind,
        epoch: 0x0102_0304_0506_0708,
        issued_at: UnixMillis(1_700_000_000_000),
        expires_at: Some(UnixMillis(1_800_000_000_000)),
        scope: Some(scope(&["backup", "chat"])),
        network: Some(network(fill)),
        note: note("a note"),
    };
    Edge {
        terms,
        signature: Signature([fill; 64]),
        digest: Digest([fill; 32]),
        stored_at: UnixMillis(1_700_000_000_001),
        expired: fill == 1,
        equivocal: fill == 2,
    }
}

/// Every field is set, every actor and every cause occurs.
fn full() -> TrustRecord {
    let causes = [
        Cause::Granted,
        Cause::Revoked,
        Cause::Rejected,
        Cause::Blocked,
        Cause::Unblocked,
        Cause::TheyGranted,
        Cause::TheyRevoked,
        Cause::Expired,
        Cause::Restored,
        Cause::Evicted,
    ];
    let actors = [
        Actor::Operator,
        Actor::Peer,
        Actor::Rule(Rule::Allow),
        Actor::Rule(Rule::AcceptAll),
        Actor::Rule(Rule::Network(network(6))),
        Actor::Clock,
        Actor::Caps,
    ];
    let transition = |number: usize| Transition {
        at: UnixMillis(1_700_000_000_000 + number as u64),
        cause: causes[number % causes.len()],
        actor: actors[number % actors.len()],
        revision: Revision(number as u64),
        from: TrustState::ALL[number % 7],
        to: TrustState::ALL[(number + 1) % 7],
        digest: number.is_multiple_of(2).then_some(Digest([number as u8; 32])),
    };
    TrustRecord {
        ours: Some(edge(Kind::Grant, 1)),
        theirs: Some(edge(Kind::Revoke, 2)),
        blocked: true,
        alias: Some(note("bob")),
        delivered: Some(Held { epoch: 3, digest: Digest([3; 32]) }),
        proven: 4,
        rule: Some(Rule::Network(network(5))),
        request: Some(Request { received_at: UnixMillis(7), source: source(), count: 8 }),
        equivocations: 9,
        history: (0..causes.len()).map(transition).collect(),
        sponsor: None,
        edges_at: Revision::ZERO,
        changed_at: Revision::ZERO,
    }
}

#[test]
fn a_trust_record_has_these_bytes() {
    check(&key(1).peer_id(), &full(), include_str!("golden/trust_record.hex"));
    check(&key(1).peer_id(), &TrustRecord::default(), include_str!("golden/trust_record_empty.hex"));
}

#[test]
fn a_peer_record_has_these_bytes() {
    let record = PeerRecord {
        typed: Some("host.example:4433".to_owned()),
        signed: vec![source().unwrap(), Address::from("[2001:db8::1]:1".parse::<SocketAddr>().unwrap())],
        signed_epoch: 5,
        observed: source(),
        last_seen: Some(UnixMillis(6)),
        evidence: None,
    };
    check(&key(1).peer_id(), &record, include_str!("golden/peer_record.hex"));
}

#[test]
fn session_records_have_these_bytes() {
    let site = Site::new([7; 32], [3; 32], Arc::new(SimClock::default()));
    let mut disk = SimDisk::default();
    let Opened { store, log, .. } = open_or_begin_anew::<SessionRecord, _>(&mut disk, &site).unwrap();
    let mut drainer = Drainer::new(disk, &site, Floor::default());
    drainer.add(log);
    let (sessions, ..) = Sessions::open(store, Incarnation([1; 16]), UnixMillis(1));
    let id = SessionId([4; 16]);
    let only = |sessions: &Sessions| SessionRecord::clone(&sessions.list()[0].1);
    sessions.begin(id, key(1).peer_id(), Role::Listener, source().unwrap(), UnixMillis(2));
    check(&id, &only(&sessions), include_str!("golden/session_active.hex"));
    sessions.end(id, EndReason::RevokedByPeer, UnixMillis(3));
    check(&id, &only(&sessions), include_str!("golden/session_closed.hex"));
}

#[test]
fn revisions_of_a_run_are_not_stored() {
    let record = TrustRecord { edges_at: Revision(5), changed_at: Revision(6), ..full() };
    assert_eq!(encoded(&record), encoded(&full()));
    assert_eq!(TrustRecord::decode(&key(1).peer_id(), &encoded(&record)), Ok(full()));
}

/// What the disk gives back after a restart is what memory held.
#[test]
fn records_survive_a_restart() {
    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust_for(&peer, 10, NOON);
    node.hears(&peer, &peer.grants_for(5, 1_000), NOON);
    node.hears(&peer, &peer.says(Terms { note: note("x"), ..terms(Kind::Grant, 5) }), NOON);
    node.book.expire(NOON.plus(20));
    let answered = Shown { holds: node.record(&peer).ours.as_ref().map(Edge::held), ..shown(None, None) };
    node.book.merge(peer.id(), &answered, None, NOON);
    let before = node.record(&peer);
    let node = node.reopened();
    let expected = TrustRecord { edges_at: Revision::ZERO, changed_at: Revision::ZERO, ..TrustRecord::clone(&before) };
    assert_eq!(*node.record(&peer), expected);
}

/// The largest record that the rules can make, and the usual one. A million of the latter is what a node must hold.
#[test]
fn records_are_as_large_as_documented() {
    let largest = |edge: Edge| {
        let name = |number: usize| format!("{number}{}", "x".repeat(31));
        let names: Vec<String> = (0..8).map(name).collect();
        let scope = Some(scope(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        Edge { terms: Terms { scope, note: note(&"n".repeat(256)), ..edge.terms }, ..edge }
    };
    let full = full();
    let transition =
        Transition { actor: Actor::Rule(Rule::Network(network(6))), digest: Some(Digest([1; 32])), ..full.history[0] };
    let record = TrustRecord {
        ours: full.ours.clone().map(largest),
        theirs: full.theirs.clone().map(largest),
        alias: Some(note(&"n".repeat(256))),
        history: vec![transition; HISTORY_MAX],
        ..full
    };
    assert_eq!(encoded(&record).len(), LARGEST_BYTES);
    assert_eq!(TrustRecord::decode(&key(1).peer_id(), &encoded(&record)), Ok(record));

    let (node, peer) = (Node::plain(), Peer::new(1));
    node.trust(&peer, NOON);
    node.hears(&peer, &peer.grants(5), NOON);
    assert_eq!(encoded(&*node.record(&peer)).len(), USUAL_BYTES);
    // On the heap beside it are the transitions, no more than there are, and what notes and scopes hold.
    assert_eq!((size_of::<TrustRecord>(), size_of::<Transition>()), (MEMORY_BYTES, TRANSITION_BYTES));
    let history = &node.record(&peer).history;
    assert_eq!((history.len(), history.capacity()), (2, 2));
}

/// Two statements with 8 services and full notes, an alias, 16 transitions.
const LARGEST_BYTES: usize = 3_537;
/// Two plain statements and two transitions.
const USUAL_BYTES: usize = 432;
/// In memory, of the record itself: whoever makes it larger pays a million times.
const MEMORY_BYTES: usize = 624;
const TRANSITION_BYTES: usize = 88;
