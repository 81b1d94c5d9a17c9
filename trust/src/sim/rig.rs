//! A store with its drainer on a simulated disk, driven by hand.

use std::sync::Arc;
use std::time::Duration;

use super::{Blob, SimClock, SimDisk};
use crate::error::StoreError;
use crate::floor::Floor;
use crate::medium::{Clock as _, Medium};
use crate::record::Revision;
use crate::recover::{RecoveryReport, create, open};
use crate::site::{Site, Tuning};
use crate::store::Store;
use crate::table::Urgency;
use crate::{Drainer, Next};

/// The record of the rig: in `trust.hf`, which has a floor.
pub type RigBlob = Blob<1>;

/// The owner of the rig's files.
pub const RIG_OWNER: [u8; 32] = [7; 32];

/// Sizes that make a checkpoint of a few records; what is changed is written at once.
pub const SMALL: Tuning = Tuning {
    allocation_bytes: 2_048,
    checkpoint_bytes_min: 2_048,
    batch_bytes_max: 1 << 20,
    writeback_every_bytes: 4_096,
    gather_delay: Duration::ZERO,
    task_distance: Duration::ZERO,
};

/// One store, its drainer, and the world around them.
pub struct Rig<M: Medium> {
    /// What the store is changed through.
    pub store: Store<RigBlob>,
    /// What writes it.
    pub drainer: Drainer<M>,
    /// The time.
    pub clock: Arc<SimClock>,
    /// How opening went.
    pub report: RecoveryReport,
}

/// A site of the rig with a seed.
#[must_use]
pub fn rig_site(clock: &Arc<SimClock>, seed: u8, tuning: Tuning) -> Site {
    Site::new(RIG_OWNER, [seed; 32], Arc::<SimClock>::clone(clock)).with_tuning(tuning)
}

impl<M: Medium> Rig<M> {
    /// Makes a floor and an empty store.
    ///
    /// # Errors
    /// As [`create`].
    pub fn create(mut medium: M, seed: u8, tuning: Tuning) -> Result<Self, StoreError> {
        let clock = Arc::new(SimClock::default());
        let site = rig_site(&clock, seed, tuning);
        let floor = Floor::default();
        floor.write(&mut medium, site.owner()).map_err(|error| StoreError::io(crate::FLOOR_FILE, error))?;
        let opened = create(&mut medium, &site)?;
        let mut drainer = Drainer::new(medium, &site, floor);
        drainer.add(opened.log);
        Ok(Self { store: opened.store, drainer, clock, report: opened.report })
    }

    /// Opens the store that is there.
    ///
    /// # Errors
    /// As [`Floor::read`] and [`open`].
    pub fn open(mut medium: M, seed: u8, tuning: Tuning) -> Result<Self, StoreError> {
        let clock = Arc::new(SimClock::default());
        let site = rig_site(&clock, seed, tuning);
        let floor = Floor::read(&mut medium, site.owner())?;
        let opened = open(&mut medium, &site, &floor)?;
        let mut drainer = Drainer::new(medium, &site, floor);
        drainer.add(opened.log);
        Ok(Self { store: opened.store, drainer, clock, report: opened.report })
    }

    /// Sets a record.
    pub fn put(&self, key: u64, bytes: &[u8]) -> Revision {
        self.store.write(|table| table.put(key, Blob(bytes.to_vec()), Urgency::Critical)).1
    }

    /// Removes a record.
    pub fn remove(&self, key: u64) -> Revision {
        self.store.write(|table| drop(table.remove(&key, Urgency::Critical))).1
    }

    /// One step at the time of the clock.
    pub fn step(&mut self) -> Next {
        self.drainer.step(self.clock.now())
    }

    /// Steps, and moves the clock on to where the drainer wants it, until it has nothing to do or so much time has
    /// passed. Returns whether it has nothing to do.
    pub fn settle(&mut self, at_most: Duration) -> bool {
        let end = self.clock.now().plus(at_most);
        loop {
            match self.step() {
                Next::Now => {}
                Next::Idle | Next::Stopped => return true,
                Next::At(when) if when > end => {
                    self.clock.advance_to(end);
                    return false;
                }
                Next::At(when) => self.clock.advance_to(when),
            }
        }
    }

    /// Has everything written, and ends the drainer.
    pub fn stop(&mut self) {
        self.drainer.stop_switch().stop();
        while self.step() != Next::Stopped {}
    }

    /// All records, by key.
    #[must_use]
    pub fn records(&self) -> Vec<(u64, Vec<u8>)> {
        let mut records: Vec<_> = self.store.walk().flatten().map(|(key, record)| (key, record.0.clone())).collect();
        records.sort();
        records
    }
}

impl Rig<SimDisk> {
    /// A rig on a disk of its own, that nothing goes wrong with.
    ///
    /// # Panics
    /// If making the store fails, which it cannot on such a disk.
    #[must_use]
    pub fn on(disk: &SimDisk) -> Self {
        match Self::create(disk.clone(), 1, SMALL) {
            Ok(rig) => rig,
            Err(error) => panic!("{error}"),
        }
    }
}
