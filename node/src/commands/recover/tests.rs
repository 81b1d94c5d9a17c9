//! What survives a recovery, out of files that were damaged in the ways that matter.

use std::os::unix::fs::FileExt;

use handfast_protocol::{Kind, Note, Statement, Terms, UnixMillis};
use handfast_trust::{LockOwner, Monotonic, Next, open};

use super::*;
use crate::initialise::initialise;

struct Place {
    _outer: tempfile::TempDir,
    directory: DataDir,
    lock: DirectoryLock,
    key: SecretKey,
}

fn peer_key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// Our edge, or theirs, as `rules` would store it.
fn edge(issuer: &SecretKey, subject: PeerId, kind: Kind) -> Edge {
    let terms = Terms {
        kind,
        epoch: 5,
        issued_at: UnixMillis(1),
        expires_at: None,
        scope: None,
        network: None,
        note: Note::default(),
    };
    let statement = Statement { issuer: issuer.peer_id(), subject, terms }.sign(issuer).unwrap();
    Edge::new(&statement, UnixMillis(1))
}

fn place() -> Place {
    let outer = tempfile::tempdir().unwrap();
    let directory = DataDir::create(&outer.path().join("data")).unwrap();
    let owner = LockOwner { pid: 1, role: "test".into(), socket: None };
    let lock = DirectoryLock::try_acquire(directory.path(), &owner).unwrap();
    initialise(&directory, None, &lock).unwrap();
    let key = identity_file::load(directory.path()).unwrap();
    Place { _outer: outer, directory, lock, key }
}

impl Place {
    fn owner(&self) -> [u8; 32] {
        *self.key.peer_id().as_bytes()
    }

    fn medium(&self) -> RealDir {
        RealDir::open(self.directory.path()).unwrap()
    }

    /// Writes records, one frame each, and the floor.
    fn fill(&self, records: &[(PeerId, TrustRecord)]) {
        let clock = Arc::new(MonotonicClock::start());
        let site = Site::new(self.owner(), [7; 32], clock.clone());
        let mut medium = self.medium();
        let floor = Floor::read(&mut medium, &self.owner()).unwrap();
        let opened = open::<TrustRecord, _>(&mut medium, &site, &floor).unwrap();
        let mut drainer = Drainer::new(medium, &site, floor);
        drainer.add(opened.log);
        let mut now = Monotonic::default();
        for (peer, record) in records {
            opened.store.write(|table| table.put(*peer, record.clone(), Urgency::Critical));
            // A frame for each: also when it would be due later, for company.
            while opened.store.durable().current() < opened.store.revision() {
                match drainer.step(now) {
                    Next::At(due) => now = due,
                    Next::Now => {}
                    end => panic!("{end:?} with something to write"),
                }
            }
        }
        drainer.stop_switch().stop();
        while drainer.step(now) != Next::Stopped {}
        assert!(drainer.report().unsaved.is_empty());
    }

    fn recover(&self, keep_grants: bool) -> RecoverReply {
        recover_directory(&self.directory, keep_grants, &self.lock).unwrap()
    }

    fn records(&self) -> BTreeMap<PeerId, TrustRecord> {
        let mut medium = self.medium();
        let floor = Floor::read(&mut medium, &self.owner()).unwrap();
        assert!(check::<TrustRecord, _>(&mut medium, Some(&self.owner()), &floor).is_ok());
        Found::read(&mut medium, &self.key).unwrap().records
    }

    fn with_ours(&self, seed: u8, kind: Kind) -> (PeerId, TrustRecord) {
        let peer = peer_key(seed).peer_id();
        (peer, TrustRecord { ours: Some(edge(&self.key, peer, kind)), ..TrustRecord::default() })
    }

    /// Three records: a grant, a revoke, a block.
    fn usual(&self) -> [(PeerId, TrustRecord); 3] {
        let blocked = TrustRecord { blocked: true, ..TrustRecord::default() };
        [self.with_ours(1, Kind::Grant), self.with_ours(2, Kind::Revoke), (peer_key(3).peer_id(), blocked)]
    }

    /// Flips a bit so far behind the last place that holds these bytes.
    fn flip_after(&self, needle: &[u8], offset: usize) {
        let path = self.directory.path().join("trust.hf");
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(needle.len()).rposition(|window| window == needle).unwrap() + offset;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
    }
}

#[test]
fn what_is_not_damaged_stays_as_it_is() {
    let place = place();
    place.fill(&place.usual());
    let reply = place.recover(false);
    assert!(!reply.recovered && reply.set_aside.is_empty());
    assert_eq!(place.records().len(), 3);
}

#[test]
fn a_lost_floor_costs_grants_and_nothing_else() {
    let place = place();
    place.fill(&place.usual());
    let path = place.directory.path().join("floor");
    std::fs::remove_file(&path).unwrap();
    let reply = place.recover(false);
    assert!(reply.recovered && path.exists());
    assert_eq!(reply.kept, Kept { records: 3, revokes: 1, blocks: 1, grants: 0, refusals: 0 });
    assert_eq!(reply.dropped, Dropped { grants: 1, unproven: 0 });
    assert_eq!(reply.set_aside, ["trust.hf.damaged-3"]);
    assert!(reply.revision > 3);
    assert!(!place.directory.path().join(STAGING).exists());

    let records = place.records();
    let was_granted = &records[&peer_key(1).peer_id()];
    assert!(was_granted.ours.is_none());
    assert_eq!(was_granted.proven, 5, "the next statement must be newer than the dropped one");
    assert!(records[&peer_key(2).peer_id()].ours.as_ref().unwrap().is_revoke());
    assert!(records[&peer_key(3).peer_id()].blocked);
    // Once more: nothing is left to do.
    assert!(!place.recover(false).recovered);
}

#[test]
fn grants_stay_if_the_operator_says_so() {
    let place = place();
    place.fill(&place.usual());
    std::fs::remove_file(place.directory.path().join("floor")).unwrap();
    let reply = place.recover(true);
    assert_eq!((reply.kept.grants, reply.dropped.grants), (1, 0));
}

#[test]
fn a_revoke_in_a_broken_frame_is_kept_for_its_signature_and_a_grant_is_not() {
    let place = place();
    place.fill(&place.usual());
    for (_, record) in &place.usual()[..2] {
        // `stored_at` follows the digest of the edge: it is not signed, and the frame's digest no longer holds.
        place.flip_after(&record.ours.as_ref().unwrap().digest.0, 32);
    }
    let mut medium = place.medium();
    assert!(!check::<TrustRecord, _>(&mut medium, None, &Floor::default()).is_ok());
    let reply = place.recover(true);
    assert_eq!((reply.kept.revokes, reply.kept.grants, reply.kept.blocks), (1, 0, 1));
    let records = place.records();
    assert!(records[&peer_key(2).peer_id()].ours.as_ref().unwrap().is_revoke());
    assert!(!records.contains_key(&peer_key(1).peer_id()));
}

#[test]
fn what_nobody_signed_is_dropped() {
    let place = place();
    let (peer, mut record) = place.with_ours(2, Kind::Revoke);
    record.ours.as_mut().unwrap().signature.0[3] ^= 1;
    record.theirs = Some(edge(&peer_key(2), place.key.peer_id(), Kind::Revoke));
    place.fill(&[(peer, record)]);
    std::fs::remove_file(place.directory.path().join("floor")).unwrap();
    let reply = place.recover(false);
    assert_eq!((reply.kept.revokes, reply.kept.refusals, reply.dropped.unproven), (0, 1, 1));
}

#[test]
fn a_file_that_is_gone_begins_anew_above_the_floor() {
    let place = place();
    place.fill(&place.usual());
    std::fs::remove_file(place.directory.path().join("trust.hf")).unwrap();
    let reply = place.recover(false);
    assert!(reply.set_aside.is_empty() && reply.revision > 3);
    assert!(place.records().is_empty());
}

#[test]
fn what_is_another_nodes_is_refused() {
    let place = place();
    let other = self::place();
    std::fs::copy(other.directory.path().join("trust.hf"), place.directory.path().join("trust.hf")).unwrap();
    let refused = recover_directory(&place.directory, false, &place.lock).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Damaged);
    assert!(refused.hint.unwrap().contains("move that file away"));
}

#[test]
fn damaged_sessions_are_set_aside() {
    let place = place();
    let sessions = place.directory.path().join("sessions.hf");
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&sessions).unwrap();
    file.set_len(3).unwrap();
    std::fs::set_permissions(&sessions, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let reply = place.recover(false);
    assert_eq!((reply.recovered, reply.set_aside), (true, vec!["sessions.hf.damaged-0".to_owned()]));
}

#[test]
fn the_report_says_what_is_gone() {
    let mut reply = RecoverReply { recovered: true, ..RecoverReply::default() };
    reply.dropped.grants = 2;
    reply.unreadable_bytes = 40;
    let text = recover_text(&reply);
    for part in ["2 grants of ours", "handfast trust PEER", "40 bytes", "handfast run"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    reply.recovered = false;
    assert!(recover_text(&reply).starts_with("Nothing is damaged"));
}
