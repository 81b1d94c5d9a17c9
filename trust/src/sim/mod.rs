//! The simulated disk and clock (feature `sim`): the other implementation of the seam.
//!
//! The same inputs make the same operations and the same images (DET). Production code runs on it unchanged; nothing
//! in this module changes code that ships.

mod blob;
mod canary;
mod disk;
mod image;
mod rig;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::medium::{Clock, Monotonic};

pub use blob::Blob;
pub use canary::{AckBeforeSync, InPlaceOverwrite, NoDirectorySync, NoFileSync, SyncRepeated};
pub use disk::{Fault, FaultPlan, SimDisk, SimFile};
pub use image::{CrashPoint, Subsets};
pub use rig::{RIG_OWNER, Rig, RigBlob, SMALL, rig_site};

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct SimClock(AtomicU64);

impl SimClock {
    /// Moves it on.
    pub fn advance(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Moves it on to a moment, unless that is past.
    pub fn advance_to(&self, when: Monotonic) {
        self.0.fetch_max(u64::try_from(when.0.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Monotonic {
        Monotonic(Duration::from_nanos(self.0.load(Ordering::SeqCst)))
    }
}
