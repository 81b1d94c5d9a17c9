//! The one that writes: all stores' changes, to their files, outside every lock.
//!
//! ```text
//! step:  bell's token -> lock -> take `dirty` -> unlock -> encode -> append one frame, fsync -> publish the revision
//! ```
//!
//! Invariants: the token is taken before `dirty`, so that no wake-up is lost. A revision is published only after every
//! step of one attempt has succeeded (EARLY). An attempt that fails is reported to those who wait for what it covered,
//! and tried again without any new change having to come (LIVE). No lock is held during I/O (LOCK). A file whose sync
//! failed is not appended to again: a checkpoint into a fresh file follows. The same inputs make the same operations
//! on the medium (DET).
//!
//! Thread: one, for all stores ([`DrainerThread`]); the simulation calls [`Drainer::step`] itself. Disk steps: see
//! `log_file`, `checkpoint`, `floor`; each says what a crash leaves.
//!
//! Not here: the bytes (`frame`), the waiters (`signals`).

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::DiskError;
use crate::floor::{Floor, is_at_rest};
use crate::health::{HealthCell, StorageHealth};
use crate::lane::{Lane, Log};
use crate::medium::{Clock, Medium, Monotonic};
use crate::record::{FileKind, Record, Revision};
use crate::retry::{Backoff, FaultClass, RetryPolicy};
use crate::site::Site;
use crate::sync::{AtomicBool, Bell, DieOnUnwind, Ordering, watch};

/// How long after a change at the latest the floor file is written.
pub const FLOOR_DELAY: Duration = Duration::from_millis(500);

/// How many failures in a row end the last drain of a store.
pub(crate) const STOP_FAILURES_MAX: u32 = 3;

/// The thread had better stayed awake for a ring that comes within this time.
const AWAKE_WORTH: Duration = Duration::from_micros(100);

/// When [`Drainer::step`] is to be called again. A ring of the bell calls for it at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Next {
    /// At once: there is more to do.
    Now,
    /// At this moment.
    At(Monotonic),
    /// When the bell rings.
    Idle,
    /// Never: it has been stopped.
    Stopped,
}

/// What a drainer that was stopped leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FinalReport {
    /// Stores with changes that are not on the disk.
    pub unsaved: Vec<Unsaved>,
    /// Why the floor file could not be written.
    pub floor_error: Option<DiskError>,
}

/// A store with changes that are not on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsaved {
    /// Its file.
    pub file: FileKind,
    /// What is on the disk.
    pub durable: Revision,
    /// What was in memory.
    pub revision: Revision,
}

/// What a step works with.
pub(crate) struct Context<'a, M> {
    pub(crate) medium: &'a mut M,
    pub(crate) site: &'a Site,
    pub(crate) health: &'a HealthCell,
    pub(crate) floor: &'a mut FloorKeeper,
    pub(crate) now: Monotonic,
    pub(crate) stopping: bool,
}

/// How long it is worth while to stay awake for something: some twenty microseconds as long as it was, less each time
/// that it was not.
struct Stay(u32);

impl Default for Stay {
    fn default() -> Self {
        Self(Self::PAUSES_MAX)
    }
}

impl Stay {
    const PAUSES_MAX: u32 = 1_024;

    fn watch(&self, is_so: impl FnMut() -> bool) -> bool {
        watch(self.0, is_so)
    }

    fn was_worth_while(&mut self, was: bool) {
        self.0 = if was { Self::PAUSES_MAX } else { self.0 / 2 };
    }
}

/// Writes the changes of all stores of one directory.
pub struct Drainer<M: Medium> {
    medium: M,
    site: Site,
    lanes: Vec<Box<dyn Lane<M>>>,
    floor: FloorKeeper,
    health: HealthCell,
    stop: StopSwitch,
    ended: bool,
    report: FinalReport,
}

/// Stops a drainer. Cloning it is cheap; all clones are one.
#[derive(Debug, Clone)]
pub struct StopSwitch {
    stop: Arc<AtomicBool>,
    bell: Bell,
}

impl StopSwitch {
    /// Asks the drainer to write what there is and to end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.bell.ring();
    }
}

impl<M: Medium> Drainer<M> {
    /// A drainer without stores. `floor` is what the floor file says.
    #[must_use]
    pub fn new(mut medium: M, site: &Site, floor: Floor) -> Self {
        let at_rest = is_at_rest(&mut medium, site.owner());
        Self {
            medium,
            lanes: Vec::new(),
            floor: FloorKeeper::new(floor, at_rest),
            health: HealthCell::default(),
            stop: StopSwitch { stop: Arc::new(AtomicBool::new(false)), bell: site.bell().clone() },
            site: site.clone(),
            ended: false,
            report: FinalReport::default(),
        }
    }

    /// Takes over the file of a store.
    pub fn add<R: Record>(&mut self, log: Log<R, M>) {
        self.lanes.push(Box::new(log));
    }

    /// Has every store's log replaced by a checkpoint in the steps to come, whether or not it is outgrown.
    pub fn compact(&mut self) {
        for lane in &mut self.lanes {
            lane.want_checkpoint();
        }
    }

    /// What stops it.
    #[must_use]
    pub fn stop_switch(&self) -> StopSwitch {
        self.stop.clone()
    }

    /// How the disk is doing; goes on telling while the drainer runs.
    #[must_use]
    pub fn health(&self) -> HealthCell {
        self.health.clone()
    }

    /// What is left unsaved. Complete after a step that returned [`Next::Stopped`].
    #[must_use]
    pub const fn report(&self) -> &FinalReport {
        &self.report
    }

    /// The medium, for whoever simulates it.
    pub const fn medium(&mut self) -> &mut M {
        &mut self.medium
    }

    /// Does what is due at `now`: for each store at most one batch and one piece of a checkpoint.
    pub fn step(&mut self, now: Monotonic) -> Next {
        // A disk that hangs does so wherever it is asked: also under the floor, or a checkpoint that nobody waits for.
        self.health.stepping(Some(now));
        let next = self.step_at(now);
        self.health.stepping(None);
        next
    }

    fn step_at(&mut self, now: Monotonic) -> Next {
        if self.ended {
            return Next::Stopped;
        }
        // Before anything is looked at: a change after this rings again.
        self.site.bell().clear();
        let stopping = self.stop.stop.load(Ordering::Acquire);
        let mut context = Context {
            medium: &mut self.medium,
            site: &self.site,
            health: &self.health,
            floor: &mut self.floor,
            now,
            stopping,
        };
        let mut next = Next::Idle;
        for lane in &mut self.lanes {
            next = next.min(lane.step(&mut context));
        }
        if stopping {
            return if next == Next::Now { Next::Now } else { self.end(now) };
        }
        let floor = self.durable_floor();
        next.min(self.floor.step(&mut self.medium, &self.site, &self.health, floor, now))
    }

    /// Steps whenever it is time to, until it is stopped.
    pub(crate) fn run(&mut self, clock: &dyn Clock) -> FinalReport {
        let mut awake = Stay::default();
        loop {
            let timeout = match self.step(clock.now()) {
                Next::Now => continue,
                Next::At(when) => Some(when),
                Next::Idle => None,
                Next::Stopped => return self.report.clone(),
            };
            // Tasks do something else while they wait: beside them, a processor that is kept awake is only taken away.
            let for_threads = self.lanes.iter_mut().fold(false, |any, lane| lane.was_wanted() | any);
            // Whoever changes one thing after another, and waits, is sooner back than this thread could be woken.
            let (bell, idle) = (self.site.bell(), clock.now());
            let rung = awake.watch(|| bell.clear()) || bell.wait(timeout.map(|when| when.since(clock.now())));
            awake.was_worth_while(for_threads && rung && clock.now().since(idle) <= AWAKE_WORTH);
        }
    }

    fn end(&mut self, now: Monotonic) -> Next {
        let mut context = Context {
            medium: &mut self.medium,
            site: &self.site,
            health: &self.health,
            floor: &mut self.floor,
            now,
            stopping: true,
        };
        for lane in &mut self.lanes {
            self.report.unsaved.extend(lane.end(&mut context));
        }
        let settled = self.lanes.iter().all(|lane| lane.is_settled());
        let floor = self.durable_floor();
        self.report.floor_error = self.floor.end(&mut self.medium, &self.site, floor, settled).err();
        if let Some(error) = &self.report.floor_error {
            tracing::warn!(%error, "the floor file was not written; the next start writes all files anew");
        }
        self.ended = true;
        Next::Stopped
    }

    fn durable_floor(&self) -> Floor {
        let mut floor = self.floor.written;
        for lane in &self.lanes {
            floor.set(lane.kind(), lane.durable());
        }
        floor
    }
}

/// Keeps the floor file close behind.
pub(crate) struct FloorKeeper {
    written: Floor,
    /// As the file says; `None` if there was none.
    at_rest: Option<bool>,
    due: Option<Monotonic>,
    backoff: Backoff,
}

impl FloorKeeper {
    const fn new(written: Floor, at_rest: Option<bool>) -> Self {
        Self { written, at_rest, due: None, backoff: Backoff::new(RetryPolicy::DISK) }
    }

    /// A file is about to be replaced, which its revision does not show.
    pub(crate) fn in_use<M: Medium>(&mut self, medium: &mut M, site: &Site) -> Result<(), DiskError> {
        if self.at_rest == Some(true) { self.write(medium, site, self.written, false) } else { Ok(()) }
    }

    /// The drainer ends, with or without everything saved.
    fn end<M: Medium>(&mut self, medium: &mut M, site: &Site, floor: Floor, settled: bool) -> Result<(), DiskError> {
        let mark = self.at_rest.is_some_and(|at_rest| at_rest != settled);
        if floor != self.written || mark { self.write(medium, site, floor, settled) } else { Ok(()) }
    }

    fn step<M: Medium>(
        &mut self,
        medium: &mut M,
        site: &Site,
        health: &HealthCell,
        floor: Floor,
        now: Monotonic,
    ) -> Next {
        if floor == self.written {
            self.due = None;
            return Next::Idle;
        }
        let due = *self.due.get_or_insert(now.plus(FLOOR_DELAY));
        if now < due {
            return Next::At(due);
        }
        match self.write(medium, site, floor, false) {
            Ok(()) => {
                self.backoff.succeeded();
                self.due = None;
                health.count(|health| {
                    health.floor_failing = false;
                    health.syncs += 2;
                });
                Next::Idle
            }
            Err(error) => {
                tracing::warn!(%error, "the floor file was not written");
                health.count(|health| health.floor_failing = true);
                let again = site.with_rng(|rng| self.backoff.failed(now, rng));
                self.due = again;
                again.map_or(Next::Idle, Next::At)
            }
        }
    }

    fn write<M: Medium>(&mut self, medium: &mut M, site: &Site, floor: Floor, at_rest: bool) -> Result<(), DiskError> {
        // Until it is known to be written, it may be either.
        self.at_rest = self.at_rest.map(|_| !at_rest);
        floor.write_marked(medium, site.owner(), at_rest)?;
        self.written = floor;
        self.at_rest = Some(at_rest);
        Ok(())
    }
}

/// When to try again after a failure: at once if it was an interruption, unless they keep coming.
pub(crate) fn retry_at(backoff: &mut Backoff, error: DiskError, now: Monotonic, site: &Site) -> Option<Monotonic> {
    let later = site.with_rng(|rng| backoff.failed(now, rng));
    let at_once = error.kind.class() == FaultClass::Transient && backoff.failures() < STOP_FAILURES_MAX;
    if at_once { Some(now) } else { later }
}

/// The thread that a drainer runs in.
pub struct DrainerThread;

impl DrainerThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn spawn<M: Medium>(mut drainer: Drainer<M>, clock: Arc<dyn Clock>) -> std::io::Result<DrainerHandle> {
        let stop = drainer.stop_switch();
        let health = drainer.health();
        let run = move || {
            // A panic here would leave a node that answers and does not persist.
            let fuse = DieOnUnwind::new("a panic in the drainer");
            let report = drainer.run(clock.as_ref());
            drop(drainer);
            fuse.defuse();
            report
        };
        let thread = std::thread::Builder::new().name("drainer".to_owned()).spawn(run)?;
        Ok(DrainerHandle { stop, health, thread: Some(thread) })
    }
}

/// A running drainer. Dropping it stops and joins it.
#[derive(Debug)]
pub struct DrainerHandle {
    stop: StopSwitch,
    health: HealthCell,
    thread: Option<JoinHandle<FinalReport>>,
}

impl DrainerHandle {
    /// Has everything written that can be, and waits for the end.
    #[must_use = "changes may be unsaved"]
    pub fn stop(mut self) -> FinalReport {
        self.join().unwrap_or_default()
    }

    /// How the disk is doing.
    #[must_use]
    pub fn health(&self) -> StorageHealth {
        self.health.snapshot()
    }

    /// How the disk is doing, for a reader that outlives this handle.
    #[must_use]
    pub fn health_cell(&self) -> HealthCell {
        self.health.clone()
    }

    fn join(&mut self) -> Option<FinalReport> {
        let thread = self.thread.take()?;
        self.stop.stop();
        // The thread does not unwind: a panic in it ends the process.
        thread.join().ok()
    }
}

impl Drop for DrainerHandle {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
