//! One writer for each data directory: an exclusive kernel lock on the file `lock`, held for the holder's life.
//!
//! Invariants: the kernel decides (ONE); nobody takes the lock over by age or by process id, and the file is never
//! unlinked. After locking it is checked that the name still means the locked inode. Who holds it is written into the
//! file for messages only: a process id, a role, a socket path. The lock ends with the descriptor, so that a killed
//! process leaves nothing behind but an outdated name.
//!
//! Not here: waiting for the lock (the commands do), and what is done under it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{DiskError, DiskErrorKind, DiskOp};

/// Name of the file in the data directory.
pub const LOCK_FILE: &str = "lock";

const OWNER_BYTES_MAX: u64 = 8_192;

/// Who holds a directory. For messages only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockOwner {
    /// Its process id; 0 if it has not written it yet.
    pub pid: u32,
    /// What it is doing: "node", or the name of a command.
    pub role: String,
    /// Where it answers, if it does.
    pub socket: Option<PathBuf>,
}

/// Why a directory could not be locked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Somebody holds it.
    #[error("the data directory is in use by process {} ({})", .0.pid, .0.role)]
    Held(LockOwner),
    /// The file system has no locks: two writers could not be told apart.
    #[error("the file system of the data directory does not support locks")]
    Unsupported,
    /// The lock file cannot be used.
    #[error("lock: {0}")]
    Io(DiskError),
}

/// The right to write to a data directory. It ends when this is dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    file: File,
}

impl DirectoryLock {
    /// Takes the lock if nobody holds it; does not wait.
    ///
    /// # Errors
    /// As [`LockError`] says.
    pub fn try_acquire(directory: &Path, owner: &LockOwner) -> Result<Self, LockError> {
        let path = directory.join(LOCK_FILE);
        let nofollow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nofollow.bits().cast_signed())
            .open(&path)
            .map_err(|error| io(DiskOp::Open, &error))?;
        let metadata = file.metadata().map_err(|error| io(DiskOp::Stat, &error))?;
        if !metadata.is_file() {
            return Err(LockError::Io(DiskError::new(DiskOp::Open, DiskErrorKind::NotRegular)));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LockError::Held(read_owner(&mut file))),
            Err(TryLockError::Error(error)) => return Err(lock_failed(&error)),
        }
        // Somebody may have replaced the file between opening and locking; its lock would protect nothing.
        let named = std::fs::symlink_metadata(&path).map_err(|error| io(DiskOp::Stat, &error))?;
        if (named.dev(), named.ino()) != (metadata.dev(), metadata.ino()) {
            return Err(LockError::Held(LockOwner { pid: 0, role: "another process".to_owned(), socket: None }));
        }
        if let Err(error) = write_owner(&mut file, owner) {
            // For messages only: a full disk does not keep a node from starting.
            tracing::warn!(%error, "the lock file does not say who holds it");
        }
        Ok(Self { file })
    }

    /// Writes down who holds it, anew: a node does when its socket is there.
    ///
    /// # Errors
    /// If the disk does not take it; the lock is held all the same.
    pub fn set_owner(&mut self, owner: &LockOwner) -> Result<(), LockError> {
        write_owner(&mut self.file, owner).map_err(|error| io(DiskOp::Write, &error))
    }
}

/// Who says to hold the directory, whether or not anybody does. For messages only.
#[must_use]
pub fn lock_owner(directory: &Path) -> Option<LockOwner> {
    let mut file = File::open(directory.join(LOCK_FILE)).ok()?;
    Some(read_owner(&mut file))
}

fn write_owner(file: &mut File, owner: &LockOwner) -> std::io::Result<()> {
    let mut text = format!("{}\n{}\n", owner.pid, owner.role.replace('\n', " ")).into_bytes();
    if let Some(socket) = &owner.socket {
        text.extend_from_slice(socket.as_os_str().as_encoded_bytes());
        text.push(b'\n');
    }
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&text)
}

/// What is written there, as far as it can be read: its writer may be at it this moment.
fn read_owner(file: &mut File) -> LockOwner {
    let mut bytes = Vec::new();
    let _ = file.rewind();
    let _ = (&*file).take(OWNER_BYTES_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let role = lines.next().filter(|role| !role.is_empty()).unwrap_or("another process").to_owned();
    LockOwner { pid, role, socket: lines.next().map(PathBuf::from) }
}

fn lock_failed(error: &std::io::Error) -> LockError {
    match crate::real::kind_of(error) {
        DiskErrorKind::Unsupported => LockError::Unsupported,
        // ENOLCK: no locks available, as NFS without its lock daemon says.
        DiskErrorKind::Other(number) if number == rustix::io::Errno::NOLCK.raw_os_error() => LockError::Unsupported,
        kind => LockError::Io(DiskError::new(DiskOp::Open, kind)),
    }
}

fn io(op: DiskOp, error: &std::io::Error) -> LockError {
    LockError::Io(DiskError::new(op, crate::real::kind_of(error)))
}
