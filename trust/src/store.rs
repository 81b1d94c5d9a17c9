//! A table with its lock, its index and its signals.
//!
//! ```text
//! write:  lock -> change the table, update the index -> unlock -> ring the bell, if this is the first that it owes
//! ```
//!
//! Invariants: access is by closure, and what runs inside touches a bounded number of records and does no I/O, no
//! encoding, no logging and takes no other lock (LOCK). What a change needs is allocated before, and what it replaces
//! is freed after. The bell is rung after the release. A panic inside ends the process. How long the lock is held is
//! measured at every use.
//!
//! The lock is a plain mutex: holds are about a microsecond, which is shorter than what a reader-writer lock costs,
//! and reads that must not wait use the index.
//!
//! Not here: the disk (`drainer`), what a change means (`rules`).

use std::sync::Arc;

use crate::hold::{HoldTimes, HoldTimesSnapshot};
use crate::medium::Clock;
use crate::record::{Index as _, Record, Revision};
use crate::signals::{Durable, Publisher};
use crate::sync::{Apart, AtomicU64, Bell, Lock, Ordering};
use crate::table::{Batch, Cursor, Supplies, Table, Taken, Urgency, WALK_HOLD_RECORDS, WALK_RECORDS_MAX, new_chunk};

/// Records that are removed in one lock hold.
const REMOVED_AT_ONCE: usize = 64;

/// The records of one kind. Cloning it is cheap; all clones are one store.
pub struct Store<R: Record> {
    shared: Arc<Shared<R>>,
}

struct Shared<R: Record> {
    /// What every change writes is in no cache line with what readers need who do not wait.
    table: Apart<Lock<Table<R>>>,
    revision: Apart<AtomicU64>,
    holds: Apart<HoldTimes>,
    index: Arc<R::Index>,
    durable: Durable,
    bell: Bell,
    clock: Arc<dyn Clock>,
}

impl<R: Record> Clone for Store<R> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<R: Record> Store<R> {
    /// A store around a table of which the disk holds everything up to `durable`.
    pub(crate) fn new(table: Table<R>, durable: Revision, bell: Bell, clock: Arc<dyn Clock>) -> (Self, Publisher) {
        let revision = table.revision();
        let (durable, publisher) = Durable::new(durable, bell.clone());
        let shared = Shared {
            index: Arc::clone(table.index()),
            table: Apart(Lock::new(table)),
            durable,
            revision: Apart(AtomicU64::new(revision.0)),
            bell,
            clock,
            holds: Apart(HoldTimes::default()),
        };
        (Self { shared: Arc::new(shared) }, publisher)
    }

    /// Looks at the table. A bounded number of records only: to see all of them, use [`walk`](Self::walk).
    pub fn read<T>(&self, f: impl FnOnce(&Table<R>) -> T) -> T {
        self.locked(|table| f(table))
    }

    /// Changes the table. Returns the revision after the closure: that of the last change, whoever made it, where this
    /// one made none.
    pub fn write<T>(&self, f: impl FnOnce(&mut Table<R>) -> T) -> (T, Revision) {
        let (out, revision, ring, retired, wanted) = self.locked(|table| {
            let out = f(table);
            let revision = table.revision();
            self.shared.revision.store(revision.0, Ordering::Release);
            (out, revision, table.take_ring(), table.take_retired(), table.wanted())
        });
        drop(retired);
        if ring {
            self.shared.bell.ring();
        }
        if !wanted.is_nothing() {
            let mut supplies = Supplies::of(wanted);
            self.locked(|table| table.supply(&mut supplies));
        }
        self.shared.index.restock();
        (out, revision)
    }

    /// Puts `record` in the place of `before`; false, and nothing is done, where something else is there by now.
    pub fn replace(&self, key: R::Key, before: Option<&Arc<R>>, record: Arc<R>, urgency: Urgency) -> bool {
        let put = |table: &mut Table<R>| {
            let is_as_before = table.still_holds(&key, before);
            if is_as_before {
                table.put_shared(key, record, urgency);
            }
            is_as_before
        };
        self.write(put).0
    }

    /// Puts these records, in this order, a few in each hold of the lock: several times faster than one by one where there
    /// are many records. Others' changes may come between the holds, and a crash may leave the first ones without the
    /// others, unless they are waited for. Returns the revision after the last.
    pub fn put_all(&self, records: impl IntoIterator<Item = (R::Key, Arc<R>)>, urgency: Urgency) -> Revision {
        let (mut records, mut batch) = (records.into_iter(), Batch::new(self.seed()));
        let mut revision = self.revision();
        while batch.take(&mut records) {
            self.shared.index.touch(batch.keys());
            revision = self.write(|table| table.put_batch(&mut batch, urgency)).1;
        }
        revision
    }

    /// Removes those of these records that `goes` names, a few in each hold of the lock; what they held is freed between
    /// the holds. Written within a second. Returns the revision after the last.
    pub fn remove_all(&self, keys: &[R::Key], goes: impl Fn(&R) -> bool) -> Revision {
        let mut revision = self.revision();
        let mut removed = Vec::with_capacity(REMOVED_AT_ONCE);
        for piece in keys.chunks(REMOVED_AT_ONCE) {
            let remove = |table: &mut Table<R>| {
                for key in piece {
                    if table.get(key).is_some_and(|record| goes(record)) {
                        removed.extend(table.remove(key, Urgency::Lazy));
                    }
                }
            };
            revision = self.write(remove).1;
            removed.clear();
        }
        revision
    }

    /// The view that needs no lock.
    #[must_use]
    pub fn index(&self) -> &R::Index {
        &self.shared.index
    }

    /// Which revision the disk holds, and waiting for one.
    #[must_use]
    pub fn durable(&self) -> &Durable {
        &self.shared.durable
    }

    /// The number of the last change. Does not wait.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.shared.revision.load(Ordering::Acquire))
    }

    /// All records, in pieces of at most 256, copied out under short holds of the lock. A record that is there all
    /// the while is seen exactly once, as it was at some moment of the walk.
    #[must_use]
    pub fn walk(&self) -> Walk<R> {
        Walk { store: self.clone(), cursor: Cursor::start(), ended: false }
    }

    /// How long the lock was held, so far.
    #[must_use]
    pub fn hold_times(&self) -> HoldTimesSnapshot {
        self.shared.holds.snapshot()
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Table<R>) -> T) -> T {
        let (out, held) = self.shared.table.with(|table| {
            let taken = self.shared.clock.now();
            let out = f(table);
            (out, self.shared.clock.now().since(taken))
        });
        self.shared.holds.add(held);
        out
    }
}

/// For the drainer.
impl<R: Record> Store<R> {
    pub(crate) fn owed(&self) -> Option<Urgency> {
        self.locked(|table| table.owed())
    }

    pub(crate) fn take_dirty(&self) -> Taken<R> {
        let mut chunk = Some(new_chunk::<R>());
        let (list, revision, records) = self.locked(|table| {
            let taken = table.take_dirty();
            table.keep_chunk(&mut chunk);
            taken
        });
        Taken { changes: list.chunks, revision, records }
    }

    /// What ordered the walk, and will order the next table's.
    pub(crate) fn seed(&self) -> u64 {
        self.locked(|table| table.seed())
    }

    /// Until the guard is dropped, whatever is removed is removed by name: a file that is being built may hold it.
    pub(crate) fn begin_walk(&self) -> WalkGuard<R> {
        self.locked(|table| table.set_walked(true));
        WalkGuard(self.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.locked(|table| table.len())
    }

    /// Copies out a piece, under several short holds of the lock; `false` at the end.
    pub(crate) fn walk_piece(
        &self,
        cursor: &mut Cursor<R::Key>,
        out: &mut Vec<(R::Key, Arc<R>)>,
        records_max: usize,
    ) -> bool {
        while out.len() + WALK_HOLD_RECORDS <= records_max {
            if !self.locked(|table| table.walk(cursor, out)) {
                return false;
            }
        }
        true
    }
}

/// A walk whose records go to a file.
pub(crate) struct WalkGuard<R: Record>(Store<R>);

impl<R: Record> Drop for WalkGuard<R> {
    fn drop(&mut self) {
        self.0.locked(|table| table.set_walked(false));
    }
}

/// Iterator over all records of a store, in pieces.
pub struct Walk<R: Record> {
    store: Store<R>,
    cursor: Cursor<R::Key>,
    ended: bool,
}

impl<R: Record> Iterator for Walk<R> {
    type Item = Vec<(R::Key, Arc<R>)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            let mut piece = Vec::with_capacity(WALK_RECORDS_MAX);
            self.ended = !self.store.walk_piece(&mut self.cursor, &mut piece, WALK_RECORDS_MAX);
            if !piece.is_empty() {
                return Some(piece);
            }
        }
        None
    }
}
