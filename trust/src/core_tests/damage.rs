//! Torn or damaged: which is which.

use std::collections::BTreeMap;

use crate::error::{DamageFault, DiskErrorKind, StoreError};
use crate::floor::Floor;
use crate::record::{FileKind, Revision};
use crate::recover::{create, open, open_or_begin_anew};
use crate::salvage::{check, salvage};
use crate::sim::{Blob, RIG_OWNER, Rig, RigBlob, SMALL, SimClock, SimDisk, rig_site};

/// A clean file of five batches, where each begins, and its floor.
fn files() -> (BTreeMap<String, Vec<u8>>, Vec<usize>) {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let mut begins = Vec::new();
    for key in 0..5 {
        begins.push(128 + 64 + 8 + 32 + key as usize * (96 + 15 + 20));
        rig.put(key, &[7; 20]);
        rig.step();
    }
    rig.stop();
    let content = |name: &str| (name.to_owned(), disk.content(name).unwrap());
    (BTreeMap::from([content("trust.hf"), content("floor")]), begins)
}

fn with(change: impl FnOnce(&mut Vec<u8>)) -> BTreeMap<String, Vec<u8>> {
    let (mut files, _) = files();
    change(files.get_mut("trust.hf").unwrap());
    files
}

fn outcome(files: BTreeMap<String, Vec<u8>>) -> (Result<(Revision, u64), DamageFault>, bool) {
    let disk = SimDisk::of(files.clone(), 512);
    let outcome = match Rig::open(disk.clone(), 2, SMALL) {
        Ok(rig) => Ok((rig.report.revision, rig.report.torn_bytes)),
        Err(StoreError::Damaged { fault, .. }) => Err(fault),
        Err(error) => panic!("{error}"),
    };
    let untouched = disk.content("trust.hf").as_ref() == files.get("trust.hf");
    (outcome, untouched)
}

fn floor_at(files: &mut BTreeMap<String, Vec<u8>>, revision: u64) {
    let disk = SimDisk::default();
    Floor { trust: Revision(revision), ..Floor::default() }.write(&mut disk.clone(), &RIG_OWNER).unwrap();
    files.insert("floor".to_owned(), disk.content("floor").unwrap());
}

#[test]
fn a_torn_append_is_cut_off_if_it_was_not_acknowledged() {
    let (all, begins) = files();
    let whole = all["trust.hf"].len();
    for length in begins[4]..whole {
        let mut files = all.clone();
        files.get_mut("trust.hf").unwrap().truncate(length);
        // The floor knows that revision 5 was durable.
        let below = DamageFault::BelowFloor { floor: Revision(5), found: Revision(4) };
        assert_eq!(outcome(files.clone()), (Err(below), true));
        floor_at(&mut files, 4);
        let torn = (length - begins[4]) as u64;
        assert_eq!(outcome(files), (Ok((Revision(4), torn)), torn == 0));
    }
}

#[test]
fn a_tail_of_zeros_is_allocated_room() {
    let files = with(|bytes| bytes.resize(bytes.len() + 5_000, 0));
    assert_eq!(outcome(files), (Ok((Revision(5), 0)), true));
}

#[test]
fn a_frame_before_another_is_damage_however_it_is_spoiled() {
    let (_, begins) = files();
    for offset in [begins[2], begins[2] + 8, begins[2] + 16, begins[2] + 70, begins[2] + 120] {
        let (found, untouched) = outcome(with(|bytes| bytes[offset] ^= 1));
        assert!(matches!(found, Err(DamageFault::FrameHeader | DamageFault::FrameDigest)), "{offset}: {found:?}");
        assert!(untouched);
    }
}

#[test]
fn every_byte_of_the_header_counts() {
    for offset in 0..128 {
        let (found, untouched) = outcome(with(|bytes| bytes[offset] ^= 0x10));
        assert!(matches!(found, Err(DamageFault::BadMagic | DamageFault::HeaderChecksum)), "{offset}: {found:?}");
        assert!(untouched);
    }
}

#[test]
fn a_spoiled_last_frame_is_noticed_by_the_floor() {
    let (all, begins) = files();
    for offset in begins[4]..all["trust.hf"].len() {
        let (found, untouched) = outcome(with(|bytes| bytes[offset] ^= 0x40));
        assert!(matches!(found, Err(DamageFault::BelowFloor { .. })), "{offset}: {found:?}");
        assert!(untouched);
    }
}

#[test]
fn named_reasons() {
    let (all, begins) = files();
    let swapped = with(|bytes| {
        let (one, two) = (begins[1], begins[2]);
        let (head, tail) = bytes.split_at_mut(two);
        let length = two - one;
        head[one..].swap_with_slice(&mut tail[..length]);
    });
    assert_eq!(outcome(swapped).0, Err(DamageFault::FrameHeader));
    let mut missing = all.clone();
    missing.remove("trust.hf");
    assert_eq!(outcome(missing).0, Err(DamageFault::Missing));
    let mut no_floor = all.clone();
    no_floor.remove("floor");
    assert_eq!(outcome(no_floor).0, Err(DamageFault::Missing));
    assert_eq!(outcome(with(Vec::clear)).0, Err(DamageFault::ShortHeader));
    assert_eq!(outcome(with(|bytes| bytes.truncate(100))).0, Err(DamageFault::ShortHeader));
    assert_eq!(outcome(with(|bytes| bytes.truncate(128))).0, Err(DamageFault::Incomplete));
    assert_eq!(outcome(with(|bytes| bytes.truncate(200))).0, Err(DamageFault::FrameDigest));
    assert_eq!(outcome(with(|bytes| bytes.truncate(150))).0, Err(DamageFault::FrameHeader));
    assert_eq!(outcome(with(|bytes| bytes.resize(40 << 20, 0))).0, Err(DamageFault::TailTooLong));
}

#[test]
fn headers_of_other_files_are_named() {
    use crate::frame::FileHeader;
    let change = |f: fn(&mut FileHeader)| {
        with(|bytes| {
            let mut header = FileHeader::decode(bytes.first_chunk().unwrap()).unwrap();
            f(&mut header);
            bytes[..128].copy_from_slice(&header.encode());
        })
    };
    assert_eq!(outcome(change(|header| header.owner = [8; 32])).0, Err(DamageFault::ForeignOwner));
    assert_eq!(outcome(change(|header| header.kind = FileKind::Peers)).0, Err(DamageFault::WrongKind));
    let newer = with(|bytes| {
        bytes[8] = 2;
        let checksum = blake3::hash(&bytes[..112]);
        bytes[112..128].copy_from_slice(&checksum.as_bytes()[..16]);
    });
    assert_eq!(outcome(newer).0, Err(DamageFault::NewerVersion(2)));
}

#[test]
fn what_is_safe_to_lose_is_set_aside_and_begun_anew() {
    type Peer = Blob<2>;
    let clock = std::sync::Arc::new(SimClock::default());
    let site = rig_site(&clock, 1, SMALL);
    let disk = SimDisk::of(BTreeMap::from([("peers.hf".to_owned(), b"nonsense".to_vec())]), 512);
    let opened = open_or_begin_anew::<Peer, _>(&mut disk.clone(), &site).unwrap();
    assert_eq!(opened.report.set_aside.unwrap().0, "peers.hf.damaged-0");
    assert_eq!(disk.content("peers.hf.damaged-0").unwrap(), b"nonsense");
    assert!(open::<Peer, _>(&mut disk.clone(), &site, &Floor::default()).is_ok());
    // Trust is not: nor is a file that the disk refuses.
    let disk = SimDisk::of(BTreeMap::from([("trust.hf".to_owned(), b"nonsense".to_vec())]), 512);
    assert!(open_or_begin_anew::<RigBlob, _>(&mut disk.clone(), &site).is_err());
    assert_eq!(disk.names(), ["trust.hf"]);
}

#[test]
fn creating_never_replaces() {
    let clock = std::sync::Arc::new(SimClock::default());
    let site = rig_site(&clock, 1, SMALL);
    let (files, _) = files();
    let disk = SimDisk::of(files.clone(), 512);
    let error = create::<RigBlob, _>(&mut disk.clone(), &site).err().unwrap();
    assert!(matches!(error, StoreError::Io { error, .. } if error.kind == DiskErrorKind::Exists));
    assert_eq!(disk.content("trust.hf").unwrap(), files["trust.hf"]);
}

#[test]
fn check_tells_what_is_there_and_changes_nothing() {
    let (all, _) = files();
    let disk = SimDisk::of(all.clone(), 512);
    let floor = Floor::read(&mut disk.clone(), &RIG_OWNER).unwrap();
    let report = check::<RigBlob, _>(&mut disk.clone(), Some(&RIG_OWNER), &floor);
    assert!(report.is_ok());
    assert_eq!((report.records, report.revision), (5, Revision(5)));
    assert_eq!((report.live_bytes, report.bytes), (5 * (15 + 20), all["trust.hf"].len() as u64));
    let report = check::<RigBlob, _>(&mut disk.clone(), Some(&[1; 32]), &floor);
    assert!(matches!(report.error, Some(StoreError::Damaged { fault: DamageFault::ForeignOwner, .. })));
}

#[test]
fn salvage_reads_what_is_left() {
    let (_, begins) = files();
    let keys = |files: BTreeMap<String, Vec<u8>>| {
        let mut keys = Vec::new();
        let report = salvage(&mut SimDisk::of(files, 512), FileKind::Trust, |found| {
            keys.push((found.change.key[0], found.intact));
        });
        (keys, report.unwrap())
    };
    // A frame with a broken payload: its changes are told, but not vouched for.
    let (found, report) = keys(with(|bytes| bytes[begins[1] + 90] ^= 1));
    assert_eq!(found, [(0, true), (1, false), (2, true), (3, true), (4, true)]);
    assert_eq!((report.intact_frames, report.broken_frames, report.revision), (5, 1, Revision(5)));
    // A frame with a broken header is lost, what follows is not; nor is anything if the file's header is gone.
    let (found, _) = keys(with(|bytes| bytes[begins[1]] ^= 1));
    assert_eq!(found, [(0, true), (2, true), (3, true), (4, true)]);
    let (found, _) = keys(with(|bytes| bytes[..128].fill(0)));
    assert_eq!(found.len(), 5);
}
