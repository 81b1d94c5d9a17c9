//! From a file to a table, or to the reason why not.
//!
//! Invariants: recovery yields a state that memory held, at least the last acknowledged one (ACK, ATOM). What cannot
//! be believed is an error that names file, offset and remedy, and the file keeps every byte (CLOSED). No input
//! panics, and no length is believed before it is checked (TOTAL, BOUND): the longest buffer is one frame, or one tail.
//!
//! A frame that does not hold is the *torn* rest of one append if it is behind the snapshot, if the rest of the file
//! is no longer than one append can leave, and if no header of a later frame is found in it: frames are synced one at
//! a time, so that a later frame proves that this one had been acknowledged. All else is damage. What remains must
//! reach the floor.
//!
//! Disk steps of opening: truncate a torn tail; fsync the file and the directory, since a process that was killed may
//! not have come to it (crash: the same torn tail, or none). If the floor does not vouch for the whole file, nothing:
//! the file is closed to appends, only the floor counts as durable, and the drainer's first work is a checkpoint.
//! Creating: write a temporary file, fsync, link it to its name without replacing, fsync the directory (crash: a
//! temporary file, or the store).
//!
//! Not here: `store recover`'s choice of what to keep (the node makes it, from [`salvage`](crate::salvage)).

use crate::error::{DamageFault, DiskError, DiskErrorKind, StoreError};
use crate::floor::{Floor, is_at_rest};
use crate::frame::{
    DIGEST_BYTES, Digest, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FRAME_MAGIC, FRAME_OVERHEAD_BYTES, FileHeader,
    FrameHeader, FrameKind, MAX_PAYLOAD_BYTES, Payload, RawChange, frame_digest, split_change, split_complete,
};
use crate::lane::Log;
use crate::log_file::{ALLOCATION_BYTES, LogFile, PutSizes};
use crate::medium::{Medium, MediumFile, uninterrupted};
use crate::record::{FileKind, Record, RecordFault, Revision};
use crate::site::Site;
use crate::store::Store;
use crate::table::Table;

/// Longest rest that one append can leave: its frame, and the room that was allocated for it.
pub const TAIL_BYTES_MAX: u64 = (MAX_PAYLOAD_BYTES + FRAME_OVERHEAD_BYTES) as u64 + ALLOCATION_BYTES;

const WINDOW_BYTES: usize = 1 << 20;

/// A store that is open.
pub struct Opened<R: Record, M: Medium> {
    /// The records.
    pub store: Store<R>,
    /// Its file, for the drainer.
    pub log: Log<R, M>,
    /// How opening went.
    pub report: RecoveryReport,
}

/// How opening went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Which file.
    pub file: FileKind,
    /// How many records it holds.
    pub records: u64,
    /// The revision that it reaches.
    pub revision: Revision,
    /// Length of its content.
    pub bytes: u64,
    /// How many bytes of a torn append were cut off.
    pub torn_bytes: u64,
    /// The name under which a damaged file was set aside, and what was wrong with it.
    pub set_aside: Option<(String, StoreError)>,
}

/// Makes an empty store whose file does not exist yet.
///
/// # Errors
/// `Io` with `Exists` if the file is there.
pub fn create<R: Record, M: Medium>(medium: &mut M, site: &Site) -> Result<Opened<R, M>, StoreError> {
    create_at(medium, site, Revision::ZERO)
}

/// As [`create`], with revisions that go on after `revision`: for a store that takes the place of a lost one.
///
/// # Errors
/// As [`create`].
pub fn create_at<R: Record, M: Medium>(
    medium: &mut M,
    site: &Site,
    revision: Revision,
) -> Result<Opened<R, M>, StoreError> {
    let log =
        create_file(medium, site, R::KIND, revision).map_err(|error| StoreError::io(R::KIND.file_name(), error))?;
    let mut table = Table::new(site.table_seed());
    table.replayed(revision);
    Ok(opened(table, revision, log, site, 0))
}

/// Opens a store whose file must be there, and must reach the floor.
///
/// # Errors
/// `Damaged` if the file cannot be believed, `Io` if the disk fails or refuses. The file keeps every byte.
pub fn open<R: Record, M: Medium>(medium: &mut M, site: &Site, floor: &Floor) -> Result<Opened<R, M>, StoreError> {
    let name = R::KIND.file_name();
    let mut file = medium.open(name).map_err(|error| StoreError::from_open(name, error))?;
    let mut table = Table::<R>::new(0);
    let replayed = replay(&mut file, R::KIND, Some(site.owner()), &mut table)?;
    replayed.check_floor(R::KIND, floor)?;
    if replayed.torn_bytes > 0 {
        tracing::warn!(file = name, bytes = replayed.torn_bytes, offset = replayed.end, "torn append found");
    }
    table.replayed(replayed.revision);
    // What the floor does not vouch for may be in the page cache only, left by a process whose sync had failed.
    let known = floor.of(R::KIND);
    let vouched =
        !R::KIND.has_floor() || (replayed.revision == known && is_at_rest(medium, site.owner()) == Some(true));
    let durable = if vouched { replayed.revision } else { known };
    let mut length = replayed.length;
    if vouched {
        settle(medium, &mut file, &replayed).map_err(|error| StoreError::io(name, error))?;
        length = if replayed.torn_bytes > 0 { replayed.end } else { length };
    }
    let mut log = LogFile::opened(
        file,
        replayed.header,
        (replayed.end, length),
        (replayed.revision, replayed.chain),
        replayed.sizes,
    );
    if !vouched {
        tracing::info!(file = name, revision = %replayed.revision, %durable, "not stopped cleanly: written anew");
        log.close();
    }
    Ok(opened(table, durable, log, site, replayed.torn_bytes))
}

/// Opens a store that is safe to lose: made if it is missing, set aside and begun anew if it is damaged.
///
/// # Errors
/// `Io` if the disk fails or refuses. For a kind that is not safe to lose also what [`open`] says.
pub fn open_or_begin_anew<R: Record, M: Medium>(medium: &mut M, site: &Site) -> Result<Opened<R, M>, StoreError> {
    let damage = match open(medium, site, &Floor::default()) {
        Err(error @ StoreError::Damaged { .. }) if R::KIND.safe_to_lose() => error,
        outcome => return outcome,
    };
    let mut set_aside = None;
    if !matches!(damage, StoreError::Damaged { fault: DamageFault::Missing, .. }) {
        let aside = crate::salvage::set_aside(medium, R::KIND, Revision::ZERO)
            .map_err(|error| StoreError::io(R::KIND.file_name(), error))?;
        tracing::warn!(file = R::KIND.file_name(), aside, error = %damage, "damaged file set aside, begun anew");
        set_aside = Some((aside, damage));
    }
    let mut opened = create(medium, site)?;
    opened.report.set_aside = set_aside;
    Ok(opened)
}

/// Opens a store whose file an older program has not made: made if it is missing and the floor knows nothing of it.
///
/// # Errors
/// As [`open`].
pub fn open_or_make<R: Record, M: Medium>(
    medium: &mut M,
    site: &Site,
    floor: &Floor,
) -> Result<Opened<R, M>, StoreError> {
    match open(medium, site, floor) {
        Err(StoreError::Damaged { fault: DamageFault::Missing, .. }) if floor.of(R::KIND) == Revision::ZERO => {
            create(medium, site)
        }
        outcome => outcome,
    }
}

fn opened<R: Record, M: Medium>(
    table: Table<R>,
    durable: Revision,
    file: LogFile<M::File>,
    site: &Site,
    torn_bytes: u64,
) -> Opened<R, M> {
    let report = RecoveryReport {
        file: R::KIND,
        records: table.len() as u64,
        revision: table.revision(),
        bytes: file.end(),
        torn_bytes,
        set_aside: None,
    };
    let (store, publisher) = Store::new(table, durable, site.bell().clone(), site.clock().clone());
    let log = Log::new(store.clone(), publisher, file);
    Opened { store, log, report }
}

fn create_file<M: Medium>(
    medium: &mut M,
    site: &Site,
    kind: FileKind,
    revision: Revision,
) -> Result<LogFile<M::File>, DiskError> {
    remove_leftover(medium, kind.temporary_name())?;
    let file = medium.create_new(kind.temporary_name())?;
    let header = FileHeader {
        kind,
        owner: *site.owner(),
        id: site.file_id(),
        base: revision,
        previous: [0; DIGEST_BYTES],
        order_seed: site.table_seed(),
    };
    let mut log = LogFile::begin(file, header)?;
    log.write(FrameKind::Complete, revision, &Payload::complete(0))?;
    log.sync()?;
    medium.rename_new(kind.temporary_name(), kind.file_name())?;
    medium.sync_directory()?;
    Ok(log)
}

/// Removes what a crash has left under a temporary name, if anything.
pub(crate) fn remove_leftover<M: Medium>(medium: &mut M, name: &str) -> Result<(), DiskError> {
    match medium.remove(name) {
        Err(error) if error.kind != DiskErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what interrupted checkpoints and floor writes have left under temporary names.
///
/// # Errors
/// If the directory does not let it.
pub fn remove_leftovers<M: Medium>(medium: &mut M) -> Result<(), DiskError> {
    for kind in FileKind::ALL {
        remove_leftover(medium, kind.temporary_name())?;
    }
    remove_leftover(medium, crate::floor::FLOOR_TEMPORARY)
}

/// Makes sure that the disk holds what was read: a process that was killed may not have come to it.
fn settle<M: Medium>(medium: &mut M, file: &mut M::File, replayed: &Replayed) -> Result<(), DiskError> {
    if replayed.torn_bytes > 0 {
        uninterrupted(|| file.truncate(replayed.end))?;
    }
    file.sync()?;
    medium.sync_directory()
}

/// Takes the changes of a file, in order.
pub(crate) trait Sink {
    /// What follows comes from a file with this header.
    fn begin(&mut self, _: &FileHeader) {}
    fn change(&mut self, change: RawChange<'_>) -> Result<(), RecordFault>;
    fn records(&self) -> u64;
}

impl<R: Record> Sink for Table<R> {
    fn begin(&mut self, header: &FileHeader) {
        self.set_seed(header.order_seed);
    }

    fn change(&mut self, change: RawChange<'_>) -> Result<(), RecordFault> {
        let key = R::decode_key(change.key)?;
        let record = change.record.map(|bytes| R::decode(&key, bytes)).transpose()?;
        self.replay(key, record);
        Ok(())
    }

    fn records(&self) -> u64 {
        self.len() as u64
    }
}

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

/// Reads a file from its first byte to its last.
pub(crate) fn replay<F: MediumFile>(
    file: &mut F,
    kind: FileKind,
    owner: Option<&[u8; 32]>,
    sink: &mut impl Sink,
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
    sink.begin(&header);
    let mut replayed = Replayed {
        header,
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
        match reader.frame(at, &header.id)? {
            Ok((frame, payload, digest)) => {
                replayed
                    .take_frame(&frame, payload, &mut complete, sink)
                    .map_err(|fault| StoreError::damaged(name, at, fault))?;
                replayed.chain = digest;
                replayed.end += frame.frame_bytes();
            }
            Err(fault) => break fault,
        }
    };
    if !complete {
        let fault = if replayed.end == replayed.length { DamageFault::Incomplete } else { fault };
        return Err(StoreError::damaged(name, replayed.end, fault));
    }
    replayed.torn_bytes = reader.tail(replayed.end, &header.id, fault)?;
    Ok(replayed)
}

impl Replayed {
    /// A frame whose digest holds: it must continue the file, or the file is not what it says.
    fn take_frame(
        &mut self,
        frame: &FrameHeader,
        payload: &[u8],
        complete: &mut bool,
        sink: &mut impl Sink,
    ) -> Result<(), DamageFault> {
        if frame.previous != self.chain {
            return Err(DamageFault::Chain);
        }
        match (frame.kind, *complete) {
            (FrameKind::Piece, false) if frame.revision == self.header.base => {}
            (FrameKind::Complete, false) if frame.revision >= self.header.base => {
                let records = split_complete(payload).ok_or(DamageFault::BadChange)?;
                if records != sink.records() {
                    return Err(DamageFault::CountMismatch);
                }
                *complete = true;
                self.revision = frame.revision;
                return Ok(());
            }
            (FrameKind::Batch, true) if frame.revision > self.revision => {}
            (FrameKind::Batch, false) | (FrameKind::Piece | FrameKind::Complete, true) => {
                return Err(DamageFault::Incomplete);
            }
            _ => return Err(DamageFault::RevisionOrder),
        }
        self.revision = frame.revision;
        self.sizes.add(u64::from(frame.count), u64::from(frame.length) + FRAME_OVERHEAD_BYTES as u64);
        let mut rest = payload;
        for _ in 0..frame.count {
            let (change, after) = split_change(rest).ok_or(DamageFault::BadChange)?;
            sink.change(change).map_err(DamageFault::Record)?;
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(DamageFault::BadChange) }
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
