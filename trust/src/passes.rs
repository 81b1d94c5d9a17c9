//! The passes themselves: a hash table that is read without a lock and that never stops to grow.
//!
//! Chains in buckets, which are split one after another as passes come (linear hashing, Litwin 1980): no moment at which all
//! are moved, so that no change is longer in a large table. A pass is one cache line, and stays where it is as long as it
//! lives: to close it is one store, and there is no second copy that might be open.
//!
//! Invariants:
//! * One writer: the holder of the store's lock. Readers never wait, and find what was there all the while they looked.
//! * A pass that was found has the key that was asked for: `since` is read before and after key and end, no two openings
//!   have the same, and it says `CHANGING` or `CLOSED` while anything else of the pass changes.
//! * Each chain is whole after each step. A step is one store to a link, or to the number of buckets, and is counted before it is made:
//!   a reader that found nothing while at most one step was made has seen all of one chain; otherwise it looks again.
//!   New passes come first in their chain, which hides nothing: they are not counted.
//! * A pass that is taken out keeps its link for readers that stand on it, until it is used again, which is a step.
//!
//! Memory is brought outside of the lock, as a rule ([`Passes::restock`]), and never given back: a pass that is taken out serves
//! the next one.
//!
//! Not here: who may pass (`authorise`).

use std::hash::BuildHasher as _;
use std::hint::black_box;

use handfast_protocol::PeerId;

use crate::grown::Grown;
use crate::record::Revision;
use crate::seeded::SeededState;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::table::BATCH_HOLD_RECORDS;

/// Of a pass that lets nobody through.
const CLOSED: u64 = u64::MAX;

/// Of a pass that is being changed into one that is not durable yet.
const CHANGING: u64 = u64::MAX - 1;

/// Buckets for each pass: a lookup finds its pass second in a chain once in four times.
const BUCKETS_EACH: u32 = 2;

/// Buckets of an empty table.
const BUCKETS_FIRST: u32 = if cfg!(handfast_loom) { 2 } else { 64 };

/// How far ahead of its use memory is brought: a quarter of what is in use, within these bounds.
const LEAD: std::ops::RangeInclusive<u32> = if cfg!(handfast_loom) { 0..=0 } else { 32..=2_048 };

const WORDS: usize = 4;

/// One peer that both ends grant, or have granted. One cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Pass {
    key: [AtomicU64; WORDS],
    /// In which revision its edges last changed. No two openings have the same.
    since: AtomicU64,
    /// When the first of the two grants ends; of a pass that is not in use, the next such.
    until: AtomicU64,
    /// The next in the chain, and in the upper half the hash of the key.
    link: AtomicU64,
    /// Whether it has bounds besides its end.
    bounded: AtomicU64,
}

/// An open pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    /// In which revision its edges last changed.
    pub(crate) since: Revision,
    /// When the first of the two grants ends.
    pub(crate) until: u64,
    /// Whether it has bounds besides.
    pub(crate) bounded: bool,
}

/// Why a pass that is there lets nobody through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shut {
    /// One of the two does not grant.
    Closed,
    /// It is being changed: what it becomes is not durable.
    Changing,
}

impl Default for Pass {
    fn default() -> Pass {
        let zero = || AtomicU64::new(0);
        let key = std::array::from_fn(|_| zero());
        Pass { key, since: AtomicU64::new(CLOSED), until: zero(), link: zero(), bounded: zero() }
    }
}

impl Pass {
    /// For the holder of the store's lock, as all that changes something.
    pub(crate) fn is_open(&self) -> bool {
        self.since.load(Ordering::Relaxed) != CLOSED
    }

    /// Whether bounds lie beside it.
    pub(crate) fn is_bounded(&self) -> bool {
        self.is_open() && self.bounded.load(Ordering::Relaxed) != 0
    }

    /// Nobody passes until it is open again. Whoever sees anything that changes now sees this.
    pub(crate) fn begin_change(&self) {
        self.since.store(CHANGING, Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// After `begin_change`.
    pub(crate) fn open(&self, open: Open) {
        self.until.store(open.until, Ordering::Relaxed);
        self.bounded.store(u64::from(open.bounded), Ordering::Relaxed);
        self.since.store(open.since.0, Ordering::Release);
    }

    pub(crate) fn close(&self) {
        self.since.store(CLOSED, Ordering::Release);
        fence(Ordering::Release);
    }

    fn has(&self, key: &[u64; WORDS]) -> bool {
        self.key.iter().zip(key).all(|(mine, other)| mine.load(Ordering::Relaxed) == *other)
    }

    /// What it says of this key, if it is this key's.
    fn read(&self, key: &[u64; WORDS]) -> Option<Result<Open, Shut>> {
        let since = self.since.load(Ordering::Acquire);
        if !self.has(key) {
            return None;
        }
        let until = self.until.load(Ordering::Relaxed);
        let bounded = self.bounded.load(Ordering::Relaxed) != 0;
        fence(Ordering::Acquire);
        Some(match since {
            CLOSED => Err(Shut::Closed),
            CHANGING => Err(Shut::Changing),
            _ if self.since.load(Ordering::Relaxed) != since => Err(Shut::Changing),
            _ => Ok(Open { since: Revision(since), until, bounded }),
        })
    }

    fn next(&self) -> u32 {
        lower(self.link.load(Ordering::Acquire))
    }

    fn hash(&self) -> u32 {
        lower(self.link.load(Ordering::Relaxed) >> 32)
    }

    fn set_next(&self, next: u32) {
        self.link.store(u64::from(self.hash()) << 32 | u64::from(next), Ordering::Release);
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
const fn lower(word: u64) -> u32 {
    word as u32
}

fn words(peer: &PeerId) -> [u64; WORDS] {
    let (words, _) = peer.as_bytes().as_chunks::<8>();
    std::array::from_fn(|at| u64::from_le_bytes(words[at]))
}

/// The bucket of a hash among so many, two at least.
#[inline]
const fn bucket_of(hash: u32, buckets: u32) -> u32 {
    let mask = u32::MAX >> (buckets - 1).leading_zeros();
    let bucket = hash & mask;
    if bucket < buckets { bucket } else { hash & (mask >> 1) }
}

/// The table. What readers read and what every change writes are cache lines apart.
pub(crate) struct Passes {
    passes: Grown<Pass>,
    /// The first pass of each bucket, by its number plus one; zero: none.
    heads: Grown<AtomicU32>,
    buckets: AtomicU32,
    /// Steps that were begun.
    steps: AtomicU64,
    hasher: SeededState,
    counts: Counts,
}

/// For the holder of the store's lock.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counts {
    /// Passes that were ever in use.
    used: AtomicU32,
    /// Passes in use.
    len: AtomicU32,
    /// The first pass that is not in use any more, by its number plus one.
    free: AtomicU32,
    /// Whether somebody is bringing memory.
    restocking: AtomicU32,
}

impl Default for Passes {
    fn default() -> Passes {
        Passes::new(SeededState::default())
    }
}

impl Passes {
    pub(crate) fn new(hasher: SeededState) -> Passes {
        let passes = Passes {
            passes: Grown::default(),
            heads: Grown::default(),
            buckets: AtomicU32::new(BUCKETS_FIRST),
            steps: AtomicU64::new(0),
            hasher,
            counts: Counts::default(),
        };
        passes.heads.bring(0);
        passes
    }
}

/// For anybody.
impl Passes {
    /// What the pass of this peer says, if there is one. Never waits.
    #[inline]
    pub(crate) fn look(&self, peer: &PeerId) -> Option<Result<Open, Shut>> {
        let (key, hash) = (words(peer), self.hash(peer));
        loop {
            let steps = self.steps.load(Ordering::Acquire);
            let mut at = self.first(bucket_of(hash, self.buckets.load(Ordering::Acquire)));
            while let Some(pass) = self.pass(at) {
                if let Some(said) = pass.read(&key) {
                    return Some(said);
                }
                at = pass.next();
            }
            fence(Ordering::Acquire);
            if self.steps.load(Ordering::Relaxed) == steps {
                return None;
            }
        }
    }

    /// Looks at where the passes of these peers begin, for all of them at a time.
    pub(crate) fn touch<'a>(&self, peers: impl Iterator<Item = &'a PeerId>) {
        let buckets = self.buckets.load(Ordering::Relaxed);
        let mut first = [0; BATCH_HOLD_RECORDS];
        for (first, peer) in first.iter_mut().zip(peers) {
            *first = self.first(bucket_of(self.hash(peer), buckets));
        }
        let passes = first.map(|first| self.pass(first).map_or(0, Pass::hash));
        black_box(passes.iter().fold(0, |all, hash| all ^ hash));
    }

    /// Brings what the next passes need, if it is not there. Outside of the lock: whoever holds it does not wait.
    pub(crate) fn restock(&self) {
        let used = self.counts.used.load(Ordering::Relaxed);
        let ahead = used.saturating_add((used / 4).clamp(*LEAD.start(), *LEAD.end()));
        let (pass, bucket) = (ahead as usize, BUCKETS_EACH as usize * ahead as usize);
        if self.passes.get(pass).is_some() && self.heads.get(bucket).is_some() {
            return;
        }
        if self.counts.restocking.swap(1, Ordering::Acquire) == 0 {
            self.passes.bring(pass);
            self.heads.bring(bucket);
            self.counts.restocking.store(0, Ordering::Release);
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "as many bits as there may be buckets")]
    fn hash(&self, peer: &PeerId) -> u32 {
        self.hasher.hash_one(peer) as u32
    }

    /// The pass with this number plus one.
    #[inline]
    fn pass(&self, at: u32) -> Option<&Pass> {
        self.passes.get(at.checked_sub(1)? as usize)
    }

    /// The first pass of a bucket, by its number plus one.
    #[inline]
    fn first(&self, bucket: u32) -> u32 {
        self.heads.get(bucket as usize).map_or(0, |head| head.load(Ordering::Acquire))
    }
}

/// For the holder of the store's lock.
impl Passes {
    /// The pass of this peer, if there is one.
    pub(crate) fn find(&self, peer: &PeerId) -> Option<&Pass> {
        self.find_in(self.bucket(self.hash(peer)), &words(peer))
    }

    fn find_in(&self, bucket: u32, key: &[u64; WORDS]) -> Option<&Pass> {
        self.chain(bucket).find(|(_, pass)| pass.has(key)).map(|(_, pass)| pass)
    }

    /// The pass of this peer; a closed one if there was none. `None` when there is no room for one more in this process:
    /// then the peer does not pass.
    pub(crate) fn enter(&self, peer: &PeerId) -> Option<&Pass> {
        let (key, hash) = (words(peer), self.hash(peer));
        let bucket = self.bucket(hash);
        if let Some(pass) = self.find_in(bucket, &key) {
            return Some(pass);
        }
        let (at, pass) = self.unused()?;
        for (into, word) in pass.key.iter().zip(key) {
            into.store(word, Ordering::Relaxed);
        }
        let link = u64::from(hash) << 32 | u64::from(self.first(bucket));
        self.step(|| pass.link.store(link, Ordering::Release));
        self.heads.get(bucket as usize)?.store(at, Ordering::Release);
        let len = self.counts.len.load(Ordering::Relaxed) + 1;
        self.counts.len.store(len, Ordering::Relaxed);
        for _ in 0..BUCKETS_EACH {
            if self.buckets.load(Ordering::Relaxed) < BUCKETS_EACH.saturating_mul(len) {
                self.split();
            }
        }
        Some(pass)
    }

    /// Closes the pass of this peer and takes it out.
    pub(crate) fn remove(&self, peer: &PeerId) {
        let (key, bucket) = (words(peer), self.bucket(self.hash(peer)));
        let mut before = None;
        for (at, pass) in self.chain(bucket) {
            if !pass.has(&key) {
                before = Some(pass);
                continue;
            }
            pass.close();
            self.step(|| self.lead(before, bucket, pass.next()));
            pass.until.store(u64::from(self.counts.free.load(Ordering::Relaxed)), Ordering::Relaxed);
            self.counts.free.store(at, Ordering::Relaxed);
            self.counts.len.fetch_sub(1, Ordering::Relaxed);
            return;
        }
    }

    /// As many buckets as so many passes need, at once: before anybody looks.
    pub(crate) fn expect(&self, passes: usize) {
        let wanted = u32::try_from(passes).unwrap_or(u32::MAX).saturating_mul(BUCKETS_EACH).max(BUCKETS_FIRST);
        let empty = self.counts.len.load(Ordering::Relaxed) == 0;
        if empty && (0..wanted).step_by(BUCKETS_FIRST as usize).all(|bucket| self.heads.bring(bucket as usize)) {
            self.buckets.store(wanted, Ordering::Release);
        }
    }

    /// A pass that is in no chain, and closed; and its number plus one.
    fn unused(&self) -> Option<(u32, &Pass)> {
        let free = self.counts.free.load(Ordering::Relaxed);
        if let Some(pass) = self.pass(free) {
            self.counts.free.store(lower(pass.until.load(Ordering::Relaxed)), Ordering::Relaxed);
            return Some((free, pass));
        }
        let used = self.counts.used.load(Ordering::Relaxed);
        if !self.passes.bring(used as usize) {
            return None;
        }
        self.counts.used.store(used + 1, Ordering::Relaxed);
        Some((used + 1, self.pass(used + 1)?))
    }

    /// One bucket more: it takes those passes of another that belong to it now.
    fn split(&self) {
        let new = self.buckets.load(Ordering::Relaxed);
        let old = new - (1 << new.ilog2());
        if !self.heads.bring(new as usize) {
            return;
        }
        let moves = |pass: &Pass| bucket_of(pass.hash(), new + 1) == new;
        // Both buckets have the whole chain, from their own first pass on.
        let first = self.chain(old).find(|(_, pass)| moves(pass)).map_or(0, |(at, _)| at);
        self.lead(None, new, first);
        self.step(|| self.buckets.store(new + 1, Ordering::Release));
        // Then each loses the other's passes, the first ones first.
        let (mut stays, mut moved) = (None, None);
        let mut at = self.first(old);
        while let Some(pass) = self.pass(at) {
            let (last, bucket) = if moves(pass) { (&mut moved, new) } else { (&mut stays, old) };
            self.relead(*last, bucket, at);
            *last = Some(pass);
            at = pass.next();
        }
        self.relead(stays, old, 0);
        self.relead(moved, new, 0);
    }

    fn relead(&self, before: Option<&Pass>, bucket: u32, to: u32) {
        if before.map_or_else(|| self.first(bucket), Pass::next) != to {
            self.step(|| self.lead(before, bucket, to));
        }
    }

    /// Has a pass, or else a bucket, go on with the pass `to`.
    fn lead(&self, before: Option<&Pass>, bucket: u32, to: u32) {
        match (before, self.heads.get(bucket as usize)) {
            (Some(pass), _) => pass.set_next(to),
            (None, Some(head)) => head.store(to, Ordering::Release),
            (None, None) => {}
        }
    }

    fn step(&self, make: impl FnOnce()) {
        self.steps.store(self.steps.load(Ordering::Relaxed) + 1, Ordering::Release);
        fence(Ordering::Release);
        make();
    }

    fn bucket(&self, hash: u32) -> u32 {
        bucket_of(hash, self.buckets.load(Ordering::Relaxed))
    }

    /// The passes of a bucket, with their numbers plus one.
    fn chain(&self, bucket: u32) -> impl Iterator<Item = (u32, &Pass)> {
        let at = |at: u32| self.pass(at).map(|pass| (at, pass));
        std::iter::successors(at(self.first(bucket)), move |(_, pass)| at(pass.next()))
    }
}

/// Planted mistakes, for the models that must notice them.
#[cfg(test)]
#[cfg(handfast_loom)]
impl Passes {
    /// Takes the end of one chain for the end of the search, whatever was done to it meanwhile.
    pub(crate) fn look_once(&self, peer: &PeerId) -> Option<Result<Open, Shut>> {
        let (key, hash) = (words(peer), self.hash(peer));
        let mut at = self.first(bucket_of(hash, self.buckets.load(Ordering::Acquire)));
        while let Some(pass) = self.pass(at) {
            if let Some(said) = pass.read(&key) {
                return Some(said);
            }
            at = pass.next();
        }
        None
    }

    /// Takes the first pass of the peer's bucket for what it was when its key was read.
    pub(crate) fn until_unchecked(&self, peer: &PeerId) -> Option<u64> {
        let pass = self.find(peer)?;
        pass.is_open().then(|| pass.until.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests;
