//! The one place that names bincode: little endian, fixed integers, a byte limit on every decode, and exactly one
//! encoding for every value.
//!
//! Invariants: [`decode`] accepts only what [`encode`] would produce, to the byte: trailing bytes and second encodings
//! of the same value are refused. Allocation is bounded by the limit, and of lists by their own (`bounded_list`). Golden vectors in `tests/golden.rs` pin the
//! bytes, so that a successor of bincode can be put in here without anybody noticing.

pub mod words;

use std::fmt;
use std::marker::PhantomData;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::{FRAME_LENGTH_BYTES, JOIN_FRAME_BYTES_MAX};

/// Largest value that any caller may decode; callers pass tighter limits.
const DECODE_BYTES_MAX: usize = 64 * 1024;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<DECODE_BYTES_MAX>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<DECODE_BYTES_MAX>();

/// Why bytes are not a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecFault {
    /// Longer than the limit of its kind.
    #[error("{len} bytes where at most {max} are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not the encoding of a valid value.
    #[error("not a valid encoding")]
    Malformed,
    /// A valid value followed by further bytes.
    #[error("trailing bytes after the value")]
    Trailing,
    /// A second encoding of a value that has another, canonical one.
    #[error("not the canonical encoding of the value")]
    NotCanonical,
}

/// The canonical encoding of `value`, appended to `out`.
///
/// Our own types always encode: their derives use no feature that bincode refuses (unsized sequences, `flatten`).
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    let written = bincode::serde::encode_into_writer(value, Appender(out), CONFIG);
    debug_assert!(written.is_ok(), "a type without a canonical encoding");
}

/// The canonical encoding of `value`.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    encode_into(value, &mut out);
    out
}

struct Appender<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// The value of which `bytes` are the canonical encoding.
///
/// # Errors
/// Every [`CodecFault`]; nothing longer than `max` bytes is looked at.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CodecFault> {
    let value: T = decode_stored(bytes, max)?;
    if encode(&value) == bytes { Ok(value) } else { Err(CodecFault::NotCanonical) }
}

/// As [`decode`], for bytes that a record file's digest chain vouches for: not encoded again for comparison.
///
/// # Errors
/// Every [`CodecFault`] except `NotCanonical`.
pub fn decode_stored<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CodecFault> {
    if bytes.len() > max.min(DECODE_BYTES_MAX) {
        return Err(CodecFault::TooLong { len: bytes.len(), max });
    }
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((value, read)) if read == bytes.len() => Ok(value),
        Ok(_) => Err(CodecFault::Trailing),
        Err(_) => Err(CodecFault::Malformed),
    }
}

/// For `deserialize_with`: a list of at most `MAX` elements. The announced count is checked before anything is allocated:
/// serde's own `Vec` would set up to a mebibyte aside for a count that the bytes do not bear out.
pub(crate) fn bounded_list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const MAX: usize>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(BoundedList::<T, MAX>(PhantomData))
}

struct BoundedList<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedList<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let announced = list.size_hint().unwrap_or(0);
        if announced > MAX {
            return Err(A::Error::invalid_length(announced, &self));
        }
        let mut out = Vec::with_capacity(announced);
        while let Some(element) = list.next_element()? {
            if out.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            out.push(element);
        }
        Ok(out)
    }
}

/// `value` as a frame: its length (u32, little endian) and its canonical encoding.
pub fn frame<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = vec![0; FRAME_LENGTH_BYTES];
    encode_into(value, &mut out);
    let body = u32::try_from(out.len() - FRAME_LENGTH_BYTES).unwrap_or(u32::MAX);
    debug_assert!(body as usize <= JOIN_FRAME_BYTES_MAX, "a frame of ours outgrew its limit");
    out[..FRAME_LENGTH_BYTES].copy_from_slice(&body.to_le_bytes());
    out
}

/// Cuts a byte stream into frame bodies, whatever pieces it arrives in. Holds at most one frame and never allocates
/// more than the limit that it was made with.
#[derive(Debug)]
pub struct Deframer {
    bytes: Vec<u8>,
    max: usize,
}

impl Deframer {
    /// A deframer for bodies of at most `max` bytes.
    pub fn new(max: usize) -> Deframer {
        Deframer { bytes: Vec::new(), max }
    }

    /// How many bytes are missing until the next frame is whole; 0 when [`Deframer::next_frame`] has one.
    ///
    /// # Errors
    /// [`CodecFault::TooLong`] as soon as the announced length exceeds the limit.
    pub fn missing(&self) -> Result<usize, CodecFault> {
        let Some(length) = self.bytes.first_chunk::<FRAME_LENGTH_BYTES>() else {
            return Ok(FRAME_LENGTH_BYTES - self.bytes.len());
        };
        let body = u32::from_le_bytes(*length) as usize;
        if body > self.max {
            return Err(CodecFault::TooLong { len: body, max: self.max });
        }
        Ok((FRAME_LENGTH_BYTES + body).saturating_sub(self.bytes.len()))
    }

    /// Takes the next bytes of the stream. Callers read at most [`Deframer::missing`] bytes at a time, so that what
    /// follows a frame stays in the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The body of the next frame, once it is whole.
    ///
    /// # Errors
    /// [`CodecFault::TooLong`].
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, CodecFault> {
        if self.bytes.len() < FRAME_LENGTH_BYTES || self.missing()? > 0 {
            return Ok(None);
        }
        let body = u32::from_le_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]]) as usize;
        let rest = self.bytes.split_off(FRAME_LENGTH_BYTES + body);
        let mut whole = std::mem::replace(&mut self.bytes, rest);
        whole.drain(..FRAME_LENGTH_BYTES);
        Ok(Some(whole))
    }

    /// True between frames: an end of the stream here loses nothing.
    pub fn is_between_frames(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_encoding_is_accepted() {
        let bytes = encode(&(7u32, Some(true), "text".to_owned()));
        type Value = (u32, Option<bool>, String);
        assert!(decode::<Value>(&bytes, 64).is_ok());
        let mut longer = bytes.clone();
        longer.push(0);
        assert_eq!(decode::<Value>(&longer, 64), Err(CodecFault::Trailing));
        assert_eq!(decode::<Value>(&bytes[..bytes.len() - 1], 64), Err(CodecFault::Malformed));
        assert_eq!(decode::<Value>(&bytes, 8), Err(CodecFault::TooLong { len: bytes.len(), max: 8 }));
    }

    #[test]
    fn a_second_encoding_of_a_value_is_refused() {
        /// Reads odd numbers as the even number below, as a lenient type of a later version might.
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        #[serde(from = "u8")]
        struct Even(u8);
        impl From<u8> for Even {
            fn from(number: u8) -> Even {
                Even(number & !1)
            }
        }
        assert_eq!(decode::<Even>(&[4], 1), Ok(Even(4)));
        assert_eq!(decode::<Even>(&[5], 1), Err(CodecFault::NotCanonical));
    }

    #[test]
    fn a_claimed_length_allocates_nothing() {
        let bytes = u64::MAX.to_le_bytes();
        assert_eq!(decode::<Vec<u8>>(&bytes, 64), Err(CodecFault::Malformed));
    }

    #[test]
    fn a_list_is_bounded_by_its_announced_count() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Few(#[serde(deserialize_with = "bounded_list::<_, _, 3>")] Vec<u8>);
        let check = |count: u8, fits: bool| {
            let bytes = encode(&Few((0..count).collect()));
            assert_eq!(decode::<Few>(&bytes, 64).is_ok(), fits, "{count}");
        };
        check(0, true);
        check(3, true);
        check(4, false);
        assert_eq!(decode::<Few>(&u64::MAX.to_le_bytes(), 64), Err(CodecFault::Malformed));
    }

    #[test]
    fn frames_survive_any_cut() {
        let stream: Vec<u8> = [frame(&1u64), frame(&"two".to_owned()), frame(&())].concat();
        for cut in 0..=stream.len() {
            let mut deframer = Deframer::new(64);
            let mut bodies = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                deframer.push(part);
                while let Some(body) = deframer.next_frame().unwrap() {
                    bodies.push(body);
                }
            }
            assert_eq!(bodies, [encode(&1u64), encode(&"two".to_owned()), encode(&())], "cut at {cut}");
            assert!(deframer.is_between_frames());
        }
    }

    #[test]
    fn an_oversized_frame_is_refused_from_its_length_alone() {
        let mut deframer = Deframer::new(16);
        deframer.push(&17u32.to_le_bytes());
        assert_eq!(deframer.missing(), Err(CodecFault::TooLong { len: 17, max: 16 }));
        assert!(deframer.next_frame().is_err());
    }
}
