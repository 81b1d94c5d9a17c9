//! What can go wrong on the disk, by whose fault, without free text.
//!
//! Three types: [`DiskError`] is one failed operation, [`StoreError`] a store that does not open, [`DurabilityError`]
//! what a waiter is told. All are values; who prints them adds nothing.

use crate::record::{RecordFault, Revision};

/// An operation of the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[allow(missing_docs)]
pub enum DiskOp {
    #[error("open")]
    Open,
    #[error("create")]
    Create,
    #[error("read")]
    Read,
    #[error("write")]
    Write,
    #[error("truncate")]
    Truncate,
    #[error("allocate")]
    Allocate,
    #[error("fsync")]
    Sync,
    #[error("fsync of the directory")]
    SyncDirectory,
    #[error("rename")]
    Rename,
    #[error("link")]
    Link,
    #[error("remove")]
    Remove,
    #[error("stat")]
    Stat,
}

/// What the operating system said, in the classes that are treated differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DiskErrorKind {
    /// ENOENT.
    #[error("no such file")]
    NotFound,
    /// EEXIST.
    #[error("it exists already")]
    Exists,
    /// EACCES or EPERM.
    #[error("permission denied")]
    Denied,
    /// A symlink, a directory, a FIFO or a device where a regular file belongs.
    #[error("not a regular file")]
    NotRegular,
    /// Group or others have permissions on it.
    #[error("other users have permissions on it (want 0600 for files, 0700 for the directory)")]
    Exposed,
    /// It belongs to another user.
    #[error("it belongs to another user")]
    ForeignOwner,
    /// EINTR.
    #[error("interrupted")]
    Interrupted,
    /// EAGAIN.
    #[error("temporarily unavailable")]
    Again,
    /// ENOSPC.
    #[error("no space left on the device")]
    NoSpace,
    /// EDQUOT.
    #[error("disk quota exceeded")]
    Quota,
    /// EMFILE or ENFILE.
    #[error("too many open files")]
    Descriptors,
    /// EIO.
    #[error("input/output error")]
    Io,
    /// EROFS.
    #[error("read-only file system")]
    ReadOnly,
    /// A write that accepted no byte.
    #[error("the write was cut short")]
    ShortWrite,
    /// EOPNOTSUPP or ENOSYS.
    #[error("not supported by this file system")]
    Unsupported,
    /// Anything else: the number is the errno.
    #[error("errno {0}")]
    Other(i32),
}

/// One operation of the medium that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{op} failed: {kind}")]
pub struct DiskError {
    /// Which operation.
    pub op: DiskOp,
    /// How it failed.
    pub kind: DiskErrorKind,
}

impl DiskError {
    /// The error of an operation.
    #[must_use]
    pub const fn new(op: DiskOp, kind: DiskErrorKind) -> Self {
        Self { op, kind }
    }
}

/// What is wrong with a file that cannot be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DamageFault {
    /// The file should be there.
    #[error("it is missing")]
    Missing,
    /// Not a regular file.
    #[error("it is not a regular file")]
    NotAFile,
    /// Shorter than its header.
    #[error("it is shorter than its header")]
    ShortHeader,
    /// The first bytes are not those of such a file.
    #[error("it does not begin like a file of handfast")]
    BadMagic,
    /// Written by a newer version.
    #[error("it has format version {0}, newer than this program knows")]
    NewerVersion(u32),
    /// The header's checksum does not hold.
    #[error("the checksum of its header does not hold")]
    HeaderChecksum,
    /// A file of another kind.
    #[error("it is a file of another kind")]
    WrongKind,
    /// A file of another node.
    #[error("it belongs to another node")]
    ForeignOwner,
    /// A frame begins here that is not one.
    #[error("the header of a frame does not hold")]
    FrameHeader,
    /// A frame's digest does not hold.
    #[error("the digest of a frame does not hold")]
    FrameDigest,
    /// A frame does not continue the chain.
    #[error("a frame does not continue the one before it")]
    Chain,
    /// A frame's revision does not follow.
    #[error("a frame's revision does not follow the one before it")]
    RevisionOrder,
    /// The frame that completes the snapshot is not there, or not where it belongs.
    #[error("its snapshot is not complete")]
    Incomplete,
    /// The snapshot holds another number of records than it says.
    #[error("its snapshot holds another number of records than it says")]
    CountMismatch,
    /// A change is not encoded as one.
    #[error("a change is not encoded as one")]
    BadChange,
    /// A record does not decode.
    #[error("a record does not decode: {0}")]
    Record(RecordFault),
    /// More unreadable bytes at the end than one append can leave.
    #[error("more unreadable bytes follow than one append can leave")]
    TailTooLong,
    /// It ends before a revision that is known to have been durable.
    #[error("it ends at revision {found}, but revision {floor} was durable")]
    BelowFloor {
        /// The revision in the floor file.
        floor: Revision,
        /// The revision that the file reaches.
        found: Revision,
    },
}

impl DamageFault {
    /// What an operator can do about it.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::NewerVersion(_) => "run the version of handfast that wrote it",
            Self::ForeignOwner | Self::WrongKind => "put back the file that belongs here",
            Self::Missing | Self::NotAFile | Self::BelowFloor { .. } => {
                "put back the newest copy, or run `handfast store recover`"
            }
            _ => "keep a copy of the directory, then run `handfast store recover`",
        }
    }
}

/// A store that does not open. Nothing was changed on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file is there, or should be, and cannot be believed: closed, nobody is trusted.
    #[error("{file} is damaged at byte {offset}: {fault}; {}", fault.remedy())]
    Damaged {
        /// Name of the file in the data directory.
        file: &'static str,
        /// Where in the file.
        offset: u64,
        /// What is wrong.
        fault: DamageFault,
    },
    /// The disk failed, or refused.
    #[error("{file}: {error}")]
    Io {
        /// Name of the file in the data directory.
        file: &'static str,
        /// What failed.
        error: DiskError,
    },
}

impl StoreError {
    pub(crate) const fn io(file: &'static str, error: DiskError) -> Self {
        Self::Io { file, error }
    }

    pub(crate) const fn damaged(file: &'static str, offset: u64, fault: DamageFault) -> Self {
        Self::Damaged { file, offset, fault }
    }

    /// Turns the errors of opening a file into what they mean for the store: absent and not-a-file are damage (the
    /// caller knows that it must be there), a refusal is not absence.
    pub(crate) const fn from_open(file: &'static str, error: DiskError) -> Self {
        match error.kind {
            DiskErrorKind::NotFound => Self::damaged(file, 0, DamageFault::Missing),
            DiskErrorKind::NotRegular => Self::damaged(file, 0, DamageFault::NotAFile),
            _ => Self::io(file, error),
        }
    }
}

/// Why a revision is not known to be durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurabilityError {
    /// An attempt that covered the revision failed after the wait began. The drainer goes on trying, and the caller
    /// may wait again.
    #[error("the disk did not take it: {0}")]
    Failed(DiskErrorKind),
    /// The time was up.
    #[error("the disk did not confirm in time")]
    TimedOut,
    /// The drainer has ended without it.
    #[error("the store was stopped before the disk confirmed")]
    Stopped,
}
