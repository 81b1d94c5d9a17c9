//! Which records the disk does not hold yet: a list that is taken as a whole.
//!
//! Invariants: a key has at most one place in the list, so that a hundred changes of one record are one entry. A record
//! that came and went within one list leaves nothing: its place is given to the next, so that records which come and
//! go while the disk hangs do not make the list grow. But not while a checkpoint walks: it may have seen the record.
//! Taking it costs the same however long it is, adding to it moves nothing. The order is that of the first change of
//! each key: the same changes make the same list.
//!
//! Chunks are allocated, and their memory touched, outside the lock: the drainer leaves one when it takes the list,
//! changers bring the next when the last is half full. Only where many change at once does a change allocate one itself.
//!
//! A record's entry in the table knows its place; what was removed has no entry, and its place is kept in a map of its
//! own, which is small.
//!
//! Not here: what the list is for (`lane`).

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use crate::record::Record;

/// Changes in one chunk.
const CHUNK: usize = 256;

/// A key, and the record that it has now; `None` where it was removed.
pub(crate) type Change<R> = (<R as Record>::Key, Option<Arc<R>>);

/// What a place holds: a change, or nothing any more.
pub(crate) type Slot<R> = Option<Change<R>>;

/// A part of the list.
pub(crate) type Chunk<R> = Vec<Slot<R>>;

/// An empty chunk whose memory has been touched: what comes into it later waits for no page.
pub(crate) fn new_chunk<R: Record>() -> Chunk<R> {
    let mut chunk: Chunk<R> = (0..CHUNK).map(|_| None).collect();
    chunk.clear();
    chunk
}

/// What a list consisted of: to be dropped outside the lock.
pub(crate) struct TakenList<R: Record> {
    pub(crate) chunks: Vec<Chunk<R>>,
    _removed: BTreeMap<R::Key, Place>,
    _free: Vec<u32>,
}

/// A place in one list; in the next list it means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    list: u64,
    number: u32,
    /// Neither the disk nor an earlier list has the record.
    fresh: bool,
}

impl Place {
    /// In no list.
    pub(crate) const NONE: Self = Self { list: 0, number: 0, fresh: false };
}

pub(crate) struct Dirty<R: Record> {
    /// Which list this is; never 0.
    list: u64,
    chunks: Vec<Chunk<R>>,
    spare: Option<Chunk<R>>,
    removed: BTreeMap<R::Key, Place>,
    /// Places that hold nothing any more.
    free: Vec<u32>,
    /// Whether a file is being built that may hold records of this list.
    walked: bool,
}

impl<R: Record> Default for Dirty<R> {
    fn default() -> Self {
        Self {
            list: 1,
            chunks: Vec::new(),
            spare: Some(new_chunk::<R>()),
            removed: BTreeMap::new(),
            free: Vec::new(),
            walked: false,
        }
    }
}

impl<R: Record> Dirty<R> {
    pub(crate) const fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// A record that the table had has changed. What it replaces in the list is what the table had: the table's own
    /// reference keeps it, nothing is freed.
    pub(crate) fn put(&mut self, place: &mut Place, key: R::Key, record: Arc<R>) {
        if place.list == self.list {
            self.set(*place, Some(record));
        } else {
            *place = self.push(key, Some(record), false);
        }
    }

    /// A record that the table had not has come.
    pub(crate) fn put_new(&mut self, place: &mut Place, key: R::Key, record: Arc<R>) {
        *place = match self.removed.remove(&key) {
            Some(place) => {
                self.set(place, Some(record));
                place
            }
            // Not on the disk, nor in a list that is on its way there: whatever removed it there came last.
            None => self.push(key, Some(record), true),
        };
    }

    /// A record that the table had has gone; as with [`put`](Self::put), nothing is freed.
    pub(crate) fn remove(&mut self, mut place: Place, key: R::Key) {
        if place.list != self.list {
            place = self.push(key, None, false);
        } else if place.fresh && !self.walked {
            self.free.push(place.number);
            *self.slot(place.number) = None;
            return;
        }
        self.removed.insert(key, place);
        self.set(place, None);
    }

    /// A checkpoint begins, or has ended.
    pub(crate) const fn set_walked(&mut self, walked: bool) {
        self.walked = walked;
    }

    /// Takes the list, and begins the next.
    pub(crate) fn take(&mut self) -> TakenList<R> {
        self.list += 1;
        TakenList {
            chunks: mem::take(&mut self.chunks),
            _removed: mem::take(&mut self.removed),
            _free: mem::take(&mut self.free),
        }
    }

    /// Whether a chunk should be brought before the last is full.
    pub(crate) fn wants_chunk(&self) -> bool {
        self.spare.is_none() && self.chunks.last().is_some_and(|chunk| chunk.len() >= CHUNK / 2)
    }

    /// Keeps a chunk for later, unless there is one.
    pub(crate) fn keep_chunk(&mut self, chunk: &mut Option<Chunk<R>>) {
        if self.spare.is_none() {
            self.spare = chunk.take();
        }
    }

    fn push(&mut self, key: R::Key, record: Option<Arc<R>>, fresh: bool) -> Place {
        let list = self.list;
        if let Some(number) = self.free.pop() {
            *self.slot(number) = Some((key, record));
            return Place { list, number, fresh };
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(self.spare.take().unwrap_or_else(new_chunk::<R>));
        }
        let before = (self.chunks.len() - 1) * CHUNK;
        let Some(chunk) = self.chunks.last_mut() else { return Place::NONE };
        chunk.push(Some((key, record)));
        #[allow(clippy::cast_possible_truncation)]
        let number = (before + chunk.len() - 1) as u32;
        Place { list, number, fresh }
    }

    fn set(&mut self, place: Place, record: Option<Arc<R>>) {
        if let Some((_, old)) = self.slot(place.number) {
            *old = record;
        }
    }

    fn slot(&mut self, number: u32) -> &mut Slot<R> {
        let number = number as usize;
        &mut self.chunks[number / CHUNK][number % CHUNK]
    }
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use super::*;
    use crate::sim::Blob;

    type Item = Blob<1>;

    fn flat(dirty: &mut Dirty<Item>) -> Vec<(u64, Option<Vec<u8>>)> {
        dirty
            .take()
            .chunks
            .into_iter()
            .flatten()
            .flatten()
            .map(|(key, record)| (key, record.map(|blob| blob.0.clone())))
            .collect()
    }

    fn blob(byte: u8) -> Arc<Item> {
        Arc::new(Blob(vec![byte]))
    }

    #[test]
    fn a_key_has_one_place_whatever_happens_to_it() {
        let mut dirty = Dirty::<Item>::default();
        let mut place = Place::NONE;
        dirty.put_new(&mut place, 7, blob(1));
        assert_eq!(flat(&mut dirty), [(7, Some(vec![1]))]);
        for byte in 0..100 {
            dirty.put(&mut place, 7, blob(byte));
            dirty.remove(place, 7);
            dirty.put_new(&mut place, 7, blob(byte));
        }
        let mut other = Place::NONE;
        dirty.put(&mut other, 8, blob(8));
        dirty.remove(place, 7);
        assert_eq!(flat(&mut dirty), [(7, None), (8, Some(vec![8]))]);
        assert!(dirty.is_empty());
        // The places of the last list mean nothing in this one.
        dirty.put(&mut other, 8, blob(9));
        assert_eq!(flat(&mut dirty), [(8, Some(vec![9]))]);
    }

    #[test]
    fn what_comes_and_goes_within_a_list_leaves_nothing() {
        let mut dirty = Dirty::<Item>::default();
        let mut places = [Place::NONE; 3];
        for round in 0..1_000 {
            for (key, place) in (round * 3..).zip(&mut places) {
                dirty.put_new(place, key, blob(1));
            }
            for (key, place) in (round * 3..).zip(places).skip(usize::from(round == 999)) {
                dirty.remove(place, key);
            }
        }
        assert_eq!(dirty.chunks.iter().map(Vec::len).sum::<usize>(), 3);
        assert!(!dirty.is_empty(), "the revisions are to be made durable all the same");
        assert_eq!(flat(&mut dirty), [(2_997, Some(vec![1]))]);
    }

    #[test]
    fn what_a_checkpoint_may_have_seen_is_removed_by_name() {
        let mut dirty = Dirty::<Item>::default();
        let mut place = Place::NONE;
        dirty.put_new(&mut place, 1, blob(1));
        dirty.set_walked(true);
        dirty.remove(place, 1);
        assert_eq!(flat(&mut dirty), [(1, None)]);
    }

    #[test]
    fn a_chunk_is_wanted_before_the_last_is_full() {
        let mut dirty = Dirty::<Item>::default();
        let mut wanted_at = Vec::new();
        for key in 0..1_000 {
            dirty.put_new(&mut Place::NONE.clone(), key, blob(1));
            if dirty.wants_chunk() {
                wanted_at.push(key);
                dirty.keep_chunk(&mut Some(new_chunk::<Item>()));
            }
        }
        assert_eq!(wanted_at, [127, 383, 639, 895]);
        let mut second = Some(new_chunk::<Item>());
        dirty.keep_chunk(&mut second);
        assert!(second.is_some(), "one is enough");
    }

    #[test]
    fn places_are_kept_across_chunks() {
        let mut dirty = Dirty::<Item>::default();
        let mut places = vec![Place::NONE; 3_000];
        for (key, place) in (0..).zip(&mut places) {
            dirty.put_new(place, key, blob(1));
        }
        for (key, place) in (0..).zip(&mut places).step_by(7) {
            dirty.put(place, key, blob(2));
        }
        for (key, record) in flat(&mut dirty) {
            assert_eq!(record, Some(vec![if key % 7 == 0 { 2 } else { 1 }]));
        }
    }
}
