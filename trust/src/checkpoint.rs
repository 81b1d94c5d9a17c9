//! A fresh file that takes the place of a log: built in pieces, while the old one goes on being appended to.
//!
//! Invariants: the pieces are read from the live table, so that they may hold changes which no log holds yet, and they
//! may be of different moments; what makes them one state is that every batch that was appended in the meantime
//! follows them in the file, and that the last one is taken after the last piece. Nothing before the complete frame is
//! ever read on its own: the file has its name only when it is complete and synced. A record in the file is never
//! older than an earlier one of the same key: pieces are read, and batches taken, in the order in which they are
//! written. What is removed from the begin of the walk to the last batch is removed by name, even if no log holds it: a
//! piece may.
//!
//! Disk steps, in the drainer's thread, one or a few in each `Drainer::step`:
//! 1. remove a leftover temporary file; create one, exclusively; write its header;
//! 2. write pieces and copies of the batches of the meantime; fsync when all pieces are written;
//! 3. write the last changes and the complete frame; fsync;
//! 4. rename it over the old file;
//! 5. fsync the directory; close the old file, in a thread of its own.
//!
//! A crash in 1 to 3 leaves the old file and a temporary one; after 4, either file under the name. Both reach every
//! revision that was acknowledged: until 5 has succeeded, only what the old file holds is.
//! A failure in 1 to 3 leaves the old file in use. After a failure in 4 or 5 nobody knows which file has the name: the
//! old one is closed to appends, and another checkpoint follows.
//!
//! Not here: when to begin and when to try again (`drainer`).

use std::mem;
use std::sync::Arc;

use crate::error::DiskError;
use crate::frame::{FileHeader, FrameKind, MAX_CHANGE_BYTES, MAX_PAYLOAD_BYTES, Payload};
use crate::log_file::LogFile;
use crate::medium::Medium;
use crate::record::{FileKind, Record, Revision};
use crate::recover::remove_leftover;
use crate::site::Site;
use crate::store::{Store, WalkGuard};
use crate::sync::die;
use crate::table::{Cursor, Slot, WALK_HOLD_RECORDS, WALK_RECORDS_MAX};

/// Most bytes of one write, unless a single record is longer.
const WRITE_BYTES_MAX: usize = 1 << 20;

/// A file that is being built.
pub(crate) struct Checkpoint<R: Record, M: Medium> {
    file: LogFile<M::File>,
    cursor: Cursor<R::Key>,
    records: Vec<(R::Key, Arc<R>)>,
    walked: bool,
    _walk: WalkGuard<R>,
    handed_over: u64,
}

/// A checkpoint that failed, and whether the old file still has the name.
pub(crate) struct CheckpointFailed {
    pub(crate) error: DiskError,
    pub(crate) name_in_doubt: bool,
}

impl From<DiskError> for CheckpointFailed {
    fn from(error: DiskError) -> Self {
        Self { error, name_in_doubt: false }
    }
}

impl<R: Record, M: Medium> Checkpoint<R, M> {
    /// Step 1.
    pub(crate) fn begin(medium: &mut M, site: &Site, old: &Predecessor, store: &Store<R>) -> Result<Self, DiskError> {
        let name = R::KIND.temporary_name();
        remove_leftover(medium, name)?;
        let file = medium.create_new(name)?;
        let header = FileHeader {
            kind: R::KIND,
            owner: *site.owner(),
            id: site.file_id(),
            base: old.revision,
            previous: old.chain,
            order_seed: store.seed(),
        };
        let file = LogFile::begin(file, header)?;
        Ok(Self {
            file,
            cursor: Cursor::start(),
            records: Vec::new(),
            walked: false,
            _walk: store.begin_walk(),
            handed_over: 0,
        })
    }

    /// Whether all pieces are written.
    pub(crate) const fn is_walked(&self) -> bool {
        self.walked
    }

    /// Step 2: one piece; a small one if somebody is waiting for batches meanwhile. Returns how many bytes were
    /// written.
    pub(crate) fn piece(&mut self, store: &Store<R>, busy: bool, writeback_every: u64) -> Result<u64, DiskError> {
        let records_max = if busy { WALK_HOLD_RECORDS } else { WALK_RECORDS_MAX };
        let mut records = mem::take(&mut self.records);
        let more = store.walk_piece(&mut self.cursor, &mut records, records_max);
        let mut pieces = Pieces::default();
        for (key, record) in &records {
            pieces.push::<R>(key, Some(record), WRITE_BYTES_MAX);
        }
        records.clear();
        self.records = records;
        let written = self.write(pieces)?;
        if !more {
            self.file.sync_data()?;
        } else if self.file.end() - self.handed_over >= writeback_every {
            self.file.begin_writeback(self.handed_over);
            self.handed_over = self.file.end();
        }
        self.walked = !more;
        Ok(written)
    }

    /// Step 2: a batch that was appended to the old file in the meantime.
    pub(crate) fn copy(&mut self, payload: &mut Payload) -> Result<u64, DiskError> {
        let base = self.file.header().base;
        self.file.write(FrameKind::Piece, base, payload)
    }

    /// Steps 3 to 5, with the changes that no earlier batch holds.
    pub(crate) fn finish(
        mut self,
        medium: &mut M,
        changes: &[Vec<Slot<R>>],
        (revision, records): (Revision, u64),
    ) -> Result<LogFile<M::File>, CheckpointFailed> {
        let mut pieces = Pieces::default();
        for (key, change) in changes.iter().flatten().flatten() {
            pieces.push::<R>(key, change.as_deref(), MAX_PAYLOAD_BYTES - MAX_CHANGE_BYTES);
        }
        self.write(pieces)?;
        self.file.write(FrameKind::Complete, revision, &mut Payload::complete(records))?;
        self.file.sync()?;
        let in_doubt = |error| CheckpointFailed { error, name_in_doubt: true };
        medium.rename(R::KIND.temporary_name(), R::KIND.file_name()).map_err(in_doubt)?;
        medium.sync_directory().map_err(in_doubt)?;
        Ok(self.file)
    }

    fn write(&mut self, mut pieces: Pieces) -> Result<u64, DiskError> {
        let before = self.file.end();
        let base = self.file.header().base;
        for payload in pieces.full.iter_mut().chain(Some(&mut pieces.last)).filter(|payload| payload.count() > 0) {
            self.file.write(FrameKind::Piece, base, payload)?;
        }
        Ok(self.file.end() - before)
    }
}

/// What a new file says of the one before.
pub(crate) struct Predecessor {
    pub(crate) revision: Revision,
    pub(crate) chain: crate::frame::Digest,
}

/// Encoded changes, divided into payloads.
#[derive(Default)]
struct Pieces {
    full: Vec<Payload>,
    last: Payload,
}

impl Pieces {
    /// Appends a change; a payload that has reached `bytes` is full.
    fn push<R: Record>(&mut self, key: &R::Key, record: Option<&R>, bytes: usize) {
        encode_change(&mut self.last, key, record);
        if self.last.len() >= bytes {
            self.full.push(mem::take(&mut self.last));
        }
    }
}

/// Encodes a change. A record that is longer than a file can hold is a mistake in this program, which nothing can mend
/// at this point: it would never become durable, nor would anything after it.
pub(crate) fn encode_change<R: Record>(payload: &mut Payload, key: &R::Key, record: Option<&R>) {
    let encoded =
        payload.push(|out| R::encode_key(key, out), record.map(|record| |out: &mut Vec<u8>| record.encode(out)));
    if encoded.is_err() {
        die("a record is longer than a record file can hold");
    }
}

/// The file of a kind cannot be given up for good, but it can be removed under its temporary name.
pub(crate) fn discard<M: Medium>(medium: &mut M, kind: FileKind) {
    // Whatever goes wrong here is found, and dealt with, by the next checkpoint.
    let _ = remove_leftover(medium, kind.temporary_name());
}
