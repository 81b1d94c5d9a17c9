//! What all engines are asked to do: take a batch of records, and return when it is on the disk.

use anyhow::Result;
use handfast_benches::records::{mix, spread_bytes};

/// A key, as long as that of a peer.
pub type Key = [u8; 32];

/// A change: the key, and the bytes of the record.
pub type Change = (Key, Vec<u8>);

/// One way to keep records.
pub trait Engine {
    /// Puts records for the first time; they need not be durable.
    fn fill(&mut self, changes: &[Change]) -> Result<()>;

    /// Everything has been put: what was written is to be durable.
    fn filled(&mut self) -> Result<()>;

    /// Changes records. They are durable when this returns.
    fn commit(&mut self, changes: &[Change]) -> Result<()>;
}

/// The key with this number.
pub fn key(number: u64) -> Key {
    spread_bytes(number)
}

/// Bytes that do not compress, different for each seed.
pub fn value(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes + 8);
    for word in 0.. {
        if out.len() >= bytes {
            break;
        }
        out.extend_from_slice(&mix(seed.wrapping_mul(1_000).wrapping_add(word)).to_le_bytes());
    }
    out.truncate(bytes);
    out
}
