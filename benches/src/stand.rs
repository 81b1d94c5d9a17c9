//! A store with its file and its drainer's thread, as a node has it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use handfast_protocol::{Kind, SecretKey};
use handfast_trust::{
    Drainer, DrainerHandle, DrainerThread, FinalReport, Floor, Medium, Record, Site, StorageHealth, Store, TrustRecord,
    Urgency, create, open,
};

use crate::clock::Stopwatch;
use crate::place::{Place, Slow, SlowDir};
use crate::records;

/// Longest that anything here waits for the disk.
const PATIENCE: Duration = Duration::from_secs(120);

/// Most changes on their way to the disk while a table is filled: their frame stays far below its limit.
const FILL_AT_ONCE: usize = 8_192;

/// A store on a directory.
pub struct Stand<R: Record> {
    /// The store.
    pub store: Store<R>,
    /// How much slower syncs are.
    pub slow: Slow,
    drainer: DrainerHandle,
}

/// The key of the node whose store it is.
#[must_use]
pub fn key() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

fn site() -> Site {
    Site::new(*key().peer_id().as_bytes(), [9; 32], Arc::new(Stopwatch::start()))
}

impl<R: Record> Stand<R> {
    /// A new store in an empty directory.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn create(place: &Place) -> Result<Self> {
        let slow = Slow::default();
        let mut medium = slow.open(place.path())?;
        let site = site();
        let floor = Floor::default();
        floor.write(&mut medium, site.owner())?;
        let opened = create::<R, _>(&mut medium, &site)?;
        let mut drainer = Drainer::new(medium, &site, floor);
        drainer.add(opened.log);
        Self::start(opened.store, drainer, slow)
    }

    /// The store that is in the directory. `compact`: its drainer begins with a checkpoint.
    ///
    /// # Errors
    /// If it does not open.
    pub fn open(place: &Place, compact: bool) -> Result<Self> {
        let slow = Slow::default();
        let (store, drainer) = opened(slow.open(place.path())?, compact)?;
        Self::start(store, drainer, slow)
    }

    fn start(store: Store<R>, drainer: Drainer<SlowDir>, slow: Slow) -> Result<Self> {
        let drainer = DrainerThread::spawn(drainer, Arc::new(Stopwatch::start()))?;
        Ok(Self { store, slow, drainer })
    }

    /// Waits until all that was changed is on the disk.
    ///
    /// # Errors
    /// If that takes minutes.
    pub fn settle(&self) -> Result<()> {
        self.store.durable().reached_blocking(self.store.revision(), PATIENCE).context("the disk does not catch up")
    }

    /// How the disk is doing.
    #[must_use]
    pub fn health(&self) -> StorageHealth {
        self.drainer.health()
    }

    /// Has everything written, and ends the thread.
    ///
    /// # Errors
    /// If something could not be written.
    pub fn stop(self) -> Result<()> {
        let report = self.drainer.stop();
        if report == FinalReport::default() { Ok(()) } else { Err(anyhow!("left unsaved: {report:?}")) }
    }

    /// Puts records, and waits until they are on the disk.
    ///
    /// # Errors
    /// If that takes minutes.
    pub fn fill(&self, records: impl IntoIterator<Item = (R::Key, R)>) -> Result<()> {
        for (count, (key, record)) in records.into_iter().enumerate() {
            self.store.write(|table| table.put(key, record, Urgency::Critical));
            if count % FILL_AT_ONCE == FILL_AT_ONCE - 1 {
                self.settle()?;
            }
        }
        self.settle()
    }
}

impl Stand<TrustRecord> {
    /// A new store with so many peers that trust and are trusted.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn filled(place: &Place, peers: usize) -> Result<Self> {
        let stand = Self::create(place)?;
        stand.fill((0..peers as u64).map(|number| (records::peer(number), records::record(Kind::Grant, 1))))?;
        Ok(stand)
    }
}

/// The store in a directory and its drainer, to be stepped by whoever wants to see each step.
///
/// # Errors
/// If it does not open.
pub fn opened<R: Record, M: Medium>(mut medium: M, compact: bool) -> Result<(Store<R>, Drainer<M>)> {
    let site = site();
    let floor = Floor::read(&mut medium, site.owner())?;
    let opened = open::<R, _>(&mut medium, &site, &floor)?;
    let mut drainer = Drainer::new(medium, &site, floor);
    drainer.add(opened.log);
    if compact {
        drainer.compact();
    }
    Ok((opened.store, drainer))
}
