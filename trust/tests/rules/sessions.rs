//! Session records and peer records on a simulated disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::{Address, AddressRecord, Incarnation, UnixMillis};
use handfast_trust::peers::{self, DIAL_ADDRESSES_MAX, TYPED_BYTES_MAX};
use handfast_trust::sessions::CLOSED_MAX;
use handfast_trust::sim::{SimClock, SimDisk};
use handfast_trust::{
    Drainer, EndReason, Monotonic, Next, Opened, PeerRecord, Record, Role, SessionId, SessionRecord, SessionState,
    Sessions, Site, open_or_begin_anew,
};

use crate::support::{NOON, Peer, key};

struct Disk {
    disk: SimDisk,
    site: Site,
}

impl Disk {
    fn new() -> Disk {
        Disk { disk: SimDisk::default(), site: Site::new([7; 32], [3; 32], Arc::new(SimClock::default())) }
    }

    fn open<R: Record>(&mut self) -> (handfast_trust::Store<R>, Drainer<SimDisk>) {
        // The floor belongs to trust; a session file does without.
        handfast_trust::Floor::default().write(&mut self.disk, self.site.owner()).unwrap();
        let Opened { store, log, .. } = open_or_begin_anew::<R, _>(&mut self.disk, &self.site).unwrap();
        let mut drainer = Drainer::new(self.disk.clone(), &self.site, handfast_trust::Floor::default());
        drainer.add(log);
        (store, drainer)
    }
}

fn stop(mut drainer: Drainer<SimDisk>) {
    drainer.stop_switch().stop();
    while drainer.step(Monotonic::default()) != Next::Stopped {}
}

fn id(number: u64) -> SessionId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_le_bytes());
    SessionId(id)
}

const RUN: Incarnation = Incarnation([1; 16]);
const NEXT_RUN: Incarnation = Incarnation([2; 16]);

fn remote() -> Address {
    Address::from(SocketAddr::from(([192, 0, 2, 1], 9)))
}

fn begin(sessions: &Sessions, number: u64) {
    sessions.begin(id(number), key(1).peer_id(), Role::Dialer, remote(), NOON);
}

fn state(sessions: &Sessions, number: u64) -> SessionState {
    let record = sessions.list().into_iter().find(|(session, _)| *session == id(number)).unwrap().1;
    record.state
}

#[test]
fn sessions_of_a_dead_run_are_orphaned_once_in_one_batch() {
    let mut disk = Disk::new();
    let (store, mut drainer) = disk.open();
    let (sessions, orphans, _) = Sessions::open(store, RUN, NOON);
    assert_eq!(orphans, 0);
    (1..=5).for_each(|number| begin(&sessions, number));
    sessions.end(id(5), EndReason::PeerClosed, NOON.plus(1));
    // The run dies here, with everything on the disk.
    for second in [60, 120] {
        drainer.step(Monotonic(Duration::from_secs(second)));
    }
    assert_eq!(sessions.durable().current(), sessions.revision());
    drop((sessions, drainer));

    let (store, mut drainer) = disk.open();
    let (sessions, orphans, revision) = Sessions::open(store, NEXT_RUN, NOON.plus(9));
    assert_eq!(orphans, 4);
    for number in 1..=4 {
        assert_eq!(state(&sessions, number), SessionState::Closed { reason: EndReason::Orphaned, at: NOON.plus(9) });
    }
    assert_eq!(state(&sessions, 5), SessionState::Closed { reason: EndReason::PeerClosed, at: NOON.plus(1) });
    // Somebody waits: one step makes all of it durable.
    assert!(sessions.durable().current() < revision);
    let _waits = sessions.durable().reached(revision);
    drainer.step(Monotonic::default());
    assert_eq!(sessions.durable().current(), revision);
    drop((sessions, drainer));

    let (store, _drainer) = disk.open();
    let (sessions, orphans, again) = Sessions::open(store, Incarnation([3; 16]), NOON.plus(99));
    assert_eq!((orphans, again), (0, revision));
    assert_eq!(state(&sessions, 1), SessionState::Closed { reason: EndReason::Orphaned, at: NOON.plus(9) });
}

#[test]
fn an_end_that_is_recorded_wins() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open();
    let (sessions, ..) = Sessions::open(store, RUN, NOON);
    begin(&sessions, 1);
    let revision = sessions.end(id(1), EndReason::Revoked, NOON.plus(1));
    for reason in [EndReason::Lost, EndReason::Stopped] {
        assert_eq!(sessions.end(id(1), reason, NOON.plus(2)), revision);
    }
    // Nor does a beginning that comes late undo it.
    begin(&sessions, 1);
    assert_eq!(state(&sessions, 1), SessionState::Closed { reason: EndReason::Revoked, at: NOON.plus(1) });
    sessions.end(id(2), EndReason::Lost, NOON);
    assert_eq!(sessions.list().len(), 1, "what never began does not end");
    stop(drainer);
}

#[test]
fn ten_thousand_closed_sessions_are_kept_and_the_oldest_go_first() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open();
    let (sessions, ..) = Sessions::open(store, RUN, NOON);
    begin(&sessions, 0);
    for number in 1..=CLOSED_MAX as u64 + 10 {
        begin(&sessions, number);
        sessions.end(id(number), EndReason::PeerClosed, NOON.plus(number));
    }
    let kept = |sessions: &Sessions| {
        let mut ids: Vec<SessionId> = sessions.list().into_iter().map(|(id, _)| id).collect();
        ids.sort_by_key(|id| u64::from_le_bytes(*id.0.first_chunk().unwrap()));
        ids
    };
    let expected: Vec<SessionId> = [0].into_iter().chain(11..=CLOSED_MAX as u64 + 10).map(id).collect();
    assert_eq!(kept(&sessions), expected, "and the one that is active");
    stop(drainer);
    drop(sessions);

    let (store, drainer) = disk.open();
    let (sessions, orphans, _) = Sessions::open(store, NEXT_RUN, NOON);
    assert_eq!((orphans, sessions.list().len()), (1, CLOSED_MAX), "the orphan took the place of the oldest");
    assert!(!kept(&sessions).contains(&id(11)));
    begin(&sessions, 90_000);
    sessions.end(id(90_000), EndReason::Lost, UnixMillis(1));
    assert_eq!(sessions.list().len(), CLOSED_MAX);
    assert!(!kept(&sessions).contains(&id(12)));
    stop(drainer);
}

fn signed(epoch: u64, hosts: &[&str]) -> handfast_protocol::SignedAddressRecord {
    let addresses = hosts.iter().map(|host| Address::from(host.parse::<SocketAddr>().unwrap())).collect();
    AddressRecord { peer: key(1).peer_id(), addresses, epoch, expires_at: NOON }.sign(&key(1)).unwrap()
}

#[test]
fn a_peers_own_addresses_are_taken_if_newer_and_dialable() {
    let mut record = PeerRecord::default();
    assert!(record.take_signed(&signed(2, &["192.0.2.1:1", "0.0.0.0:1", "127.0.0.1:1", "[ff02::1]:1"]), false));
    assert_eq!(record.signed, [Address::from(SocketAddr::from(([192, 0, 2, 1], 1)))]);
    assert!(!record.take_signed(&signed(2, &[]), false) && !record.take_signed(&signed(1, &[]), false));
    assert!(record.take_signed(&signed(3, &["127.0.0.1:1"]), true));
    assert_eq!(record.signed, [Address::from(SocketAddr::from(([127, 0, 0, 1], 1)))]);
}

#[test]
fn an_observed_address_displaces_nothing() {
    let mut record = PeerRecord { observed: Some(remote()), ..PeerRecord::default() };
    assert_eq!(record.dialable(), [remote()]);
    record.take_signed(&signed(1, &["192.0.2.5:1", "192.0.2.1:9"]), false);
    assert_eq!(record.dialable().len(), 2, "each once");
    let hosts: Vec<String> = (1..=8).map(|host| format!("198.51.100.{host}:1")).collect();
    record.take_signed(&signed(2, &hosts.iter().map(String::as_str).collect::<Vec<_>>()), false);
    assert_eq!(record.dialable(), record.signed[..DIAL_ADDRESSES_MAX]);
}

#[test]
fn two_changes_of_one_peer_at_once_are_both_kept() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open::<PeerRecord>();
    let peer = Peer::new(1).id();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    peers::update(&store, peer, |record| record.signed_epoch += 1);
                }
            });
        }
    });
    assert_eq!(store.read(|table| table.get(&peer).unwrap().signed_epoch), 2_000);
    stop(drainer);
}

#[test]
fn a_typed_address_is_bounded_and_a_change_of_nothing_stores_nothing() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open::<PeerRecord>();
    let peer = Peer::new(1).id();
    peers::update(&store, peer, |_| {});
    assert_eq!(store.revision().0, 0);
    let typed = |text: String| {
        peers::update(&store, peer, |record| record.typed = Some(text.clone()));
        store.read(|table| table.get(&peer).and_then(|record| record.typed.clone()))
    };
    assert_eq!(typed("host:1".into()).as_deref(), Some("host:1"));
    assert_eq!(typed("x".repeat(TYPED_BYTES_MAX + 1)).as_deref(), Some("host:1"));
    assert_eq!(typed("x".repeat(TYPED_BYTES_MAX)).map(|text| text.len()), Some(TYPED_BYTES_MAX));
    stop(drainer);
    // What was stored can be read: a text without bound could not.
    let (store, drainer) = disk.open::<PeerRecord>();
    assert_eq!(store.read(|table| table.len()), 1);
    stop(drainer);
}

#[test]
fn a_session_record_tells_what_it_was() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open::<SessionRecord>();
    let (sessions, ..) = Sessions::open(store, RUN, NOON);
    begin(&sessions, 1);
    let (_, record) = sessions.list().remove(0);
    assert_eq!((record.peer(), record.role, record.remote), (key(1).peer_id(), Role::Dialer, remote()));
    assert!(record.is_active() && record.incarnation == RUN && record.opened_at == NOON);
    stop(drainer);
}

#[test]
fn a_full_address_book_drops_who_was_useful_least_recently_and_keeps_whom_it_must() {
    let mut disk = Disk::new();
    let (store, drainer) = disk.open::<PeerRecord>();
    let ids: Vec<_> = (0..40).map(|number| Peer::new(number).id()).collect();
    for (age, peer) in ids.iter().enumerate() {
        let seen = (age >= 10).then(|| NOON.plus(age as u64));
        peers::update(&store, *peer, |record| {
            record.observed = Some(remote());
            record.last_seen = seen;
        });
    }
    let has = |age: usize| store.read(|table| table.get(&ids[age]).is_some());
    assert_eq!(peers::trim(&store, 40, |_| false), 0, "there is room");
    // Eight are too many, and a sixteenth of 32 goes too: nine of the ten that were never met, and the one met longest ago.
    assert_eq!(peers::trim(&store, 32, |peer| *peer == ids[3]), 10);
    assert!(has(3));
    assert_eq!((0..10).filter(|age| has(*age)).count(), 1);
    assert!(!has(10) && (11..40).all(has));
    // However full it is: who must be kept stays.
    assert_eq!(peers::trim(&store, 1, |_| true), 0);
    stop(drainer);
}

#[test]
fn what_a_peer_signed_comes_back_whole_and_is_passed_on_until_it_ends() {
    let mut record = PeerRecord { last_seen: Some(NOON), ..PeerRecord::default() };
    let evidence = signed(5, &["192.0.2.5:1", "127.0.0.1:1"]);
    record.take_signed(&evidence, false);
    let peer = evidence.record.peer;
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(PeerRecord::decode(&peer, &bytes), Ok(record.clone()));
    assert!(PeerRecord::decode(&Peer::new(9).id(), &bytes).is_err(), "it is of its own peer");
    let ends = evidence.record.expires_at;
    assert_eq!(peers::to_relay(&record, UnixMillis(ends.0 - 1)), Some(&evidence));
    assert_eq!(peers::to_relay(&record, ends), None);
    assert_eq!(record.claims().len(), 1);
    record.observed = Some(record.signed[0]);
    assert_eq!(record.claims(), [], "somebody was there");
}
