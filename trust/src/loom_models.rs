//! Models that run the production code under every interleaving (`cfg(handfast_loom)`):
//!
//! ```text
//! RUSTFLAGS="--cfg handfast_loom" cargo test -p handfast-trust --release --lib loom_models
//! ```
//!
//! Each promise has a model that must hold for [`Drainer`] and [`Store`] as they are, and each planted mistake a model
//! that must fail: a variant of the same loop, put together from the same parts in a wrong order. At most four threads
//! each. Time does not stand still: every look at the clock is five seconds later, so that no retry is ever waited
//! for.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering::SeqCst};
use std::time::Duration;

use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use handfast_protocol::PeerId;

use crate::error::{DiskErrorKind, DiskOp, DurabilityError};
use crate::medium::{Clock, Monotonic};
use crate::passes::{Open as PassOpen, Passes};
use crate::record::{FileKind, Index, Record, RecordFault, Revision};
use crate::recover::create;
use crate::seeded::SeededState;
use crate::signals::{Durable, Publisher, Waited};
use crate::sim::{Blob, Fault, FaultPlan, SMALL, SimDisk};
use crate::site::{Site, Tuning};
use crate::store::Store;
use crate::sync::Bell;
use crate::table::{Table, Urgency};
use crate::{Drainer, Next, StopSwitch};

type Peer = Blob<2>;

const CHILD: &str = "HANDFAST_LOOM_CHILD";
const FOREVER: Duration = Duration::MAX;

/// Changes are written at once,
const AT_ONCE: Duration = Duration::ZERO;

/// or when somebody waits for them and at no other time.
const WHEN_WAITED_FOR: Duration = Duration::from_secs(1 << 40);

/// A clock that is five seconds further at every look.
#[derive(Default)]
struct Hurry(PlainU64);

impl Clock for Hurry {
    fn now(&self) -> Monotonic {
        Monotonic(Duration::from_secs(5 * self.0.fetch_add(1, SeqCst)))
    }
}

struct World {
    disk: SimDisk,
    store: Store<Peer>,
    stop: StopSwitch,
    drainer: Drainer<SimDisk>,
}

fn world(gather_delay: Duration) -> World {
    let disk = SimDisk::default();
    let tuning = Tuning { gather_delay, ..SMALL };
    let site = Site::new([1; 32], [2; 32], Arc::new(Hurry::default())).with_tuning(tuning);
    let mut medium = disk.clone();
    let opened = create::<Peer, _>(&mut medium, &site).unwrap();
    let mut drainer = Drainer::new(medium, &site, crate::Floor::default());
    drainer.add(opened.log);
    World { disk, store: opened.store, stop: drainer.stop_switch(), drainer }
}

fn put(store: &Store<Peer>, key: u64) -> Revision {
    store.write(|table| table.put(key, Blob(vec![1]), Urgency::Critical)).1
}

/// The revision that the disk holds for certain.
fn on_disk(disk: &SimDisk) -> Revision {
    let image = SimDisk::of(disk.crash_point().image(|_| false), 512);
    let mut medium = image;
    crate::check::<Peer, _>(&mut medium, None, &crate::Floor::default()).revision
}

/// Explores with a bound on preemptions: three are enough for every known mistake, and keep a run in seconds.
fn explore(model: impl Fn() + Send + Sync + 'static) {
    explore_within(3, model);
}

fn explore_within(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A model that fails takes its process with it, since unwinding runs into the checker's locks: it runs in a child,
/// which is this test again.
fn must_fail(test: &str, how: &str, model: impl Fn() + Send + Sync + 'static) {
    if std::env::var_os(CHILD).is_some() {
        return explore(model);
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("loom_models::{test}"), "--nocapture"]).env(CHILD, "1").env("RUST_BACKTRACE", "0");
    let output = child.output().unwrap();
    assert!(!output.status.success(), "{test}: not noticed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(how), "{test}: failed in another way: {}", &said[..said.len().min(2_000)]);
}

// ACK: whoever is told that a revision is durable finds it on the disk; nobody waits for ever.

fn acknowledged_is_on_the_disk(gather_delay: Duration, faults: Option<FaultPlan>) {
    let World { disk, store, stop, mut drainer } = world(gather_delay);
    disk.set_faults(faults);
    let drain = thread::spawn(move || drainer.run(&Hurry::default()));
    let change = |key: u64, future: bool| {
        let (store, disk) = (store.clone(), disk.clone());
        move || {
            let revision = put(&store, key);
            let told = loop {
                let told = if future {
                    block_on(store.durable().reached(revision))
                } else {
                    store.durable().reached_blocking(revision, FOREVER)
                };
                // Told of a failure, it waits again.
                if !matches!(told, Err(DurabilityError::Failed(_))) {
                    break told;
                }
            };
            assert_eq!(told, Ok(()));
            assert!(on_disk(&disk) >= revision);
        }
    };
    let other = thread::spawn(change(1, true));
    change(2, false)();
    other.join().unwrap();
    stop.stop();
    assert!(drain.join().unwrap().unsaved.is_empty());
    assert_eq!(store.durable().waiters(), 0);
}

#[test]
fn two_changers_and_the_drainer() {
    explore(|| acknowledged_is_on_the_disk(AT_ONCE, None));
}

#[test]
fn two_waiters_that_the_drainer_has_not_expected() {
    explore_within(2, || acknowledged_is_on_the_disk(WHEN_WAITED_FOR, None));
}

#[test]
fn two_changers_and_a_write_that_fails() {
    let fault = Fault::Error(DiskErrorKind::Io);
    for only in [DiskOp::Write, DiskOp::Sync] {
        let plan = FaultPlan { from: 0, count: 1, fault, only: Some(only) };
        explore_within(2, move || acknowledged_is_on_the_disk(AT_ONCE, Some(plan)));
    }
}

// A waiter that gives up takes nothing from another.

#[test]
fn a_cancelled_waiter_loses_nothing() {
    explore(|| {
        let World { store, stop, mut drainer, .. } = world(AT_ONCE);
        let drain = thread::spawn(move || drainer.run(&Hurry::default()));
        let revision = put(&store, 1);
        let cancelled = store.clone();
        let other = thread::spawn(move || drop(cancelled.durable().reached(revision)));
        assert_eq!(block_on(store.durable().reached(revision)), Ok(()));
        other.join().unwrap();
        assert_eq!(store.durable().waiters(), 0);
        stop.stop();
        drain.join().unwrap();
    });
}

// Stop: it is heard whenever it comes, what was changed before it is written, and whoever waits is told.

#[test]
fn a_stop_is_never_lost() {
    explore(|| {
        let World { disk, store, stop, mut drainer } = world(AT_ONCE);
        let changer = store.clone();
        let change = thread::spawn(move || {
            let revision = put(&changer, 1);
            (revision, changer.durable().reached_blocking(revision, FOREVER))
        });
        let stopper = thread::spawn(move || stop.stop());
        let report = drainer.run(&Hurry::default());
        drop(drainer);
        let (revision, told) = change.join().unwrap();
        stopper.join().unwrap();
        match told {
            Ok(()) => assert!(on_disk(&disk) >= revision),
            Err(error) => assert_eq!(error, DurabilityError::Stopped),
        }
        // What could not be written would be named; a disk that works leaves nothing.
        assert!(report.unsaved.is_empty() || told == Err(DurabilityError::Stopped));
    });
}

#[test]
fn what_was_changed_before_a_stop_is_on_the_disk_at_its_end() {
    explore(|| {
        let World { disk, store, stop, mut drainer } = world(AT_ONCE);
        let revision = put(&store, 1);
        let stopper = thread::spawn(move || stop.stop());
        let waiter = store.clone();
        let told = thread::spawn(move || waiter.durable().reached_blocking(revision, FOREVER));
        let report = drainer.run(&Hurry::default());
        drop(drainer);
        stopper.join().unwrap();
        assert_eq!(told.join().unwrap(), Ok(()));
        assert!(on_disk(&disk) >= revision && report.unsaved.is_empty());
    });
}

// NOW: from the release of the lock on, readers of the index see the change.

/// A record whose presence is a flag that is read without the lock; `LATE` is the mistake of leaving the flag to
/// whoever made the change.
#[derive(Debug)]
struct Trusted<const LATE: bool>;

#[derive(Debug, Default)]
struct Allowed<const LATE: bool>(AtomicBool);

impl<const LATE: bool> Index<Trusted<LATE>> for Allowed<LATE> {
    fn changed(&self, _: &u8, _: Option<&Trusted<LATE>>, new: Option<&Arc<Trusted<LATE>>>, _: Revision) {
        if !LATE {
            self.0.store(new.is_some(), Ordering::Release);
        }
    }
}

impl<const LATE: bool> Record for Trusted<LATE> {
    type Key = u8;
    type Index = Allowed<LATE>;
    const KIND: FileKind = FileKind::Peers;

    fn encode_key(key: &u8, out: &mut Vec<u8>) {
        out.push(*key);
    }

    fn decode_key(bytes: &[u8]) -> Result<u8, RecordFault> {
        bytes.first().copied().ok_or(RecordFault::BadKey)
    }

    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(_: &u8, _: &[u8]) -> Result<Self, RecordFault> {
        Ok(Self)
    }
}

fn revoked_is_refused<const LATE: bool>() {
    let (store, _publisher) =
        Store::new(Table::<Trusted<LATE>>::new(1), Revision::ZERO, Bell::new(), Arc::new(Hurry::default()));
    store.write(|table| table.put(1, Trusted, Urgency::Critical));
    store.index().0.store(true, Ordering::Release);
    let reader = {
        let store = store.clone();
        thread::spawn(move || {
            if store.read(Table::is_empty) {
                assert!(!store.index().0.load(Ordering::Acquire), "revoked and authorised");
            }
        })
    };
    store.write(|table| drop(table.remove(&1, Urgency::Critical)));
    if LATE {
        store.index().0.store(false, Ordering::Release);
    }
    assert!(!store.index().0.load(Ordering::Acquire));
    reader.join().unwrap();
}

#[test]
fn nothing_is_authorised_after_the_release() {
    explore(revoked_is_refused::<false>);
}

#[test]
fn mistake_index_updated_after_the_release() {
    must_fail("mistake_index_updated_after_the_release", "revoked and authorised", revoked_is_refused::<true>);
}

// The passes: what is there all the while is found whatever happens around it, an answer is that of the key that was asked
// for, and what is closed is closed.

fn pass_of(number: u8) -> PeerId {
    PeerId::from_stored([number; 32])
}

fn open_pass(passes: &Passes, number: u8) {
    let pass = passes.enter(&pass_of(number)).unwrap();
    pass.begin_change();
    pass.open(PassOpen { since: Revision(u64::from(number)), until: u64::from(number), bounded: false });
}

/// A reader beside a writer that closes pass 3, takes it out and uses it again, as pass 4 and, where it shares a chain with
/// others, while buckets are split.
fn beside_a_writer(others: u8, read: impl Fn(&Passes, &AtomicBool) + Send + Sync + 'static) {
    let passes = Arc::new(Passes::new(SeededState::fixed()));
    let closed = Arc::new(AtomicBool::new(false));
    (0..others).chain([3]).for_each(|number| open_pass(&passes, number));
    let writer = {
        let (passes, closed) = (Arc::clone(&passes), Arc::clone(&closed));
        thread::spawn(move || {
            passes.find(&pass_of(3)).unwrap().close();
            closed.store(true, Ordering::Release);
            passes.remove(&pass_of(3));
            open_pass(&passes, 4);
            if others > 0 {
                open_pass(&passes, 5);
            }
        })
    };
    read(&passes, &closed);
    writer.join().unwrap();
}

#[test]
fn a_pass_is_found_whatever_happens_around_it() {
    for number in [0, 1] {
        explore(move || {
            beside_a_writer(2, move |passes, _| {
                let found = passes.look(&pass_of(number)).expect("a pass was missed").unwrap();
                assert_eq!(found.until, u64::from(number));
            });
        });
    }
}

#[test]
fn a_closed_pass_is_closed_and_no_other_is_taken_for_it() {
    for number in [3, 4] {
        explore_within(2, move || {
            beside_a_writer(0, move |passes, closed| {
                let closed = closed.load(Ordering::Acquire);
                if let Some(Ok(found)) = passes.look(&pass_of(number)) {
                    assert!(!closed || number != 3, "closed and passed");
                    let number = u64::from(number);
                    assert_eq!((found.since, found.until), (Revision(number), number), "the pass of another");
                }
            });
        });
    }
}

#[test]
fn mistake_the_end_of_a_chain_believed() {
    must_fail("mistake_the_end_of_a_chain_believed", "a pass was missed", || {
        beside_a_writer(2, |passes, _| {
            for number in [0, 1] {
                passes.look_once(&pass_of(number)).expect("a pass was missed").unwrap();
            }
        });
    });
}

#[test]
fn mistake_a_pass_not_looked_at_again() {
    must_fail("mistake_a_pass_not_looked_at_again", "the pass of another", || {
        beside_a_writer(0, |passes, _| {
            if let Some(until) = passes.until_unchecked(&pass_of(3)) {
                assert_eq!(until, 3, "the pass of another");
            }
        });
    });
}

// The mistakes of the drainer: a loop of the same parts, with one of them in the wrong place.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    TokenAfterDirty,
    CurrentRevision,
    StopAfterLook,
    SilentWaiter,
}

struct Parts {
    store: Store<Peer>,
    publisher: Publisher,
    bell: Bell,
    written: Arc<PlainU64>,
    stop: Arc<AtomicBool>,
}

/// What `Drainer::run` comes down to, with the disk as a number, for changes that are written when somebody waits.
fn drain(parts: &Parts, mistake: Mistake) {
    loop {
        let mut stop = false;
        if mistake == Mistake::StopAfterLook {
            // The flag is read before the token is taken: a stop in between is heard and not seen.
            stop = parts.stop.load(Ordering::Acquire);
            parts.bell.clear();
        } else if mistake != Mistake::TokenAfterDirty {
            parts.bell.clear();
            stop = parts.stop.load(Ordering::Acquire);
        }
        if !stop && parts.publisher.waited() == Waited::Nobody {
            parts.bell.wait(None);
            continue;
        }
        let taken = parts.store.take_dirty();
        if mistake == Mistake::TokenAfterDirty {
            parts.bell.clear();
            stop = parts.stop.load(Ordering::Acquire);
        }
        if !taken.changes.is_empty() {
            parts.written.store(taken.revision.0, SeqCst);
            let durable = if mistake == Mistake::CurrentRevision { parts.store.revision() } else { taken.revision };
            parts.publisher.durable(durable);
        }
        if stop {
            return;
        }
        parts.bell.wait(None);
    }
}

fn mistaken(mistake: Mistake) {
    let bell = Bell::new();
    let (store, publisher) =
        Store::new(Table::<Peer>::new(1), Revision::ZERO, bell.clone(), Arc::new(Hurry::default()));
    let written = Arc::new(PlainU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let parts = Parts {
        store: store.clone(),
        publisher,
        bell: bell.clone(),
        written: Arc::clone(&written),
        stop: Arc::clone(&stop),
    };
    let drainer = thread::spawn(move || drain(&parts, mistake));
    let change = |key: u64| {
        let (store, written) = (store.clone(), Arc::clone(&written));
        move || {
            let revision = put(&store, key);
            let told = match mistake {
                Mistake::SilentWaiter => store.durable().reached_silently(revision),
                _ => store.durable().reached_blocking(revision, FOREVER),
            };
            assert_eq!(told, Ok(()));
            assert!(written.load(SeqCst) >= revision.0, "acknowledged and not written");
        }
    };
    let other = thread::spawn(change(1));
    change(2)();
    other.join().unwrap();
    stop.store(true, Ordering::Release);
    bell.ring();
    drainer.join().unwrap();
}

#[test]
fn the_loop_without_a_mistake() {
    explore(|| mistaken(Mistake::None));
}

#[test]
fn mistake_token_taken_after_dirty() {
    must_fail("mistake_token_taken_after_dirty", "deadlock", || mistaken(Mistake::TokenAfterDirty));
}

#[test]
fn mistake_waiter_does_not_ring() {
    must_fail("mistake_waiter_does_not_ring", "deadlock", || mistaken(Mistake::SilentWaiter));
}

#[test]
fn mistake_current_revision_acknowledged() {
    must_fail("mistake_current_revision_acknowledged", "acknowledged and not written", || {
        mistaken(Mistake::CurrentRevision)
    });
}

#[test]
fn mistake_wake_up_lost_at_stop() {
    must_fail("mistake_wake_up_lost_at_stop", "deadlock", || mistaken(Mistake::StopAfterLook));
}

// A waiter is woken by every success, and asks whether it was its own.

fn woken_by_an_earlier_success(careless: bool) {
    let (durable, publisher) = Durable::new(Revision::ZERO, Bell::new());
    let reached = Arc::new(PlainU64::new(0));
    let waiter = {
        let (durable, reached) = (durable.clone(), Arc::clone(&reached));
        thread::spawn(move || {
            let told = if careless { durable.woken_at_all() } else { durable.reached_blocking(Revision(2), FOREVER) };
            assert_eq!(told, Ok(()));
            assert!(reached.load(SeqCst) >= 2, "told too early");
        })
    };
    for revision in [1, 2] {
        reached.store(revision, SeqCst);
        publisher.durable(Revision(revision));
    }
    waiter.join().unwrap();
}

#[test]
fn a_waiter_is_told_of_its_own_revision() {
    explore(|| woken_by_an_earlier_success(false));
}

#[test]
fn mistake_woken_by_an_earlier_success() {
    must_fail("mistake_woken_by_an_earlier_success", "told too early", || woken_by_an_earlier_success(true));
}

#[test]
fn steps_do_not_wait_for_a_clock() {
    // What the models rely on: with this clock no step asks for a moment that is not past.
    explore(|| {
        let World { store, mut drainer, .. } = world(AT_ONCE);
        put(&store, 1);
        let clock = Hurry::default();
        assert_eq!(drainer.step(clock.now()), Next::Idle);
        assert_eq!(store.durable().current(), Revision(1));
    });
}
