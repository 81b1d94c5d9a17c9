//! Durable changes: awaited one by one, in batches, and by 256 waiters at once; beside the same bytes, appended to a
//! bare file and synced.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use handfast_benches::{Latencies, Place, Stopwatch, Table, pause, rate};
use handfast_trust::{ALLOCATION_BYTES, Store, TrustRecord};
use rustix::fs::{FallocateFlags, fallocate};
use tokio::runtime::Runtime;

use crate::memory::{Changes, Subject};
use crate::options::Options;

/// Waiters at once.
const WAITERS: usize = 256;

/// Turns within a round.
const TURNS: u32 = 4;

const PATIENCE: Duration = Duration::from_secs(60);

/// Where an append goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    /// The file grows with each.
    None,
    /// The file system has set blocks aside; each is marked as written when it is.
    Allocated,
    /// Zeros were written and synced before.
    Zeros,
}

/// A file that is appended to and synced, and nothing else.
struct Bare {
    file: File,
    end: u64,
    room_end: u64,
    room: Room,
    bytes: Vec<u8>,
}

impl Bare {
    const ALL: [(&'static str, Room); 3] = [
        ("bare append + fdatasync", Room::None),
        ("bare write into allocated room + fdatasync", Room::Allocated),
        ("bare write over zeros + fdatasync", Room::Zeros),
    ];

    fn create(place: &Place, name: &str, bytes: usize, room: Room) -> Result<Self> {
        let file = OpenOptions::new().create_new(true).write(true).open(place.path().join(name))?;
        Ok(Self { file, end: 0, room_end: 0, room, bytes: vec![0x5a; bytes] })
    }

    fn append(&mut self) -> Result<()> {
        let end = self.end + self.bytes.len() as u64;
        if self.room != Room::None && end > self.room_end {
            match self.room {
                Room::Zeros => self.file.write_all_at(&vec![0; ALLOCATION_BYTES as usize], self.end)?,
                _ => fallocate(&self.file, FallocateFlags::empty(), self.end, ALLOCATION_BYTES)?,
            }
            self.room_end = self.end + ALLOCATION_BYTES;
        }
        self.file.write_all_at(&self.bytes, self.end)?;
        self.file.sync_data()?;
        self.end = end;
        Ok(())
    }
}

/// Repeats until it is over; returns how long that took.
fn repeat(
    until: &(dyn Fn() -> bool + Sync),
    latencies: &mut Latencies,
    mut once: impl FnMut() -> Result<()>,
) -> Result<Duration> {
    let watch = Stopwatch::start();
    while !until() {
        let begin = watch.elapsed();
        once()?;
        latencies.add(watch.elapsed() - begin);
    }
    Ok(watch.elapsed())
}

/// One contender in one round.
#[derive(Default)]
pub(crate) struct Ran {
    pub(crate) latencies: Latencies,
    pub(crate) time: Duration,
    changes_each: u64,
}

impl Ran {
    pub(crate) fn rate(&self) -> f64 {
        rate(self.latencies.len() * self.changes_each, self.time)
    }
}

/// A batch of changes, and the wait for the last, again and again.
pub(crate) fn one_by_one(
    store: &Store<TrustRecord>,
    size: usize,
    batch: u64,
    ran: &mut Ran,
    until: &(dyn Fn() -> bool + Sync),
) -> Result<()> {
    let mut changes = Changes::new(store, size, 0);
    ran.changes_each = batch;
    ran.time += repeat(until, &mut ran.latencies, || {
        for _ in 0..batch {
            changes.make();
        }
        Ok(store.durable().reached_blocking(store.revision(), PATIENCE)?)
    })?;
    Ok(())
}

/// As many tasks as [`WAITERS`] that each change and wait, again and again, until `wait` returns.
pub(crate) fn waiters(
    store: &Store<TrustRecord>,
    size: usize,
    runtime: &Runtime,
    ran: &mut Ran,
    wait: impl FnOnce(),
) -> Result<()> {
    let over = Arc::new(AtomicBool::new(false));
    let watch = Stopwatch::start();
    let tasks: Vec<_> = (0..WAITERS)
        .map(|number| {
            let (store, over) = (store.clone(), over.clone());
            runtime.spawn(async move {
                let mut latencies = Latencies::new();
                let mut changes = Changes::new(&store, size, number);
                while !over.load(Ordering::Relaxed) {
                    let begin = watch.ns();
                    changes.make();
                    // The revision of this change or of a later one, as a node takes it: never of an earlier one.
                    let revision = store.revision();
                    store.durable().reached(revision).await?;
                    latencies.add_ns(watch.ns() - begin);
                }
                anyhow::Ok(latencies)
            })
        })
        .collect();
    wait();
    over.store(true, Ordering::Relaxed);
    ran.changes_each = 1;
    for task in tasks {
        ran.latencies.merge(&runtime.block_on(task)??);
    }
    ran.time += watch.elapsed();
    Ok(())
}

/// Two workers, as many as there are processors.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?)
}

fn frame_bytes(subject: &Subject) -> Result<usize> {
    let mut changes = Changes::new(&subject.stand.store, subject.size, 0);
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
    let runtime = runtime()?;
    let mut table = Table::new(&["what", "changes/s", "p50 us", "p99 us"]);
    let mut ratios = Table::new(&["ratio", "in a round"]);
    for round in 0..options.rounds {
        let mut files = Vec::new();
        for (number, (_, room)) in Bare::ALL.into_iter().enumerate() {
            files.push(Bare::create(&place, &format!("bare-{round}-{number}"), bytes, room)?);
        }
        let mut bare = [Ran::default(), Ran::default(), Ran::default()];
        let mut ours: Vec<[Ran; 4]> = subjects.iter().map(|_| Default::default()).collect();
        for _ in 0..TURNS {
            turn(options.time / TURNS, (&mut files, &mut bare), (&subjects, &mut ours), &runtime)?;
        }
        show(&mut table, &mut ratios, &subjects, &bare, &ours);
    }
    println!(
        "{}
{}",
        table.show(),
        ratios.show()
    );
    Ok(())
}

/// Everybody once.
fn turn(
    time: Duration,
    (files, bare): (&mut [Bare], &mut [Ran]),
    (subjects, ours): (&[Subject], &mut [[Ran; 4]]),
    runtime: &Runtime,
) -> Result<()> {
    for (file, ran) in files.iter_mut().zip(bare) {
        ran.changes_each = 1;
        let watch = Stopwatch::start();
        ran.time += repeat(&|| watch.elapsed() > time, &mut ran.latencies, || file.append())?;
    }
    for (subject, ran) in subjects.iter().zip(ours) {
        let (store, size) = (&subject.stand.store, subject.size);
        for (ran, batch) in ran.iter_mut().zip([1, 16, 256]) {
            let watch = Stopwatch::start();
            one_by_one(store, size, batch, ran, &|| watch.elapsed() > time)?;
        }
        waiters(store, size, runtime, &mut ran[3], || pause(time))?;
        subject.stand.settle()?;
    }
    Ok(())
}

fn show(table: &mut Table, ratios: &mut Table, subjects: &[Subject], bare: &[Ran; 3], ours: &[[Ran; 4]]) {
    let mut add = |label: &str, ran: &Ran| {
        table.add(label, &[ran.rate(), ran.latencies.us(0.5), ran.latencies.us(0.99)]);
    };
    for ((label, _), ran) in Bare::ALL.iter().zip(bare) {
        add(label, ran);
    }
    for (subject, ran) in subjects.iter().zip(ours) {
        let size = subject.size;
        add(&format!("{size}: one writer"), &ran[0]);
        add(&format!("{size}: batches of 16"), &ran[1]);
        add(&format!("{size}: batches of 256"), &ran[2]);
        add(&format!("{size}: {WAITERS} waiters"), &ran[3]);
        let one = ran[0].rate();
        for ((label, _), bare) in Bare::ALL.iter().zip(bare) {
            ratios.add(&format!("{size}: {label} / one writer, rates"), &[bare.rate() / one]);
            let medians = ran[0].latencies.us(0.5) / bare.latencies.us(0.5);
            ratios.add(&format!("{size}: one writer / {label}, medians"), &[medians]);
        }
        ratios.add(&format!("{size}: {WAITERS} waiters / one writer, rates"), &[ran[3].rate() / one]);
        ratios.add(&format!("{size}: batches of 256 / one writer, rates"), &[ran[2].rate() / one]);
    }
}
