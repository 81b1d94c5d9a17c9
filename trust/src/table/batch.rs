//! Several changes in one hold of the lock, for which the memory of all is asked for at once.
//!
//! A change among a million records waits some seven times for memory that no cache holds, each time before it can know
//! where to look next. Of several changes that are known beforehand, each such step is made for all before the next one
//! begins, so that a processor has several of these waits at a time.
//!
//! Invariant: what the changes do is what they would do one after another, whatever was touched before.

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::Arc;

use super::{Entry, Table, Urgency, expected_at, group_of, place_of, seeded_hash};
use crate::record::Record;

/// Changes in one hold of the lock: a few microseconds.
pub(crate) const BATCH_HOLD_RECORDS: usize = 8;

/// Changes that wait for their hold, and their keys' hashes in the table's order.
pub(crate) struct Batch<R: Record> {
    seed: u64,
    changes: VecDeque<(u64, R::Key, Arc<R>)>,
    /// What they replace, to be dropped outside the lock.
    replaced: Vec<Arc<R>>,
}

impl<R: Record> Batch<R> {
    /// For a table with this seed.
    pub(crate) fn new(seed: u64) -> Self {
        let changes = VecDeque::with_capacity(BATCH_HOLD_RECORDS);
        Self { seed, changes, replaced: Vec::with_capacity(BATCH_HOLD_RECORDS) }
    }

    /// Takes as many as one hold changes; false when there are none. Outside of the lock, as all but the changes is.
    pub(crate) fn take(&mut self, from: &mut impl Iterator<Item = (R::Key, Arc<R>)>) -> bool {
        self.replaced.clear();
        let missing = BATCH_HOLD_RECORDS - self.changes.len();
        let seed = self.seed;
        self.changes.extend(from.take(missing).map(|(key, record)| (seeded_hash(seed, &key), key, record)));
        !self.changes.is_empty()
    }

    /// The keys that are changed next.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &R::Key> {
        self.changes.iter().map(|(_, key, _)| key)
    }
}

impl<R: Record> Table<R> {
    /// Makes the changes, in their order; those that are left over when something has to be brought first come in the
    /// next hold.
    pub(crate) fn put_batch(&mut self, batch: &mut Batch<R>, urgency: Urgency) {
        self.touch(&batch.changes);
        while let Some((hash, key, record)) = batch.changes.pop_front() {
            batch.replaced.extend(self.put_hashed(hash, key, record, urgency));
            if !self.wanted().is_nothing() {
                return;
            }
        }
    }

    /// Looks at where these changes will be made, one step for all of them after the other.
    fn touch(&self, changes: &VecDeque<(u64, R::Key, Arc<R>)>) {
        let mut entries: [Option<&Entry<R>>; BATCH_HOLD_RECORDS] = [None; BATCH_HOLD_RECORDS];
        for (entry, (hash, _, _)) in entries.iter_mut().zip(changes) {
            let sub_map = self.groups[group_of(*hash)].as_ref().map(|group| &group[place_of(*hash)]);
            *entry = sub_map.and_then(|sub_map| sub_map.get(expected_at(sub_map, *hash)));
        }
        let records = entries.map(|entry| entry.and_then(|entry| entry.record.as_ref()));
        black_box(records.iter().flatten().map(|record| Arc::strong_count(record)).fold(0, usize::wrapping_add));
    }
}
