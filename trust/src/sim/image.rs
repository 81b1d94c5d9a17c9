//! What a power cut may leave: the model of the disk's caches.
//!
//! A file is what the disk holds of it for certain, and a list of effects in the order in which they were asked for: a
//! sector written, a length set. A sync makes all pending ones certain. A sync that failed leaves them *lost*: they may
//! be on the disk or not, and no later sync will tell. The directory is a list of effects in the same way. An image is
//! all that is certain and any subset of the rest.
//!
//! This is harsher than any journalled file system: effects of one file and of the directory are independent, and
//! nothing but a sync orders them. Sectors are atomic.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How sure it is that the disk has an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Until the next sync.
    Pending,
    /// Since a sync that succeeded.
    Certain,
    /// Since a sync that failed.
    Lost,
}

#[derive(Debug, Clone)]
pub(super) enum FileEffect {
    Sector { offset: u64, bytes: Arc<[u8]> },
    Length(u64),
}

#[derive(Debug, Clone)]
pub(super) enum NameEffect {
    Set { name: String, inode: usize },
    Remove { name: String },
    Move { from: String, to: String, inode: usize },
}

/// A thing whose effects are made certain by a sync.
#[derive(Debug, Clone)]
pub(super) struct Synced<T, E> {
    certain: T,
    effects: Vec<(E, Fate)>,
}

pub(super) trait Effect<T> {
    fn apply(&self, to: &mut T);
}

impl<T: Clone, E: Effect<T>> Synced<T, E> {
    pub(super) const fn new(certain: T) -> Self {
        Self { certain, effects: Vec::new() }
    }

    pub(super) fn push(&mut self, effect: E) {
        self.effects.push((effect, Fate::Pending));
    }

    pub(super) fn sync(&mut self, fate: Fate) {
        for (_, state) in &mut self.effects {
            if *state == Fate::Pending {
                *state = fate;
            }
        }
        // What is certain and follows nothing uncertain needs no list.
        let uncertain = self.effects.iter().position(|(_, fate)| *fate != Fate::Certain);
        for (effect, _) in self.effects.drain(..uncertain.unwrap_or(self.effects.len())) {
            effect.apply(&mut self.certain);
        }
    }

    fn uncertain(&self) -> usize {
        self.effects.iter().filter(|(_, fate)| *fate != Fate::Certain).count()
    }

    fn image(&self, survives: &mut impl FnMut() -> bool) -> T {
        let mut image = self.certain.clone();
        for (effect, fate) in &self.effects {
            if *fate == Fate::Certain || survives() {
                effect.apply(&mut image);
            }
        }
        image
    }
}

/// What the platter holds of a file: bytes and a length. Bytes past the length are there and not seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Platter {
    pub(super) bytes: Vec<u8>,
    pub(super) length: u64,
}

impl Platter {
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self { length: bytes.len() as u64, bytes }
    }

    fn into_content(mut self) -> Vec<u8> {
        self.bytes.resize(to_index(self.length), 0);
        self.bytes
    }
}

impl Effect<Platter> for FileEffect {
    fn apply(&self, to: &mut Platter) {
        match self {
            Self::Sector { offset, bytes } => {
                let begin = to_index(*offset);
                let end = begin + bytes.len();
                if to.bytes.len() < end {
                    to.bytes.resize(end, 0);
                }
                to.bytes[begin..end].copy_from_slice(bytes);
            }
            Self::Length(length) => {
                // What is cut off reads as zeros when the file grows again.
                if *length < to.length {
                    to.bytes.truncate(to_index(*length));
                }
                to.length = *length;
            }
        }
    }
}

pub(super) type Names = BTreeMap<String, usize>;

impl Effect<Names> for NameEffect {
    fn apply(&self, to: &mut Names) {
        match self {
            Self::Set { name, inode } => drop(to.insert(name.clone(), *inode)),
            Self::Remove { name } => drop(to.remove(name)),
            Self::Move { from, to: name, inode } => {
                to.remove(from);
                to.insert(name.clone(), *inode);
            }
        }
    }
}

pub(super) const fn to_index(number: u64) -> usize {
    // The suites run on 64-bit machines, and files of the simulation are small.
    #[allow(clippy::cast_possible_truncation)]
    {
        number as usize
    }
}

/// A moment at which the power may be cut.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    pub(super) names: Synced<Names, NameEffect>,
    pub(super) files: Vec<Synced<Platter, FileEffect>>,
}

impl CrashPoint {
    /// How many effects are uncertain.
    #[must_use]
    pub fn uncertain(&self) -> usize {
        self.names.uncertain() + self.files.iter().map(Synced::uncertain).sum::<usize>()
    }

    /// The files by name, if of the uncertain effects those survive that `survives` names by their number.
    #[must_use]
    pub fn image(&self, survives: impl Fn(usize) -> bool) -> BTreeMap<String, Vec<u8>> {
        let mut begin = self.names.uncertain();
        let begins: Vec<_> = self
            .files
            .iter()
            .map(|file| {
                begin += file.uncertain();
                begin - file.uncertain()
            })
            .collect();
        let from = |mut number: usize| {
            let survives = &survives;
            move || {
                number += 1;
                survives(number - 1)
            }
        };
        let names = self.names.image(&mut from(0));
        let content = |inode: usize| self.files[inode].image(&mut from(begins[inode])).into_content();
        names.into_iter().map(|(name, inode)| (name, content(inode))).collect()
    }
}

/// Which effects survive: every subset, or above a number of effects a selection that is worth as much.
#[derive(Debug, Clone)]
pub struct Subsets {
    effects: usize,
    next: u64,
    random: u64,
}

impl Subsets {
    /// Up to so many effects, every subset.
    pub const EXHAUSTIVE_MAX: usize = 14;
    /// How many subsets are drawn at random above that.
    pub const DRAWN: u64 = 4_096;

    /// The subsets of so many effects. Above [`EXHAUSTIVE_MAX`](Self::EXHAUSTIVE_MAX): all prefixes, all single losses,
    /// all single survivors and [`DRAWN`](Self::DRAWN) drawn from the seed.
    #[must_use]
    pub const fn new(effects: usize, seed: u64) -> Self {
        Self { effects, next: 0, random: seed | 1 }
    }

    /// Whether these are all subsets.
    #[must_use]
    pub const fn is_exhaustive(&self) -> bool {
        self.effects <= Self::EXHAUSTIVE_MAX
    }

    fn draw(&mut self) -> u64 {
        // xorshift64: good enough to choose, and the same everywhere.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Iterator for Subsets {
    type Item = Vec<bool>;

    fn next(&mut self) -> Option<Vec<bool>> {
        let number = self.next;
        self.next += 1;
        let effects = self.effects;
        if self.is_exhaustive() {
            return (number < 1 << effects).then(|| (0..effects).map(|effect| number >> effect & 1 == 1).collect());
        }
        let all = effects as u64;
        let at = |offset: u64| to_index(number - offset);
        match number {
            number if number <= all => Some((0..effects).map(|effect| effect < at(0)).collect()),
            number if number <= 2 * all => Some((0..effects).map(|effect| effect != at(all + 1)).collect()),
            number if number <= 3 * all => Some((0..effects).map(|effect| effect == at(2 * all + 1)).collect()),
            number if number <= 3 * all + Self::DRAWN => Some((0..effects).map(|_| self.draw() & 32 != 0).collect()),
            _ => None,
        }
    }
}
