//! Every operation of the disk fails, once and for ever, in every way: nothing that was acknowledged is lost, nothing
//! is acknowledged that is not there, and durability catches up when the disk works again (ACK, EARLY, LIVE).

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "what was swept is part of the result")]

mod core_support;

use std::collections::BTreeMap;
use std::time::Duration;

use handfast_trust::sim::{Fault, FaultPlan, RIG_OWNER, Rig, SMALL, SimDisk};
use handfast_trust::{Clock as _, DiskErrorKind, Floor, Revision, StoreError, Tuning, open, remove_leftovers};

/// Within this much time after the fault has ended everything is durable.
const CATCH_UP: Duration = Duration::from_secs(5);

const KINDS: [DiskErrorKind; 6] = [
    DiskErrorKind::Io,
    DiskErrorKind::NoSpace,
    DiskErrorKind::Quota,
    DiskErrorKind::ReadOnly,
    DiskErrorKind::Interrupted,
    DiskErrorKind::Descriptors,
];

fn faults() -> impl Iterator<Item = Fault> {
    let errors = KINDS.into_iter().flat_map(|kind| [Fault::Error(kind), Fault::ErrorAfter(kind)]);
    errors.chain([Fault::Short])
}

/// What a run does. Every step is followed by a look at what is acknowledged.
type Phase = fn(&mut Rig<SimDisk>, &mut dyn FnMut(&mut Rig<SimDisk>));

fn normal(rig: &mut Rig<SimDisk>, look: &mut dyn FnMut(&mut Rig<SimDisk>)) {
    for number in 0..8_u64 {
        rig.put(number % 3, &[1; 90]);
        rig.put(10 + number, &[2; 30]);
        rig.remove(9 + number);
        rig.step();
        look(rig);
        rig.clock.advance(Duration::from_millis(400));
    }
}

fn checkpoint(rig: &mut Rig<SimDisk>, look: &mut dyn FnMut(&mut Rig<SimDisk>)) {
    for number in 0..36_u64 {
        rig.put(number % 2, &[3; 60]);
        rig.step();
        look(rig);
        rig.clock.advance(Duration::from_millis(100));
    }
}

struct Swept {
    runs: u64,
    failed: u64,
}

/// Runs a phase with a fault at every operation in turn.
fn sweep(phase: Phase, count: u64) -> Swept {
    let mut swept = Swept { runs: 0, failed: 0 };
    let operations = {
        let disk = SimDisk::default();
        let mut rig = Rig::on(&disk);
        let begin = disk.operations();
        phase(&mut rig, &mut |_| ());
        rig.settle(CATCH_UP);
        disk.operations() - begin
    };
    for fault in faults() {
        for operation in 0..operations {
            let disk = SimDisk::default();
            let mut rig = Rig::on(&disk);
            let from = disk.operations() + operation;
            disk.set_faults(Some(FaultPlan { from, count, fault, only: None }));
            // States as they were when they were acknowledged, to compare with what is found.
            let mut acknowledged = Revision::ZERO;
            phase(&mut rig, &mut |rig| {
                let durable = rig.store.durable().current();
                assert!(durable >= acknowledged && durable <= rig.store.revision());
                acknowledged = durable;
                // A power cut at this moment takes nothing that was acknowledged.
                let files = disk.crash_point().image(|_| false);
                assert!(reached(files) >= durable, "{fault:?} at {operation}");
            });
            swept.runs += 1;
            swept.failed += u64::from(rig.drainer.health().snapshot().last_error.is_some());
            mend_and_compare(&disk, &mut rig, &format!("{fault:?} at {operation}, {count} times"));
        }
    }
    swept
}

/// The revision that these files reach.
fn reached(files: BTreeMap<String, Vec<u8>>) -> Revision {
    Rig::open(SimDisk::of(files, 512), 4, SMALL).unwrap().store.revision()
}

fn mend_and_compare(disk: &SimDisk, rig: &mut Rig<SimDisk>, what: &str) {
    disk.set_faults(None);
    rig.settle(CATCH_UP);
    assert_eq!(rig.store.durable().current(), rig.store.revision(), "{what}: it has not caught up");
    let degraded = rig.drainer.health().snapshot().degraded(rig.clock.now());
    assert_eq!(degraded, None, "{what}: health has not recovered");
    let floor = Floor::read(&mut disk.clone(), &RIG_OWNER).unwrap();
    assert_eq!(floor.trust, rig.store.durable().current(), "{what}: the floor has not caught up");
    let files = disk.crash_point().image(|_| false);
    let found = Rig::open(SimDisk::of(files, 512), 4, SMALL).unwrap();
    assert_eq!(found.records(), rig.records(), "{what}");
    rig.stop();
    assert!(rig.drainer.report().unsaved.is_empty(), "{what}");
}

fn report(name: &str, swept: &Swept) {
    println!("{name}: {} runs, a fault was met in {}", swept.runs, swept.failed);
    assert!(swept.failed > 0);
}

#[test]
fn every_operation_fails_once() {
    report("normal running, once", &sweep(normal, 1));
    report("checkpoint, once", &sweep(checkpoint, 1));
}

#[test]
fn every_operation_fails_for_ever() {
    report("normal running, for ever", &sweep(normal, u64::MAX));
    report("checkpoint, for ever", &sweep(checkpoint, u64::MAX));
}

/// How a run has left its files.
enum Left {
    /// By a stop.
    Stopped,
    /// By a power cut that tore an append, while the floor was in use.
    Torn,
    /// By a power cut that tore the first append after a stop, before the floor was written again.
    TornAtRest,
}

/// What a power cut leaves of an append whose sync fails: every other sector of its frame.
fn torn(disk: &SimDisk, rig: &mut Rig<SimDisk>) -> std::collections::BTreeMap<String, Vec<u8>> {
    rig.put(2, &[5; 1_500]);
    let plan = FaultPlan { from: 0, count: 1, fault: Fault::Error(DiskErrorKind::Io), only: None };
    disk.set_faults(Some(FaultPlan { only: Some(handfast_trust::DiskOp::Sync), ..plan }));
    rig.step();
    disk.crash_point().image(|effect| effect % 2 == 1)
}

#[test]
fn recovery_fails_at_every_operation_and_succeeds_afterwards() {
    let mut runs = 0;
    for left in [Left::Stopped, Left::Torn, Left::TornAtRest] {
        let disk = SimDisk::default();
        let mut rig = Rig::on(&disk);
        normal(&mut rig, &mut |_| ());
        rig.put(1, &[4; 1_500]);
        let mut expected = rig.records();
        let files = match left {
            Left::Stopped => {
                rig.stop();
                disk.crash_point().image(|_| false)
            }
            Left::Torn => {
                rig.settle(CATCH_UP);
                expected = rig.records();
                torn(&disk, &mut rig)
            }
            Left::TornAtRest => {
                rig.stop();
                let disk = SimDisk::of(disk.crash_point().image(|_| false), 512);
                let mut rig = Rig::open(disk.clone(), 7, SMALL).unwrap();
                torn(&disk, &mut rig)
            }
        };
        for fault in faults() {
            for count in [1, u64::MAX] {
                for operation in 0.. {
                    let disk = SimDisk::of(files.clone(), 512);
                    disk.set_faults(Some(FaultPlan { from: operation, count, fault, only: None }));
                    let outcome = Rig::open(disk.clone(), 5, SMALL);
                    let ended = disk.operations() <= operation;
                    runs += 1;
                    match outcome {
                        Ok(rig) => assert_eq!(rig.records(), expected, "{fault:?} at {operation}"),
                        Err(StoreError::Io { .. }) => {}
                        Err(error) => panic!("{fault:?} at {operation}: {error}"),
                    }
                    // Nothing was lost by trying, nor by a power cut after it.
                    disk.set_faults(None);
                    let cut = SimDisk::of(disk.crash_point().image(|_| false), 512);
                    for mut again in [disk, cut] {
                        remove_leftovers(&mut again).unwrap();
                        let mut rig = Rig::open(again, 6, SMALL).unwrap();
                        assert_eq!(rig.records(), expected, "{fault:?} at {operation}");
                        rig.put(1, b"after");
                        rig.settle(CATCH_UP);
                        assert_eq!(rig.store.durable().current(), rig.store.revision());
                    }
                    if ended {
                        break;
                    }
                }
            }
        }
    }
    println!("recovery: {runs} runs");
}

#[test]
fn changes_made_while_the_disk_is_dead_are_in_force_and_follow_later() {
    for fault in faults().filter(|fault| *fault != Fault::Short) {
        let disk = SimDisk::default();
        let mut rig = Rig::on(&disk);
        rig.put(1, b"granted");
        rig.step();
        disk.set_faults(Some(FaultPlan { from: 0, count: u64::MAX, fault, only: None }));
        let revoked = rig.remove(1);
        for _ in 0..40 {
            rig.settle(Duration::from_millis(500));
        }
        assert!(rig.store.read(|table| table.get(&1).is_none()), "in force");
        assert!(rig.store.durable().current() < revoked, "{fault:?}: not durable");
        assert!(rig.drainer.health().snapshot().degraded(rig.clock.now()).is_some());
        mend_and_compare(&disk, &mut rig, &format!("{fault:?}"));
    }
}

#[test]
fn a_dead_disk_is_not_hammered() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    let fault = Fault::Error(DiskErrorKind::Interrupted);
    disk.set_faults(Some(FaultPlan { from: 0, count: u64::MAX, fault, only: None }));
    let before = disk.operations();
    rig.settle(Duration::from_secs(600));
    let attempts = u64::from(rig.drainer.health().snapshot().failures_in_a_row);
    assert!((150..2_000).contains(&attempts), "{attempts} attempts in ten minutes");
    assert!(disk.operations() - before < 60_000);
}

#[test]
fn tuning_changes_sizes_and_not_outcomes() {
    // The same changes through frames, through checkpoints, and with room allocated ahead or not.
    let outcome = |tuning: Tuning| {
        let disk = SimDisk::default();
        let mut rig = Rig::create(disk.clone(), 1, tuning).unwrap();
        normal(&mut rig, &mut |_| ());
        checkpoint(&mut rig, &mut |_| ());
        rig.stop();
        let mut disk = disk;
        let clock = std::sync::Arc::new(handfast_trust::sim::SimClock::default());
        let site = handfast_trust::sim::rig_site(&clock, 3, tuning);
        let floor = Floor::read(&mut disk, &RIG_OWNER).unwrap();
        open::<handfast_trust::sim::RigBlob, _>(&mut disk, &site, &floor).unwrap().report.revision
    };
    let small = outcome(SMALL);
    assert_eq!(outcome(Tuning::default()), small);
    assert_eq!(outcome(Tuning { batch_bytes_max: 64, ..SMALL }), small);
    assert_eq!(outcome(Tuning { allocation_bytes: 0, checkpoint_bytes_min: 0, ..SMALL }), small);
}
