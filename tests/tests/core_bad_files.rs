//! Files that are not what they were: never a panic, never a wrong acceptance, never a byte changed by looking (CLOSED,
//! TOTAL).

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "what was tried is part of the result")]

use std::collections::BTreeMap;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use handfast_trust::sim::{Rig, SMALL, SimDisk};
use handfast_trust::{DamageFault, FileKind, RealDir, StoreError, Tuning, salvage};

type Files = BTreeMap<String, Vec<u8>>;
type Records = Vec<(u64, Vec<u8>)>;

/// About 4 KiB: a snapshot of two pieces and a few batches.
struct Generations {
    older: Files,
    newer: Files,
    records: Records,
}

fn content(disk: &SimDisk) -> Files {
    disk.names().into_iter().map(|name| (name.clone(), disk.content(&name).unwrap())).collect()
}

fn generations() -> Generations {
    let disk = SimDisk::default();
    let tuning = Tuning { checkpoint_bytes_min: 4_500, allocation_bytes: 0, ..SMALL };
    let mut rig = Rig::create(disk.clone(), 1, tuning).unwrap();
    let fill = |rig: &mut Rig<SimDisk>, from: u64| {
        for number in 0..40 {
            rig.put(number % 7, &[u8::try_from(from + number).unwrap(); 150]);
            rig.step();
        }
        // Four kibibytes, as near as it gets.
        while disk.content("trust.hf").unwrap().len() < 3_900 {
            rig.put(5, &[9; 100]);
            rig.step();
        }
    };
    fill(&mut rig, 0);
    rig.stop();
    let older = content(&disk);
    let mut rig = Rig::open(disk.clone(), 2, tuning).unwrap();
    fill(&mut rig, 100);
    rig.stop();
    assert!(rig.drainer.health().snapshot().checkpoints > 0, "the generations are different files");
    Generations { older, newer: content(&disk), records: rig.records() }
}

#[derive(Default, Debug)]
struct Tried {
    refused: u64,
    same: u64,
}

impl Tried {
    /// Opens it: either it is refused, with every byte left as it was, or it is what it should be.
    fn open(&mut self, files: Files, records: &Records, what: &dyn std::fmt::Debug) {
        let disk = SimDisk::of(files.clone(), 512);
        match Rig::open(disk.clone(), 3, SMALL) {
            Ok(rig) => {
                assert_eq!(rig.records(), *records, "{what:?}: accepted, and wrong");
                self.same += 1;
            }
            Err(StoreError::Damaged { .. }) => {
                assert_eq!(content(&disk), files, "{what:?}: refused, and changed");
                self.refused += 1;
            }
            Err(error) => panic!("{what:?}: {error}"),
        }
        // What is left of it can always be read.
        salvage(&mut SimDisk::of(files, 512), FileKind::Trust, |_| ()).unwrap();
    }
}

fn changed(files: &Files, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = files.clone();
    change(files.get_mut(name).unwrap());
    files
}

#[test]
fn every_flipped_bit() {
    let generations = generations();
    for name in ["trust.hf", "floor"] {
        let mut tried = Tried::default();
        for bit in 0..generations.newer[name].len() * 8 {
            let files = changed(&generations.newer, name, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            tried.open(files, &generations.records, &(name, bit));
        }
        println!("{name}: {tried:?}");
        assert_eq!(tried.same, 0, "every bit of {name} counts");
    }
}

#[test]
fn every_length() {
    let generations = generations();
    for name in ["trust.hf", "floor"] {
        let mut tried = Tried::default();
        for length in 0..generations.newer[name].len() {
            let files = changed(&generations.newer, name, |bytes| bytes.truncate(length));
            tried.open(files, &generations.records, &(name, length));
        }
        println!("{name}: {tried:?}");
        assert_eq!(tried.same, 0);
    }
}

#[test]
fn every_splice_of_two_generations() {
    let Generations { older, newer, records } = generations();
    let mut tried = Tried::default();
    let old = &older["trust.hf"];
    let blocks = newer["trust.hf"].len().div_ceil(512);
    for begin in 0..blocks {
        for end in begin + 1..=blocks {
            let files = changed(&newer, "trust.hf", |bytes| {
                for at in (begin * 512)..(end * 512).min(bytes.len()) {
                    bytes[at] = old.get(at).copied().unwrap_or(0);
                }
            });
            if files != newer {
                tried.open(files, &records, &(begin, end));
            }
        }
    }
    println!("{tried:?}");
    assert!(tried.refused > 20);
    assert_eq!(tried.same, 0);
}

#[test]
fn older_files_under_the_current_floor() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let mut generations = Vec::new();
    for number in 0..60 {
        rig.put(number % 3, &[1; 90]);
        rig.step();
        generations.push(disk.content("trust.hf").unwrap());
    }
    rig.stop();
    let current = content(&disk);
    for (number, older) in generations.iter().enumerate().take(59) {
        let files = changed(&current, "trust.hf", |bytes| bytes.clone_from(older));
        match Rig::open(SimDisk::of(files, 512), 3, SMALL).err() {
            Some(StoreError::Damaged { fault: DamageFault::BelowFloor { .. }, .. }) => {}
            other => panic!("{number}: {other:?}"),
        }
    }
}

fn real(prepare: impl FnOnce(&Path)) -> Option<StoreError> {
    let directory = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir().unwrap();
    drop(Rig::create(RealDir::open(directory.path()).unwrap(), 1, SMALL).unwrap());
    prepare(directory.path());
    Rig::open(RealDir::open(directory.path()).unwrap(), 2, SMALL).err()
}

fn replace(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("trust.hf");
    std::fs::remove_file(&path).unwrap();
    path
}

fn fault(error: Option<StoreError>) -> DamageFault {
    match error {
        Some(StoreError::Damaged { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn things_that_are_no_files() {
    assert_eq!(real(|_| ()), None);
    let link = |directory: &Path| symlink("floor", replace(directory)).unwrap();
    assert_eq!(fault(real(link)), DamageFault::NotAFile);
    assert_eq!(fault(real(|directory| std::fs::create_dir(replace(directory)).unwrap())), DamageFault::NotAFile);
    let fifo = |directory: &Path| {
        let made = std::process::Command::new("mkfifo").arg("-m").arg("600").arg(replace(directory)).status().unwrap();
        assert!(made.success());
    };
    assert_eq!(fault(real(fifo)), DamageFault::NotAFile);
    let socket = |directory: &Path| drop(std::os::unix::net::UnixListener::bind(replace(directory)).unwrap());
    assert_eq!(fault(real(socket)), DamageFault::NotAFile);
    assert_eq!(fault(real(|directory| drop(replace(directory)))), DamageFault::Missing);
}

#[test]
fn a_gibibyte_of_zeros_is_not_read() {
    // Of this thread, which is the one that reads.
    let bytes_read = || {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse::<u64>().unwrap()
    };
    let before = bytes_read();
    let gibibyte = |path: &Path, create: bool| {
        let mut options = OpenOptions::new();
        options.write(true).create(create).mode(0o600).open(path).unwrap().set_len(1 << 30).unwrap();
    };
    assert_eq!(fault(real(|directory| gibibyte(&replace(directory), true))), DamageFault::BadMagic);
    // Behind what is valid: more than any append can have allocated.
    let longer = |directory: &Path| gibibyte(&directory.join("trust.hf"), false);
    assert_eq!(fault(real(longer)), DamageFault::TailTooLong);
    let empty = |directory: &Path| drop(std::fs::File::create(directory.join("trust.hf")).unwrap());
    assert_eq!(fault(real(empty)), DamageFault::ShortHeader);
    assert!(bytes_read() - before < 8 << 20, "three files: a window of each, and no more");
}

#[test]
fn permissions_that_others_have_are_refused() {
    let error = real(|directory| {
        std::fs::set_permissions(directory.join("trust.hf"), Permissions::from_mode(0o644)).unwrap();
    });
    let Some(StoreError::Io { file: "trust.hf", error }) = error else { panic!("{error:?}") };
    assert_eq!(error.kind, handfast_trust::DiskErrorKind::Exposed);
}
