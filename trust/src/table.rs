//! The records of one store in memory, and which of them the disk does not hold yet.
//!
//! Invariants: every change raises the revision by one, enters the record into the dirty list and updates the index,
//! in one call. No operation touches more than one sub-map, and none moves more than a sub-map's records: the key's
//! seeded hash chooses one of [`SUB_MAPS`] sorted vectors, which hold 15 records each at a million, so that neither
//! growth nor keys ground by a peer make a single change slow, a lookup touches few cache lines, and a walk can be
//! resumed at any key. A key has at most one place in the dirty list, and the list grows by chunks.
//!
//! A change neither allocates nor frees, as a rule: the record comes ready, the vectors that it may need lie ready
//! (`supplies`, `dirty`), and what a change replaces is retired, and dropped by the store after the lock's release.
//!
//! A table lives inside its store's lock. Not here: the lock (`store`), the disk (`drainer`).

mod batch;
mod dirty;
mod supplies;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem;
use std::sync::Arc;

use crate::record::{Index, Record, Revision};

pub(crate) use self::batch::{BATCH_HOLD_RECORDS, Batch};
pub(crate) use self::dirty::{Chunk, Slot, new_chunk};
use self::dirty::{Dirty, Place, TakenList};
pub(crate) use self::supplies::{Supplies, Wanted};

/// Into how many vectors a table is divided.
pub const SUB_MAPS: usize = GROUPS * GROUP_SUB_MAPS;

/// Sub-maps are made in groups, when the first record of a group comes: a small table stays small.
const GROUPS: usize = 256;
const GROUP_SUB_MAPS: usize = if cfg!(handfast_loom) { 1 } else { 256 };

/// Most records that one hold of the lock copies out. Each may be a miss of every cache.
pub(crate) const WALK_HOLD_RECORDS: usize = 16;

/// Most records of one piece of a walk.
pub const WALK_RECORDS_MAX: usize = 256;

/// Most sub-maps that one hold of the lock looks into, for tables that are nearly empty.
const WALK_SUB_MAPS_MAX: usize = 256;

/// Bytes of a file for each record that an index should expect: what is too little or too much costs little.
const EXPECTED_RECORD_BYTES: u64 = 512;

/// More than so many are not expected: a file may be long and hold little.
const EXPECTED_RECORDS_MAX: u64 = 1 << 20;

/// How soon a change must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Urgency {
    /// At once if somebody waits for it, else within milliseconds: losing it would be a broken promise.
    Critical,
    /// Within a second, together with whatever else there is by then; sooner if somebody waits for it.
    Lazy,
}

/// Changes that were taken to be written, and the state that they lead to.
pub(crate) struct Taken<R: Record> {
    pub(crate) changes: Vec<Chunk<R>>,
    pub(crate) revision: Revision,
    pub(crate) records: u64,
}

struct Entry<R: Record> {
    hash: u64,
    key: R::Key,
    /// `None` in no sub-map: only where the memory of one is touched before it is used.
    record: Option<Arc<R>>,
    /// Its place in the dirty list, as long as that list is the current one.
    place: Place,
}

/// Sorted by hash, and where those are the same by key.
type SubMap<R> = Vec<Entry<R>>;

type Group<R> = Box<[SubMap<R>]>;

/// The records of one store.
pub struct Table<R: Record> {
    groups: Box<[Option<Group<R>>]>,
    seed: u64,
    len: usize,
    revision: Revision,
    dirty: Dirty<R>,
    supplies: Supplies<R>,
    critical: bool,
    ring: bool,
    retired: Retired<R>,
    index: Arc<R::Index>,
}

/// What changes have replaced, to be dropped outside the lock: one without an allocation, which is the rule.
pub(crate) struct Retired<R: Record> {
    first: Option<Arc<R>>,
    others: Vec<Arc<R>>,
    sub_map: SubMap<R>,
}

impl<R: Record> Default for Retired<R> {
    fn default() -> Self {
        Self { first: None, others: Vec::new(), sub_map: Vec::new() }
    }
}

impl<R: Record> Retired<R> {
    fn push(&mut self, record: Option<Arc<R>>) {
        if self.first.is_none() {
            self.first = record;
        } else {
            self.others.extend(record);
        }
    }
}

impl<R: Record> Table<R> {
    /// An empty table. `seed` chooses the sub-maps; whoever can guess it can make them uneven.
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            groups: (0..GROUPS).map(|_| None).collect(),
            seed,
            len: 0,
            revision: Revision::ZERO,
            dirty: Dirty::default(),
            supplies: Supplies::none(),
            critical: false,
            ring: false,
            retired: Retired::default(),
            index: Arc::new(R::Index::default()),
        }
    }

    /// The record of this key.
    #[must_use]
    pub fn get(&self, key: &R::Key) -> Option<&Arc<R>> {
        let hash = self.hash(key);
        let sub_map = &self.groups[group_of(hash)].as_ref()?[place_of(hash)];
        find(sub_map, hash, key).ok().and_then(|at| sub_map[at].record.as_ref())
    }

    /// Whether this key has just the record that a change was prepared from, or still none.
    pub(crate) fn still_holds(&self, key: &R::Key, before: Option<&Arc<R>>) -> bool {
        match (self.get(key), before) {
            (None, None) => true,
            (Some(current), Some(before)) => Arc::ptr_eq(current, before),
            _ => false,
        }
    }

    /// Sets the record of this key. Allocates: where holds must be short, see [`put_shared`](Self::put_shared).
    pub fn put(&mut self, key: R::Key, record: R, urgency: Urgency) {
        self.put_shared(key, Arc::new(record), urgency);
    }

    /// As [`put`](Self::put), with a record that was allocated outside the lock.
    pub fn put_shared(&mut self, key: R::Key, record: Arc<R>, urgency: Urgency) {
        let replaced = self.put_hashed(self.hash(&key), key, record, urgency);
        self.retired.push(replaced);
    }

    /// Sets the record of this key, which has this hash, and returns the one before, to be dropped outside the lock.
    fn put_hashed(&mut self, hash: u64, key: R::Key, record: Arc<R>, urgency: Urgency) -> Option<Arc<R>> {
        self.begin_change(urgency);
        let group = self.groups[group_of(hash)].get_or_insert_with(|| self.supplies.group());
        let sub_map = &mut group[place_of(hash)];
        match find(sub_map, hash, &key) {
            Ok(at) => {
                let entry = &mut sub_map[at];
                self.dirty.put(&mut entry.place, key, Arc::clone(&record));
                self.index.changed(&key, entry.record.as_deref(), Some(&record), self.revision);
                entry.record.replace(record)
            }
            Err(at) => {
                let mut place = Place::NONE;
                self.dirty.put_new(&mut place, key, Arc::clone(&record));
                self.index.changed(&key, None, Some(&record), self.revision);
                if sub_map.len() == sub_map.capacity() {
                    self.retired.sub_map = self.supplies.grow(sub_map, key);
                }
                sub_map.insert(at, Entry { hash, key, record: Some(record), place });
                self.len += 1;
                None
            }
        }
    }

    /// Removes the record of this key, and returns it, to be dropped outside the lock. Without one, nothing changes.
    pub fn remove(&mut self, key: &R::Key, urgency: Urgency) -> Option<Arc<R>> {
        let hash = self.hash(key);
        let sub_map = &mut self.groups[group_of(hash)].as_mut()?[place_of(hash)];
        let at = find(sub_map, hash, key).ok()?;
        let Entry { record, place, .. } = sub_map.remove(at);
        self.len -= 1;
        self.begin_change(urgency);
        self.dirty.remove(place, *key);
        self.index.changed(key, record.as_deref(), None, self.revision);
        record
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

    fn begin_change(&mut self, urgency: Urgency) {
        self.revision = self.revision.next();
        let critical = urgency == Urgency::Critical;
        // Of those after the first the drainer knows.
        self.ring |= self.dirty.is_empty() || critical && !self.critical;
        self.critical |= critical;
    }

    fn hash(&self, key: &R::Key) -> u64 {
        seeded_hash(self.seed, key)
    }
}

fn seeded_hash<K: Hash>(seed: u64, key: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(seed);
    key.hash(&mut hasher);
    hasher.finish()
}

/// A change read from the disk, on its way into a table.
pub(crate) struct ReadChange<R: Record> {
    hash: u64,
    key: R::Key,
    record: Option<Arc<R>>,
}

impl<R: Record> ReadChange<R> {
    /// For a table with this seed.
    pub(crate) fn new(seed: u64, key: R::Key, record: Option<R>) -> Self {
        Self { hash: seeded_hash(seed, &key), key, record: record.map(Arc::new) }
    }
}

/// The low bits choose the sub-map; the high ones the order in it. No bias, and no index out of range.
#[allow(clippy::cast_possible_truncation)]
const fn group_of(hash: u64) -> usize {
    hash as usize / GROUP_SUB_MAPS % GROUPS
}

#[allow(clippy::cast_possible_truncation)]
const fn place_of(hash: u64) -> usize {
    hash as usize % GROUP_SUB_MAPS
}

fn new_group<R: Record>() -> Group<R> {
    (0..GROUP_SUB_MAPS).map(|_| Vec::new()).collect()
}

/// Where a key should be. Below the length, since the quotient is below one.
#[allow(clippy::cast_possible_truncation)]
fn expected_at<R: Record>(sub_map: &[Entry<R>], hash: u64) -> usize {
    ((u128::from(hash) * sub_map.len() as u128) >> u64::BITS) as usize
}

/// Where a key is, or where it belongs. Hashes are spread evenly, so that the search begins where the key should be,
/// and mostly ends there: one cache line or two.
fn find<R: Record>(sub_map: &[Entry<R>], hash: u64, key: &R::Key) -> Result<usize, usize> {
    let before = |entry: &Entry<R>| (entry.hash, &entry.key) < (hash, key);
    let mut at = expected_at(sub_map, hash);
    while at < sub_map.len() && before(&sub_map[at]) {
        at += 1;
    }
    while at > 0 && !before(&sub_map[at - 1]) {
        at -= 1;
    }
    if sub_map.get(at).is_some_and(|entry| entry.hash == hash && entry.key == *key) { Ok(at) } else { Err(at) }
}

/// For the store, the drainer and recovery.
impl<R: Record> Table<R> {
    pub(crate) const fn index(&self) -> &Arc<R::Index> {
        &self.index
    }

    pub(crate) const fn seed(&self) -> u64 {
        self.seed
    }

    /// A checkpoint begins to walk, or has ended.
    pub(crate) const fn set_walked(&mut self, walked: bool) {
        self.dirty.set_walked(walked);
    }

    /// Whether the bell is to be rung for what was changed since the last call.
    pub(crate) const fn take_ring(&mut self) -> bool {
        mem::replace(&mut self.ring, false)
    }

    /// What was replaced since the last call.
    pub(crate) fn take_retired(&mut self) -> Retired<R> {
        mem::take(&mut self.retired)
    }

    /// What the drainer has to do: nothing, something that can wait, something that cannot.
    pub(crate) const fn owed(&self) -> Option<Urgency> {
        match (self.dirty.is_empty(), self.critical) {
            (true, _) => None,
            (false, true) => Some(Urgency::Critical),
            (false, false) => Some(Urgency::Lazy),
        }
    }

    /// Takes all changes since the last call, whatever their number.
    pub(crate) fn take_dirty(&mut self) -> (TakenList<R>, Revision, u64) {
        self.critical = false;
        (self.dirty.take(), self.revision, self.len as u64)
    }

    /// What somebody should bring.
    pub(crate) fn wanted(&self) -> Wanted<R::Key> {
        // The model checker's tables are small: it need not try what a hold more or less does.
        if cfg!(handfast_loom) {
            return Wanted::nothing();
        }
        self.supplies.wanted(self.dirty.wants_chunk())
    }

    /// Keeps what is missing.
    pub(crate) fn supply(&mut self, supplies: &mut Supplies<R>) {
        self.keep_chunk(&mut supplies.chunk);
        self.supplies.take_from(supplies);
    }

    /// Keeps a chunk for later, unless there is one.
    pub(crate) fn keep_chunk(&mut self, chunk: &mut Option<Chunk<R>>) {
        self.dirty.keep_chunk(chunk);
    }

    /// Copies out records from the cursor on, a bounded number, and moves the cursor; `false` at the end.
    pub(crate) fn walk(&self, cursor: &mut Cursor<R::Key>, out: &mut Vec<(R::Key, Arc<R>)>) -> bool {
        let limit = out.len() + WALK_HOLD_RECORDS;
        let mut visited = 0;
        while cursor.sub_map < SUB_MAPS && visited < WALK_SUB_MAPS_MAX {
            visited += 1;
            let Some(group) = &self.groups[cursor.sub_map / GROUP_SUB_MAPS] else {
                *cursor = Cursor { sub_map: (cursor.sub_map / GROUP_SUB_MAPS + 1) * GROUP_SUB_MAPS, after: None };
                continue;
            };
            let sub_map = &group[cursor.sub_map % GROUP_SUB_MAPS];
            let from =
                cursor.after.map_or(0, |after| sub_map.partition_point(|entry| (entry.hash, entry.key) <= after));
            for entry in &sub_map[from..] {
                if out.len() >= limit {
                    return true;
                }
                out.extend(entry.record.iter().map(|record| (entry.key, Arc::clone(record))));
                cursor.after = Some((entry.hash, entry.key));
            }
            *cursor = Cursor { sub_map: cursor.sub_map + 1, after: None };
        }
        cursor.sub_map < SUB_MAPS
    }

    /// Changes of a file of so many bytes will be read into the table, which is empty, and takes over its order.
    pub(crate) fn expect(&mut self, seed: u64, file_bytes: u64) {
        self.seed = seed;
        let records = (file_bytes / EXPECTED_RECORD_BYTES).min(EXPECTED_RECORDS_MAX);
        self.index.expect(usize::try_from(records).unwrap_or(usize::MAX));
    }

    /// Applies a change read from the disk: no revision, not dirty.
    pub(crate) fn replay(&mut self, change: ReadChange<R>) {
        let ReadChange { hash, key, record } = change;
        let sub_map = &mut self.groups[group_of(hash)].get_or_insert_with(new_group)[place_of(hash)];
        match (find(sub_map, hash, &key), record) {
            (Ok(at), Some(record)) => {
                self.index.changed(&key, sub_map[at].record.as_deref(), Some(&record), Revision::ZERO);
                sub_map[at].record = Some(record);
            }
            (Ok(at), None) => {
                self.index.changed(&key, sub_map[at].record.as_deref(), None, Revision::ZERO);
                sub_map.remove(at);
                self.len -= 1;
            }
            (Err(at), Some(record)) => {
                self.index.changed(&key, None, Some(&record), Revision::ZERO);
                sub_map.insert(at, Entry { hash, key, record: Some(record), place: Place::NONE });
                self.len += 1;
            }
            (Err(_), None) => {}
        }
    }

    /// Ends recovery: the table is at `revision`.
    pub(crate) const fn replayed(&mut self, revision: Revision) {
        self.revision = revision;
    }
}

/// How far a walk has come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<K> {
    sub_map: usize,
    after: Option<(u64, K)>,
}

impl<K> Cursor<K> {
    pub(crate) const fn start() -> Self {
        Self { sub_map: 0, after: None }
    }
}
