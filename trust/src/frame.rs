//! The bytes of a record file. Frozen: golden vectors in the tests hold them.
//!
//! All numbers are little endian. A file is one header, then frames without gaps, then zeros or nothing.
//!
//! ```text
//! file header, 128 bytes
//!   0    8  magic "HANDFAST"
//!   8    4  format version, 1
//!   12   1  kind (1 trust, 2 peers, 3 sessions, 4 invites)
//!   13   3  zero
//!   16  32  owner: the node's public key
//!   48  16  file id: random, new for every file
//!   64   8  base revision: that of the file before, when this one was begun
//!   72  32  previous chain head: digest of the last frame of the file before, or zeros
//!   104  8  order seed: the order of the records in this file, which a table that is read from it takes over
//!   112 16  checksum: first 16 bytes of BLAKE3 of bytes 0..112
//!
//! frame
//!   0    4  magic "hfr" 0x01
//!   4    1  kind (1 piece, 2 complete, 3 batch)
//!   5    3  zero
//!   8    4  length of the payload, at most 16 MiB
//!   12   4  number of changes in the payload
//!   16   8  revision: batch and complete, that of the state they end; piece, the header's base revision
//!   24  32  previous digest: that of the frame before, or BLAKE3 of the file header for the first
//!   56   8  checksum: first 8 bytes of BLAKE3 of (file id, offset of the frame in the file as u64, bytes 0..56)
//!   64   n  payload
//!   64+n 32 digest: BLAKE3 of bytes 0..64+n
//!
//! payload of a piece and of a batch: changes without gaps
//!   0    1  1 put, 2 remove
//!   1    2  length k of the key, at most 256
//!   3    k  key
//!   3+k  4  length v of the record, at most 1 MiB             (put only)
//!   7+k  v  record                                            (put only)
//!
//! payload of a complete frame
//!   0    8  number of records of the state that it completes
//! ```
//!
//! Magic, version and checksum of the file header stay where they are in every version, so that a newer one is named.
//!
//! The order is: pieces (possibly none), one complete frame, batches. Pieces and the complete frame become visible
//! together, by the rename of a synced file; each batch by one fsync of its own.
//!
//! Why a frame's checksum takes the file id and the offset: recovery looks for headers in the unreadable rest of a
//! file, to tell a torn append from damage. Bytes inside a record that imitate a header, chosen by a stranger, and
//! whatever an old file left on the disk, must not pass for one.
//!
//! Not here: which bytes may be missing (`recover`), when what is written (`drainer`, `checkpoint`).

use crate::error::DamageFault;
use crate::record::{FileKind, RecordFault, Revision};

/// Version of the format that this program writes.
pub const FORMAT_VERSION: u32 = 1;
/// Length of a file's header.
pub const FILE_HEADER_BYTES: usize = 128;
/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 64;
/// Length of a digest.
pub const DIGEST_BYTES: usize = 32;
/// Bytes that a frame needs besides its payload.
pub const FRAME_OVERHEAD_BYTES: usize = FRAME_HEADER_BYTES + DIGEST_BYTES;
/// Longest payload of a frame. A batch that is longer goes through a checkpoint.
pub const MAX_PAYLOAD_BYTES: usize = 16 << 20;
/// Longest encoding of a key.
pub const MAX_KEY_BYTES: usize = 256;
/// Longest encoding of a record.
pub const MAX_RECORD_BYTES: usize = 1 << 20;
/// Longest encoding of a change.
pub const MAX_CHANGE_BYTES: usize = 7 + MAX_KEY_BYTES + MAX_RECORD_BYTES;

const _: () = assert!(MAX_CHANGE_BYTES < MAX_PAYLOAD_BYTES);

const FILE_MAGIC: [u8; 8] = *b"HANDFAST";
pub(crate) const FRAME_MAGIC: [u8; 4] = *b"hfr\x01";
const PUT: u8 = 1;
const REMOVE: u8 = 2;

/// A BLAKE3 digest: the link of a chain.
pub type Digest = [u8; DIGEST_BYTES];

/// What makes a file's frames its own.
pub(crate) type FileId = [u8; 16];

/// The first bytes of a record file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// Kind of its records.
    pub kind: FileKind,
    /// The node that it belongs to.
    pub owner: [u8; 32],
    /// Random, new for every file.
    pub id: [u8; 16],
    /// Revision of the file before, when this one was begun.
    pub base: Revision,
    /// Digest of the last frame of the file before; zeros without one.
    pub previous: Digest,
    /// Seed of the table whose walk the pieces are. A table with the same seed takes them in the order in which it
    /// keeps them, which is several times faster; nothing depends on it. As secret as the file.
    pub order_seed: u64,
}

impl FileHeader {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut out = [0; FILE_HEADER_BYTES];
        out[0..8].copy_from_slice(&FILE_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12] = self.kind as u8;
        out[16..48].copy_from_slice(&self.owner);
        out[48..64].copy_from_slice(&self.id);
        out[64..72].copy_from_slice(&self.base.0.to_le_bytes());
        out[72..104].copy_from_slice(&self.previous);
        out[104..112].copy_from_slice(&self.order_seed.to_le_bytes());
        let checksum = blake3::hash(&out[..112]);
        out[112..].copy_from_slice(&checksum.as_bytes()[..16]);
        out
    }

    /// Reads them back.
    ///
    /// # Errors
    /// What is wrong with them, the most telling first.
    pub fn decode(bytes: &[u8; FILE_HEADER_BYTES]) -> Result<Self, DamageFault> {
        if bytes[0..8] != FILE_MAGIC {
            return Err(DamageFault::BadMagic);
        }
        if bytes[112..] != blake3::hash(&bytes[..112]).as_bytes()[..16] {
            return Err(DamageFault::HeaderChecksum);
        }
        let version = u32::from_le_bytes(take(bytes, 8));
        if version != FORMAT_VERSION {
            return Err(DamageFault::NewerVersion(version));
        }
        let kind = FileKind::from_number(bytes[12]).ok_or(DamageFault::WrongKind)?;
        Ok(Self {
            kind,
            owner: take(bytes, 16),
            id: take(bytes, 48),
            base: Revision(u64::from_le_bytes(take(bytes, 64))),
            previous: take(bytes, 72),
            order_seed: u64::from_le_bytes(take(bytes, 104)),
        })
    }

    /// What the first frame names as the digest before it.
    #[must_use]
    pub fn chain_start(&self) -> Digest {
        *blake3::hash(&self.encode()).as_bytes()
    }
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A part of the snapshot that a file begins with.
    Piece = 1,
    /// The end of the snapshot.
    Complete = 2,
    /// The changes from one durable revision to the next.
    Batch = 3,
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is for.
    pub kind: FrameKind,
    /// Length of its payload.
    pub length: u32,
    /// Number of changes in its payload.
    pub count: u32,
    /// Revision that it leads to.
    pub revision: Revision,
    /// Digest of the frame before.
    pub previous: Digest,
}

impl FrameHeader {
    fn encode(&self, id: &FileId, offset: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[4] = self.kind as u8;
        out[8..12].copy_from_slice(&self.length.to_le_bytes());
        out[12..16].copy_from_slice(&self.count.to_le_bytes());
        out[16..24].copy_from_slice(&self.revision.0.to_le_bytes());
        out[24..56].copy_from_slice(&self.previous);
        let checksum = header_checksum(&out, id, offset);
        out[56..].copy_from_slice(&checksum);
        out
    }

    /// The header in these bytes, if they are one of this file at this offset.
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_BYTES], id: &FileId, offset: u64) -> Option<Self> {
        if bytes[0..4] != FRAME_MAGIC || bytes[5..8] != [0; 3] || bytes[56..] != header_checksum(bytes, id, offset) {
            return None;
        }
        let kind = match bytes[4] {
            1 => FrameKind::Piece,
            2 => FrameKind::Complete,
            3 => FrameKind::Batch,
            _ => return None,
        };
        let length = u32::from_le_bytes(take(bytes, 8));
        (length as usize <= MAX_PAYLOAD_BYTES).then(|| Self {
            kind,
            length,
            count: u32::from_le_bytes(take(bytes, 12)),
            revision: Revision(u64::from_le_bytes(take(bytes, 16))),
            previous: take(bytes, 24),
        })
    }

    /// Length of the whole frame.
    pub(crate) const fn frame_bytes(&self) -> u64 {
        self.length as u64 + FRAME_OVERHEAD_BYTES as u64
    }
}

fn header_checksum(header: &[u8; FRAME_HEADER_BYTES], id: &FileId, offset: u64) -> [u8; 8] {
    let mut hashed = [0; 80];
    hashed[..16].copy_from_slice(id);
    hashed[16..24].copy_from_slice(&offset.to_le_bytes());
    hashed[24..].copy_from_slice(&header[..56]);
    take(blake3::hash(&hashed).as_bytes(), 0)
}

/// Digest of a frame's header and payload: what its last bytes must be.
pub(crate) fn frame_digest(header_and_payload: &[u8]) -> Digest {
    *blake3::hash(header_and_payload).as_bytes()
}

/// A frame that is being put together: its payload so far, behind room for its header.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Payload {
    /// Empty, or the room and the payload.
    frame: Vec<u8>,
    count: u32,
}

/// Memory that an empty payload keeps for the next one.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl Payload {
    pub(crate) const EMPTY: Self = Self { frame: Vec::new(), count: 0 };

    pub(crate) fn complete(records: u64) -> Self {
        let mut payload = Self::EMPTY;
        payload.begun().extend_from_slice(&records.to_le_bytes());
        payload
    }

    /// Number of changes.
    pub(crate) const fn count(&self) -> u32 {
        self.count
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> usize {
        self.frame.len().saturating_sub(FRAME_HEADER_BYTES)
    }

    /// The changes.
    #[cfg(all(test, not(handfast_loom)))]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.frame.get(FRAME_HEADER_BYTES..).unwrap_or_default()
    }

    /// Begins anew, in the same memory as a rule.
    pub(crate) fn clear(&mut self) {
        self.frame.clear();
        self.frame.shrink_to(KEPT_BYTES_MAX);
        self.count = 0;
    }

    fn begun(&mut self) -> &mut Vec<u8> {
        if self.frame.is_empty() {
            self.frame.resize(FRAME_HEADER_BYTES, 0);
        }
        &mut self.frame
    }

    /// Hands the frame that belongs at `offset` of the file to `write`, and returns its digest as well. Afterwards it may
    /// become a frame of another place.
    pub(crate) fn framed<T>(
        &mut self,
        id: &FileId,
        offset: u64,
        (kind, revision, previous): (FrameKind, Revision, &Digest),
        write: impl FnOnce(&[u8]) -> T,
    ) -> (T, Digest) {
        // A payload longer than the limit is never handed over, so that the length fits.
        let length = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let header = FrameHeader { kind, length, count: self.count, revision, previous: *previous };
        let frame = self.begun();
        let end = frame.len();
        frame[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(id, offset));
        let digest = frame_digest(frame);
        frame.extend_from_slice(&digest);
        let out = write(frame);
        frame.truncate(end);
        (out, digest)
    }

    /// Appends one change; `key` and `record` append their bytes. `Err` if they are longer than their limits, which a
    /// record of this program never is.
    pub(crate) fn push(
        &mut self,
        key: impl FnOnce(&mut Vec<u8>),
        record: Option<impl FnOnce(&mut Vec<u8>)>,
    ) -> Result<(), RecordFault> {
        let out = self.begun();
        out.push(if record.is_some() { PUT } else { REMOVE });
        let key_length_at = out.len();
        out.extend_from_slice(&[0; 2]);
        key(out);
        let key_length = out.len() - key_length_at - 2;
        if key_length > MAX_KEY_BYTES {
            return Err(RecordFault::BadKey);
        }
        #[allow(clippy::cast_possible_truncation)]
        out[key_length_at..key_length_at + 2].copy_from_slice(&(key_length as u16).to_le_bytes());
        if let Some(record) = record {
            let length_at = out.len();
            out.extend_from_slice(&[0; 4]);
            record(out);
            let length = out.len() - length_at - 4;
            if length > MAX_RECORD_BYTES {
                return Err(RecordFault::BadValue);
            }
            #[allow(clippy::cast_possible_truncation)]
            out[length_at..length_at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        }
        self.count += 1;
        Ok(())
    }
}

/// One change, as its bytes say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawChange<'a> {
    /// The key's bytes.
    pub key: &'a [u8],
    /// The record's bytes; `None` where it was removed.
    pub record: Option<&'a [u8]>,
}

/// Takes the first change off a payload; `None` if it does not begin with one.
pub(crate) fn split_change(payload: &[u8]) -> Option<(RawChange<'_>, &[u8])> {
    let (&[op, k0, k1], rest) = payload.split_first_chunk::<3>()?;
    let key_length = usize::from(u16::from_le_bytes([k0, k1]));
    let (key, rest) = rest.split_at_checked(key_length).filter(|_| key_length <= MAX_KEY_BYTES)?;
    match op {
        REMOVE => Some((RawChange { key, record: None }, rest)),
        PUT => {
            let (length, rest) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            let (record, rest) = rest.split_at_checked(length).filter(|_| length <= MAX_RECORD_BYTES)?;
            Some((RawChange { key, record: Some(record) }, rest))
        }
        _ => None,
    }
}

/// The number of records in the payload of a complete frame.
pub(crate) fn split_complete(payload: &[u8]) -> Option<u64> {
    <[u8; 8]>::try_from(payload).ok().map(u64::from_le_bytes)
}

/// `N` bytes at a constant offset of an array that is known to hold them.
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
