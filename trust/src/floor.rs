//! The floor: how far the trust and invites files are known to reach.
//!
//! ```text
//! file `floor`, 96 bytes
//!   0   8  magic "HFFLOOR" 0x01
//!   8  32  owner
//!   40  8  durable revision of trust.hf
//!   48  8  durable revision of invites.hf
//!   56  1  1 at rest: a drainer wrote this last and ended with everything saved; 0 in use
//!   57  7  zero
//!   64 32  digest: BLAKE3 of bytes 0..64
//! ```
//!
//! Invariants: it never says more than the files hold, so that no crash raises a false alarm; it is written after the
//! revisions that it names were published, within a second of a change, and at every clean stop. What it detects: an
//! older file put back, and a tail cut off that had been acknowledged.
//!
//! *At rest* is what makes a file's end believed as it is. A process that dies after a sync failed leaves a page cache
//! that shows what the disk does not hold, and the next process cannot see the difference, nor can its syncs. So a file
//! that reaches further than the floor, or a floor that is in use, means: read it all, but promise only the floor,
//! until a fresh file is written. The mark is set by a clean stop only, and taken back before a checkpoint begins; an
//! append shows by itself.
//!
//! Disk steps: create `floor.tmp`, write, fsync, rename, fsync the directory. A crash before the rename leaves the old
//! floor and perhaps a temporary file, which the next write removes; after it, either floor. Both are true.
//!
//! Thread: the drainer's. Missing or unreadable means closed. Not here: what a file reaches (`recover`).

use crate::error::{DamageFault, DiskError, DiskErrorKind, StoreError};
use crate::frame::frame_digest;
use crate::medium::{Medium, MediumFile as _};
use crate::record::{FileKind, Revision};

/// Name of the file in the data directory.
pub const FLOOR_FILE: &str = "floor";
pub(crate) const FLOOR_TEMPORARY: &str = "floor.tmp";
const MAGIC: [u8; 8] = *b"HFFLOOR\x01";
const BYTES: usize = 96;

/// Revisions that are known to have been durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    /// Of `trust.hf`.
    pub trust: Revision,
    /// Of `invites.hf`.
    pub invites: Revision,
}

impl Floor {
    /// The floor of a kind of file; zero for those that have none.
    #[must_use]
    pub const fn of(&self, kind: FileKind) -> Revision {
        match kind {
            FileKind::Trust => self.trust,
            FileKind::Invites => self.invites,
            FileKind::Peers | FileKind::Sessions => Revision::ZERO,
        }
    }

    pub(crate) const fn set(&mut self, kind: FileKind, revision: Revision) {
        match kind {
            FileKind::Trust => self.trust = revision,
            FileKind::Invites => self.invites = revision,
            FileKind::Peers | FileKind::Sessions => {}
        }
    }

    /// Reads the floor of this node.
    ///
    /// # Errors
    /// Missing and damaged are errors alike: without a floor nothing is known about what was lost.
    pub fn read<M: Medium>(medium: &mut M, owner: &[u8; 32]) -> Result<Self, StoreError> {
        read(medium, owner).map(|(floor, _)| floor)
    }

    /// Writes it, in place of an older one if there is one: for a directory that nobody has in use.
    ///
    /// # Errors
    /// Then either floor may be there.
    pub fn write<M: Medium>(&self, medium: &mut M, owner: &[u8; 32]) -> Result<(), DiskError> {
        self.write_marked(medium, owner, true)
    }

    pub(crate) fn write_marked<M: Medium>(
        &self,
        medium: &mut M,
        owner: &[u8; 32],
        at_rest: bool,
    ) -> Result<(), DiskError> {
        match medium.remove(FLOOR_TEMPORARY) {
            Err(error) if error.kind != DiskErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = medium.create_new(FLOOR_TEMPORARY)?;
        crate::medium::write_all(&mut file, 0, &self.encode(owner, at_rest))?;
        file.sync()?;
        medium.rename(FLOOR_TEMPORARY, FLOOR_FILE)?;
        medium.sync_directory()
    }

    fn encode(&self, owner: &[u8; 32], at_rest: bool) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..40].copy_from_slice(owner);
        bytes[40..48].copy_from_slice(&self.trust.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.invites.0.to_le_bytes());
        bytes[56] = u8::from(at_rest);
        let digest = frame_digest(&bytes[..64]);
        bytes[64..].copy_from_slice(&digest);
        bytes
    }
}

/// The floor, and whether it is at rest.
fn read<M: Medium>(medium: &mut M, owner: &[u8; 32]) -> Result<(Floor, bool), StoreError> {
    let mut file = medium.open(FLOOR_FILE).map_err(|error| StoreError::from_open(FLOOR_FILE, error))?;
    // One byte more than it has, to notice whatever follows.
    let mut bytes = [0; BYTES + 1];
    let read =
        crate::replay::read_up_to(&mut file, 0, &mut bytes).map_err(|error| StoreError::io(FLOOR_FILE, error))?;
    let damaged = |offset, fault| Err(StoreError::damaged(FLOOR_FILE, offset, fault));
    if read != BYTES {
        return damaged(read as u64, DamageFault::ShortHeader);
    }
    if bytes[..8] != MAGIC {
        return damaged(0, DamageFault::BadMagic);
    }
    if bytes[64..BYTES] != frame_digest(&bytes[..64]) {
        return damaged(64, DamageFault::HeaderChecksum);
    }
    if bytes[8..40] != owner[..] {
        return damaged(8, DamageFault::ForeignOwner);
    }
    let revision = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at..at + 8]);
        Revision(u64::from_le_bytes(number))
    };
    Ok((Floor { trust: revision(40), invites: revision(48) }, bytes[56] == 1))
}

/// Whether the floor is at rest; `None` if there is none that can be read.
pub(crate) fn is_at_rest<M: Medium>(medium: &mut M, owner: &[u8; 32]) -> Option<bool> {
    read(medium, owner).ok().map(|(_, at_rest)| at_rest)
}
