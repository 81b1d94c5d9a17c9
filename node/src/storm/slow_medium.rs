//! FOR STORMS ONLY: a disk whose every sync takes longer, put between the record core and the real directory of a
//! storm's own node. The code that ships is the same; only this type parameter differs.

use std::time::Duration;

use handfast_trust::{DiskError, Medium, MediumFile};

/// A directory whose syncs take `delay` longer.
#[derive(Debug)]
pub struct SlowMedium<M> {
    inner: M,
    delay: Duration,
}

/// A file in it.
#[derive(Debug)]
pub struct SlowFile<F> {
    inner: F,
    delay: Duration,
}

impl<M> SlowMedium<M> {
    /// Puts `inner` behind a delay.
    pub fn new(inner: M, delay: Duration) -> SlowMedium<M> {
        SlowMedium { inner, delay }
    }
}

#[expect(clippy::disallowed_methods, reason = "it stands for a disk that takes its time, on the drainer's own thread")]
fn take_time(delay: Duration) {
    std::thread::sleep(delay);
}

impl<M: Medium> Medium for SlowMedium<M> {
    type File = SlowFile<M::File>;

    fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
        Ok(SlowFile { inner: self.inner.open(name)?, delay: self.delay })
    }

    fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError> {
        Ok(SlowFile { inner: self.inner.create_new(name)?, delay: self.delay })
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
        take_time(self.delay);
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

    fn sync_data(&mut self) -> Result<(), DiskError> {
        take_time(self.delay);
        self.inner.sync_data()
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        take_time(self.delay);
        self.inner.sync()
    }
}
