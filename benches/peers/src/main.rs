//! handfast's record core beside other engines: the same keys and as many bytes in each record, each commit on the disk
//! before the next, in turns within one run.
//!
//! `cargo run --release -- [--bytes N] [--sizes N,N] [--seconds S] [--rounds N]`; `--bytes 0`, the default, takes
//! as many bytes as a trust record has, and has handfast keep true trust records.

mod engine;
mod others;
mod ours;

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use handfast_benches::records::{self, Numbers};
use handfast_benches::{Latencies, Place, Stopwatch, Table, rate};
use handfast_protocol::Kind;

use crate::engine::{Change, Engine, key, value};
use crate::others::{Fjall, Lmdb, Redb, Rewrite, Sqlite};

const BATCHES: [usize; 3] = [1, 16, 256];

/// Records put at a time while an engine is filled.
const FILL: usize = 50_000;

const COLUMNS: &[&str] = &["records, batch, engine", "changes/s", "p50 us", "p99 us", "handfast is faster by"];

struct Options {
    bytes: usize,
    sizes: Vec<usize>,
    time: Duration,
    rounds: usize,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut out =
            Self { bytes: 0, sizes: vec![10_000, 100_000, 1_000_000], time: Duration::from_millis(500), rounds: 3 };
        let mut arguments = std::env::args().skip(1);
        while let Some(option) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--bytes" => out.bytes = value.parse()?,
                "--sizes" => out.sizes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--seconds" => out.time = Duration::try_from_secs_f64(value.parse()?)?,
                "--rounds" => out.rounds = value.parse()?,
                _ => bail!("unknown option {option}"),
            }
        }
        Ok(out)
    }
}

struct Contender {
    name: &'static str,
    engine: Box<dyn Engine>,
    seed: u64,
    _place: Place,
}

fn contenders(size: usize, bytes: usize) -> Result<Vec<Contender>> {
    let mut out = Vec::new();
    let mut add = |name: &'static str, make: &dyn Fn(&Place) -> Result<Box<dyn Engine>>| -> Result<()> {
        let place = Place::on_disk(&format!("{name}-{size}"))?;
        out.push(Contender { name, engine: make(&place)?, seed: 1, _place: place });
        Ok(())
    };
    if bytes == 0 {
        add("handfast", &ours::Trust::make)?;
    } else {
        add("handfast", &ours::Bytes::make)?;
    }
    add("redb", &|place| Redb::make(place.path()))?;
    add("fjall", &|place| Fjall::make(place.path()))?;
    add("sqlite", &|place| Sqlite::make(place.path()))?;
    add("lmdb", &|place| Lmdb::make(place.path()))?;
    add("rewrite", &|place| Rewrite::make(place.path()))?;
    Ok(out)
}

fn fill(contender: &mut Contender, size: usize, bytes: usize) -> Result<()> {
    let watch = Stopwatch::start();
    let mut keys: Vec<_> = (0..size as u64).map(key).collect();
    // In their order: it is the fastest one for trees, and the same to the others.
    keys.sort_unstable();
    for part in keys.chunks(FILL) {
        let changes: Vec<Change> = part.iter().map(|key| (*key, value(contender.seed, bytes))).collect();
        contender.engine.fill(&changes)?;
    }
    contender.engine.filled()?;
    eprintln!("{}: {size} records in {:.1?}", contender.name, watch.elapsed());
    Ok(())
}

/// Commits batches until the time is up; at least one.
fn measure(contender: &mut Contender, (size, batch, bytes): (usize, usize, usize), time: Duration) -> Result<[f64; 3]> {
    let mut latencies = Latencies::new();
    let mut numbers = Numbers::new(contender.seed);
    let watch = Stopwatch::start();
    let mut busy = Duration::ZERO;
    while watch.elapsed() < time {
        let changes: Vec<Change> = (0..batch)
            .map(|_| {
                contender.seed += 1;
                (key(numbers.below(size) as u64), value(contender.seed, bytes))
            })
            .collect();
        let begin = watch.elapsed();
        contender.engine.commit(&changes)?;
        let took = watch.elapsed() - begin;
        latencies.add(took);
        busy += took;
    }
    Ok([rate(latencies.len() * batch as u64, busy), latencies.us(0.5), latencies.us(0.99)])
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let bytes =
        if options.bytes > 0 { options.bytes } else { records::encoded_bytes(&records::record(Kind::Grant, 2)) };
    println!("records of {bytes} bytes, keys of 32; {} rounds, {:?} each", options.rounds, options.time);
    let mut table = Table::new(COLUMNS);
    for size in &options.sizes {
        let mut all = contenders(*size, options.bytes)?;
        for contender in &mut all {
            fill(contender, *size, bytes)?;
        }
        for _ in 0..options.rounds {
            let mut ours = HashMap::new();
            let mut round = |contender: &mut Contender, batch: usize| -> Result<()> {
                let [rate, p50, p99] = measure(contender, (*size, batch, bytes), options.time)?;
                let handfast = *ours.entry(batch).or_insert(rate);
                table.add(&format!("{size}, {batch}, {}", contender.name), &[rate, p50, p99, handfast / rate]);
                Ok(())
            };
            // Who writes everything anew leaves the disk busy with gigabytes: it comes last in each round.
            let (last, others) = all.split_last_mut().context("nobody to compare")?;
            for batch in BATCHES {
                others.iter_mut().try_for_each(|contender| round(contender, batch))?;
            }
            BATCHES.into_iter().try_for_each(|batch| round(last, batch))?;
        }
    }
    println!("{}", table.show());
    Ok(())
}
