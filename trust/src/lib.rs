//! The record core of handfast: tables under one short lock, a drainer that writes and syncs outside it, recovery; and
//! the trust rules on top of it.
//!
//! ```text
//! mutate:   lock -> change one record, revision += 1, put it in `dirty`, update the index -> unlock -> ring the bell
//! drainer:  bell -> lock -> take the whole `dirty` map -> unlock -> encode -> append one frame, fsync -> publish
//! ```
//!
//! No sockets, no async runtime, no clock of its own: time is an argument, or a [`Clock`] that the program gives.
#![warn(missing_docs)]

// The record core.
mod checkpoint;
#[cfg(test)]
#[cfg(not(handfast_loom))]
mod core_tests;
mod drainer;
mod error;
mod floor;
pub mod frame;
mod grown;
mod health;
mod hold;
mod lane;
mod lock;
mod log_file;
#[cfg(test)]
#[cfg(handfast_loom)]
mod loom_models;
mod medium;
mod passes;
mod real;
mod record;
mod recover;
mod replay;
mod retry;
mod salvage;
mod seeded;
mod signals;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod site;
mod store;
mod sync;
mod table;

pub use drainer::{Drainer, DrainerHandle, DrainerThread, FLOOR_DELAY, FinalReport, Next, StopSwitch, Unsaved};
pub use error::{DamageFault, DiskError, DiskErrorKind, DiskOp, DurabilityError, StoreError};
pub use floor::{FLOOR_FILE, Floor};
pub use health::{DEGRADED_AFTER, DEGRADED_FAILURES, DegradedReason, HealthCell, StorageHealth};
pub use hold::{HOLD_BUCKETS, HoldTimesSnapshot, hold_bucket_end};
pub use lane::{GATHER_DELAY, LAZY_DELAY, Log, TASK_DISTANCE};
pub use lock::{DirectoryLock, LOCK_FILE, LockError, LockOwner, lock_owner};
pub use log_file::ALLOCATION_BYTES;
pub use medium::{Clock, Medium, MediumFile, Monotonic};
pub use real::{RealDir, RealFile};
pub use record::{FileKind, Index, Record, RecordFault, Revision};
pub use recover::{
    Opened, RecoveryReport, TAIL_BYTES_MAX, create, create_at, open, open_or_begin_anew, open_or_make, remove_leftovers,
};
pub use retry::{Backoff, FaultClass, RetryPolicy};
pub use salvage::{FileReport, SalvageReport, Salvaged, check, salvage, salvage_last, set_aside};
pub use signals::{Durable, Reached};
pub use site::{Site, Tuning};
pub use store::{Store, Walk};
pub use table::{SUB_MAPS, Table, Urgency, WALK_RECORDS_MAX};

// The trust rules, and the records that the core holds.
pub mod authorise;
pub mod book;
mod caps;
mod census;
pub mod networks;
pub mod peers;
pub mod rules;
pub mod sessions;
pub mod trust_record;

pub use authorise::{Denied, Direction, Purpose};
pub use book::{Book, Policy, Reconciled, Updated};
pub use census::Counted;
pub use networks::{Members, NetRecord, NetworkRefusal, Networks, Standing};
pub use peers::PeerRecord;
pub use sessions::{EndReason, Role, SessionId, SessionRecord, SessionState, Sessions};
pub use trust_record::{Actor, Cause, Edge, Rule, Side, Transition, TrustRecord, TrustState, View};
