//! Holding a process at a named step: what the code says at TRACE of itself, and the syncs of the disk.
//!
//! The thread that comes to the step stands still until it is let go, or until its process is killed there.

use std::sync::{Arc, Condvar, Mutex};

use handfast_trust::{DiskError, Medium, MediumFile};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// At which step to stand still, and how often it is let pass before.
#[derive(Default)]
struct Armed {
    at: Option<(String, usize)>,
    held: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub(crate) struct Steps(Arc<(Mutex<Armed>, Condvar)>);

impl Steps {
    /// From now on the step is passed so many times, and then held.
    pub(crate) fn arm(&self, step: &str, pass: usize) {
        *self.0.0.lock().unwrap() = Armed { at: Some((step.to_owned(), pass)), held: false };
    }

    /// Nothing is held any more.
    pub(crate) fn let_go(&self) {
        *self.0.0.lock().unwrap() = Armed::default();
        self.0.1.notify_all();
    }

    /// Waits until something is held.
    pub(crate) fn wait(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |armed| !armed.held).unwrap());
    }

    fn come_to(&self, step: &str) {
        let mut armed = self.0.0.lock().unwrap();
        match &mut armed.at {
            Some((wanted, pass)) if wanted == step && *pass > 0 => *pass -= 1,
            Some((wanted, _)) if wanted == step => {
                armed.held = true;
                self.0.1.notify_all();
                drop(self.0.1.wait_while(armed, |armed| armed.held).unwrap());
            }
            _ => {}
        }
    }
}

/// Hears the steps that the join tells.
impl Subscriber for Steps {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target() == "handfast::join::conversation"
    }

    fn event(&self, event: &Event<'_>) {
        let mut step = Named(None);
        event.record(&mut step);
        if let Some(step) = step.0 {
            self.come_to(&step);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Named(Option<String>);

impl Visit for Named {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "step" {
            self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// A directory whose syncs are steps: `before FILE` and `after FILE`, also while the file has a temporary name.
pub(crate) struct Disk<M> {
    pub(crate) inner: M,
    pub(crate) steps: Steps,
}

pub(crate) struct File<F> {
    inner: F,
    name: String,
    steps: Steps,
}

impl<M: Medium> Disk<M> {
    fn file(&self, name: &str, inner: M::File) -> File<M::File> {
        let name = name.trim_end_matches(".tmp").to_owned();
        File { inner, name, steps: self.steps.clone() }
    }
}

impl<M: Medium> Medium for Disk<M> {
    type File = File<M::File>;

    fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
        self.inner.open(name).map(|file| self.file(name, file))
    }

    fn create_new(&mut self, name: &str) -> Result<Self::File, DiskError> {
        self.inner.create_new(name).map(|file| self.file(name, file))
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
        self.inner.sync_directory()
    }
}

impl<F: MediumFile> File<F> {
    fn synced(&mut self, sync: impl FnOnce(&mut F) -> Result<(), DiskError>) -> Result<(), DiskError> {
        self.steps.come_to(&format!("before {}", self.name));
        sync(&mut self.inner)?;
        self.steps.come_to(&format!("after {}", self.name));
        Ok(())
    }
}

impl<F: MediumFile> MediumFile for File<F> {
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
        self.synced(F::sync_data)
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.synced(F::sync)
    }
}
