//! Changes, batches, acknowledgement, checkpoints, stopping and starting again.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use crate::error::{DiskErrorKind, DiskOp, DurabilityError};
use crate::record::Revision;
use crate::sim::{Blob, Fault, FaultPlan, Rig, SMALL, SimDisk};
use crate::table::Urgency;
use crate::{Clock as _, Next};

const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn reopen(disk: &SimDisk) -> Rig<SimDisk> {
    Rig::open(disk.clone(), 2, SMALL).unwrap()
}

#[test]
fn a_change_is_durable_after_one_step_and_one_sync() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    assert_eq!(revision, Revision(1));
    assert_eq!(rig.store.durable().current(), Revision(0));
    let before = disk.trace().len();
    rig.step();
    assert_eq!(rig.store.durable().current(), revision);
    let syncs = disk.trace()[before..].iter().filter(|(op, _)| *op == DiskOp::Sync).count();
    assert_eq!(syncs, 1);
    rig.stop();
    assert_eq!(reopen(&disk).records(), [(1, b"one".to_vec())]);
}

#[test]
fn a_hundred_changes_of_one_record_are_one_entry() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    for number in 0..100_u8 {
        rig.put(1, &[number]);
    }
    rig.step();
    assert_eq!(rig.store.durable().current(), Revision(100));
    assert_eq!(rig.drainer.health().snapshot().bytes_appended, 96 + 3 + 8 + 4 + 1);
}

#[test]
fn a_write_that_changes_nothing_keeps_the_revision_and_the_disk_quiet() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let before = disk.operations();
    let ((), revision) = rig.store.write(|table| assert!(table.remove(&9, Urgency::Critical).is_none()));
    assert_eq!(revision, Revision(0));
    assert_eq!(rig.step(), Next::Idle);
    assert_eq!(disk.operations(), before);
}

#[test]
fn lazy_changes_wait_for_a_second_or_ride_along() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let lazy = |rig: &Rig<SimDisk>, key| rig.store.write(|table| table.put(key, Blob(vec![1]), Urgency::Lazy)).1;
    let first = lazy(&rig, 1);
    assert_eq!(rig.step(), Next::At(rig.clock.now().plus(Duration::from_secs(1))));
    rig.clock.advance(Duration::from_millis(600));
    lazy(&rig, 2);
    assert!(matches!(rig.step(), Next::At(_)));
    assert!(rig.store.durable().current() < first);
    rig.clock.advance(Duration::from_millis(400));
    rig.step();
    assert_eq!(rig.store.durable().current(), Revision(2));
    // With a critical one it goes at once.
    lazy(&rig, 3);
    let critical = rig.put(4, b"now");
    rig.step();
    assert_eq!(rig.store.durable().current(), critical);
}

#[test]
fn waiters_hear_of_their_own_revision_only() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let first = rig.put(1, b"one");
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut later = pin!(rig.store.durable().reached(Revision(2)));
    let mut soon = pin!(rig.store.durable().reached(first));
    let dropped = rig.store.durable().reached(first);
    assert_eq!(rig.store.durable().waiters(), 3);
    drop(dropped);
    assert_eq!(rig.store.durable().waiters(), 2);
    assert!(later.as_mut().poll(&mut context).is_pending());
    assert!(soon.as_mut().poll(&mut context).is_pending());
    rig.step();
    assert_eq!(woken.0.load(Ordering::SeqCst), 1);
    assert_eq!(soon.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    assert!(later.as_mut().poll(&mut context).is_pending());
    rig.put(2, b"two");
    rig.step();
    assert_eq!(woken.0.load(Ordering::SeqCst), 2);
    assert_eq!(later.as_mut().poll(&mut context), Poll::Ready(Ok(())));
}

#[test]
fn a_failure_is_told_to_those_who_waited_for_it_and_retried_without_a_change() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    let mut context = Context::from_waker(Waker::noop());
    let mut waiter = pin!(rig.store.durable().reached(revision));
    let mut other = pin!(rig.store.durable().reached(revision.next()));
    let plan =
        FaultPlan { from: 0, count: u64::MAX, fault: Fault::Error(DiskErrorKind::NoSpace), only: Some(DiskOp::Write) };
    disk.set_faults(Some(plan));
    rig.step();
    let failed = Err(DurabilityError::Failed(DiskErrorKind::NoSpace));
    assert_eq!(waiter.as_mut().poll(&mut context), Poll::Ready(failed));
    assert!(other.as_mut().poll(&mut context).is_pending());
    // Whoever waits again after the failure is not told of it.
    let mut again = pin!(rig.store.durable().reached(revision));
    assert!(again.as_mut().poll(&mut context).is_pending());
    disk.set_faults(None);
    rig.settle(Duration::from_secs(5));
    assert_eq!(again.as_mut().poll(&mut context), Poll::Ready(Ok(())));
    assert_eq!(rig.store.durable().current(), revision);
}

#[test]
fn blocking_waits_end_with_time_success_or_stop() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let durable = rig.store.durable().clone();
    let revision = rig.put(1, b"one");
    assert_eq!(durable.reached_blocking(revision, Duration::ZERO), Err(DurabilityError::TimedOut));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| durable.reached_blocking(revision, LONG));
        let stopped = scope.spawn(|| durable.reached_blocking(revision.next(), LONG));
        rig.step();
        assert_eq!(waiter.join().unwrap(), Ok(()));
        rig.stop();
        assert_eq!(stopped.join().unwrap(), Err(DurabilityError::Stopped));
    });
    assert_eq!(durable.waiters(), 0);
}

#[test]
fn a_start_and_a_stop_without_a_change_do_not_write() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    for key in 0..10 {
        rig.put(key, b"something");
        rig.step();
    }
    rig.stop();
    drop(rig);
    let before: Vec<_> = disk.names().iter().map(|name| disk.content(name)).collect();
    let operations = disk.trace().len();
    let mut rig = reopen(&disk);
    assert!(rig.settle(LONG));
    rig.stop();
    let after: Vec<_> = disk.names().iter().map(|name| disk.content(name)).collect();
    assert_eq!(before, after);
    let quiet = [DiskOp::Open, DiskOp::Read, DiskOp::Stat, DiskOp::Sync, DiskOp::SyncDirectory];
    let trace = disk.trace();
    assert!(trace[operations..].iter().all(|(op, _)| quiet.contains(op)), "{:?}", &trace[operations..]);
}

#[test]
fn a_checkpoint_goes_on_while_changes_are_appended() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    for key in 0..2_000 {
        rig.put(key, &key.to_le_bytes());
    }
    rig.step();
    for round in 0..4_u64 {
        for key in 0..1_000 {
            rig.put(key, &(key + round).to_le_bytes());
        }
        rig.step();
    }
    // Change what was walked, what was not, and what comes and goes, between any two pieces.
    let mut number = 0_u64;
    let before = rig.drainer.health().snapshot().checkpoints;
    while rig.drainer.health().snapshot().checkpoints == before {
        number += 1;
        let changed = rig.put(number * 37 % 2_000, &number.to_le_bytes());
        rig.remove(number * 91 % 2_000);
        rig.put(10_000 + number, b"new");
        assert!(number < 1_000, "the checkpoint does not end");
        rig.step();
        assert!(rig.store.durable().current() > changed, "appends go on");
    }
    assert!(number > 7, "in pieces, not in one step");
    let records = rig.records();
    rig.stop();
    drop(rig);
    assert_eq!(reopen(&disk).records(), records);
    assert_eq!(disk.names(), ["floor", "trust.hf"]);
}

#[test]
fn growth_alone_makes_no_checkpoint() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    for key in 0..1_000 {
        rig.put(key, &[1; 100]);
        rig.step();
    }
    assert!(rig.settle(LONG));
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 0);
    for key in 0..3_000 {
        rig.put(key % 1_000, &[2; 100]);
        rig.step();
    }
    assert!(rig.settle(LONG));
    let checkpoints = rig.drainer.health().snapshot().checkpoints;
    assert!((1..=5).contains(&checkpoints), "{checkpoints}");
}

#[test]
fn a_log_is_compacted_on_demand() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    for number in 0..10 {
        rig.put(1, &[number]);
        rig.step();
    }
    let before = disk.content("trust.hf").unwrap();
    rig.drainer.compact();
    assert!(rig.settle(LONG));
    rig.stop();
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 1);
    assert!(disk.content("trust.hf").unwrap().len() < before.len() / 2);
    assert_eq!(reopen(&disk).records(), [(1, vec![9])]);
}

#[test]
fn a_batch_longer_than_a_frame_becomes_visible_at_once() {
    let disk = SimDisk::default();
    let tuning = crate::Tuning { batch_bytes_max: 1_000, ..SMALL };
    let mut rig = Rig::create(disk.clone(), 1, tuning).unwrap();
    let ((), revision) = rig.store.write(|table| {
        for key in 0..200 {
            table.put(key, Blob(vec![1; 50]), Urgency::Critical);
        }
    });
    assert!(rig.settle(LONG));
    assert_eq!(rig.store.durable().current(), revision);
    assert_eq!(rig.drainer.health().snapshot().checkpoints, 1);
    rig.stop();
    assert_eq!(reopen(&disk).records().len(), 200);
}

#[test]
fn the_floor_follows_within_a_second_though_nothing_else_happens() {
    let disk = SimDisk::default();
    let mut rig = Rig::on(&disk);
    let revision = rig.put(1, b"one");
    let Next::At(when) = rig.step() else { panic!("the floor is due") };
    assert!(when.since(rig.clock.now()) <= Duration::from_secs(1));
    rig.clock.advance_to(when);
    assert_eq!(rig.step(), Next::Idle);
    let floor = crate::Floor::read(&mut disk.clone(), &crate::sim::RIG_OWNER).unwrap();
    assert_eq!(floor.trust, revision);
}

#[test]
fn a_walk_sees_every_record_that_stays_once() {
    let disk = SimDisk::default();
    let rig = Rig::on(&disk);
    for key in 0..5_000 {
        rig.put(key, b"x");
    }
    let mut seen = vec![0; 5_000];
    for (number, piece) in rig.store.walk().enumerate() {
        assert!(piece.len() <= 256);
        for (key, _) in piece {
            if let Some(count) = seen.get_mut(usize::try_from(key).unwrap()) {
                *count += 1;
            }
        }
        rig.put(100_000 + number as u64, b"new");
        rig.remove(number as u64);
    }
    assert!(seen[100..].iter().all(|count| *count == 1));
}

#[test]
fn the_same_seed_makes_the_same_operations() {
    let run = || {
        let disk = SimDisk::default();
        let mut rig = Rig::on(&disk);
        for key in 0..300 {
            rig.put(key % 17, &[3; 40]);
            rig.step();
        }
        rig.stop();
        (disk.trace(), disk.content("trust.hf"))
    };
    assert_eq!(run(), run());
}

#[test]
fn hold_times_are_counted() {
    let rig = Rig::on(&SimDisk::default());
    // A record that is new has a vector brought, in a hold of its own.
    rig.put(1, b"one");
    let before: u64 = rig.store.hold_times().counts.iter().sum();
    rig.put(1, b"two");
    rig.store.read(|table| assert_eq!(table.len(), 1));
    let after = rig.store.hold_times();
    assert_eq!(after.counts.iter().sum::<u64>() - before, 2);
    assert_eq!(after.quantile(0.999), Duration::from_nanos(1));
}
