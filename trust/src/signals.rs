//! Acknowledgement: which revision the disk holds, and whoever waits for one.
//!
//! Invariants: the durable revision only grows, and only [`Publisher::durable`] moves it. A waiter for revision r
//! hears `Ok` only when the durable revision is at least r: success of an earlier revision does not wake it. A waiter
//! hears `Failed` only for an attempt that covered r and failed after the wait began. Wakers run after the lock's
//! release. Dropping a waiter frees its place and takes nothing from anybody.
//!
//! The drainer may let changes wait that nobody waits for. So the first waiter rings the bell, and the first thread that
//! does; those after them need not: until what those wait for is durable, the drainer knows that it is waited for. What
//! it knows is written and read under the lock, before the ring and after the token is taken: no waiter is overlooked.
//!
//! Not here: who writes (`drainer`), what a revision contains (`table`).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::error::{DiskErrorKind, DurabilityError};
use crate::record::Revision;
use crate::sync::{Apart, AtomicU64, Bell, Monitor, Ordering, watch};

/// How long a thread that waits stays awake: a few hundred microseconds at most, in which a good disk syncs.
const WATCH_PAUSES_MAX: u32 = 8_192;

/// The durable revision of one store. Cloning it is cheap; all clones are one.
#[derive(Debug, Clone)]
pub struct Durable {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    durable: Apart<AtomicU64>,
    waiting: Apart<Monitor<Waiting>>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct Waiting {
    next_ticket: u64,
    places: BTreeMap<(Revision, u64), Place>,
    /// The newest revision that anybody has waited for,
    wanted: Revision,
    /// and the newest that a thread has: tasks have something else to do meanwhile.
    wanted_by_threads: Revision,
    stopped: bool,
}

/// Who waits for what is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waited {
    Nobody,
    /// They do something else meanwhile.
    Tasks,
    /// Perhaps tasks as well.
    Threads,
}

#[derive(Debug, Default)]
struct Place {
    waker: Option<Waker>,
    failed: Option<DiskErrorKind>,
}

impl Durable {
    /// `bell` wakes who writes.
    pub(crate) fn new(durable: Revision, bell: Bell) -> (Self, Publisher) {
        let durable = Apart(AtomicU64::new(durable.0));
        let shared = Arc::new(Shared { durable, waiting: Apart(Monitor::new(Waiting::default())), bell });
        (Self { shared: Arc::clone(&shared) }, Publisher { shared })
    }

    /// The newest revision that a power cut cannot take back. Does not wait.
    #[must_use]
    pub fn current(&self) -> Revision {
        self.shared.durable()
    }

    /// Waits until `revision` is durable. The wait begins with this call, not with the first poll.
    pub fn reached(&self, revision: Revision) -> Reached {
        self.placed(revision, false)
    }

    /// As [`reached`](Self::reached), and what it waits for is written at once, as for a thread: for one who asks seldom.
    pub fn reached_at_once(&self, revision: Revision) -> Reached {
        self.placed(revision, true)
    }

    fn placed(&self, revision: Revision, is_thread: bool) -> Reached {
        let ticket = self.shared.take_place(revision, is_thread);
        Reached { shared: Arc::clone(&self.shared), revision, ticket }
    }

    /// Waits until `revision` is durable, at most for `timeout`. Blocks the thread, and keeps its processor for the first
    /// moments: not for async workers.
    ///
    /// # Errors
    /// As [`DurabilityError`] says.
    pub fn reached_blocking(&self, revision: Revision, timeout: Duration) -> Result<(), DurabilityError> {
        let reached = self.placed(revision, true);
        let shared = &self.shared;
        watch(if timeout.is_zero() { 0 } else { WATCH_PAUSES_MAX }, || shared.durable() >= revision);
        shared
            .waiting
            .wait_until(timeout, |waiting| shared.outcome(waiting, revision, reached.ticket))
            .unwrap_or(Err(DurabilityError::TimedOut))
    }

    /// How many wait now.
    #[must_use]
    pub fn waiters(&self) -> usize {
        self.shared.waiting.with(|waiting| waiting.places.len())
    }
}

impl Shared {
    fn durable(&self) -> Revision {
        Revision(self.durable.load(Ordering::Acquire))
    }

    fn take_place(&self, revision: Revision, is_thread: bool) -> u64 {
        if self.durable() >= revision {
            return 0;
        }
        let (ticket, is_first) = self.waiting.with(|waiting| {
            waiting.next_ticket += 1;
            let ticket = waiting.next_ticket;
            waiting.places.insert((revision, ticket), Place::default());
            let durable = self.durable();
            let before = waiting.waited(durable);
            waiting.want(revision, is_thread);
            (ticket, waiting.waited(durable) != before)
        });
        if is_first {
            self.bell.ring();
        }
        ticket
    }

    /// What a waiter is told now, or nothing yet. `durable` is stored before the places are woken under the lock, so
    /// that a waiter that looks here under the lock cannot miss it.
    fn outcome(&self, waiting: &mut Waiting, revision: Revision, ticket: u64) -> Option<Result<(), DurabilityError>> {
        if self.durable() >= revision {
            return Some(Ok(()));
        }
        if let Some(kind) = waiting.places.get(&(revision, ticket)).and_then(|place| place.failed) {
            return Some(Err(DurabilityError::Failed(kind)));
        }
        waiting.stopped.then_some(Err(DurabilityError::Stopped))
    }
}

/// The wait for one revision: resolves once. Dropping it loses nothing.
#[derive(Debug)]
#[must_use = "a wait does nothing unless it is awaited"]
pub struct Reached {
    shared: Arc<Shared>,
    revision: Revision,
    ticket: u64,
}

impl Future for Reached {
    type Output = Result<(), DurabilityError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.shared.durable() >= self.revision {
            return Poll::Ready(Ok(()));
        }
        // Cloned before, and the one replaced dropped after the lock: both may run foreign code.
        let mut waker = Some(context.waker().clone());
        let outcome = self.shared.waiting.with(|waiting| {
            let outcome = self.shared.outcome(waiting, self.revision, self.ticket);
            if outcome.is_none()
                && let Some(place) = waiting.places.get_mut(&(self.revision, self.ticket))
            {
                std::mem::swap(&mut place.waker, &mut waker);
            }
            outcome
        });
        drop(waker);
        outcome.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Reached {
    fn drop(&mut self) {
        if self.ticket != 0 {
            let place = self.shared.waiting.with(|waiting| waiting.places.remove(&(self.revision, self.ticket)));
            drop(place);
        }
    }
}

/// Planted mistakes, for the models that must notice them.
#[cfg(test)]
#[cfg(handfast_loom)]
impl Durable {
    /// Waits, and leaves it to others to ring.
    pub(crate) fn reached_silently(&self, revision: Revision) -> Result<(), DurabilityError> {
        self.shared.waiting.with(|waiting| waiting.want(revision, true));
        let reached = |_: &mut Waiting| (self.current() >= revision).then_some(());
        self.shared.waiting.wait_until(Duration::MAX, reached);
        Ok(())
    }

    /// Takes any success for its own.
    pub(crate) fn woken_at_all(&self) -> Result<(), DurabilityError> {
        let progress = |_: &mut Waiting| (self.current() > Revision::ZERO).then_some(());
        self.shared.waiting.wait_until(Duration::MAX, progress);
        Ok(())
    }
}

/// The drainer's side of [`Durable`].
#[derive(Debug)]
pub(crate) struct Publisher {
    shared: Arc<Shared>,
}

impl Publisher {
    pub(crate) fn current(&self) -> Revision {
        self.shared.durable()
    }

    /// Who waits for what is not durable yet, or has until a moment ago.
    pub(crate) fn waited(&self) -> Waited {
        self.shared.waiting.with(|waiting| waiting.waited(self.shared.durable()))
    }

    /// Every step of one attempt that covered `revision` has succeeded. Returns how many tasks it woke.
    pub(crate) fn durable(&self, revision: Revision) -> usize {
        if self.shared.durable() >= revision {
            return 0;
        }
        self.shared.durable.store(revision.0, Ordering::Release);
        self.wake(|waiting| waiting.wakers(revision))
    }

    /// An attempt that covered `revision` failed.
    pub(crate) fn failed(&self, revision: Revision, kind: DiskErrorKind) {
        self.wake(|waiting| {
            for place in waiting.covered(revision) {
                place.failed = Some(kind);
            }
            waiting.wakers(revision)
        });
    }

    /// Nothing will be written any more.
    pub(crate) fn stopped(&self) {
        self.wake(|waiting| {
            waiting.stopped = true;
            waiting.wakers(Revision(u64::MAX))
        });
    }

    fn wake(&self, f: impl FnOnce(&mut Waiting) -> Vec<Waker>) -> usize {
        let wakers = self.shared.waiting.with(f);
        self.shared.waiting.notify_all();
        wakers.into_iter().map(Waker::wake).count()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stopped();
    }
}

impl Waiting {
    fn want(&mut self, revision: Revision, is_thread: bool) {
        self.wanted = self.wanted.max(revision);
        if is_thread {
            self.wanted_by_threads = self.wanted_by_threads.max(revision);
        }
    }

    fn waited(&self, durable: Revision) -> Waited {
        match (self.wanted > durable, self.wanted_by_threads > durable) {
            (_, true) => Waited::Threads,
            (true, false) => Waited::Tasks,
            (false, false) => Waited::Nobody,
        }
    }

    fn covered(&mut self, revision: Revision) -> impl Iterator<Item = &mut Place> {
        self.places.range_mut(..=(revision, u64::MAX)).map(|(_, place)| place)
    }

    fn wakers(&mut self, revision: Revision) -> Vec<Waker> {
        self.covered(revision).filter_map(|place| place.waker.take()).collect()
    }
}
