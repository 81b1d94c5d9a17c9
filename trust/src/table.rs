//! The records of one store in memory, and which of them the disk does not hold yet.
//!
//! Invariants: every change raises the revision by one, enters the record into `dirty` and updates the index, in one
//! call. No operation touches more than one sub-map, and none rehashes: the key's seeded hash chooses one of
//! [`SUB_MAPS`] ordered maps, so that neither growth nor keys ground by a peer make a single change slow, and a walk
//! can be resumed at any key. `dirty` is ordered by key, so that the same changes make the same bytes.
//!
//! A table lives inside its store's lock. Not here: the lock (`store`), the disk (`drainer`).

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use crate::record::{Index, Record, Revision};

/// Into how many maps a table is divided: 244 records each at a million.
pub const SUB_MAPS: usize = if cfg!(handfast_loom) { 4 } else { 4_096 };

/// Most records that one hold of the lock copies out.
pub const WALK_RECORDS_MAX: usize = 256;

/// Most sub-maps that one hold of the lock looks into, for tables that are nearly empty.
const WALK_SUB_MAPS_MAX: usize = 512;

/// How soon a change must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// At once: somebody waits for it, or losing it would be a broken promise.
    Critical,
    /// Within a second, together with whatever else there is by then.
    Lazy,
}

/// A record that changed, or `None` where it was removed.
pub(crate) type Change<R> = Option<Arc<R>>;

/// The last change of each record since the drainer last took them.
pub(crate) type Changes<R> = BTreeMap<<R as Record>::Key, Change<R>>;

/// Changes that were taken to be written, and the state that they lead to.
pub(crate) struct Taken<R: Record> {
    pub(crate) changes: Changes<R>,
    pub(crate) revision: Revision,
    pub(crate) records: u64,
}

/// The records of one store.
pub struct Table<R: Record> {
    sub_maps: Box<[BTreeMap<R::Key, Arc<R>>]>,
    seed: u64,
    len: usize,
    revision: Revision,
    dirty: Changes<R>,
    critical: bool,
    ring: bool,
    index: Arc<R::Index>,
}

impl<R: Record> Table<R> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            sub_maps: (0..SUB_MAPS).map(|_| BTreeMap::new()).collect(),
            seed,
            len: 0,
            revision: Revision::ZERO,
            dirty: BTreeMap::new(),
            critical: false,
            ring: false,
            index: Arc::new(R::Index::default()),
        }
    }

    /// The record of this key.
    #[must_use]
    pub fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        self.sub_maps[self.sub_map_of(key)].get(key)
    }

    /// Sets the record of this key.
    pub fn put(&mut self, key: R::Key, record: R, urgency: Urgency) {
        let record = Arc::new(record);
        let sub_map = self.sub_map_of(&key);
        let old = self.sub_maps[sub_map].insert(key, Arc::clone(&record));
        self.len += usize::from(old.is_none());
        self.changed(key, old.as_deref(), Some(record), urgency);
    }

    /// Removes the record of this key, and returns it. Without one, nothing changes.
    pub fn remove(&mut self, key: &R::Key, urgency: Urgency) -> Option<Arc<R>> {
        let sub_map = self.sub_map_of(key);
        let old = self.sub_maps[sub_map].remove(key)?;
        self.len -= 1;
        self.changed(*key, Some(&old), None, urgency);
        Some(old)
    }

    /// How many records there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no record.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of the last change.
    #[must_use]
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    fn changed(&mut self, key: R::Key, old: Option<&R>, new: Change<R>, urgency: Urgency) {
        self.revision = self.revision.next();
        self.index.changed(&key, old, new.as_ref(), self.revision);
        let critical = urgency == Urgency::Critical;
        self.critical |= critical;
        self.ring |= critical || self.dirty.is_empty();
        self.dirty.insert(key, new);
    }

    fn sub_map_of(&self, key: &R::Key) -> usize {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        key.hash(&mut hasher);
        // The remainder is below SUB_MAPS, which is a power of two: no bias, and no index out of range.
        #[allow(clippy::cast_possible_truncation)]
        let hash = hasher.finish() as usize;
        hash % SUB_MAPS
    }
}

/// For the store, the drainer and recovery.
impl<R: Record> Table<R> {
    pub(crate) fn index(&self) -> &Arc<R::Index> {
        &self.index
    }

    /// Whether the bell is to be rung for what was changed since the last call.
    pub(crate) fn take_ring(&mut self) -> bool {
        mem::take(&mut self.ring)
    }

    /// What the drainer has to do: nothing, something that can wait, something that cannot.
    pub(crate) fn owed(&self) -> Option<Urgency> {
        match (self.dirty.is_empty(), self.critical) {
            (true, _) => None,
            (false, true) => Some(Urgency::Critical),
            (false, false) => Some(Urgency::Lazy),
        }
    }

    /// Takes all changes since the last call, whatever their number.
    pub(crate) fn take_dirty(&mut self) -> Taken<R> {
        self.critical = false;
        Taken { changes: mem::take(&mut self.dirty), revision: self.revision, records: self.len as u64 }
    }

    /// Copies out records from the cursor on, a bounded number, and moves the cursor; `false` at the end.
    pub(crate) fn walk(&self, cursor: &mut Cursor<R::Key>, out: &mut Vec<(R::Key, Arc<R>)>) -> bool {
        let mut visited = 0;
        while cursor.sub_map < SUB_MAPS && visited < WALK_SUB_MAPS_MAX {
            let from = cursor.after.map_or(Bound::Unbounded, Bound::Excluded);
            for (key, record) in self.sub_maps[cursor.sub_map].range((from, Bound::Unbounded)) {
                if out.len() >= WALK_RECORDS_MAX {
                    return true;
                }
                out.push((*key, Arc::clone(record)));
                cursor.after = Some(*key);
            }
            *cursor = Cursor { sub_map: cursor.sub_map + 1, after: None };
            visited += 1;
        }
        cursor.sub_map < SUB_MAPS
    }

    /// Applies a change read from the disk: no revision, no index, not dirty.
    pub(crate) fn replay(&mut self, key: R::Key, record: Option<R>) {
        let sub_map = self.sub_map_of(&key);
        let sub_map = &mut self.sub_maps[sub_map];
        match record {
            Some(record) => self.len += usize::from(sub_map.insert(key, Arc::new(record)).is_none()),
            None => self.len -= usize::from(sub_map.remove(&key).is_some()),
        }
    }

    /// Ends recovery: the table is at `revision`, and the index learns of every record.
    pub(crate) fn replayed(&mut self, revision: Revision) {
        self.revision = revision;
        for (key, record) in self.sub_maps.iter().flatten() {
            self.index.changed(key, None, Some(record), revision);
        }
    }
}

/// How far a walk has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<K> {
    sub_map: usize,
    after: Option<K>,
}

impl<K> Cursor<K> {
    pub(crate) const fn start() -> Self {
        Self { sub_map: 0, after: None }
    }
}
