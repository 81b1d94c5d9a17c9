//! From the bytes of a record file to changes, in order: frames are read and judged by one thread, and decoded by others
//! while it goes on.
//!
//! Invariants: what a sink takes, it takes in the order of the file, whoever decoded it. The first thing that is wrong in
//! that order is what is reported. No length is believed before it is checked (TOTAL, BOUND): the longest buffer is one
//! frame, or one tail, and at most [`AHEAD_MAX`] frames, none of them a long one, are on their way.
//!
//! Thread: the caller's, and for a file of some length helpers that end before this returns. They touch neither the
//! medium nor the sink.
//!
//! Not here: what a torn tail means for the store (`recover`), files that are damaged (`salvage`).

use crate::error::{DamageFault, DiskError, StoreError};
use crate::floor::Floor;
use crate::frame::{
    DIGEST_BYTES, Digest, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_MAGIC, FRAME_OVERHEAD_BYTES, FileHeader,
    FrameHeader, FrameKind, RawChange, frame_digest, split_change, split_complete,
};
use crate::log_file::PutSizes;
use crate::medium::{MediumFile, uninterrupted};
use crate::record::{FileKind, RecordFault, Revision};
use crate::recover::TAIL_BYTES_MAX;
use crate::sync::Ahead;

const WINDOW_BYTES: usize = 1 << 20;

/// Files below are decoded by the thread that reads them.
const ALONE_BYTES_MAX: u64 = 4 << 20;

/// Threads that decode, beside the one that reads and takes: it has about as much to do as two of them.
const HELPERS_MAX: usize = 2;

/// Most frames that are decoded, or wait for it,
const AHEAD_MAX: usize = 8;

/// unless one is longer than this.
const AHEAD_BYTES_MAX: u32 = 2 << 20;

/// Takes the changes of a file, in order.
pub(crate) trait Sink {
    /// A change, decoded.
    type Change: Send;

    /// What follows comes from a file with this header, which is about so long.
    fn begin(&mut self, _: &FileHeader, _length: u64) {}
    /// Any thread may do this. `unconfirmed`: the revision of the change's frame where the floor does not vouch for it,
    /// else zero.
    fn decode(header: &FileHeader, change: RawChange<'_>, unconfirmed: Revision) -> Result<Self::Change, RecordFault>;
    fn take(&mut self, change: Self::Change);
    fn records(&self) -> u64;
}

/// Changes of one frame, to be decoded.
struct Undecoded {
    at: u64,
    unconfirmed: Revision,
    count: u32,
    payload: Vec<u8>,
}

/// The same afterwards; or what is wrong with the frame at this offset.
type Decoded<C> = Result<Vec<C>, (u64, DamageFault)>;

/// How far a file can be believed.
pub(crate) struct Replayed {
    pub(crate) header: FileHeader,
    pub(crate) end: u64,
    pub(crate) length: u64,
    pub(crate) chain: Digest,
    pub(crate) revision: Revision,
    pub(crate) sizes: PutSizes,
    pub(crate) torn_bytes: u64,
}

impl Replayed {
    pub(crate) fn check_floor(&self, kind: FileKind, floor: &Floor) -> Result<(), StoreError> {
        let floor = floor.of(kind);
        if self.revision < floor {
            let fault = DamageFault::BelowFloor { floor, found: self.revision };
            return Err(StoreError::damaged(kind.file_name(), self.end, fault));
        }
        Ok(())
    }
}

/// Reads a file from its first byte to its last, of which `floor` vouches for what is not beyond it.
pub(crate) fn replay<F: MediumFile, S: Sink>(
    file: &mut F,
    kind: FileKind,
    owner: Option<&[u8; 32]>,
    floor: Revision,
    sink: &mut S,
) -> Result<Replayed, StoreError> {
    let name = kind.file_name();
    let mut reader = Reader::new(file, name)?;
    let header = reader.header()?;
    if header.kind != kind {
        return Err(StoreError::damaged(name, 12, DamageFault::WrongKind));
    }
    if owner.is_some_and(|owner| *owner != header.owner) {
        return Err(StoreError::damaged(name, 16, DamageFault::ForeignOwner));
    }
    sink.begin(&header, reader.length);
    let helpers = if reader.length < ALONE_BYTES_MAX { 0 } else { HELPERS_MAX };
    Ahead::with(
        helpers,
        AHEAD_MAX,
        |frame| decode::<S>(&header, frame),
        |ahead| read_all(reader, &header, floor, ahead, sink),
    )
}

/// The changes of a frame whose digest holds.
fn decode<S: Sink>(header: &FileHeader, frame: Undecoded) -> Decoded<S::Change> {
    let wrong = |fault| (frame.at, fault);
    // Each change has three bytes at least.
    let mut out = Vec::with_capacity((frame.count as usize).min(frame.payload.len() / 3));
    let mut rest = frame.payload.as_slice();
    for _ in 0..frame.count {
        let (change, after) = split_change(rest).ok_or(wrong(DamageFault::BadChange))?;
        out.push(S::decode(header, change, frame.unconfirmed).map_err(|fault| wrong(DamageFault::Record(fault)))?);
        rest = after;
    }
    if rest.is_empty() { Ok(out) } else { Err(wrong(DamageFault::BadChange)) }
}

fn read_all<F: MediumFile, S: Sink>(
    mut reader: Reader<'_, F>,
    header: &FileHeader,
    floor: Revision,
    ahead: &mut Ahead<'_, Undecoded, Decoded<S::Change>>,
    sink: &mut S,
) -> Result<Replayed, StoreError> {
    let name = reader.name;
    let damaged = |(at, fault)| StoreError::damaged(name, at, fault);
    let mut replayed = Replayed {
        header: *header,
        end: FILE_HEADER_BYTES as u64,
        length: reader.length,
        chain: header.chain_start(),
        revision: header.base,
        sizes: PutSizes::default(),
        torn_bytes: 0,
    };
    let mut complete = false;
    let fault = loop {
        let at = replayed.end;
        let (frame, payload, digest) = match reader.frame(at, &header.id)? {
            Ok(frame) => frame,
            Err(fault) => break fault,
        };
        let judged = replayed.judge(&frame, complete);
        if judged.is_err() || frame.kind == FrameKind::Complete {
            // Whatever is wrong before is told first; and a count is one of all that came before.
            take_all(ahead, 0, sink).map_err(damaged)?;
        }
        judged.map_err(|fault| damaged((at, fault)))?;
        if frame.kind == FrameKind::Complete {
            let records = split_complete(payload).ok_or_else(|| damaged((at, DamageFault::BadChange)))?;
            if records != sink.records() {
                return Err(damaged((at, DamageFault::CountMismatch)));
            }
            complete = true;
        } else {
            replayed.sizes.add(u64::from(frame.count), u64::from(frame.length) + FRAME_OVERHEAD_BYTES as u64);
            let unconfirmed = if frame.revision > floor { frame.revision } else { Revision::ZERO };
            ahead.push(Undecoded { at, unconfirmed, count: frame.count, payload: payload.to_vec() });
            let alone = ahead.is_alone() || frame.length > AHEAD_BYTES_MAX;
            take_all(ahead, if alone { 0 } else { AHEAD_MAX - 1 }, sink).map_err(damaged)?;
        }
        replayed.revision = frame.revision;
        replayed.chain = digest;
        replayed.end += frame.frame_bytes();
    };
    take_all(ahead, 0, sink).map_err(damaged)?;
    if !complete {
        let fault = if replayed.end == replayed.length { DamageFault::Incomplete } else { fault };
        return Err(StoreError::damaged(name, replayed.end, fault));
    }
    replayed.torn_bytes = reader.tail(replayed.end, &header.id, fault)?;
    Ok(replayed)
}

/// Has the sink take what is decoded, until at most so many frames are left.
fn take_all<S: Sink>(
    ahead: &mut Ahead<'_, Undecoded, Decoded<S::Change>>,
    left: usize,
    sink: &mut S,
) -> Result<(), (u64, DamageFault)> {
    while ahead.len() > left
        && let Some(changes) = ahead.pop()
    {
        changes?.into_iter().for_each(|change| sink.take(change));
    }
    Ok(())
}

impl Replayed {
    /// A frame whose digest holds must continue the file, or the file is not what it says.
    fn judge(&self, frame: &FrameHeader, complete: bool) -> Result<(), DamageFault> {
        if frame.previous != self.chain {
            return Err(DamageFault::Chain);
        }
        match (frame.kind, complete) {
            (FrameKind::Piece, false) if frame.revision == self.header.base => Ok(()),
            (FrameKind::Complete, false) if frame.revision >= self.header.base => Ok(()),
            (FrameKind::Batch, true) if frame.revision > self.revision => Ok(()),
            (FrameKind::Batch, false) | (FrameKind::Piece | FrameKind::Complete, true) => Err(DamageFault::Incomplete),
            _ => Err(DamageFault::RevisionOrder),
        }
    }
}

/// A frame whose digest holds: header, payload, digest.
type Frame<'a> = (FrameHeader, &'a [u8], Digest);

/// Reads a file through a window.
pub(crate) struct Reader<'f, F> {
    file: &'f mut F,
    name: &'static str,
    window: Vec<u8>,
    at: u64,
    pub(crate) length: u64,
}

impl<'f, F: MediumFile> Reader<'f, F> {
    pub(crate) fn new(file: &'f mut F, name: &'static str) -> Result<Self, StoreError> {
        let length = uninterrupted(|| file.length()).map_err(|error| StoreError::io(name, error))?;
        Ok(Self { file, name, window: Vec::new(), at: 0, length })
    }

    fn header(&mut self) -> Result<FileHeader, StoreError> {
        let name = self.name;
        let bytes = self.bytes(0, FILE_HEADER_BYTES)?.and_then(<[u8]>::first_chunk);
        let bytes = bytes.ok_or(StoreError::damaged(name, 0, DamageFault::ShortHeader))?;
        FileHeader::decode(bytes).map_err(|fault| StoreError::damaged(name, 0, fault))
    }

    /// The frame at an offset, its payload and its digest; or why there is none.
    fn frame(&mut self, at: u64, id: &[u8; 16]) -> Result<Result<Frame<'_>, DamageFault>, StoreError> {
        let Some(header) = self.bytes(at, FRAME_HEADER_BYTES)?.and_then(<[u8]>::first_chunk) else {
            return Ok(Err(DamageFault::FrameHeader));
        };
        let Some(header) = FrameHeader::decode(header, id, at) else {
            return Ok(Err(DamageFault::FrameHeader));
        };
        let content = FRAME_HEADER_BYTES + header.length as usize;
        let Some((content, digest)) =
            self.bytes(at, content + DIGEST_BYTES)?.and_then(|bytes| bytes.split_at_checked(content))
        else {
            return Ok(Err(DamageFault::FrameDigest));
        };
        let found = frame_digest(content);
        if found != *digest {
            return Ok(Err(DamageFault::FrameDigest));
        }
        Ok(Ok((header, &content[FRAME_HEADER_BYTES..], found)))
    }

    /// Judges the rest of a file: how many bytes of it are torn (none, if they are all zero).
    fn tail(&mut self, at: u64, id: &[u8; 16], fault: DamageFault) -> Result<u64, StoreError> {
        let rest = self.length.saturating_sub(at);
        if rest > TAIL_BYTES_MAX {
            return Err(StoreError::damaged(self.name, at, DamageFault::TailTooLong));
        }
        let name = self.name;
        #[allow(clippy::cast_possible_truncation)]
        let Some(tail) = self.bytes(at, rest as usize)? else {
            return Err(StoreError::damaged(name, at, fault));
        };
        if tail.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        let later = tail.windows(FRAME_HEADER_BYTES).zip(at..).skip(1).any(|(bytes, offset)| {
            bytes.starts_with(&FRAME_MAGIC)
                && bytes.first_chunk().is_some_and(|bytes| FrameHeader::decode(bytes, id, offset).is_some())
        });
        if later { Err(StoreError::damaged(name, at, fault)) } else { Ok(rest) }
    }

    /// So many bytes at an offset; `None` if the file ends before.
    pub(crate) fn bytes(&mut self, offset: u64, length: usize) -> Result<Option<&[u8]>, StoreError> {
        let Some(end) = offset.checked_add(length as u64).filter(|end| *end <= self.length) else {
            return Ok(None);
        };
        if offset < self.at || end > self.at + self.window.len() as u64 {
            let want = (self.length - offset).min(length.max(WINDOW_BYTES) as u64);
            #[allow(clippy::cast_possible_truncation)]
            self.window.resize(want as usize, 0);
            self.at = offset;
            let read =
                read_up_to(self.file, offset, &mut self.window).map_err(|error| StoreError::io(self.name, error))?;
            self.window.truncate(read);
        }
        #[allow(clippy::cast_possible_truncation)]
        let begin = (offset - self.at) as usize;
        Ok(self.window.get(begin..begin + length))
    }
}

/// Fills the buffer from an offset on, or as much of it as the file has.
pub(crate) fn read_up_to<F: MediumFile>(file: &mut F, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
    let mut filled = 0;
    while filled < into.len() {
        match uninterrupted(|| file.read_at(offset + filled as u64, &mut into[filled..]))? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
