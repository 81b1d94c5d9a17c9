//! The medium that a running node uses: a directory of the operating system.
//!
//! Everything goes through the directory's descriptor, so that the directory may be moved while it is in use. No
//! symlink is followed, neither for the directory nor for a file in it. A file must be regular, belong to this user
//! and be closed to all others.
//!
//! Not here: who may use the directory (`lock`).

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{DiskError, DiskErrorKind, DiskOp};
use crate::medium::{Medium, MediumFile};

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDir {
    directory: OwnedFd,
}

/// A file in it.
#[derive(Debug)]
pub struct RealFile {
    file: OwnedFd,
}

impl RealDir {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// `NotRegular` for a symlink or anything else that is not a directory; `Exposed` if others have permissions on
    /// it; `ForeignOwner` if it belongs to another user.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => DiskError::new(DiskOp::Open, DiskErrorKind::NotRegular),
            errno => fail(DiskOp::Open, errno),
        })?;
        check_access(&directory)?;
        Ok(Self { directory })
    }
}

impl Medium for RealDir {
    type File = RealFile;

    fn open(&mut self, name: &str) -> Result<RealFile, DiskError> {
        // Non-blocking, so that a FIFO in its place cannot hang the opening.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP | Errno::ISDIR | Errno::NXIO => DiskError::new(DiskOp::Open, DiskErrorKind::NotRegular),
            errno => fail(DiskOp::Open, errno),
        })?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| fail(DiskOp::Stat, errno))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(DiskError::new(DiskOp::Open, DiskErrorKind::NotRegular));
        }
        check_access(&file)?;
        Ok(RealFile { file })
    }

    fn create_new(&mut self, name: &str) -> Result<RealFile, DiskError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| fail(DiskOp::Create, errno))?;
        Ok(RealFile { file })
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        match rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(fail(DiskOp::Stat, errno)),
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        rustix::fs::renameat(&self.directory, from, &self.directory, to).map_err(|errno| fail(DiskOp::Rename, errno))
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        rustix::fs::linkat(&self.directory, from, &self.directory, to, AtFlags::empty())
            .map_err(|errno| fail(DiskOp::Link, errno))?;
        self.remove(from)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty()).map_err(|errno| fail(DiskOp::Remove, errno))
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        // A new description for every sync: what an earlier one failed on is not reported to this one.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&self.directory, ".", flags, Mode::empty())
            .map_err(|errno| fail(DiskOp::SyncDirectory, errno))?;
        rustix::fs::fsync(&directory).map_err(|errno| fail(DiskOp::SyncDirectory, errno))
    }
}

impl MediumFile for RealFile {
    fn length(&mut self) -> Result<u64, DiskError> {
        let stat = rustix::fs::fstat(&self.file).map_err(|errno| fail(DiskOp::Stat, errno))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        rustix::io::pread(&self.file, into, offset).map_err(|errno| fail(DiskOp::Read, errno))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        rustix::io::pwrite(&self.file, bytes, offset).map_err(|errno| fail(DiskOp::Write, errno))
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        rustix::fs::ftruncate(&self.file, length).map_err(|errno| fail(DiskOp::Truncate, errno))
    }

    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), offset, length)
            .map_err(|errno| fail(DiskOp::Allocate, errno))
    }

    fn begin_writeback(&mut self, offset: u64, length: u64) {
        // On Linux this begins an asynchronous write of the dirty pages in the range. That it may forget the pages
        // afterwards is no loss: the file is not read while it is built.
        let length = std::num::NonZeroU64::new(length);
        let _ = rustix::fs::fadvise(&self.file, offset, length, rustix::fs::Advice::DontNeed);
    }

    fn close_aside(self) {
        // Without a thread it is closed here. Whether this ends before the process does, changes nothing.
        let _ = std::thread::Builder::new().name("closing".to_owned()).spawn(move || drop(self));
    }

    fn sync_data(&mut self) -> Result<(), DiskError> {
        rustix::fs::fdatasync(&self.file).map_err(|errno| fail(DiskOp::Sync, errno))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        rustix::fs::fsync(&self.file).map_err(|errno| fail(DiskOp::Sync, errno))
    }
}

fn check_access(file: &OwnedFd) -> Result<(), DiskError> {
    let stat = rustix::fs::fstat(file).map_err(|errno| fail(DiskOp::Stat, errno))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(DiskError::new(DiskOp::Open, DiskErrorKind::ForeignOwner));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(DiskError::new(DiskOp::Open, DiskErrorKind::Exposed));
    }
    Ok(())
}

const fn fail(op: DiskOp, errno: Errno) -> DiskError {
    DiskError::new(op, kind_of_errno(errno))
}

const fn kind_of_errno(errno: Errno) -> DiskErrorKind {
    match errno {
        Errno::NOENT => DiskErrorKind::NotFound,
        Errno::EXIST => DiskErrorKind::Exists,
        Errno::ACCESS | Errno::PERM => DiskErrorKind::Denied,
        Errno::INTR => DiskErrorKind::Interrupted,
        Errno::AGAIN => DiskErrorKind::Again,
        Errno::NOSPC => DiskErrorKind::NoSpace,
        Errno::DQUOT => DiskErrorKind::Quota,
        Errno::MFILE | Errno::NFILE => DiskErrorKind::Descriptors,
        Errno::IO => DiskErrorKind::Io,
        Errno::ROFS => DiskErrorKind::ReadOnly,
        Errno::OPNOTSUPP | Errno::NOSYS => DiskErrorKind::Unsupported,
        errno => DiskErrorKind::Other(errno.raw_os_error()),
    }
}

/// The kind of an error of the standard library.
pub(crate) fn kind_of(error: &std::io::Error) -> DiskErrorKind {
    error.raw_os_error().map_or(DiskErrorKind::Other(0), |errno| kind_of_errno(Errno::from_raw_os_error(errno)))
}
