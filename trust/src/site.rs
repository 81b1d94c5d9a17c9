//! What all stores of one data directory share: owner, bell, clock, randomness.
//!
//! The randomness is seeded by the caller: the program gives true entropy, the simulation a number. It names new files
//! (which strangers must not be able to guess, see `frame`), seeds the tables' hashes, and jitters retries.
//!
//! Not here: the directory itself (`medium`).

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::medium::Clock;
use crate::sync::{Bell, Lock};

/// What all stores of one data directory share. Cloning it is cheap; all clones are one.
#[derive(Clone)]
pub struct Site {
    owner: [u8; 32],
    clock: Arc<dyn Clock>,
    bell: Bell,
    rng: Arc<Lock<StdRng>>,
}

impl Site {
    /// The site of a node. `seed` is 32 bytes of entropy, or any bytes where a run is to be repeatable.
    #[must_use]
    pub fn new(owner: [u8; 32], seed: [u8; 32], clock: Arc<dyn Clock>) -> Self {
        Self { owner, clock, bell: Bell::new(), rng: Arc::new(Lock::new(StdRng::from_seed(seed))) }
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
