//! Durable changes: awaited one by one, in batches, and by 256 waiters at once; beside the same bytes, appended to a
//! bare file and synced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use handfast_benches::{Latencies, Place, Stopwatch, Table, pause, rate};
use handfast_trust::ALLOCATION_BYTES;
use rustix::fs::{FallocateFlags, fallocate};

use crate::memory::{Changes, Subject};
use crate::options::Options;

/// Waiters at once.
const WAITERS: usize = 256;

/// Turns within a round.
const TURNS: u32 = 4;

const PATIENCE: Duration = Duration::from_secs(60);

/// A file that is appended to and synced, and nothing else.
struct Bare {
    file: File,
    end: u64,
    room: u64,
    preallocated: bool,
    bytes: Vec<u8>,
}

impl Bare {
    fn create(place: &Place, name: &str, bytes: usize, preallocated: bool) -> Result<Self> {
        let file = OpenOptions::new().create_new(true).write(true).open(place.path().join(name))?;
        Ok(Self { file, end: 0, room: 0, preallocated, bytes: vec![0x5a; bytes] })
    }

    fn append(&mut self) -> Result<()> {
        let end = self.end + self.bytes.len() as u64;
        if self.preallocated && end > self.room {
            fallocate(&self.file, FallocateFlags::empty(), self.end, ALLOCATION_BYTES)?;
            self.room = self.end + ALLOCATION_BYTES;
        }
        self.file.write_all_at(&self.bytes, self.end)?;
        self.file.sync_data()?;
        self.end = end;
        Ok(())
    }
}

/// Repeats until the time is up.
fn repeat(time: Duration, latencies: &mut Latencies, mut once: impl FnMut() -> Result<()>) -> Result<Duration> {
    let watch = Stopwatch::start();
    while watch.elapsed() < time {
        let begin = watch.elapsed();
        once()?;
        latencies.add(watch.elapsed() - begin);
    }
    Ok(watch.elapsed())
}

/// One contender in one round.
#[derive(Default)]
struct Ran {
    latencies: Latencies,
    time: Duration,
    changes_each: u64,
}

impl Ran {
    fn rate(&self) -> f64 {
        rate(self.latencies.len() * self.changes_each, self.time)
    }
}

/// A batch of changes, and the wait for the last.
fn batches(subject: &Subject, batch: u64, time: Duration, ran: &mut Ran) -> Result<()> {
    let store = &subject.stand.store;
    let mut changes = Changes::new(store, &subject.peers, 0);
    ran.changes_each = batch;
    ran.time += repeat(time, &mut ran.latencies, || {
        (0..batch).for_each(|_| {
            changes.make();
        });
        Ok(store.durable().reached_blocking(store.revision(), PATIENCE)?)
    })?;
    Ok(())
}

/// Tasks that each change and wait, again and again; as many at once as [`WAITERS`].
fn waiters(subject: &Subject, runtime: &tokio::runtime::Runtime, time: Duration, ran: &mut Ran) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let peers: Arc<[_]> = subject.peers.as_slice().into();
    let watch = Stopwatch::start();
    let tasks: Vec<_> = (0..WAITERS)
        .map(|number| {
            let (store, over, peers) = (subject.stand.store.clone(), over.clone(), peers.clone());
            runtime.spawn(async move {
                let mut latencies = Latencies::new();
                let mut changes = Changes::new(&store, &peers, number);
                let watch = Stopwatch::start();
                while !over.load(Ordering::Relaxed) {
                    let begin = watch.ns();
                    // The revision of this change or of a later one, as a node takes it: never of an earlier one.
                    changes.make();
                    let revision = store.revision();
                    store.durable().reached(revision).await?;
                    latencies.add_ns(watch.ns() - begin);
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    pause(time);
    over.store(true, Ordering::Relaxed);
    ran.changes_each = 1;
    for task in tasks {
        ran.latencies.merge(&runtime.block_on(task)??);
    }
    ran.time += watch.elapsed();
    Ok(())
}

fn frame_bytes(subject: &Subject) -> Result<usize> {
    let mut changes = Changes::new(&subject.stand.store, &subject.peers, 0);
    let before = subject.stand.health();
    for _ in 0..16 {
        changes.make();
        subject.stand.settle()?;
    }
    let after = subject.stand.health();
    Ok(usize::try_from((after.bytes_appended - before.bytes_appended) / (after.batches - before.batches))?)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let subjects: Vec<_> = options.sizes.iter().map(|size| Subject::on_disk(*size)).collect::<Result<_>>()?;
    let Some(first) = subjects.first() else { return Ok(()) };
    let bytes = frame_bytes(first)?;
    println!("{bytes} bytes for a change on its own");
    let place = Place::on_disk("bare")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let mut table = Table::new(&["what", "changes/s", "p50 us", "p99 us"]);
    let mut ratios = Table::new(&["ratio", "in a round"]);
    for round in 0..options.rounds {
        let mut grown = Bare::create(&place, &format!("grown-{round}"), bytes, false)?;
        let mut preallocated = Bare::create(&place, &format!("preallocated-{round}"), bytes, true)?;
        let mut bare = [Ran::default(), Ran::default()];
        let mut ours: Vec<[Ran; 4]> = subjects.iter().map(|_| Default::default()).collect();
        let turn = options.time / TURNS;
        for _ in 0..TURNS {
            for (file, ran) in [&mut grown, &mut preallocated].into_iter().zip(&mut bare) {
                ran.changes_each = 1;
                ran.time += repeat(turn, &mut ran.latencies, || file.append())?;
            }
            for (subject, ran) in subjects.iter().zip(&mut ours) {
                batches(subject, 1, turn, &mut ran[0])?;
                batches(subject, 16, turn, &mut ran[1])?;
                batches(subject, 256, turn, &mut ran[2])?;
                waiters(subject, &runtime, turn, &mut ran[3])?;
                subject.stand.settle()?;
            }
        }
        show(&mut table, &mut ratios, &subjects, &bare, &ours);
    }
    println!("{}\n{}", table.show(), ratios.show());
    Ok(())
}

fn show(table: &mut Table, ratios: &mut Table, subjects: &[Subject], bare: &[Ran; 2], ours: &[[Ran; 4]]) {
    let mut add = |label: &str, ran: &Ran| {
        table.add(label, &[ran.rate(), ran.latencies.us(0.5), ran.latencies.us(0.99)]);
    };
    add("bare append + fdatasync", &bare[0]);
    add("bare write into allocated room + fdatasync", &bare[1]);
    for (subject, ran) in subjects.iter().zip(ours) {
        let size = subject.size;
        add(&format!("{size}: one writer"), &ran[0]);
        add(&format!("{size}: batches of 16"), &ran[1]);
        add(&format!("{size}: batches of 256"), &ran[2]);
        add(&format!("{size}: {WAITERS} waiters"), &ran[3]);
        let one = ran[0].rate();
        ratios.add(&format!("{size}: bare append / one writer"), &[bare[0].rate() / one]);
        ratios.add(&format!("{size}: bare, allocated / one writer"), &[bare[1].rate() / one]);
        ratios.add(&format!("{size}: {WAITERS} waiters / one writer"), &[ran[3].rate() / one]);
        ratios.add(&format!("{size}: batches of 256 / one writer"), &[ran[2].rate() / one]);
    }
}
