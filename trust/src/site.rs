//! What all stores of one data directory share: owner, bell, clock, randomness.
//!
//! The randomness is seeded by the caller: the program gives true entropy, the simulation a number. It names new files
//! (which strangers must not be able to guess, see `frame`), seeds the tables' hashes, and jitters retries.
//!
//! Not here: the directory itself (`medium`).

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::frame::MAX_PAYLOAD_BYTES;
use crate::lane::{GATHER_DELAY, TASK_DISTANCE};
use crate::log_file::ALLOCATION_BYTES;
use crate::medium::Clock;
use crate::sync::{Bell, Lock};

/// A log shorter than this is left as it is: it is read in 60 ms, and in a small table that changes often each checkpoint
/// writes as much again as what was changed.
const CHECKPOINT_BYTES_MIN: u64 = 16 << 20;

/// Sizes and times that a suite makes small, so that small files go through everything. None of them is part of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// How much is allocated at a time; at most [`ALLOCATION_BYTES`].
    pub allocation_bytes: u64,
    /// A log shorter than this is not worth a checkpoint.
    pub checkpoint_bytes_min: u64,
    /// The longest payload of a batch; at most [`MAX_PAYLOAD_BYTES`]. What is longer goes through a checkpoint.
    pub batch_bytes_max: usize,
    /// How much a checkpoint writes before it asks the system to begin writing it back, so that its sync is short.
    pub writeback_every_bytes: u64,
    /// How long critical changes may wait for company while nobody waits for them: [`GATHER_DELAY`].
    pub gather_delay: Duration,
    /// From one write that several tasks wait for to the next: [`TASK_DISTANCE`].
    pub task_distance: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            allocation_bytes: ALLOCATION_BYTES,
            checkpoint_bytes_min: CHECKPOINT_BYTES_MIN,
            batch_bytes_max: MAX_PAYLOAD_BYTES,
            writeback_every_bytes: 1 << 20,
            gather_delay: GATHER_DELAY,
            task_distance: TASK_DISTANCE,
        }
    }
}

/// What all stores of one data directory share. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Site {
    owner: [u8; 32],
    clock: Arc<dyn Clock>,
    bell: Bell,
    rng: Arc<Lock<StdRng>>,
    tuning: Tuning,
}

impl Site {
    /// The site of a node. `seed` is 32 bytes of entropy, or any bytes where a run is to be repeatable.
    #[must_use]
    pub fn new(owner: [u8; 32], seed: [u8; 32], clock: Arc<dyn Clock>) -> Self {
        let rng = Arc::new(Lock::new(StdRng::from_seed(seed)));
        Self { owner, clock, bell: Bell::new(), rng, tuning: Tuning::default() }
    }

    /// The same site with other sizes.
    #[must_use]
    pub fn with_tuning(self, tuning: Tuning) -> Self {
        Self { tuning, ..self }
    }

    /// The sizes in use.
    #[must_use]
    pub const fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The node's public key.
    #[must_use]
    pub const fn owner(&self) -> &[u8; 32] {
        &self.owner
    }

    pub(crate) const fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) const fn bell(&self) -> &Bell {
        &self.bell
    }

    pub(crate) fn with_rng<T>(&self, f: impl FnOnce(&mut StdRng) -> T) -> T {
        self.rng.with(f)
    }

    pub(crate) fn file_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        self.with_rng(|rng| rng.fill_bytes(&mut id));
        id
    }

    pub(crate) fn table_seed(&self) -> u64 {
        self.with_rng(|rng| rng.next_u64())
    }
}
