//! Changes of the store itself: records are ready, only the lock, the table, the index and the dirty list are passed.
//!
//! At every size changes go to the same number of peers, so that what differs is how many records there are beside them;
//! and, where there are more, to all of them in turns: then each change has a record of its own to be written, and finds
//! nothing in a cache.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use handfast_benches::records::{self, Numbers};
use handfast_benches::threads::{self, Signal};
use handfast_benches::{Latencies, Place, Stand, Stopwatch, Table, rate};
use handfast_protocol::{Kind, PeerId};
use handfast_trust::{Store, TrustRecord, Urgency};

use crate::options::Options;

/// Peers that changes go to at every size: as many as in the trial that the goals come from.
const AT_WORK: usize = 10_000;

/// With no record at the beginning, changes go to so many peers.
pub(crate) const FEW: usize = 1_024;

/// A slow disk.
pub(crate) const SLOW: Duration = Duration::from_millis(50);

/// A filled store, and the peers that changes go to.
pub(crate) struct Subject {
    pub(crate) size: usize,
    pub(crate) on: &'static str,
    pub(crate) stand: Stand<TrustRecord>,
    _place: Place,
}

impl Subject {
    pub(crate) fn on_disk(size: usize) -> Result<Self> {
        Self::new(size, "disk", Place::on_disk(&format!("disk-{size}"))?)
    }

    pub(crate) fn in_memory(size: usize) -> Result<Self> {
        Self::new(size, "tmpfs", Place::in_memory(&format!("tmpfs-{size}"))?)
    }

    fn new(size: usize, on: &'static str, place: Place) -> Result<Self> {
        let stand = Stand::filled(&place, size)?;
        Ok(Self { size, on, stand, _place: place })
    }

    /// Runs `measure` as the disk is, and on the disk also with slow syncs; the backlog of one is gone before the next.
    pub(crate) fn at_each_speed(&self, mut measure: impl FnMut(&str) -> Result<()>) -> Result<()> {
        measure(self.on)?;
        self.stand.settle()?;
        if self.on == "disk" {
            self.stand.slow.set(SLOW);
            let measured = measure("disk, fsync + 50 ms");
            self.stand.slow.set(Duration::ZERO);
            measured?;
            self.stand.settle()?;
        }
        Ok(())
    }
}

/// To how many peers changes go in a store of this size.
pub(crate) fn peers(size: usize) -> usize {
    size.max(FEW)
}

/// One thread's changes: grants and revokes in turns, each of another peer of its own share.
pub(crate) struct Changes<'a> {
    store: &'a Store<TrustRecord>,
    peers: usize,
    templates: [TrustRecord; 2],
    numbers: Numbers,
    epoch: u64,
    watch: Stopwatch,
}

impl<'a> Changes<'a> {
    /// Of a store with so many records: those are changed; of one with none, a few that are made.
    pub(crate) fn new(store: &'a Store<TrustRecord>, size: usize, thread: usize) -> Self {
        Self::among(store, peers(size), thread)
    }

    /// Of the first so many peers, whether or not they have records.
    pub(crate) fn among(store: &'a Store<TrustRecord>, peers: usize, thread: usize) -> Self {
        let templates = [records::record(Kind::Grant, 2), records::record(Kind::Revoke, 2)];
        let epoch = store.revision().0 + 2;
        Self { store, peers, templates, numbers: Numbers::new(thread as u64), epoch, watch: Stopwatch::start() }
    }

    /// Makes one, of any peer; how long it took, in nanoseconds, with the lock but without the making of the record.
    pub(crate) fn make(&mut self) -> u64 {
        let peer = self.numbers.peer(self.peers);
        let record = self.record();
        let begin = self.watch.ns();
        self.store.write(|table| put(table, peer, record));
        self.watch.ns() - begin
    }

    /// A change of this peer or of any, still to be made.
    pub(crate) fn prepare(&mut self, peer: Option<PeerId>) -> Prepared<'a> {
        let peer = peer.unwrap_or_else(|| self.numbers.peer(self.peers));
        let record = self.record();
        Prepared { store: self.store, peer, record, watch: self.watch }
    }

    /// Another one of the two, with an epoch of its own: every change moves an edge.
    fn record(&mut self) -> Arc<TrustRecord> {
        self.epoch += 1;
        let mut record = self.templates[self.epoch as usize % 2].clone();
        if let Some(theirs) = &mut record.theirs {
            theirs.terms.epoch = self.epoch;
        }
        Arc::new(record)
    }
}

/// A change that is ready to be made.
pub(crate) struct Prepared<'a> {
    store: &'a Store<TrustRecord>,
    peer: PeerId,
    record: Arc<TrustRecord>,
    watch: Stopwatch,
}

impl Prepared<'_> {
    /// Makes it; how long the lock was held for it, in nanoseconds.
    pub(crate) fn make_held(self) -> u64 {
        let held = self.store.write(|table| {
            let begin = self.watch.ns();
            put(table, self.peer, self.record);
            self.watch.ns() - begin
        });
        held.0
    }
}

/// As the book does it.
fn put(table: &mut handfast_trust::Table<TrustRecord>, peer: PeerId, mut record: Arc<TrustRecord>) {
    let now = table.revision().next();
    if let Some(record) = Arc::get_mut(&mut record) {
        record.edges_at = now;
    }
    table.put_shared(peer, record, Urgency::Critical);
}

/// Changes until it is over.
pub(crate) fn change_until(mut changes: Changes<'_>, signal: &Signal) -> Latencies {
    let mut latencies = Latencies::new();
    while !signal.is_over() {
        latencies.add_ns(changes.make());
    }
    latencies
}

/// Adds all threads' latencies up.
pub(crate) fn sum<'a>(all: impl IntoIterator<Item = &'a Latencies>) -> Latencies {
    let mut out = Latencies::new();
    all.into_iter().for_each(|latencies| out.merge(latencies));
    out
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(&["records, changed ones, medium, threads", "changes/s", "p50 us", "p99 us", "max us"]);
    let mut subjects = Vec::new();
    for size in &options.sizes {
        subjects.push(Subject::on_disk(*size)?);
        subjects.push(Subject::in_memory(*size)?);
    }
    for _ in 0..options.rounds {
        for threads in &options.threads {
            for subject in &subjects {
                for changed in [AT_WORK, subject.size].into_iter().take(1 + usize::from(subject.size > AT_WORK)) {
                    subject.at_each_speed(|on| {
                        let store = &subject.stand.store;
                        let (parts, time) = threads::run(*threads, options.time, |number, signal| {
                            change_until(Changes::among(store, changed, number), signal)
                        })?;
                        let all = sum(&parts);
                        let label = format!("{}, {changed}, {on}, {threads}", subject.size);
                        table.add(&label, &[rate(all.len(), time), all.us(0.5), all.us(0.99), all.us(1.0)]);
                        Ok(())
                    })?;
                }
            }
        }
    }
    println!("{}", table.show());
    Ok(())
}
