//! How the disk is doing, for whoever asks.
//!
//! The drainer writes it down at the begin and the end of every attempt; readers copy it out and judge it by their own
//! clock, so that a write that hangs shows although the drainer cannot say so.
//!
//! Not here: what follows from it (the node answers `Busy`, says "not durable", shows `degraded`).

use std::sync::Arc;
use std::time::Duration;

use crate::error::DiskError;
use crate::medium::Monotonic;
use crate::record::FileKind;
use crate::sync::Lock;

/// Failures in a row from which the storage counts as degraded.
pub const DEGRADED_FAILURES: u32 = 3;
/// How long an attempt may be unfinished before the storage counts as degraded.
pub const DEGRADED_AFTER: Duration = Duration::from_secs(2);

/// How the disk is doing, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageHealth {
    /// Failures in a row, of the file that has the most.
    pub failures_in_a_row: u32,
    /// The last failure, whether or not it has been overcome since.
    pub last_error: Option<(FileKind, DiskError)>,
    /// Since when the oldest change that was attempted is not on the disk, or since when the drainer is at the disk.
    pub unfinished_since: Option<Monotonic>,
    /// Bytes appended to record files in all.
    pub bytes_appended: u64,
    /// Bytes written by checkpoints in all.
    pub bytes_checkpointed: u64,
    /// Syncs of files and of the directory, in all.
    pub syncs: u64,
    /// Batches made durable in all.
    pub batches: u64,
    /// Checkpoints completed in all.
    pub checkpoints: u64,
    /// Checkpoints that failed in all. Appends go on; but while they fail, the logs grow.
    pub checkpoint_failures: u64,
    /// Whether the floor file is behind because it cannot be written.
    pub floor_failing: bool,
}

/// Why the storage is degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DegradedReason {
    /// Writes fail.
    #[error("writing fails")]
    Failing,
    /// A write has not ended.
    #[error("a write does not end")]
    Hanging,
}

impl StorageHealth {
    /// Why the storage is degraded at this moment; `None` if it is not.
    #[must_use]
    pub fn degraded(&self, now: Monotonic) -> Option<DegradedReason> {
        if self.failures_in_a_row >= DEGRADED_FAILURES {
            Some(DegradedReason::Failing)
        } else if self.unfinished_since.is_some_and(|since| now.since(since) >= DEGRADED_AFTER) {
            Some(DegradedReason::Hanging)
        } else {
            None
        }
    }
}

/// What the drainer writes down. Cloning it is cheap; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct HealthCell {
    state: Arc<Lock<State>>,
}

#[derive(Debug, Default)]
struct State {
    shown: StorageHealth,
    failures: [u32; 4],
    unfinished: [Option<Monotonic>; 4],
    stepping: Option<Monotonic>,
}

impl HealthCell {
    /// A copy of what is known.
    #[must_use]
    pub fn snapshot(&self) -> StorageHealth {
        self.state.with(|state| StorageHealth {
            failures_in_a_row: state.failures.into_iter().max().unwrap_or(0),
            unfinished_since: state.unfinished.into_iter().chain([state.stepping]).flatten().min(),
            ..state.shown
        })
    }

    /// The drainer begins a step, or has ended it.
    pub(crate) fn stepping(&self, since: Option<Monotonic>) {
        self.state.with(|state| state.stepping = since);
    }

    /// An attempt begins; if the one before failed, it is still the same.
    pub(crate) fn begun(&self, file: FileKind, now: Monotonic) {
        self.state.with(|state| {
            state.unfinished[place(file)].get_or_insert(now);
        });
    }

    pub(crate) fn failed(&self, file: FileKind, error: DiskError) {
        self.state.with(|state| {
            let failures = &mut state.failures[place(file)];
            *failures = failures.saturating_add(1);
            state.shown.last_error = Some((file, error));
        });
    }

    pub(crate) fn succeeded(&self, file: FileKind) {
        self.state.with(|state| {
            state.failures[place(file)] = 0;
            state.unfinished[place(file)] = None;
        });
    }

    pub(crate) fn count(&self, f: impl FnOnce(&mut StorageHealth)) {
        self.state.with(|state| f(&mut state.shown));
    }
}

const fn place(file: FileKind) -> usize {
    file as usize - 1
}
