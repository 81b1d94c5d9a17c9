//! For `#[serde(with = "codec::words")]`: fixed bytes, read eight and written sixteen at a time.
//!
//! Little-endian words have the encoding of the bytes that they are made of, so that nothing changes on the
//! wire or on the disk (the golden vectors hold it), and a key is four steps of the decoder instead of 32, and two of the encoder.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple as _;
use serde::{Deserializer, Serializer};

const WORD_BYTES: usize = size_of::<u64>();
const PAIR_BYTES: usize = size_of::<u128>();

/// Writes `bytes`, whose number is a multiple of eight.
///
/// # Errors
/// The serializer's own.
pub fn serialize<S: Serializer, const N: usize>(bytes: &[u8; N], serializer: S) -> Result<S::Ok, S::Error> {
    const { assert!(N.is_multiple_of(WORD_BYTES)) };
    let (pairs, rest) = bytes.as_chunks::<PAIR_BYTES>();
    let rest = rest.as_chunks::<WORD_BYTES>().0;
    let mut words = serializer.serialize_tuple(pairs.len() + rest.len())?;
    for pair in pairs {
        words.serialize_element(&u128::from_le_bytes(*pair))?;
    }
    for word in rest {
        words.serialize_element(&u64::from_le_bytes(*word))?;
    }
    words.end()
}

/// Reads what [`serialize`] wrote.
///
/// # Errors
/// The deserializer's own, for too few bytes.
pub fn deserialize<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    const { assert!(N.is_multiple_of(WORD_BYTES)) };
    deserializer.deserialize_tuple(N / WORD_BYTES, Words::<N>)
}

struct Words<const N: usize>;

impl<'de, const N: usize> Visitor<'de> for Words<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{N} bytes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut words: A) -> Result<[u8; N], A::Error> {
        let mut bytes = [0; N];
        for (at, into) in bytes.as_chunks_mut::<WORD_BYTES>().0.iter_mut().enumerate() {
            let word: u64 = words.next_element()?.ok_or_else(|| A::Error::invalid_length(at * WORD_BYTES, &self))?;
            *into = word.to_le_bytes();
        }
        Ok(bytes)
    }
}
