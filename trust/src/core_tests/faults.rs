//! The disk fails: nothing is lost, nothing is confirmed that is not there, and all is well when it works again.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use crate::error::{DiskErrorKind, DiskOp};
use crate::medium::Clock as _;
use crate::record::Revision;
use crate::sim::{Blob, Fault, FaultPlan, Rig, SMALL, SimDisk};
use crate::table::Urgency;
use crate::{DegradedReason, Next, Reached};

const FIVE_SECONDS: Duration = Duration::from_secs(5);

fn fail(only: DiskOp, count: u64) -> Option<FaultPlan> {
    Some(FaultPlan { from: 0, count, fault: Fault::Error(DiskErrorKind::Io), only: Some(only) })
}

fn written(disk: &SimDisk, from: usize) -> Vec<DiskOp> {
    let quiet = [DiskOp::Stat, DiskOp::Read, DiskOp::Allocate];
    disk.trace()[from..].iter().map(|(op, _)| *op).filter(|op| !quiet.contains(op)).collect()
}

fn check_recovers(disk: &SimDisk, rig: &mut Rig<SimDisk>) {
    disk.set_faults(None);
    rig.settle(FIVE_SECONDS);
    assert_eq!(rig.store.durable().current(), rig.store.revision());
    let records = rig.records();
    let again = Rig::open(disk.clone(), 9, SMALL).unwrap();
    assert_eq!(again.records(), records);
    assert_eq!(rig.drainer.health().snapshot().degraded(rig.clock.now()), None);
}

#[test]
fn a_failed_write_is_undone_and_repeated_on_the_same_file() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    rig.step();
    let end = disk.trace().len();
    rig.put(2, b"two");
    disk.set_faults(fail(DiskOp::Write, u64::MAX));
    rig.step();
    assert_eq!(rig.store.durable().current(), Revision(1));
    assert_eq!(written(&disk, end), [DiskOp::Write, DiskOp::Truncate]);
    disk.set_faults(None);
    let end = disk.trace().len();
    rig.clock.advance(FIVE_SECONDS);
    rig.step();
    // Room is allocated anew, and zeros are written ahead.
    assert_eq!(written(&disk, end)[..3], [DiskOp::Write, DiskOp::Write, DiskOp::Sync]);
    check_recovers(&disk, &mut rig);
}

#[test]
fn zeros_are_written_ahead_of_short_frames_once_for_many() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let end = disk.trace().len();
    for key in 0..8 {
        rig.put(key, b"short");
        rig.step();
    }
    let writes = written(&disk, end).iter().filter(|op| **op == DiskOp::Write).count();
    assert_eq!(writes, 8 + 1);
    check_recovers(&disk, &mut rig);
}

#[test]
fn a_file_whose_sync_failed_is_never_synced_or_written_again() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    rig.step();
    let end = disk.trace().len();
    disk.set_faults(fail(DiskOp::Sync, u64::MAX));
    rig.put(2, b"two");
    rig.step();
    let spoiled = disk.trace()[end..].iter().find(|(op, _)| *op == DiskOp::Sync).unwrap().1.clone();
    disk.set_faults(None);
    let end = disk.trace().len();
    check_recovers(&disk, &mut rig);
    assert!(disk.trace()[end..].iter().all(|(_, on)| *on != spoiled));
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 1);
}

#[test]
fn a_write_that_cannot_be_undone_leads_to_a_fresh_file() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    disk.set_faults(Some(FaultPlan {
        from: disk.operations(),
        count: u64::MAX,
        fault: Fault::Error(DiskErrorKind::NoSpace),
        only: None,
    }));
    rig.step();
    check_recovers(&disk, &mut rig);
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 1);
}

#[test]
fn a_rename_in_doubt_is_followed_by_another_checkpoint() {
    for (op, fault) in [
        (DiskOp::Rename, Fault::Error(DiskErrorKind::Io)),
        (DiskOp::Rename, Fault::ErrorAfter(DiskErrorKind::Io)),
        (DiskOp::SyncDirectory, Fault::Error(DiskErrorKind::Io)),
    ] {
        let disk = SimDisk::default();
        let mut rig = Rig::on(&disk);
        // The floor is in use from the first change on, and need not be written again before a checkpoint.
        rig.put(0, b"first");
        rig.settle(FIVE_SECONDS);
        for key in 0..200 {
            rig.put(key % 2, &[5; 40]);
            disk.set_faults(Some(FaultPlan { from: 0, count: u64::MAX, fault, only: Some(op) }));
            rig.step();
        }
        assert!(rig.drainer.health().snapshot().failures_in_a_row > 0);
        check_recovers(&disk, &mut rig);
    }
}

#[test]
fn a_failed_compaction_does_not_disturb_appends() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    disk.set_faults(fail(DiskOp::Create, u64::MAX));
    for key in 0..200 {
        let revision = rig.put(key % 2, &[5; 40]);
        rig.step();
        assert_eq!(rig.store.durable().current(), revision);
    }
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 0);
    check_recovers(&disk, &mut rig);
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 1);
}

#[test]
fn health_tells_of_failing_and_of_hanging() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let health = rig.drainer.health();
    rig.put(1, b"one");
    disk.set_faults(fail(DiskOp::Write, u64::MAX));
    rig.step();
    let now = rig.clock.now();
    assert_eq!(health.snapshot().degraded(now), None);
    assert_eq!(health.snapshot().degraded(now.plus(Duration::from_secs(2))), Some(DegradedReason::Hanging));
    rig.settle(FIVE_SECONDS);
    assert_eq!(health.snapshot().degraded(rig.clock.now()), Some(DegradedReason::Failing));
    check_recovers(&disk, &mut rig);
}

#[test]
fn a_disk_that_hangs_shows_wherever_it_is_asked() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let health = rig.drainer.health();
    let asked = Arc::new(Mutex::new((0, 0)));
    let (seen, shown) = (asked.clone(), health.clone());
    disk.observe(move |_| {
        let mut seen = seen.lock().unwrap();
        seen.0 += 1;
        seen.1 += u32::from(shown.snapshot().unfinished_since.is_some());
    });
    // Appends, checkpoints that are wanted and not needed, and the floor behind them.
    for key in 0..200 {
        rig.put(key % 2, &[5; 40]);
        rig.step();
    }
    rig.settle(FIVE_SECONDS);
    disk.observe(|_| {});
    assert!(health.snapshot().checkpoints > 0);
    let (operations, shown) = *asked.lock().unwrap();
    assert!(operations > 200 && shown == operations, "{shown} of {operations}");
    assert_eq!(health.snapshot().unfinished_since, None);
}

#[test]
fn a_checkpoint_that_fails_is_not_told_to_who_came_after_it_took_what_there_was() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(0, b"first");
    rig.settle(FIVE_SECONDS);
    let waiters = Arc::new(Mutex::new(Vec::new()));
    let (store, made) = (rig.store.clone(), waiters.clone());
    disk.observe(move |_| {
        let (_, revision) = store.write(|table| table.put(9, Blob(vec![9; 40]), Urgency::Critical));
        made.lock().unwrap().push(Box::pin(store.durable().reached(revision)));
    });
    disk.set_faults(fail(DiskOp::SyncDirectory, u64::MAX));
    while rig.drainer.health().snapshot().failures_in_a_row == 0 {
        rig.put(1, &[5; 40]);
        rig.step();
    }
    disk.observe(|_| {});
    let mut told: Vec<_> = waiters.lock().unwrap().drain(..).collect();
    let mut context = Context::from_waker(Waker::noop());
    let mut is_pending = |waiter: &mut Pin<Box<Reached>>| waiter.as_mut().poll(&mut context).is_pending();
    assert!(told.last_mut().is_some_and(&mut is_pending), "it was made while the checkpoint was being named");
    assert!(!told.iter_mut().all(is_pending), "those before have failed, or are durable");
    check_recovers(&disk, &mut rig);
}

#[test]
fn an_interruption_is_tried_again_at_once() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    disk.set_faults(Some(FaultPlan {
        from: disk.operations(),
        count: 3,
        fault: Fault::Error(DiskErrorKind::Interrupted),
        only: Some(DiskOp::Write),
    }));
    rig.step();
    assert_eq!(rig.store.durable().current(), revision);
}

#[test]
fn a_stop_gives_up_on_a_dead_disk_and_says_what_is_unsaved() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    rig.step();
    rig.put(2, b"two");
    disk.set_faults(Some(FaultPlan {
        from: disk.operations(),
        count: u64::MAX,
        fault: Fault::Error(DiskErrorKind::Io),
        only: None,
    }));
    rig.stop();
    let report = rig.drainer.report();
    assert_eq!(report.unsaved.len(), 1);
    assert_eq!((report.unsaved[0].durable, report.unsaved[0].revision), (Revision(1), Revision(2)));
    assert!(report.floor_error.is_some());
    assert_eq!(rig.step(), Next::Stopped);
    disk.set_faults(None);
    assert_eq!(Rig::open(disk, 3, SMALL).unwrap().records()[0], (1, b"one".to_vec()));
}

#[test]
fn a_stop_finishes_what_a_failed_sync_has_begun() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    let next_sync = Some(FaultPlan {
        from: disk.operations(),
        count: 2,
        fault: Fault::Error(DiskErrorKind::Io),
        only: Some(DiskOp::Sync),
    });
    disk.set_faults(next_sync);
    rig.stop();
    assert_eq!(rig.store.durable().current(), revision);
    assert!(rig.drainer.report().unsaved.is_empty());
}

#[test]
fn what_a_dead_process_left_in_the_cache_is_not_promised_until_it_is_written_anew() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let first = rig.put(1, b"one");
    rig.settle(FIVE_SECONDS);
    // The sync fails, the process dies; what it wrote is to be seen, though not on the disk.
    let second = rig.put(1, b"two");
    disk.set_faults(fail(DiskOp::Sync, u64::MAX));
    rig.step();
    drop(rig);
    disk.set_faults(None);
    let mut rig = Rig::open(disk.clone(), 2, SMALL).unwrap();
    assert_eq!(rig.records(), [(1, b"two".to_vec())]);
    assert_eq!((rig.store.durable().current(), rig.store.revision()), (first, second));
    let lost = SimDisk::of(disk.crash_point().image(|_| false), 512);
    assert_eq!(Rig::open(lost, 3, SMALL).unwrap().records(), [(1, b"one".to_vec())]);
    // Without any change it becomes durable.
    rig.settle(FIVE_SECONDS);
    assert_eq!(rig.store.durable().current(), second);
    let kept = SimDisk::of(disk.crash_point().image(|_| false), 512);
    assert_eq!(Rig::open(kept, 3, SMALL).unwrap().records(), [(1, b"two".to_vec())]);
}

#[test]
fn a_clean_stop_is_believed() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    rig.stop();
    drop(rig);
    let mut rig = Rig::open(disk, 2, SMALL).unwrap();
    assert_eq!(rig.store.durable().current(), revision);
    assert_eq!(rig.step(), Next::Idle);
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 0);
}

#[test]
fn a_compaction_that_fails_at_its_end_with_nothing_new_owes_nothing() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    rig.put(1, b"one");
    rig.settle(FIVE_SECONDS);
    rig.drainer.compact();
    while disk.trace().last().unwrap().0 != DiskOp::Sync || disk.content("trust.hf.tmp").is_none() {
        rig.step();
    }
    disk.set_faults(fail(DiskOp::Sync, 1));
    rig.step();
    assert_eq!(rig.drainer.health().snapshot().checkpoint_failures, 1);
    rig.put(2, b"two");
    check_recovers(&disk, &mut rig);
}
