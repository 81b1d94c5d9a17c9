//! What only a real kernel can show, under the real program: power cuts of ext4 and XFS, disks that are full, system
//! calls at which the node is killed or kept waiting.
//!
//! Needs root, loop devices and a few tools; what cannot run here says so and why, and passes. Not part of an ordinary
//! run: `.ci/root` runs it, in a mount and process namespace of its own, so that nothing is left behind however it
//! ends. `HANDFAST_ROOT_CUTS` is the number of power cuts in all, `HANDFAST_ROOT_SEED` draws their moments.

#![allow(clippy::unwrap_used, reason = "a suite stops at what it does not expect")]
#![allow(clippy::print_stdout, reason = "a suite reports what it has done and what it could not do")]

mod cuts;
mod full_disk;
mod ledger;
mod machine;
mod program;
mod traced;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// One at a time: they measure how long answers take, and share the machine's loop devices.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}
