//! One store's part in a step of the drainer: what is due, which way it goes to the disk, and what follows.
//!
//! States: *appending* (the ordinary one); *appending while a checkpoint is built*; *closed* (the file takes no more:
//! a sync failed, a write could not be undone, a name is in doubt, or a batch is longer than a frame), in which a
//! checkpoint is the only way, and whoever waits, waits for it.
//!
//! Invariants: changes that were taken from the table stay in `pending` until they are durable; newer ones join them,
//! so that an attempt always covers all up to its revision. `pending` is given up only when a checkpoint begins on a
//! closed file: its walk reads the same records, or newer ones.
//!
//! When a write begins is decided in one place (`begin_at`). What somebody waits for is written at once; what nobody
//! waits for, a little later, together with what comes until then: the waiter rings (see `signals`), and so does the first
//! change. Where several tasks wait at a time, writes keep a distance: each costs a processor some 40 us, whatever it holds.
//!
//! Not here: the disk steps (`log_file`, `checkpoint`), waiting and threads (`drainer`).

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use crate::checkpoint::{Checkpoint, Predecessor, discard, encode_change};
use crate::drainer::{Context, Next, STOP_FAILURES_MAX, Unsaved, retry_at};
use crate::error::DiskError;
use crate::frame::{MAX_PAYLOAD_BYTES, Payload};
use crate::log_file::LogFile;
use crate::medium::{Medium, Monotonic};
use crate::record::{FileKind, Record, Revision};
use crate::retry::{Backoff, RetryPolicy};
use crate::signals::{Publisher, Waited};
use crate::store::Store;
use crate::table::{Slot, Taken, Urgency};

/// How long lazy changes may wait for company, as long as nobody waits for them.
pub const LAZY_DELAY: Duration = Duration::from_secs(1);

/// How long critical changes may, as long as nobody waits for them. Each write takes the processor from whoever holds a lock
/// a few times: at every 10 ms that is rarer than one hold in a thousand in a table that grows, at every 2 ms it is not.
pub const GATHER_DELAY: Duration = Duration::from_millis(10);

/// From the begin of a write that several tasks have waited for to that of the next, if tasks alone wait for it: a few
/// such distances are what a handshake under load takes. A write that one task has waited for delays nothing.
pub const TASK_DISTANCE: Duration = Duration::from_micros(500);

/// A log is outgrown when it is so many times as long as its live content.
const OUTGROWN_FACTOR: u64 = 2;

/// A store's part in the drainer, whatever its records.
pub(crate) trait Lane<M: Medium>: Send {
    fn kind(&self) -> FileKind;
    fn durable(&self) -> Revision;
    /// Whether, since this was asked last, something was written that a thread waited for.
    fn was_wanted(&mut self) -> bool;
    /// Whether its file can be believed as it is.
    fn is_settled(&self) -> bool;
    /// A checkpoint is made whether or not the log is outgrown.
    fn want_checkpoint(&mut self);
    fn step(&mut self, context: &mut Context<'_, M>) -> Next;
    fn end(&mut self, context: &mut Context<'_, M>) -> Option<Unsaved>;
}

/// The file of a store, on its way to the drainer.
pub struct Log<R: Record, M: Medium> {
    store: Store<R>,
    publisher: Publisher,
    file: LogFile<M::File>,
    pending: Option<Taken<R>>,
    /// Of the batch that is being written; its memory serves the next one.
    payload: Payload,
    checkpoint: Option<Checkpoint<R, M>>,
    /// Since when something is owed, and is to be written in its time.
    owed_since: Option<Monotonic>,
    /// When the next write may begin that tasks alone wait for.
    for_tasks_at: Monotonic,
    /// Whether a thread waited for a write since this was told last.
    was_for_threads: bool,
    backoff: Backoff,
    retry_at: Option<Monotonic>,
    compaction: Backoff,
    compact_at: Option<Monotonic>,
    checkpoint_wanted: bool,
    stop_failures: u32,
}

impl<R: Record, M: Medium> Log<R, M> {
    pub(crate) const fn new(store: Store<R>, publisher: Publisher, file: LogFile<M::File>) -> Self {
        Self {
            store,
            publisher,
            file,
            pending: None,
            payload: Payload::EMPTY,
            checkpoint: None,
            owed_since: None,
            for_tasks_at: Monotonic(Duration::ZERO),
            was_for_threads: false,
            backoff: Backoff::new(RetryPolicy::DISK),
            retry_at: None,
            compaction: Backoff::new(RetryPolicy::DISK),
            compact_at: None,
            checkpoint_wanted: false,
            stop_failures: 0,
        }
    }

    /// What is due now, if anything; else when something will be.
    fn due(&mut self, context: &Context<'_, M>) -> Result<(), Next> {
        if !self.file.is_appendable() || self.pending.is_some() {
            return Ok(());
        }
        let Some(urgency) = self.store.owed() else {
            self.owed_since = None;
            return Err(Next::Idle);
        };
        let when = self.begin_at(urgency, context);
        if context.stopping || context.now >= when { Ok(()) } else { Err(Next::At(when)) }
    }

    /// When to begin to write what is owed, as far as is known now.
    fn begin_at(&mut self, urgency: Urgency, context: &Context<'_, M>) -> Monotonic {
        let since = *self.owed_since.get_or_insert(context.now);
        let waited = self.publisher.waited();
        self.was_for_threads |= waited == Waited::Threads;
        match (waited, urgency) {
            (Waited::Threads, _) => context.now,
            (Waited::Tasks, _) => self.for_tasks_at,
            (Waited::Nobody, Urgency::Critical) => since.plus(context.site.tuning().gather_delay),
            (Waited::Nobody, Urgency::Lazy) => since.plus(LAZY_DELAY),
        }
    }

    /// Takes what is dirty, together with what is pending.
    fn take(&mut self) -> Taken<R> {
        self.owed_since = None;
        let mut taken = self.store.take_dirty();
        if let Some(pending) = self.pending.take() {
            taken.changes = merge::<R>(pending.changes, taken.changes);
        }
        taken
    }

    fn append(&mut self, context: &mut Context<'_, M>) -> Next {
        let pending = self.take();
        let revision = pending.revision;
        let fits = encode_batch::<R>(&mut self.payload, &pending.changes, context.site.tuning().batch_bytes_max);
        self.pending = Some(pending);
        context.health.begun(R::KIND, context.now);
        if !fits {
            // Longer than a frame: a checkpoint writes it in pieces, and makes it visible at once.
            self.payload.clear();
            self.file.close();
            return Next::Now;
        }
        match self.file.append(revision, &mut self.payload, context.site.tuning().allocation_bytes) {
            Ok(bytes) => {
                self.pending = None;
                self.succeeded(context, revision);
                context.health.count(|health| {
                    health.bytes_appended += bytes;
                    health.syncs += 1;
                    health.batches += 1;
                });
                tracing::trace!(file = %R::KIND, %revision, bytes, changes = self.payload.count(), "batch durable");
                self.copy_to_checkpoint(context);
                self.payload.clear();
                Next::Idle
            }
            Err(error) => self.failed(context, revision, error),
        }
    }

    fn succeeded(&mut self, context: &Context<'_, M>, revision: Revision) {
        if self.backoff.failures() > 0 {
            tracing::info!(file = %R::KIND, %revision, failures = self.backoff.failures(), "the disk takes changes again");
        }
        self.backoff.succeeded();
        self.retry_at = None;
        context.health.succeeded(R::KIND);
        let is_for_several = self.publisher.durable(revision) > 1;
        let distance = if is_for_several { context.site.tuning().task_distance } else { Duration::ZERO };
        self.for_tasks_at = context.now.plus(distance);
    }

    fn failed(&mut self, context: &Context<'_, M>, revision: Revision, error: DiskError) -> Next {
        tracing::warn!(file = %R::KIND, %revision, %error, "changes are not durable, will be tried again");
        context.health.failed(R::KIND, error);
        self.retry_at = retry_at(&mut self.backoff, error, context.now, context.site);
        self.publisher.failed(revision, error.kind);
        if context.stopping {
            // The last drain does not wait: a few more tries, and then it gives up.
            self.stop_failures += 1;
            return Next::Now;
        }
        self.retry_at.map_or(Next::Idle, Next::At)
    }

    fn copy_to_checkpoint(&mut self, context: &mut Context<'_, M>) {
        if let Some(checkpoint) = &mut self.checkpoint
            && let Err(error) = checkpoint.copy(&mut self.payload)
        {
            self.compaction_failed(context, error);
        }
    }

    fn compaction_failed(&mut self, context: &mut Context<'_, M>, error: DiskError) {
        tracing::warn!(file = %R::KIND, %error, "a checkpoint failed, will be tried again");
        self.checkpoint = None;
        discard(context.medium, R::KIND);
        context.health.count(|health| {
            health.checkpoint_failures += 1;
            health.last_error = Some((R::KIND, error));
        });
        self.compact_at = retry_at(&mut self.compaction, error, context.now, context.site);
    }

    /// Whether a checkpoint is wanted, though not needed; else when to look again.
    fn compact(&mut self, context: &mut Context<'_, M>, busy: bool) -> Next {
        if context.stopping || self.pending.is_some() {
            return Next::Idle;
        }
        if self.checkpoint.is_none() {
            if !self.is_outgrown(context.site.tuning().checkpoint_bytes_min) {
                return Next::Idle;
            }
            if let Some(when) = self.compact_at.filter(|when| context.now < *when) {
                return Next::At(when);
            }
        }
        let wanted = self.store.revision();
        match self.checkpoint_step(context, busy) {
            Ok(next) => next,
            Err(error) if self.file.is_appendable() => {
                self.compaction_failed(context, error);
                self.compact_at.map_or(Next::Idle, Next::At)
            }
            // The names are in doubt: from here on a checkpoint is needed.
            Err(error) => self.checkpoint_failed(context, wanted, error),
        }
    }

    fn is_outgrown(&self, bytes_min: u64) -> bool {
        let end = self.file.end();
        self.checkpoint_wanted
            || end >= bytes_min && end >= OUTGROWN_FACTOR.saturating_mul(self.file.estimate(self.store.len() as u64))
    }

    /// The file takes no more: a checkpoint is the way for whatever waits.
    fn replace(&mut self, context: &mut Context<'_, M>) -> Next {
        context.health.begun(R::KIND, context.now);
        let wanted = self.store.revision();
        match self.checkpoint_step(context, false) {
            Ok(next) => next,
            Err(error) => self.checkpoint_failed(context, wanted, error),
        }
    }

    /// `wanted`: what there was when the step began.
    fn checkpoint_failed(&mut self, context: &mut Context<'_, M>, wanted: Revision, error: DiskError) -> Next {
        self.checkpoint = None;
        discard(context.medium, R::KIND);
        // Its end covers what it took; who came afterwards has not failed.
        let covered = self.pending.as_ref().map_or(wanted, |pending| wanted.max(pending.revision));
        self.failed(context, covered, error)
    }

    /// One part of a checkpoint: its begin, a piece, or its end.
    fn checkpoint_step(&mut self, context: &mut Context<'_, M>, busy: bool) -> Result<Next, DiskError> {
        let Some(checkpoint) = &mut self.checkpoint else {
            let old = Predecessor { revision: self.publisher.current(), chain: *self.file.chain() };
            context.floor.in_use(context.medium, context.site)?;
            self.checkpoint = Some(Checkpoint::begin(context.medium, context.site, &old, &self.store)?);
            if let (false, Some(pending)) = (self.file.is_appendable(), &mut self.pending) {
                pending.changes = Vec::new();
            }
            return Ok(Next::Now);
        };
        if !checkpoint.is_walked() {
            let bytes = checkpoint.piece(&self.store, busy, context.site.tuning().writeback_every_bytes)?;
            context.health.count(|health| health.bytes_checkpointed += bytes);
            return Ok(Next::Now);
        }
        let Some(checkpoint) = self.checkpoint.take() else { return Ok(Next::Now) };
        let pending = self.take();
        let records = pending.records;
        let revision = pending.revision;
        let finished = checkpoint.finish(context.medium, &pending.changes, (revision, records));
        // With nothing new in it, it owes the log nothing if it fails.
        self.pending = (revision > self.publisher.current()).then_some(pending);
        match finished {
            Ok(file) => {
                // Half a gigabyte that is freed takes up to a second, in which nothing could be written.
                mem::replace(&mut self.file, file).close_aside();
                self.pending = None;
                self.compaction.succeeded();
                self.compact_at = None;
                self.checkpoint_wanted = false;
                self.succeeded(context, revision);
                context.health.count(|health| {
                    health.checkpoints += 1;
                    health.syncs += 2;
                });
                tracing::debug!(file = %R::KIND, %revision, records, bytes = self.file.end(), "checkpoint complete");
                Ok(Next::Idle)
            }
            Err(failed) => {
                if failed.name_in_doubt {
                    self.file.close();
                }
                Err(failed.error)
            }
        }
    }
}

impl<R: Record, M: Medium> Lane<M> for Log<R, M> {
    fn kind(&self) -> FileKind {
        R::KIND
    }

    fn durable(&self) -> Revision {
        self.publisher.current()
    }

    fn was_wanted(&mut self) -> bool {
        mem::take(&mut self.was_for_threads)
    }

    fn is_settled(&self) -> bool {
        self.file.is_appendable() && self.publisher.current() == self.store.revision()
    }

    fn want_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
    }

    fn step(&mut self, context: &mut Context<'_, M>) -> Next {
        if context.stopping {
            if self.stop_failures >= STOP_FAILURES_MAX {
                return Next::Idle;
            }
        } else if let Some(when) = self.retry_at.filter(|when| context.now < *when) {
            return Next::At(when);
        }
        let (written, busy) = match self.due(context) {
            Ok(()) if self.file.is_appendable() => (self.append(context), true),
            Ok(()) => return self.replace(context),
            Err(next) => (next, false),
        };
        if self.file.is_appendable() && self.retry_at.is_none() {
            written.min(self.compact(context, busy))
        } else {
            written
        }
    }

    fn end(&mut self, context: &mut Context<'_, M>) -> Option<Unsaved> {
        if self.checkpoint.take().is_some() {
            discard(context.medium, R::KIND);
        }
        if let Err(error) = self.file.trim() {
            tracing::debug!(file = %R::KIND, %error, "allocated room was not given back");
        }
        self.publisher.stopped();
        let (durable, revision) = (self.publisher.current(), self.store.revision());
        (durable < revision).then_some(Unsaved { file: R::KIND, durable, revision })
    }
}

/// The last change of each key.
fn merge<R: Record>(older: Vec<Vec<Slot<R>>>, newer: Vec<Vec<Slot<R>>>) -> Vec<Vec<Slot<R>>> {
    if newer.is_empty() {
        return older;
    }
    let last: BTreeMap<_, _> = older.into_iter().chain(newer).flatten().flatten().collect();
    vec![last.into_iter().map(Some).collect()]
}

/// Encodes a batch; false if it is longer than a frame.
fn encode_batch<R: Record>(payload: &mut Payload, changes: &[Vec<Slot<R>>], bytes_max: usize) -> bool {
    payload.clear();
    changes.iter().flatten().flatten().all(|(key, change)| {
        encode_change(payload, key, change.as_deref());
        payload.len() <= bytes_max.min(MAX_PAYLOAD_BYTES)
    })
}
