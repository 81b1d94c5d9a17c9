//! The simulated disk: a directory of files whose syncs, faults and power cuts are in the suite's hand.
//!
//! Every operation is numbered; a [`FaultPlan`] says which fail and how. After every operation a crash point is shown
//! to the observer. See [`image`](super::image) for what a power cut leaves.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::image::{CrashPoint, Effect as _, Fate, FileEffect, NameEffect, Names, Platter, Synced, to_index};
use crate::error::{DiskError, DiskErrorKind, DiskOp};
use crate::medium::{Medium, MediumFile};

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails and nothing has happened; of a write, half has. A sync loses what was pending.
    Error(DiskErrorKind),
    /// It happens, and then it fails.
    ErrorAfter(DiskErrorKind),
    /// A write takes half the bytes, a read gives half; anything else succeeds.
    Short,
}

/// Which operations go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// None before this one, by its number.
    pub from: u64,
    /// How many of those that match; `u64::MAX` for all.
    pub count: u64,
    /// How.
    pub fault: Fault,
    /// Only operations of this sort.
    pub only: Option<DiskOp>,
}

type Observer = Box<dyn FnMut(&CrashPoint) + Send>;

struct Disk {
    names: Names,
    contents: Vec<Vec<u8>>,
    point: CrashPoint,
    sector: u64,
    operations: u64,
    bytes_written: u64,
    plan: Option<FaultPlan>,
    log: Vec<(DiskOp, String)>,
    observer: Option<Observer>,
}

/// A directory of simulated files. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct SimDisk {
    disk: Arc<Mutex<Disk>>,
}

/// An open simulated file.
pub struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::of(BTreeMap::new(), 512)
    }
}

impl SimDisk {
    /// A disk that holds these files for certain, and writes sectors of so many bytes.
    #[must_use]
    pub fn of(files: BTreeMap<String, Vec<u8>>, sector: u64) -> Self {
        let mut names = Names::new();
        let mut contents = Vec::new();
        for (name, content) in files {
            names.insert(name, contents.len());
            contents.push(content);
        }
        let files = contents.iter().map(|content| Synced::new(Platter::of(content.clone()))).collect();
        let disk = Disk {
            point: CrashPoint { names: Synced::new(names.clone()), files },
            names,
            contents,
            sector,
            operations: 0,
            bytes_written: 0,
            plan: None,
            log: Vec::new(),
            observer: None,
        };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// Lets operations go wrong from now on, or no more.
    pub fn set_faults(&self, plan: Option<FaultPlan>) {
        self.lock().plan = plan;
    }

    /// Shows the observer a crash point after every operation.
    pub fn observe(&self, observer: impl FnMut(&CrashPoint) + Send + 'static) {
        self.lock().observer = Some(Box::new(observer));
    }

    /// What a power cut may leave at this moment.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        self.lock().point.clone()
    }

    /// How many operations there have been.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// How many bytes have been written.
    #[must_use]
    pub fn bytes_written(&self) -> u64 {
        self.lock().bytes_written
    }

    /// All operations, each with the name or the number of what it was for.
    #[must_use]
    pub fn trace(&self) -> Vec<(DiskOp, String)> {
        self.lock().log.clone()
    }

    /// What programs see in a file.
    #[must_use]
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.lock();
        disk.names.get(name).map(|inode| disk.contents[*inode].clone())
    }

    /// The names that programs see.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn operate<T>(
        &self,
        op: DiskOp,
        on: &str,
        f: impl FnOnce(&mut Disk) -> Result<T, DiskErrorKind>,
    ) -> Result<T, DiskError> {
        self.lock().operate(op, on, |disk, _| f(disk))
    }
}

impl Disk {
    fn operate<T>(
        &mut self,
        op: DiskOp,
        on: &str,
        f: impl FnOnce(&mut Self, bool) -> Result<T, DiskErrorKind>,
    ) -> Result<T, DiskError> {
        let number = self.operations;
        self.operations += 1;
        self.log.push((op, on.to_owned()));
        let outcome = match self.fault(number, op) {
            None => f(self, false),
            Some(Fault::Short) => f(self, true),
            Some(Fault::ErrorAfter(kind)) => f(self, false).and(Err(kind)),
            Some(Fault::Error(kind)) => {
                match op {
                    DiskOp::Write => drop(f(self, true)),
                    DiskOp::Sync => self.lose(on),
                    DiskOp::SyncDirectory => self.point.names.sync(Fate::Lost),
                    _ => {}
                }
                Err(kind)
            }
        };
        if let Some(observer) = &mut self.observer {
            observer(&self.point);
        }
        outcome.map_err(|kind| DiskError::new(op, kind))
    }

    fn fault(&mut self, number: u64, op: DiskOp) -> Option<Fault> {
        let plan = self.plan.as_mut()?;
        if number < plan.from || plan.count == 0 || plan.only.is_some_and(|only| only != op) {
            return None;
        }
        plan.count -= 1;
        Some(plan.fault)
    }

    fn lose(&mut self, on: &str) {
        if let Ok(inode) = on.parse::<usize>() {
            self.point.files[inode].sync(Fate::Lost);
        }
    }

    fn write(&mut self, inode: usize, offset: u64, bytes: &[u8]) {
        let content = &mut self.contents[inode];
        let end = to_index(offset) + bytes.len();
        let file = &mut self.point.files[inode];
        if content.len() < end {
            content.resize(end, 0);
            file.push(FileEffect::Length(end as u64));
        }
        content[to_index(offset)..end].copy_from_slice(bytes);
        self.bytes_written += bytes.len() as u64;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let room = to_index(self.sector - at % self.sector).min(rest.len());
            let (sector, after) = rest.split_at(room);
            file.push(FileEffect::Sector { offset: at, bytes: sector.into() });
            at += room as u64;
            rest = after;
        }
    }

    fn set_length(&mut self, inode: usize, length: u64) {
        self.contents[inode].resize(to_index(length), 0);
        self.point.files[inode].push(FileEffect::Length(length));
    }

    fn inode(&self, name: &str) -> Result<usize, DiskErrorKind> {
        self.names.get(name).copied().ok_or(DiskErrorKind::NotFound)
    }

    fn change_names(&mut self, effect: NameEffect) {
        effect.apply(&mut self.names);
        self.point.names.push(effect);
    }
}

impl Medium for SimDisk {
    type File = SimFile;

    fn open(&mut self, name: &str) -> Result<SimFile, DiskError> {
        let inode = self.operate(DiskOp::Open, name, |disk| disk.inode(name))?;
        Ok(SimFile { disk: Arc::clone(&self.disk), inode })
    }

    fn create_new(&mut self, name: &str) -> Result<SimFile, DiskError> {
        let inode = self.operate(DiskOp::Create, name, |disk| {
            if disk.names.contains_key(name) {
                return Err(DiskErrorKind::Exists);
            }
            let inode = disk.contents.len();
            disk.contents.push(Vec::new());
            disk.point.files.push(Synced::new(Platter::default()));
            disk.change_names(NameEffect::Set { name: name.to_owned(), inode });
            Ok(inode)
        })?;
        Ok(SimFile { disk: Arc::clone(&self.disk), inode })
    }

    fn exists(&mut self, name: &str) -> Result<bool, DiskError> {
        self.operate(DiskOp::Stat, name, |disk| Ok(disk.names.contains_key(name)))
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.operate(DiskOp::Rename, to, |disk| {
            let inode = disk.inode(from)?;
            disk.change_names(NameEffect::Move { from: from.to_owned(), to: to.to_owned(), inode });
            Ok(())
        })
    }

    fn rename_new(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.operate(DiskOp::Link, to, |disk| {
            let inode = disk.inode(from)?;
            if disk.names.contains_key(to) {
                return Err(DiskErrorKind::Exists);
            }
            disk.change_names(NameEffect::Set { name: to.to_owned(), inode });
            Ok(())
        })?;
        self.remove(from)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.operate(DiskOp::Remove, name, |disk| {
            disk.inode(name)?;
            disk.change_names(NameEffect::Remove { name: name.to_owned() });
            Ok(())
        })
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.operate(DiskOp::SyncDirectory, "", |disk| {
            disk.point.names.sync(Fate::Certain);
            Ok(())
        })
    }
}

impl SimFile {
    fn operate<T>(
        &self,
        op: DiskOp,
        f: impl FnOnce(&mut Disk, usize, bool) -> Result<T, DiskErrorKind>,
    ) -> Result<T, DiskError> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.operate(op, &self.inode.to_string(), |disk, short| f(disk, self.inode, short))
    }
}

impl MediumFile for SimFile {
    fn length(&mut self) -> Result<u64, DiskError> {
        self.operate(DiskOp::Stat, |disk, inode, _| Ok(disk.contents[inode].len() as u64))
    }

    fn read_at(&mut self, offset: u64, into: &mut [u8]) -> Result<usize, DiskError> {
        self.operate(DiskOp::Read, |disk, inode, short| {
            let rest = disk.contents[inode].get(to_index(offset)..).unwrap_or_default();
            let wanted = if short { into.len().div_ceil(2) } else { into.len() };
            let read = wanted.min(rest.len());
            into[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        self.operate(DiskOp::Write, |disk, inode, short| {
            let taken = if short { bytes.len() / 2 } else { bytes.len() };
            disk.write(inode, offset, &bytes[..taken]);
            Ok(taken)
        })
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.operate(DiskOp::Truncate, |disk, inode, _| {
            disk.set_length(inode, length);
            Ok(())
        })
    }

    fn allocate(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.operate(DiskOp::Allocate, |disk, inode, _| {
            let end = (offset + length).max(disk.contents[inode].len() as u64);
            disk.set_length(inode, end);
            Ok(())
        })
    }

    fn sync_data(&mut self) -> Result<(), DiskError> {
        self.sync()
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.operate(DiskOp::Sync, |disk, inode, _| {
            disk.point.files[inode].sync(Fate::Certain);
            Ok(())
        })
    }
}
