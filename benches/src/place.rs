//! Where a store lies: a directory that is removed at the end, and a medium whose syncs can be slowed.

use std::env;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use handfast_trust::{DiskError, Medium, MediumFile, RealDir, RealFile};

use crate::clock::pause;

/// A directory of one benchmark.
#[derive(Debug)]
pub struct Place(PathBuf);

impl Place {
    /// On the disk: below `HANDFAST_BENCH_DIR`, or else below the system's directory for temporary files.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn on_disk(name: &str) -> Result<Self> {
        Self::below(&env::var_os("HANDFAST_BENCH_DIR").map_or_else(env::temp_dir, PathBuf::from), name)
    }

    /// In memory.
    ///
    /// # Errors
    /// If there is no tmpfs in the usual place.
    pub fn in_memory(name: &str) -> Result<Self> {
        Self::below(Path::new("/dev/shm"), name)
    }

    fn below(base: &Path, name: &str) -> Result<Self> {
        let path = base.join(format!("handfast-bench-{}-{name}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// By how much each sync is slowed. Cloning it is cheap; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Slow(Arc<AtomicU64>);

impl Slow {
    /// From now on each sync takes so much longer.
    pub fn set(&self, delay: Duration) {
        self.0.store(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn wait(&self) {
        let delay = self.0.load(Ordering::Relaxed);
        if delay > 0 {
            pause(Duration::from_nanos(delay));
        }
    }
}

/// A directory of the operating system with slow syncs.
#[derive(Debug)]
pub struct SlowDir {
    directory: RealDir,
    slow: Slow,
}

/// A file in it.
#[derive(Debug)]
pub struct SlowFile {
    file: RealFile,
    slow: Slow,
}

impl SlowDir {
    /// Opens a directory that is there.
    ///
    /// # Errors
    /// As [`RealDir::open`].
    pub fn open(path: &Path, slow: &Slow) -> Result<Self, DiskError> {
        Ok(Self { directory: RealDir::open(path)?, slow: slow.clone() })
    }

    fn slowed(&self, file: RealFile) -> SlowFile {
        SlowFile { file, slow: self.slow.clone() }
    }
}

impl Medium for SlowDir {
    type File = SlowFile;

    fn open(&mut self, name: &str) -> Result<SlowFile, DiskError> {
        self.directory.open(name).map(|file| self.slowed(file))
    }

    fn create_new(&mut self, name: &str) -> Result<SlowFile, DiskError> {
        self.directory.create_new(name).map(|file| self.slowed(file))
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.directory.exists(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.directory.rename(from, to)
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.directory.rename_new(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.directory.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.slow.wait();
        self.directory.sync_directory()
    }
}

impl MediumFile for SlowFile {
    fn length(&mut self) -> Result<u64, DiskError> {
        self.file.length()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.file.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        self.file.write_at(offset, bytes)
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.file.truncate(length)
    }

    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.file.allocate(offset, length)
    }

    fn begin_writeback(&mut self, offset: u64, length: u64) {
        self.file.begin_writeback(offset, length);
    }

    fn sync_data(&mut self) -> Result<(), DiskError> {
        self.slow.wait();
        self.file.sync_data()
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.slow.wait();
        self.file.sync()
    }
}
