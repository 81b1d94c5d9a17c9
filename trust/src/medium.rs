//! The seam to the disk and to time: a directory of files, and a monotonic clock.
//!
//! Two implementations each: [`RealDir`](crate::RealDir) and the program's clock; the simulated disk and clock of
//! feature `sim`. Recovery, the drainer and the checkpoint know nothing below this seam.
//!
//! Operations do what their system calls do and no more: no retry, no buffering. A file that is created has mode 0600;
//! a file that is opened must be a regular file that nobody else has permissions on. No symlink is followed.

use std::fmt;
use std::time::Duration;

use crate::error::{DiskError, DiskErrorKind, DiskOp};
use crate::retry::FaultClass;

/// A moment on a clock that never goes back: the time since an arbitrary origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Monotonic(pub Duration);

impl Monotonic {
    /// This much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// How long ago `earlier` was; zero if it was not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Monotonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// Tells the time. Read only where a shell needs it: logic gets `now` as an argument.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Monotonic;
}

/// A directory that holds files by name.
pub trait Medium: Send + 'static {
    /// An open file.
    type File: MediumFile;

    /// Opens a file that is there, for reading and writing.
    ///
    /// # Errors
    /// Among others `NotFound`, `NotRegular`, `Denied`, `Exposed`, `ForeignOwner`.
    fn open(&mut self, name: &str) -> Result<Self::File, DiskError>;

    /// Creates a file that is not there.
    ///
    /// # Errors
    /// Among others `Exists`.
    fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError>;

    /// Whether anything has this name.
    ///
    /// # Errors
    /// If the directory cannot say: that is not "no".
    fn exists(&mut self, name: &str) -> Result<bool, DiskError>;

    /// Gives a file another name, and takes the name from whatever had it.
    ///
    /// # Errors
    /// After an error the name may be either file's.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Gives a file another name that nothing has.
    ///
    /// # Errors
    /// `Exists` if something has it.
    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError>;

    /// Takes a name away.
    ///
    /// # Errors
    /// Among others `NotFound`.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// After an error nothing is known about the names that changed since the last success.
    fn sync_directory(&mut self) -> Result<(), DiskError>;
}

/// An open file.
pub trait MediumFile: Send + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// If the system cannot say.
    fn length(&mut self) -> Result<u64, DiskError>;

    /// Reads at an offset; fewer bytes than asked for only at the end or by chance, zero only at the end.
    ///
    /// # Errors
    /// Among others `Interrupted`.
    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError>;

    /// Writes at an offset; may take fewer bytes than given.
    ///
    /// # Errors
    /// Among others `NoSpace`, `Interrupted`.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError>;

    /// Sets its length.
    ///
    /// # Errors
    /// Among others `Io`.
    fn truncate(&mut self, length: u64) -> Result<(), DiskError>;

    /// Makes room from `offset` on: the file then ends at `offset + length`, and reads as zeros there.
    ///
    /// # Errors
    /// `Unsupported` where the file system has no such operation.
    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError>;

    /// Asks the system to begin writing this part to the disk, without waiting. Promises nothing.
    fn begin_writeback(&mut self, _offset: u64, _length: u64) {}

    /// Closes it, and keeps nobody waiting for that: a long file that has lost its name gives its blocks back first.
    fn close_aside(self)
    where
        Self: Sized,
    {
    }

    /// Makes its content durable, and as much of its metadata as reading it back needs.
    ///
    /// # Errors
    /// After an error nothing is known about what was written since the last success, and another call would not tell:
    /// the kernel has forgotten which pages failed.
    fn sync_data(&mut self) -> Result<(), DiskError>;

    /// Makes its content and all its metadata durable.
    ///
    /// # Errors
    /// As [`sync_data`](Self::sync_data).
    fn sync(&mut self) -> Result<(), DiskError>;
}

/// How often in a row an operation that was interrupted is tried at once.
const INTERRUPTIONS_MAX: u32 = 16;

/// Tries an operation again at once while it is merely interrupted. Not for syncs: those are never repeated.
pub(crate) fn uninterrupted<T>(mut operation: impl FnMut() -> Result<T, DiskError>) -> Result<T, DiskError> {
    let mut interruptions = 0;
    loop {
        match operation() {
            Err(error) if error.kind.class() == FaultClass::Transient && interruptions < INTERRUPTIONS_MAX => {
                interruptions += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Writes all bytes at an offset, in as many calls as it takes.
pub(crate) fn write_all<F: MediumFile>(file: &mut F, mut offset: u64, mut bytes: &[u8]) -> Result<(), DiskError> {
    while !bytes.is_empty() {
        let written = uninterrupted(|| file.write_at(offset, bytes))?;
        let Some(rest) = bytes.get(written..).filter(|_| written > 0) else {
            return Err(DiskError::new(DiskOp::Write, DiskErrorKind::ShortWrite));
        };
        bytes = rest;
        offset += written as u64;
    }
    Ok(())
}
