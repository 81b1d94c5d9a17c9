//! When a write begins: what nobody waits for gathers, what somebody waits for does not.

use std::future::Future as _;
use std::task::{Context, Waker};
use std::time::Duration;

use crate::lane::{GATHER_DELAY, LAZY_DELAY, TASK_DISTANCE};
use crate::record::Revision;
use crate::sim::{Blob, Rig, SMALL, SimDisk};
use crate::site::Tuning;
use crate::table::Urgency;
use crate::{Clock as _, Next};

/// With the times of a node.
fn rig() -> Rig<SimDisk> {
    let tuning = Tuning { gather_delay: GATHER_DELAY, task_distance: TASK_DISTANCE, ..SMALL };
    Rig::create(SimDisk::default(), 1, tuning).unwrap()
}

fn batches(rig: &Rig<SimDisk>) -> u64 {
    rig.drainer.health().snapshot().batches
}

fn durable(rig: &Rig<SimDisk>) -> Revision {
    rig.store.durable().current()
}

/// So many tasks wait, a step is made, and they are told. What the step says.
fn step_for_tasks(rig: &mut Rig<SimDisk>, tasks: usize) -> Next {
    let store = rig.store.clone();
    let mut waits: Vec<_> = (0..tasks).map(|_| Box::pin(store.durable().reached(store.revision()))).collect();
    for wait in &mut waits {
        assert!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    rig.step()
}

#[test]
fn changes_that_nobody_waits_for_gather_for_a_moment() {
    let mut rig = rig();
    let due = rig.clock.now().plus(GATHER_DELAY);
    rig.put(1, b"one");
    assert_eq!(rig.step(), Next::At(due));
    rig.clock.advance(GATHER_DELAY / 2);
    let last = rig.put(2, b"two");
    assert_eq!((rig.step(), batches(&rig)), (Next::At(due), 0));
    rig.clock.advance_to(due);
    rig.step();
    assert_eq!((batches(&rig), durable(&rig)), (1, last));
    // The next has its own moment.
    rig.clock.advance(GATHER_DELAY);
    rig.put(3, b"three");
    assert_eq!(rig.step(), Next::At(rig.clock.now().plus(GATHER_DELAY)));
}

#[test]
fn whoever_waits_has_all_written_at_once() {
    for urgency in [Urgency::Critical, Urgency::Lazy] {
        let mut rig = rig();
        let change = |key| rig.store.write(|table| table.put(key, Blob(vec![1]), urgency)).1;
        let (first, last) = (change(1), change(2));
        assert!(matches!(rig.step(), Next::At(_)));
        let waits = rig.store.durable().reached(first);
        rig.step();
        assert_eq!((batches(&rig), durable(&rig)), (1, last));
        drop(waits);
    }
}

#[test]
fn a_stop_waits_for_nobody() {
    let mut rig = rig();
    let revision = rig.put(1, b"one");
    rig.stop();
    assert_eq!(durable(&rig), revision);
}

#[test]
fn a_critical_change_among_lazy_ones_gathers_no_longer_than_others() {
    let mut rig = rig();
    let begin = rig.clock.now();
    rig.store.write(|table| table.put(1, Blob(vec![1]), Urgency::Lazy));
    assert_eq!(rig.step(), Next::At(begin.plus(LAZY_DELAY)));
    rig.clock.advance(LAZY_DELAY / 2);
    let critical = rig.put(2, b"two");
    rig.step();
    assert_eq!(durable(&rig), critical);
}

#[test]
fn writes_for_several_tasks_keep_a_distance() {
    let mut rig = rig();
    let begin = rig.clock.now();
    rig.put(1, b"one");
    step_for_tasks(&mut rig, 2);
    assert_eq!(durable(&rig), Revision(1));
    rig.put(2, b"two");
    assert_eq!(step_for_tasks(&mut rig, 2), Next::At(begin.plus(TASK_DISTANCE)));
    // A thread has nothing else to do.
    assert!(rig.store.durable().reached_blocking(Revision(2), Duration::ZERO).is_err());
    rig.step();
    assert_eq!(durable(&rig), Revision(2));
    // Nor does one wait who asks seldom.
    rig.put(3, b"three");
    step_for_tasks(&mut rig, 2);
    rig.put(4, b"four");
    assert!(matches!(step_for_tasks(&mut rig, 2), Next::At(_)));
    let operator = rig.store.durable().reached_at_once(Revision(4));
    rig.step();
    assert_eq!(durable(&rig), Revision(4));
    drop(operator);
}

#[test]
fn a_task_that_is_alone_is_never_delayed() {
    let mut rig = rig();
    for key in 0..10 {
        let revision = rig.put(key, b"one");
        step_for_tasks(&mut rig, 1);
        assert_eq!(durable(&rig), revision);
    }
    // Nor is one that comes later than the distance.
    rig.put(1, b"one");
    step_for_tasks(&mut rig, 8);
    rig.clock.advance(TASK_DISTANCE);
    let revision = rig.put(1, b"two");
    step_for_tasks(&mut rig, 8);
    assert_eq!(durable(&rig), revision);
}
