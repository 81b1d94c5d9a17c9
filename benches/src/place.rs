//! Where a store lies: a directory that is removed at the end, and a medium whose syncs can be slowed.

use std::env;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use handfast::storm::slow_medium::SlowMedium;
use handfast_trust::{DiskError, RealDir};

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

    /// Opens a directory that is there, and slows its syncs.
    ///
    /// # Errors
    /// As [`RealDir::open`].
    pub fn open(&self, path: &Path) -> Result<SlowDir, DiskError> {
        let slow = self.clone();
        Ok(SlowMedium::behind(RealDir::open(path)?, Arc::new(move || slow.wait())))
    }

    fn wait(&self) {
        let delay = self.0.load(Ordering::Relaxed);
        if delay > 0 {
            pause(Duration::from_nanos(delay));
        }
    }
}

/// A directory of the operating system with slow syncs.
pub type SlowDir = SlowMedium<RealDir>;
