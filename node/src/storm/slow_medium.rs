//! FOR STORMS AND TESTS ONLY: a disk whose every sync waits for something first, put between the record core and the
//! real directory of a storm's own node. The code that ships is the same; only this type parameter differs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handfast_trust::{DiskError, Medium, MediumFile};

/// What every sync waits for, in the drainer's thread.
pub type Wait = Arc<dyn Fn() + Send + Sync>;

/// What a storm's own node is told of its disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlowDisk {
    /// How much longer every sync takes.
    pub delay: Duration,
    /// No sync ends while there is a file of this name: a disk that hangs.
    pub gate: Option<PathBuf>,
}

/// Between two looks at the gate.
const GATE_EVERY: Duration = Duration::from_millis(5);

impl SlowDisk {
    /// What every sync is to wait for; `None` for nothing.
    pub fn wait(self) -> Option<Wait> {
        let SlowDisk { delay, gate } = self;
        if delay.is_zero() && gate.is_none() {
            return None;
        }
        Some(Arc::new(move || {
            take_time(delay);
            while gate.as_ref().is_some_and(|gate| gate.exists()) {
                take_time(GATE_EVERY);
            }
        }))
    }
}

/// A directory whose syncs wait.
pub struct SlowMedium<M> {
    inner: M,
    wait: Wait,
}

/// A file in it.
pub struct SlowFile<F> {
    inner: F,
    wait: Wait,
}

impl<M> SlowMedium<M> {
    /// Puts `inner` behind a delay.
    pub fn new(inner: M, delay: Duration) -> SlowMedium<M> {
        SlowMedium::behind(inner, Arc::new(move || take_time(delay)))
    }

    /// Puts `inner` behind whatever `wait` waits for.
    pub fn behind(inner: M, wait: Wait) -> SlowMedium<M> {
        SlowMedium { inner, wait }
    }
}

#[expect(clippy::disallowed_methods, reason = "it stands for a disk that takes its time, on the drainer's own thread")]
fn take_time(delay: Duration) {
    std::thread::sleep(delay);
}

impl<M: Medium> Medium for SlowMedium<M> {
    type File = SlowFile<M::File>;

    fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
        Ok(SlowFile { inner: self.inner.open(name)?, wait: self.wait.clone() })
    }

    fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError> {
        Ok(SlowFile { inner: self.inner.create_new(name)?, wait: self.wait.clone() })
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.inner.exists(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.inner.rename(from, to)
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.inner.rename_new(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.inner.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        (self.wait)();
        self.inner.sync_directory()
    }
}

impl<F: MediumFile> MediumFile for SlowFile<F> {
    fn length(&mut self) -> Result<u64, DiskError> {
        self.inner.length()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        self.inner.write_at(offset, bytes)
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.inner.truncate(length)
    }

    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.inner.allocate(offset, length)
    }

    fn begin_writeback(&mut self, offset: u64, length: u64) {
        self.inner.begin_writeback(offset, length);
    }

    fn close_aside(self) {
        self.inner.close_aside();
    }

    fn sync_data(&mut self) -> Result<(), DiskError> {
        (self.wait)();
        self.inner.sync_data()
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        (self.wait)();
        self.inner.sync()
    }
}
