//! What a change may need allocated: laid ready outside the lock, and taken inside.
//!
//! Invariant: nothing here is needed. A change that finds none ready allocates for itself, inside the lock, where an
//! allocation may wait for other threads' ones and for memory that the system has to provide first.
//!
//! Whoever has taken something brings as much again once it has released the lock.
//!
//! Not here: chunks of the dirty list (`dirty`), who brings things (`store`).

use super::dirty::{Chunk, Place, new_chunk};
use super::{Entry, Group, SubMap, new_group};
use crate::record::Record;

/// Vectors of each size that lie ready: several threads may take one before the first brings another.
const READY: usize = 4;

/// Records in the smallest vector; each of the other sizes is twice the one before.
const SMALLEST: usize = 4;

/// How many sizes lie ready: up to 128 records, for tables of some millions.
const SIZES: usize = 6;

/// What should be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted<K> {
    chunk: bool,
    group: bool,
    /// Of each size, how many vectors.
    vectors: [u8; SIZES],
    /// A key of those that need vectors; any will do to touch their memory.
    key: Option<K>,
}

impl<K: Copy + Eq> Wanted<K> {
    pub(crate) const fn nothing() -> Self {
        Self { chunk: false, group: false, vectors: [0; SIZES], key: None }
    }

    pub(crate) fn is_nothing(&self) -> bool {
        *self == Self::nothing()
    }
}

/// What lies ready, or is brought.
pub(crate) struct Supplies<R: Record> {
    pub(super) chunk: Option<Chunk<R>>,
    group: Option<Group<R>>,
    vectors: [Vec<SubMap<R>>; SIZES],
    wanted: Wanted<R::Key>,
}

impl<R: Record> Supplies<R> {
    /// Nothing ready, and nothing wanted until something is used.
    pub(super) fn none() -> Self {
        let vectors = std::array::from_fn(|_| Vec::with_capacity(READY));
        Self { chunk: None, group: None, vectors, wanted: Wanted::nothing() }
    }

    /// All that is wanted.
    pub(crate) fn of(wanted: Wanted<R::Key>) -> Self {
        let vectors = |size| (0..wanted.vectors[size]).map(|_| touched(SMALLEST << size, wanted.key)).collect();
        Self {
            chunk: wanted.chunk.then(new_chunk::<R>),
            group: wanted.group.then(new_group::<R>),
            vectors: std::array::from_fn(vectors),
            wanted: Wanted::nothing(),
        }
    }

    /// What has been used and not been brought again; beside that perhaps a `chunk`.
    pub(super) const fn wanted(&self, chunk: bool) -> Wanted<R::Key> {
        Wanted { chunk, ..self.wanted }
    }

    pub(super) fn group(&mut self) -> Group<R> {
        self.wanted.group = true;
        self.group.take().unwrap_or_else(new_group::<R>)
    }

    /// Makes room for one more. Returns the vector that was full, to be freed outside the lock.
    pub(super) fn grow(&mut self, full: &mut SubMap<R>, key: R::Key) -> SubMap<R> {
        let records = (2 * full.len()).next_power_of_two().max(SMALLEST);
        let size = (records / SMALLEST).ilog2() as usize;
        let mut larger = match self.vectors.get_mut(size) {
            Some(ready) => {
                let larger = ready.pop();
                #[allow(clippy::cast_possible_truncation, reason = "at most READY")]
                let missing = (READY - ready.len()) as u8;
                self.wanted.vectors[size] = missing;
                self.wanted.key = Some(key);
                larger
            }
            None => None,
        }
        .unwrap_or_else(|| Vec::with_capacity(records));
        larger.append(full);
        std::mem::replace(full, larger)
    }

    /// Takes from `brought` what is missing here.
    pub(super) fn take_from(&mut self, brought: &mut Self) {
        if self.group.is_none() {
            self.group = brought.group.take();
        }
        for (ready, brought) in self.vectors.iter_mut().zip(&mut brought.vectors) {
            let missing = READY - ready.len();
            ready.extend(brought.drain(brought.len().saturating_sub(missing)..));
        }
        self.wanted = Wanted::nothing();
    }
}

/// An empty vector whose memory has been touched: what comes into it later waits for no page.
fn touched<R: Record>(records: usize, key: Option<R::Key>) -> SubMap<R> {
    let mut vector = Vec::with_capacity(records);
    if let Some(key) = key {
        vector.extend((0..records).map(|_| Entry { hash: 0, key, record: None, place: Place::NONE }));
        vector.clear();
    }
    vector
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use super::*;
    use crate::sim::Blob;

    type Ready = Supplies<Blob<1>>;

    #[test]
    fn what_was_used_is_wanted_and_brought_once() {
        let mut ready = Ready::none();
        assert!(ready.wanted(false).is_nothing());
        let mut sub_map = Vec::new();
        drop(ready.grow(&mut sub_map, 1));
        assert_eq!((sub_map.capacity(), ready.wanted(false).vectors), (4, [4, 0, 0, 0, 0, 0]));
        let mut brought = [ready.wanted(false), ready.wanted(false)].map(Ready::of);
        ready.take_from(&mut brought[0]);
        ready.take_from(&mut brought[1]);
        assert_eq!((ready.vectors[0].len(), brought[0].vectors[0].len(), brought[1].vectors[0].len()), (4, 0, 4));
        assert!(ready.wanted(false).is_nothing());
    }
}
