//! A seeded hash for keys that are 32 bytes long and that strangers choose: peers can grind their keys, not the seed.
//!
//! NH, the almost universal hash of UMAC (RFC 4418, section 5.2; there with 32-bit words): words are added to secret
//! words and multiplied in pairs. Two different keys collide with a probability of 2^-64, for anybody who does not know
//! the seed. The seed comes from the system's random numbers, through `RandomState`; it never leaves the process.
//! It costs a tenth of SipHash, which is most of what a lookup in a warm table costs.
//!
//! Not here: hashes that are kept (`table` orders files by one).

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

const WORDS: usize = 4;

/// Makes hashers of one seed.
#[derive(Clone, Debug)]
pub(crate) struct SeededState([u64; WORDS]);

impl Default for SeededState {
    fn default() -> SeededState {
        let random = RandomState::new();
        SeededState(std::array::from_fn(|word| random.hash_one(word)))
    }
}

/// For the model checker, which must find the same each time.
#[cfg(test)]
#[cfg(handfast_loom)]
impl SeededState {
    pub(crate) const fn fixed() -> SeededState {
        SeededState([3, 5, 7, 11])
    }
}

impl BuildHasher for SeededState {
    type Hasher = SeededHasher;

    #[inline]
    fn build_hasher(&self) -> SeededHasher {
        SeededHasher { seed: self.0, sum: 0 }
    }
}

/// Takes in one key.
pub(crate) struct SeededHasher {
    seed: [u64; WORDS],
    sum: u128,
}

impl Hasher for SeededHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for pair in words.chunks(2) {
            let word = |at: usize| pair.get(at).map_or(0, |word| u64::from_le_bytes(*word));
            self.add(word(0), word(1));
        }
        for byte in rest {
            self.add(u64::from(*byte), 0);
        }
    }

    /// A length that all keys share.
    #[inline]
    fn write_usize(&mut self, length: usize) {
        debug_assert_eq!(length, WORDS * 8, "for keys of one length only");
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    fn finish(&self) -> u64 {
        // Different sums may still lie close together: keys in steps make products in steps. Both ends of a hash are used
        // for places, so every bit of the sum must move every bit of it (the finalizer of MurmurHash3).
        let mut hash = (self.sum as u64) ^ ((self.sum >> 64) as u64);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

impl SeededHasher {
    #[inline]
    fn add(&mut self, first: u64, second: u64) {
        let [a, b, c, d] = self.seed;
        let product = u128::from(first.wrapping_add(a)) * u128::from(second.wrapping_add(b));
        self.sum = self.sum.wrapping_add(product);
        // The next pair has the next words.
        self.seed = [c, d, a, b];
    }
}

#[cfg(test)]
#[cfg(not(handfast_loom))]
mod tests {
    use super::*;

    /// Keys that differ in a few bits are spread over the low and over the high bits, whatever the seed.
    #[test]
    fn keys_with_much_in_common_are_spread() {
        for _ in 0..64 {
            let state = SeededState::default();
            let mut counts = [[0_u32; 64]; 2];
            for number in 0..4_096_u64 {
                let mut key = [0x11; 32];
                let at = 8 * (number as usize % 4);
                key[at..at + 8].copy_from_slice(&(number << 20).to_le_bytes());
                let hash = state.hash_one(key);
                counts[0][(hash % 64) as usize] += 1;
                counts[1][(hash >> 58) as usize] += 1;
            }
            // 64 in each on the average; a standard deviation is 8.
            assert!(counts.as_flattened().iter().all(|count| (8..160).contains(count)), "{counts:?}");
        }
    }

    #[test]
    fn another_seed_is_another_hash() {
        let key = [7_u8; 32];
        let (one, other) = (SeededState::default(), SeededState::default());
        assert_eq!(one.hash_one(key), one.hash_one(key));
        assert_ne!(one.hash_one(key), other.hash_one(key));
    }
}
