//! A vector that only grows, whose elements never move: readers need no lock, and find what they found before.
//!
//! Invariants: an element lives as long as the vector. Memory comes in segments, small ones first and then of
//! [`SEGMENT`] elements each, so that a small vector stays small, a large one has no more room than it needs, and
//! growing never copies. Whoever adds a segment does it outside of the store's lock, as a rule.
//!
//! Not here: which elements are in use (`passes`).

use crate::sync::OnceLock;

/// Elements of a large segment.
const SEGMENT: usize = if cfg!(handfast_loom) { 4 } else { 8_192 };

/// Elements of the first segment; each after it is as large as all before, up to [`SEGMENT`].
const FIRST: usize = if cfg!(handfast_loom) { 4 } else { 64 };

/// How many segments are smaller than a large one.
const SMALL: usize = (SEGMENT / FIRST).ilog2() as usize + 1;

/// How many large segments there may be: 67 million elements in all.
const LARGE: usize = if cfg!(handfast_loom) { 4 } else { 8_192 };

type Segment<T> = OnceLock<Box<[T]>>;

pub(crate) struct Grown<T> {
    small: [Segment<T>; SMALL],
    large: OnceLock<Box<[Segment<T>]>>,
}

impl<T> Default for Grown<T> {
    fn default() -> Self {
        Self { small: std::array::from_fn(|_| OnceLock::new()), large: OnceLock::new() }
    }
}

impl<T: Default> Grown<T> {
    /// The element with this number, if its segment is there.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<&T> {
        if at >= SEGMENT {
            self.large.get()?.get(at / SEGMENT - 1)?.get()?.get(at % SEGMENT)
        } else {
            let (number, begin, _) = small_segment(at);
            self.small[number].get()?.get(at - begin)
        }
    }

    /// Brings the segment of the element with this number, unless it is there; false where there may be none.
    pub(crate) fn bring(&self, at: usize) -> bool {
        let (segment, length) = if at >= SEGMENT {
            let large = self.large.get_or_init(|| (0..LARGE).map(|_| OnceLock::new()).collect());
            let Some(segment) = large.get(at / SEGMENT - 1) else { return false };
            (segment, SEGMENT)
        } else {
            let (number, _, length) = small_segment(at);
            (&self.small[number], length)
        };
        if segment.get().is_none() {
            // Two that bring the same do not wait for each other: one of the two is dropped.
            let _ = segment.set((0..length).map(|_| T::default()).collect());
        }
        true
    }
}

/// Number, first element and length of the small segment that has this element.
#[inline]
const fn small_segment(at: usize) -> (usize, usize, usize) {
    if at < FIRST {
        return (0, 0, FIRST);
    }
    let begin = 1 << at.ilog2();
    ((begin / FIRST).ilog2() as usize + 1, begin, begin)
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_element_has_a_place_of_its_own() {
        let grown = Grown::<AtomicUsize>::default();
        let all = 5 * SEGMENT;
        assert!(grown.get(0).is_none());
        for at in 0..all {
            assert!(grown.bring(at));
            grown.get(at).unwrap().store(at, Ordering::Relaxed);
        }
        assert!((0..all).all(|at| grown.get(at).unwrap().load(Ordering::Relaxed) == at));
        assert!(grown.get(all).is_none(), "no segment more than was brought");
    }

    #[test]
    fn there_is_an_end() {
        let grown = Grown::<AtomicUsize>::default();
        let end = SEGMENT + LARGE * SEGMENT;
        assert!(grown.bring(end - 1) && !grown.bring(end));
        assert!(grown.get(end - 1).is_some() && grown.get(end).is_none());
    }
}
