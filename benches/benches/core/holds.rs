//! How long the store's lock is held, while things go on that must not lengthen it.
//!
//! Two views: the store's own histogram (every hold of it, also the drainer's; its buckets are a quarter wide at most), and
//! the changing threads', measured inside their closure, which know when the system took the processor from them.

use std::time::Duration;

use anyhow::Result;
use handfast_benches::records;
use handfast_benches::threads::{self, Disturbances, Signal};
use handfast_benches::{Latencies, Place, Slow, Stand, Stopwatch, Table, stand};
use handfast_protocol::PeerId;
use handfast_trust::{HoldTimesSnapshot, Monotonic, Next, Store, TrustRecord, hold_bucket_end};

use crate::memory::Changes;
use crate::options::Options;

const MANY: usize = 1_000_000;

/// An ordinary hold.
const ORDINARY_NS: u64 = 1_000;

/// How long a sync hangs.
const HANGS: Duration = Duration::from_secs(10);

const FIGURES: usize = 10;

const COLUMNS: &[&str] = &[
    "condition, threads",
    "holds",
    "p50 us <",
    "p99 us <",
    "p99.9 us <",
    "max us",
    "changes: p99.9 us",
    "max us",
    "max us, not preempted",
    "of it on a processor, us",
    "% preempted",
];

/// What the threads saw from inside.
#[derive(Default)]
struct Held {
    all: Latencies,
    /// The processor was not taken from the thread by another one.
    kept: Latencies,
    /// The same, no longer than the whole change had a processor: without what the host took.
    had: Latencies,
}

impl Held {
    fn add(&mut self, hold: impl FnOnce() -> u64) {
        let before = Disturbances::now();
        let held = hold();
        let after = Disturbances::now();
        self.all.add_ns(held);
        if after.kept_the_processor_since(&before) {
            self.kept.add_ns(held);
            self.had.add_ns(held.min(after.on_processor_ns_since(&before)));
        }
    }

    fn make(&mut self, changes: &mut Changes<'_>, peer: Option<PeerId>) {
        let change = changes.prepare(peer);
        self.add(|| change.make_held());
    }
}

fn change_until(mut changes: Changes<'_>, over: impl Fn() -> bool) -> Held {
    let mut out = Held::default();
    while !over() {
        out.make(&mut changes, None);
    }
    out
}

#[allow(clippy::cast_precision_loss)]
fn row(store: &Store<TrustRecord>, before: &HoldTimesSnapshot, parts: &[Held]) -> [f64; FIGURES] {
    let mut holds = store.hold_times();
    for (count, before) in holds.counts.iter_mut().zip(before.counts) {
        *count -= before;
    }
    let us = |time: Duration| time.as_nanos() as f64 / 1_000.0;
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| us(holds.quantile(share)));
    figures([holds.counts.iter().sum::<u64>() as f64, p50, p99, p999, us(holds.max)], parts)
}

#[allow(clippy::cast_precision_loss)]
fn figures([holds, p50, p99, p999, max]: [f64; 5], parts: &[Held]) -> [f64; FIGURES] {
    let mut sum = Held::default();
    for part in parts {
        sum.all.merge(&part.all);
        sum.kept.merge(&part.kept);
        sum.had.merge(&part.had);
    }
    let preempted = 100.0 * (sum.all.len() - sum.kept.len()) as f64 / sum.all.len().max(1) as f64;
    let longest = [&sum.all, &sum.kept, &sum.had].map(|latencies| latencies.us(1.0));
    [holds, p50, p99, p999, max, sum.all.us(0.999), longest[0], longest[1], longest[2], preempted]
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let place = Place::on_disk("holds")?;
    Stand::filled(&place, MANY)?.stop()?;
    let mut walk = Table::new(&["drainer alone", "steps", "max us <, not preempted", "max us <"]);
    for _ in 0..options.rounds {
        for threads in &options.threads {
            let mut add = |condition: &str, measure: &dyn Fn() -> Result<[f64; FIGURES]>| -> Result<()> {
                if options.wants(condition) {
                    table.add(&format!("{condition}, {threads}"), &measure()?);
                }
                Ok(())
            };
            add("no lock, no change: what the machine adds", &|| bare(*threads, options.time))?;
            add("nothing else, few records", &|| quiet(*threads, options.time))?;
            add("fsync hung", &|| hung(&place, *threads))?;
            add("checkpoint of 1M", &|| checkpoint(&place, *threads))?;
            add("growth 0 to 1M", &|| growth(*threads))?;
        }
        walk.add("checkpoint of 1M", &steps(&place)?);
    }
    println!("{}\n{}", table.show(), walk.show());
    Ok(())
}

/// Holds of nothing: the clock is read twice, as inside the lock, and what lies between is the machine's.
fn bare(threads: usize, time: Duration) -> Result<[f64; FIGURES]> {
    let watch = Stopwatch::start();
    let (parts, _) = threads::run(threads, time, |_, signal: &Signal| {
        let mut out = Held::default();
        while !signal.is_over() {
            out.add(|| {
                let begin = watch.ns();
                // As long as an ordinary hold.
                while watch.ns() < begin + ORDINARY_NS {}
                watch.ns() - begin
            });
        }
        out
    })?;
    Ok(figures([f64::NAN; 5], &parts))
}

fn quiet(threads: usize, time: Duration) -> Result<[f64; FIGURES]> {
    let place = Place::on_disk("quiet")?;
    let stand = Stand::filled(&place, 0)?;
    let before = stand.store.hold_times();
    let (parts, _) = threads::run(threads, time, |number, signal: &Signal| {
        change_until(Changes::new(&stand.store, 0, number), || signal.is_over())
    })?;
    let out = row(&stand.store, &before, &parts);
    stand.stop()?;
    Ok(out)
}

fn hung(place: &Place, threads: usize) -> Result<[f64; FIGURES]> {
    let stand = Stand::open(place, false)?;
    stand.slow.set(HANGS);
    let before = stand.store.hold_times();
    let (parts, _) = threads::run(threads, HANGS, |number, signal| {
        change_until(Changes::new(&stand.store, MANY, number), || signal.is_over())
    })?;
    let out = row(&stand.store, &before, &parts);
    stand.slow.set(Duration::ZERO);
    stand.settle()?;
    stand.stop()?;
    Ok(out)
}

fn checkpoint(place: &Place, threads: usize) -> Result<[f64; FIGURES]> {
    let stand = Stand::open(place, true)?;
    let before = stand.store.hold_times();
    let (parts, _) = threads::run(threads, Duration::ZERO, |number, _| {
        change_until(Changes::new(&stand.store, MANY, number), || stand.health().checkpoints > 0)
    })?;
    let out = row(&stand.store, &before, &parts);
    stand.settle()?;
    stand.stop()?;
    Ok(out)
}

fn growth(threads: usize) -> Result<[f64; FIGURES]> {
    let place = Place::on_disk("growth")?;
    let stand = Stand::filled(&place, 0)?;
    let before = stand.store.hold_times();
    let (parts, _) = threads::run(threads, Duration::ZERO, |number, _| {
        let mut changes = Changes::new(&stand.store, 0, number);
        let mut out = Held::default();
        for peer in (number..MANY).step_by(threads) {
            out.make(&mut changes, Some(records::peer(peer as u64)));
        }
        out
    })?;
    let out = row(&stand.store, &before, &parts);
    stand.settle()?;
    stand.stop()?;
    Ok(out)
}

/// The drainer's own holds, without anybody else: each step is known to be preempted or not.
#[allow(clippy::cast_precision_loss)]
fn steps(place: &Place) -> Result<[f64; 3]> {
    let medium = Slow::default().open(place.path())?;
    let (store, mut drainer) = stand::opened::<TrustRecord, _>(medium, true)?;
    let (mut steps, mut longest, mut longest_clean) = (0_u32, 0, 0);
    loop {
        let before = (store.hold_times(), Disturbances::now());
        let next = drainer.step(Monotonic::default());
        let after = store.hold_times();
        let bucket = (0..after.counts.len()).rev().find(|at| after.counts[*at] > before.0.counts[*at]).unwrap_or(0);
        longest = longest.max(bucket);
        if Disturbances::now().kept_the_processor_since(&before.1) {
            longest_clean = longest_clean.max(bucket);
        }
        steps += 1;
        if next != Next::Now {
            break;
        }
    }
    drainer.stop_switch().stop();
    while drainer.step(Monotonic::default()) != Next::Stopped {}
    let us = |bucket: usize| hold_bucket_end(bucket).as_nanos() as f64 / 1_000.0;
    Ok([f64::from(steps), us(longest_clean), us(longest)])
}
