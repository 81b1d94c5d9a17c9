//! A record file that is being appended to.
//!
//! Invariants: at most one frame is not synced. `end` and `chain` move only after a frame's write *and* fsync have
//! succeeded. After a failed fsync, or a failed write that could not be undone, the file is closed to appends for
//! good: what the kernel holds of it and what the disk holds may differ, and no later fsync would tell.
//!
//! Disk steps of an append, in the drainer's thread:
//! 1. if the frame does not fit into what is allocated, allocate more (crash: a longer tail of zeros, which is legal);
//!    where it is short, write zeros into the room ahead of it (crash: the same tail);
//! 2. write the frame at `end` (crash: any of its sectors, a torn tail that recovery cuts off);
//! 3. fsync the data (crash: as before, or the whole frame);
//! 4. if the write failed, truncate to `end` instead (crash: a torn tail).
//!
//! Not here: retry (`drainer`), the snapshot that a file begins with (`checkpoint`).

use crate::error::{DiskError, DiskErrorKind};
use crate::frame::{Digest, FILE_HEADER_BYTES, FRAME_OVERHEAD_BYTES, FileHeader, FrameKind, Payload};
use crate::medium::{MediumFile, uninterrupted, write_all};
use crate::record::Revision;
use crate::sync::die;

/// How much is allocated at a time at most: room for thousands of changes, so that few appends change the file's length.
pub const ALLOCATION_BYTES: u64 = 1 << 20;

/// How much room is written ahead of a short frame. The first write to an allocated block makes the file system note in its
/// journal that it has been written, which takes a sync as long as another: once for a hundred short frames instead of
/// once for seven.
const ZEROED_BYTES: usize = 64 << 10;

/// A frame is short that is no longer than this. Of longer ones each has blocks of its own, which would be written twice.
const SHORT_BYTES_MAX: u64 = 4 << 10;

/// What the live content of a log is estimated from.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PutSizes {
    pub(crate) puts: u64,
    pub(crate) bytes: u64,
}

impl PutSizes {
    pub(crate) const fn add(&mut self, count: u64, bytes: u64) {
        self.puts = self.puts.saturating_add(count);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// What so many records would take, at the mean of all that were written.
    pub(crate) fn estimate(&self, records: u64) -> u64 {
        records.saturating_mul(self.bytes.checked_div(self.puts).unwrap_or(0))
    }
}

/// A record file and where its next frame goes.
#[derive(Debug)]
pub(crate) struct LogFile<F> {
    file: F,
    header: FileHeader,
    /// Where the next frame goes; all before it is durable, once the file has its name.
    end: u64,
    /// Length of the file: `end`, or more where room is allocated.
    length: u64,
    /// Where the zeros end that were written ahead.
    zeroed: u64,
    /// Of the last batch, or of the snapshot.
    revision: Revision,
    chain: Digest,
    sizes: PutSizes,
    appendable: bool,
    touched: bool,
    allocates: bool,
}

impl<F: MediumFile> LogFile<F> {
    /// A file that was read to `end`.
    pub(crate) const fn opened(
        file: F,
        header: FileHeader,
        (end, length): (u64, u64),
        (revision, chain): (Revision, Digest),
        sizes: PutSizes,
    ) -> Self {
        Self {
            file,
            header,
            end,
            length,
            zeroed: 0,
            revision,
            chain,
            sizes,
            appendable: true,
            touched: false,
            allocates: true,
        }
    }

    /// Writes the header of a file that was just created.
    pub(crate) fn begin(mut file: F, header: FileHeader) -> Result<Self, DiskError> {
        write_all(&mut file, 0, &header.encode())?;
        let end = FILE_HEADER_BYTES as u64;
        let mut log = Self::opened(file, header, (end, end), (header.base, header.chain_start()), PutSizes::default());
        log.touched = true;
        Ok(log)
    }

    /// Closes the file, whose name another has taken, beside whatever this thread does next.
    pub(crate) fn close_aside(self) {
        self.file.close_aside();
    }

    pub(crate) const fn header(&self) -> &FileHeader {
        &self.header
    }

    pub(crate) const fn end(&self) -> u64 {
        self.end
    }

    pub(crate) const fn chain(&self) -> &Digest {
        &self.chain
    }

    /// What so many records would take in a new file.
    pub(crate) fn estimate(&self, records: u64) -> u64 {
        self.sizes.estimate(records)
    }

    /// Whether another frame may be appended.
    pub(crate) const fn is_appendable(&self) -> bool {
        self.appendable
    }

    /// Nothing is ever appended again.
    pub(crate) const fn close(&mut self) {
        self.appendable = false;
    }

    /// Writes a frame without syncing it: for a file that nobody reads before it is synced and renamed.
    pub(crate) fn write(
        &mut self,
        kind: FrameKind,
        revision: Revision,
        payload: &mut Payload,
    ) -> Result<u64, DiskError> {
        let chain = self.write_frame(kind, revision, payload)?;
        Ok(self.advance(revision, chain, payload))
    }

    /// Appends a batch and syncs it: steps 1 to 4. Returns how many bytes it took.
    pub(crate) fn append(
        &mut self,
        revision: Revision,
        payload: &mut Payload,
        allocation: u64,
    ) -> Result<u64, DiskError> {
        if revision <= self.revision {
            // Recovery would refuse the file: better not to write it.
            die("a batch that does not follow the one before it");
        }
        self.touched = true;
        let frame = (payload.len() + FRAME_OVERHEAD_BYTES) as u64;
        self.allocate_for(frame, allocation.min(ALLOCATION_BYTES));
        self.zero_for(frame);
        let chain = match self.write_frame(FrameKind::Batch, revision, payload) {
            Ok(chain) => chain,
            Err(error) => {
                self.undo();
                return Err(error);
            }
        };
        if let Err(error) = self.file.sync_data() {
            self.appendable = false;
            return Err(error);
        }
        Ok(self.advance(revision, chain, payload))
    }

    /// Asks the system to begin writing back what follows `offset`, so that the sync to come is short.
    pub(crate) fn begin_writeback(&mut self, offset: u64) {
        self.file.begin_writeback(offset, self.end - offset);
    }

    pub(crate) fn sync_data(&mut self) -> Result<(), DiskError> {
        self.file.sync_data()
    }

    pub(crate) fn sync(&mut self) -> Result<(), DiskError> {
        self.file.sync()
    }

    /// Gives back the room that was allocated and not used, if this run has appended anything. Losing this step to a
    /// crash leaves zeros, which are legal.
    pub(crate) fn trim(&mut self) -> Result<(), DiskError> {
        if self.touched && self.appendable && self.length > self.end {
            uninterrupted(|| self.file.truncate(self.end))?;
            self.length = self.end;
        }
        Ok(())
    }

    fn write_frame(&mut self, kind: FrameKind, revision: Revision, payload: &mut Payload) -> Result<Digest, DiskError> {
        let what = (kind, revision, &self.chain);
        let (file, end) = (&mut self.file, self.end);
        let (written, digest) = payload.framed(&self.header.id, end, what, |frame| write_all(file, end, frame));
        written.map(|()| digest)
    }

    fn advance(&mut self, revision: Revision, chain: Digest, payload: &Payload) -> u64 {
        let bytes = (payload.len() + FRAME_OVERHEAD_BYTES) as u64;
        self.sizes.add(u64::from(payload.count()), bytes);
        self.revision = revision;
        self.chain = chain;
        self.end += bytes;
        self.length = self.length.max(self.end);
        bytes
    }

    fn allocate_for(&mut self, frame: u64, allocation: u64) {
        if !self.allocates || self.end + frame <= self.length {
            return;
        }
        let room = frame.max(allocation);
        match self.file.allocate(self.end, room) {
            Ok(()) => self.length = self.end + room,
            // Room is for speed only. If there is truly none, the write will say so.
            Err(error) => self.allocates = error.kind != DiskErrorKind::Unsupported,
        }
    }

    /// Only within the file's length: what lies behind the last frame of a file is zeros in any case.
    fn zero_for(&mut self, frame: u64) {
        let room = self.length.saturating_sub(self.end);
        if frame > SHORT_BYTES_MAX || frame > room || self.end + frame <= self.zeroed {
            return;
        }
        static ZEROS: [u8; ZEROED_BYTES] = [0; ZEROED_BYTES];
        let zeros = &ZEROS[..usize::try_from(room).unwrap_or(ZEROED_BYTES).min(ZEROED_BYTES)];
        // For speed only, too.
        if write_all(&mut self.file, self.end, zeros).is_ok() {
            self.zeroed = self.end + zeros.len() as u64;
        }
    }

    fn undo(&mut self) {
        match uninterrupted(|| self.file.truncate(self.end)) {
            Ok(()) => (self.length, self.zeroed) = (self.end, self.end),
            Err(_) => self.appendable = false,
        }
    }
}
