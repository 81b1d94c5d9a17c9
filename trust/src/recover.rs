//! From a file to a table, or to the reason why not.
//!
//! Invariants: recovery yields a state that memory held, at least the last acknowledged one (ACK, ATOM). What cannot
//! be believed is an error that names file, offset and remedy, and the file keeps every byte (CLOSED). No input
//! panics, and no length is believed before it is checked (TOTAL, BOUND).
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
use crate::frame::{DIGEST_BYTES, FRAME_OVERHEAD_BYTES, FileHeader, FrameKind, MAX_PAYLOAD_BYTES, Payload, RawChange};
use crate::lane::Log;
use crate::log_file::{ALLOCATION_BYTES, LogFile};
use crate::medium::{Medium, MediumFile, uninterrupted};
use crate::record::{FileKind, Record, RecordFault, Revision};
use crate::replay::{Replayed, Sink, replay};
use crate::site::Site;
use crate::store::Store;
use crate::table::{ReadChange, Table};

/// Longest rest that one append can leave: its frame, and the room that was allocated for it.
pub const TAIL_BYTES_MAX: u64 = (MAX_PAYLOAD_BYTES + FRAME_OVERHEAD_BYTES) as u64 + ALLOCATION_BYTES;

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
    let known = floor.of(R::KIND);
    let replayed = replay(&mut file, R::KIND, Some(site.owner()), known, &mut table)?;
    replayed.check_floor(R::KIND, floor)?;
    if replayed.torn_bytes > 0 {
        tracing::warn!(file = name, bytes = replayed.torn_bytes, offset = replayed.end, "torn append found");
    }
    table.replayed(replayed.revision);
    // What the floor does not vouch for may be in the page cache only, left by a process whose sync had failed.
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
    log.write(FrameKind::Complete, revision, &mut Payload::complete(0))?;
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

impl<R: Record> Sink for Table<R> {
    type Change = ReadChange<R>;

    fn begin(&mut self, header: &FileHeader, length: u64) {
        self.expect(header.order_seed, length);
    }

    fn decode(header: &FileHeader, change: RawChange<'_>, unconfirmed: Revision) -> Result<ReadChange<R>, RecordFault> {
        let key = R::decode_key(change.key)?;
        let mut record = change.record.map(|bytes| R::decode(&key, bytes)).transpose()?;
        if unconfirmed != Revision::ZERO {
            record.iter_mut().for_each(|record| record.found_unconfirmed(unconfirmed));
        }
        Ok(ReadChange::new(header.order_seed, key, record))
    }

    fn take(&mut self, change: ReadChange<R>) {
        self.replay(change);
    }

    fn records(&self) -> u64 {
        self.len() as u64
    }
}
