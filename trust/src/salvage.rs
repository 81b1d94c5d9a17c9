//! Verifying a file without opening a store, and reading what can be read of a damaged one.
//!
//! Nothing here changes a byte of a record file; setting aside renames one. Bounds are those of recovery: one frame in
//! memory at a time, and for a check one entry for each key.
//!
//! Not here: what is kept of a damaged file (the node decides), opening (`recover`).

use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use crate::error::{DiskError, DiskErrorKind, StoreError};
use crate::floor::Floor;
use crate::frame::{
    DIGEST_BYTES, Digest, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_MAGIC, FileHeader, FrameHeader, FrameKind,
    MAX_PAYLOAD_BYTES, RawChange, frame_digest, split_change,
};
use crate::medium::{Medium, MediumFile};
use crate::record::{FileKind, Record, RecordFault, Revision};
use crate::replay::{Reader, Sink, replay};

/// What verifying a file has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// Which file.
    pub file: FileKind,
    /// Its owner, if its header holds.
    pub owner: Option<[u8; 32]>,
    /// The revision that it reaches.
    pub revision: Revision,
    /// How many records it holds.
    pub records: u64,
    /// Length of its content, without allocated room.
    pub bytes: u64,
    /// How many of them are the last state of a record.
    pub live_bytes: u64,
    /// How many bytes of a torn append follow.
    pub torn_bytes: u64,
    /// Digest of its last frame.
    pub chain: Digest,
    /// Why a store would not open it.
    pub error: Option<StoreError>,
}

impl FileReport {
    /// Whether a store would open it.
    #[must_use]
    pub const fn is_ok(&self) -> bool {
        self.error.is_none()
    }
}

/// Verifies one file as opening it would, without changing anything. Without an owner, any owner will do.
pub fn check<R: Record, M: Medium>(medium: &mut M, owner: Option<&[u8; 32]>, floor: &Floor) -> FileReport {
    let mut report = FileReport {
        file: R::KIND,
        owner: None,
        revision: Revision::ZERO,
        records: 0,
        bytes: 0,
        live_bytes: 0,
        torn_bytes: 0,
        chain: [0; DIGEST_BYTES],
        error: None,
    };
    let name = R::KIND.file_name();
    let mut sizes = Sizes::<R>::default();
    let replayed = medium
        .open(name)
        .map_err(|error| StoreError::from_open(name, error))
        .and_then(|mut file| replay(&mut file, R::KIND, owner, Revision(u64::MAX), &mut sizes));
    match replayed {
        Ok(replayed) => {
            report.owner = Some(replayed.header.owner);
            report.revision = replayed.revision;
            report.records = sizes.records();
            report.bytes = replayed.end;
            report.live_bytes = sizes.bytes.values().map(|bytes| u64::from(*bytes)).sum();
            report.torn_bytes = replayed.torn_bytes;
            report.chain = replayed.chain;
            report.error = replayed.check_floor(R::KIND, floor).err();
        }
        Err(error) => report.error = Some(error),
    }
    report
}

/// Counts the records of a file and their bytes, and decodes each.
struct Sizes<R> {
    bytes: HashMap<Box<[u8]>, u32>,
    record: PhantomData<R>,
}

impl<R> Default for Sizes<R> {
    fn default() -> Self {
        Self { bytes: HashMap::new(), record: PhantomData }
    }
}

impl<R: Record> Sink for Sizes<R> {
    /// A key, and how many bytes its record has, if it has one.
    type Change = (Box<[u8]>, Option<u32>);

    fn decode(_: &FileHeader, change: RawChange<'_>, _: Revision) -> Result<Self::Change, RecordFault> {
        let key = R::decode_key(change.key)?;
        let bytes = match change.record {
            Some(record) => {
                R::decode(&key, record)?;
                let bytes = 7 + change.key.len() + record.len();
                Some(u32::try_from(bytes).unwrap_or(u32::MAX))
            }
            None => None,
        };
        Ok((change.key.into(), bytes))
    }

    fn take(&mut self, (key, bytes): Self::Change) {
        match bytes {
            Some(bytes) => drop(self.bytes.insert(key, bytes)),
            None => drop(self.bytes.remove(&key)),
        }
    }

    fn records(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// A change read from a damaged file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salvaged<'a> {
    /// The change. A later one of the same key takes its place.
    pub change: RawChange<'a>,
    /// Revision of the frame that holds it.
    pub revision: Revision,
    /// Whether the frame's digest holds. If not, only what proves itself (a signature) is to be believed.
    pub intact: bool,
}

/// What salvaging has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SalvageReport {
    /// Frames whose digest holds.
    pub intact_frames: u64,
    /// Frames whose header holds and whose digest does not.
    pub broken_frames: u64,
    /// Changes handed out.
    pub changes: u64,
    /// The highest revision seen in an intact frame.
    pub revision: Revision,
    /// Bytes that belong to no frame.
    pub unreadable_bytes: u64,
}

/// Hands out every change that can still be read of a file, whatever its state, in the order of the file. Bytes that
/// are no frame are skipped; of a frame whose digest does not hold, the changes up to the first that is none.
///
/// # Errors
/// If the file cannot be read at all.
pub fn salvage<M: Medium>(
    medium: &mut M,
    kind: FileKind,
    mut take: impl FnMut(Salvaged<'_>),
) -> Result<SalvageReport, StoreError> {
    let name = kind.file_name();
    let mut file = medium.open(name).map_err(|error| StoreError::from_open(name, error))?;
    scan(&mut file, name, &mut take)
}

/// Hands out the last state of each key that can still be read and whose frame is intact, in the order of the file,
/// until `take` has had enough. Keys are held in memory, records are not: the file is read twice.
///
/// # Errors
/// If the file cannot be read at all.
pub fn salvage_last<M: Medium>(
    medium: &mut M,
    kind: FileKind,
    mut take: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let name = kind.file_name();
    // One descriptor for both: a checkpoint in between changes the name's file, not this one.
    let mut file = medium.open(name).map_err(|error| StoreError::from_open(name, error))?;
    let (mut last, mut number) = (HashMap::<Box<[u8]>, u64>::new(), 0_u64);
    scan(&mut file, name, &mut |salvaged| {
        if salvaged.intact {
            number += 1;
            match salvaged.change.record {
                Some(_) => drop(last.insert(salvaged.change.key.into(), number)),
                None => drop(last.remove(salvaged.change.key)),
            }
        }
    })?;
    let (mut number, mut flow) = (0_u64, ControlFlow::Continue(()));
    scan(&mut file, name, &mut |salvaged| {
        if salvaged.intact && flow.is_continue() {
            number += 1;
            if let Some(record) = salvaged.change.record
                && last.get(salvaged.change.key) == Some(&number)
            {
                flow = take(salvaged.change.key, record);
            }
        }
    })?;
    Ok(())
}

fn scan<F: MediumFile>(
    file: &mut F,
    name: &'static str,
    take: &mut impl FnMut(Salvaged<'_>),
) -> Result<SalvageReport, StoreError> {
    let mut reader = Reader::new(file, name)?;
    let mut report = SalvageReport::default();
    let id = reader.bytes(48, 16)?.and_then(<[u8]>::first_chunk).copied().unwrap_or([0; 16]);
    let mut at = FILE_HEADER_BYTES as u64;
    while let Some(bytes) = reader.bytes(at, FRAME_HEADER_BYTES)? {
        let Some(candidate) = bytes.first_chunk().and_then(|bytes| Candidate::at(bytes, &id, at)) else {
            at += 1;
            report.unreadable_bytes += 1;
            continue;
        };
        let content = FRAME_HEADER_BYTES + candidate.length;
        let whole = reader.bytes(at, content + DIGEST_BYTES)?;
        let intact = whole.is_some_and(|whole| frame_digest(&whole[..content])[..] == whole[content..]);
        if !intact && !candidate.header_holds {
            at += 1;
            report.unreadable_bytes += 1;
            continue;
        }
        report.count(&candidate, intact);
        let rest = reader.length.saturating_sub(at);
        #[allow(clippy::cast_possible_truncation)]
        let readable = content.min(rest.min(usize::MAX as u64) as usize);
        if let Some(whole) = reader.bytes(at, readable)?
            && candidate.kind != FrameKind::Complete
        {
            report.changes += hand_out(&whole[FRAME_HEADER_BYTES..], &candidate, intact, take);
        }
        // The length of a broken frame is its header's word, which holds; what follows is found all the same.
        at += if intact { (content + DIGEST_BYTES) as u64 } else { FRAME_HEADER_BYTES as u64 };
    }
    Ok(report)
}

impl SalvageReport {
    fn count(&mut self, candidate: &Candidate, intact: bool) {
        if intact {
            self.intact_frames += 1;
            self.revision = self.revision.max(candidate.revision);
        } else {
            self.broken_frames += 1;
        }
    }
}

/// Bytes that may be a frame.
struct Candidate {
    kind: FrameKind,
    length: usize,
    count: u32,
    revision: Revision,
    header_holds: bool,
}

impl Candidate {
    /// The header's checksum needs the file's header; where that is damaged, the frame's digest must do alone.
    fn at(bytes: &[u8; FRAME_HEADER_BYTES], id: &[u8; 16], at: u64) -> Option<Self> {
        if !bytes.starts_with(&FRAME_MAGIC) {
            return None;
        }
        if let Some(header) = FrameHeader::decode(bytes, id, at) {
            return Some(Self {
                kind: header.kind,
                length: header.length as usize,
                count: header.count,
                revision: header.revision,
                header_holds: true,
            });
        }
        let kind = match bytes[4] {
            1 => FrameKind::Piece,
            2 => FrameKind::Complete,
            3 => FrameKind::Batch,
            _ => return None,
        };
        let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let length = number(8) as usize;
        let revision = Revision(u64::from(number(16)) | u64::from(number(20)) << 32);
        (length <= MAX_PAYLOAD_BYTES).then(|| Self { kind, length, count: number(12), revision, header_holds: false })
    }
}

fn hand_out(mut payload: &[u8], candidate: &Candidate, intact: bool, take: &mut impl FnMut(Salvaged<'_>)) -> u64 {
    let mut changes = 0;
    while changes < u64::from(candidate.count)
        && let Some((change, rest)) = split_change(payload)
    {
        take(Salvaged { change, revision: candidate.revision, intact });
        changes += 1;
        payload = rest;
    }
    changes
}

/// Renames a file to `<name>.damaged-<revision>`, or with a further number if that is taken. Returns the new name.
///
/// # Errors
/// If the directory does not let it.
pub fn set_aside<M: Medium>(medium: &mut M, kind: FileKind, revision: Revision) -> Result<String, DiskError> {
    let first = format!("{}.damaged-{revision}", kind.file_name());
    let mut name = first.clone();
    let mut number = 1_u64;
    loop {
        match medium.rename_new(kind.file_name(), &name) {
            Ok(()) => break,
            Err(error) if error.kind == DiskErrorKind::Exists && number < 1_000 => {
                number += 1;
                name = format!("{first}-{number}");
            }
            Err(error) => return Err(error),
        }
    }
    medium.sync_directory()?;
    Ok(name)
}
