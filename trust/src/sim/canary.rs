//! Mistakes planted on purpose, as media that wrap another: the suites must notice each of them.

use std::collections::BTreeSet;

use crate::error::DiskError;
use crate::medium::{Medium, MediumFile};
use crate::record::FileKind;

/// The directory is never synced.
pub struct NoDirectorySync<M>(pub M);

/// Files are never synced.
pub struct NoFileSync<M>(pub M);

/// A sync that failed is tried once more on the same descriptor.
pub struct SyncRepeated<M>(pub M);

/// A sync is confirmed before it is done: it is done before the next operation on the file.
pub struct AckBeforeSync<M>(pub M);

/// A checkpoint writes over the old file instead of beside it.
pub struct InPlaceOverwrite<M> {
    medium: M,
    replaced: BTreeSet<String>,
}

impl<M> InPlaceOverwrite<M> {
    /// Around a medium.
    pub const fn new(medium: M) -> Self {
        Self { medium, replaced: BTreeSet::new() }
    }
}

/// A file of one of these media; what is special about it is said by its flags.
pub struct CanaryFile<F> {
    file: F,
    syncs: bool,
    repeats: bool,
    defers: bool,
    deferred: bool,
}

impl<F: MediumFile> CanaryFile<F> {
    const fn honest(file: F) -> Self {
        Self { file, syncs: true, repeats: false, defers: false, deferred: false }
    }

    fn catch_up(&mut self) -> Result<(), DiskError> {
        if std::mem::take(&mut self.deferred) { self.file.sync() } else { Ok(()) }
    }
}

impl<F: MediumFile> MediumFile for CanaryFile<F> {
    fn length(&mut self) -> Result<u64, DiskError> {
        self.file.length()
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.file.read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        self.catch_up()?;
        self.file.write_at(offset, bytes)
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.catch_up()?;
        self.file.truncate(length)
    }

    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.catch_up()?;
        self.file.allocate(offset, length)
    }

    fn sync_data(&mut self) -> Result<(), DiskError> {
        self.sync()
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        if !self.syncs {
            return Ok(());
        }
        if self.defers {
            self.deferred = true;
            return Ok(());
        }
        match self.file.sync() {
            Err(_) if self.repeats => self.file.sync(),
            outcome => outcome,
        }
    }
}

macro_rules! canary {
    ($canary:ident, $medium:tt, $file:ident => $change:expr) => {
        impl<M: Medium> Medium for $canary<M> {
            type File = CanaryFile<M::File>;

            fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
                let mut $file = CanaryFile::honest(self.$medium.open(name)?);
                $change;
                Ok($file)
            }

            fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError> {
                let mut $file = CanaryFile::honest(self.$medium.create_new(name)?);
                $change;
                Ok($file)
            }

            fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
                self.$medium.exists(name)
            }

            fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
                self.$medium.rename(from, to)
            }

            fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
                self.$medium.rename_new(from, to)
            }

            fn remove(&mut self, name: &str) -> Result<(), DiskError> {
                self.$medium.remove(name)
            }

            fn sync_directory(&mut self) -> Result<(), DiskError> {
                self.$medium.sync_directory()
            }
        }
    };
}

canary!(NoFileSync, 0, file => file.syncs = false);
canary!(SyncRepeated, 0, file => file.repeats = true);
canary!(AckBeforeSync, 0, file => file.defers = true);

impl<M: Medium> Medium for NoDirectorySync<M> {
    type File = M::File;

    fn open(&mut self, name: &str) -> Result<M::File, DiskError> {
        self.0.open(name)
    }

    fn create_new(&mut self, name: &str) -> Result<M::File, DiskError> {
        self.0.create_new(name)
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.0.exists(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename(from, to)
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.0.rename_new(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.0.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        Ok(())
    }
}

impl<M: Medium> Medium for InPlaceOverwrite<M> {
    type File = M::File;

    fn open(&mut self, name: &str) -> Result<M::File, DiskError> {
        self.medium.open(name)
    }

    fn create_new(&mut self, name: &str) -> Result<M::File, DiskError> {
        let kind = FileKind::ALL.into_iter().find(|kind| kind.temporary_name() == name);
        if let Some(kind) = kind
            && self.medium.exists(kind.file_name())?
        {
            let mut file = self.medium.open(kind.file_name())?;
            file.truncate(0)?;
            self.replaced.insert(name.to_owned());
            return Ok(file);
        }
        self.medium.create_new(name)
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.medium.exists(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        if self.replaced.remove(from) { Ok(()) } else { self.medium.rename(from, to) }
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.medium.rename_new(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.medium.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.medium.sync_directory()
    }
}
