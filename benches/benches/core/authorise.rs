//! Who may pass: two threads that ask and now and then change; and readers beside writers.

use std::time::Duration;

use anyhow::Result;
use handfast_benches::records::{NOW, Numbers};
use handfast_benches::threads::{self, Signal};
use handfast_benches::{Latencies, Stopwatch, Table, rate, stand};
use handfast_trust::{Book, Direction, Policy, Purpose};

use crate::memory::{Changes, Subject, change_until, peers, sum};
use crate::options::Options;

const READERS: usize = 2;

/// Of so many questions the time is taken of one.
const SAMPLE: u64 = 64;

pub(crate) fn policy() -> Policy {
    Policy {
        deny: std::collections::HashSet::new(),
        allow: std::collections::HashSet::new(),
        accept_all: false,
        grants_per_hour: u64::MAX,
        grants_total: u64::MAX,
        grants_per_sponsor: u64::MAX,
        pending_total: 4_096,
        pending_per_source: 64,
        pending_new_per_second: 10,
    }
}

pub(crate) fn book(subject: &Subject) -> Book {
    Book::new(subject.stand.store.clone(), stand::key(), policy(), Box::new(|_, _| {}))
}

/// What one thread did.
#[derive(Default)]
struct Asked {
    operations: u64,
    passed: u64,
    latencies: Latencies,
}

/// Asks until it is over; of 100 operations `changes` are changes.
fn ask_until(book: &Book, size: usize, thread: usize, percent: usize, signal: &Signal) -> Asked {
    let mut out = Asked::default();
    let peers = peers(size);
    let mut numbers = Numbers::new(thread as u64 + 1_000);
    let mut changes = Changes::new(book.store(), size, thread);
    let watch = Stopwatch::start();
    while !signal.is_over() {
        for _ in 0..100 - percent {
            let peer = numbers.peer(peers);
            let sampled = out.operations % SAMPLE == 0;
            let begin = if sampled { watch.ns() } else { 0 };
            out.passed += u64::from(book.authorise(&peer, Purpose::Session, Direction::Inbound, NOW).is_ok());
            if sampled {
                out.latencies.add_ns(watch.ns() - begin);
            }
            out.operations += 1;
        }
        for _ in 0..percent {
            changes.make();
            out.operations += 1;
        }
    }
    out
}

#[allow(clippy::cast_precision_loss)]
fn figures(parts: &[Asked], time: Duration) -> [f64; 4] {
    let operations: u64 = parts.iter().map(|part| part.operations).sum();
    let passed: u64 = parts.iter().map(|part| part.passed).sum();
    let all = sum(parts.iter().map(|part| &part.latencies));
    [
        rate(operations, time) / 1e6,
        all.us(0.99) * 1_000.0,
        all.us(0.9999) * 1_000.0,
        100.0 * passed as f64 / operations as f64,
    ]
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut mixed = Table::new(&["records, medium, changes", "M operations/s", "p99 ns", "p99.99 ns", "% passed"]);
    let mut beside = Table::new(&[
        "records, medium, beside",
        "M questions/s",
        "p99 ns",
        "p99.99 ns",
        "% passed",
        "changes/s",
        "change p99 us",
    ]);
    let subjects: Vec<_> = options.sizes.iter().map(|size| Subject::on_disk(*size)).collect::<Result<_>>()?;
    for subject in &subjects {
        // So that there is something to pass.
        let mut changes = Changes::new(&subject.stand.store, subject.size, 0);
        (0..peers(subject.size).min(10_000)).for_each(|_| {
            changes.make();
        });
        subject.stand.settle()?;
    }
    for _ in 0..options.rounds {
        for subject in &subjects {
            let book = book(subject);
            subject.at_each_speed(|on| {
                for percent in &options.percents {
                    let (parts, time) = threads::run(READERS, options.time, |number, signal| {
                        ask_until(&book, subject.size, number, *percent, signal)
                    })?;
                    mixed.add(&format!("{}, {on}, {percent} %", subject.size), &figures(&parts, time));
                    subject.stand.settle()?;
                }
                for writers in [0, 2, 16] {
                    let label = format!("{}, {on}, {writers} writers", subject.size);
                    beside.add(&label, &readers_beside(subject, &book, writers, options.time)?);
                    subject.stand.settle()?;
                }
                Ok(())
            })?;
        }
    }
    println!("Two threads, {SAMPLE}:1 sampled\n\n{}\nTwo readers beside writers\n\n{}", mixed.show(), beside.show());
    Ok(())
}

enum Part {
    Asked(Asked),
    Changed(Latencies),
}

fn readers_beside(subject: &Subject, book: &Book, writers: usize, time: Duration) -> Result<[f64; 6]> {
    let (parts, time) = threads::run(READERS + writers, time, |number, signal| {
        if number < READERS {
            Part::Asked(ask_until(book, subject.size, number, 0, signal))
        } else {
            Part::Changed(change_until(Changes::new(book.store(), subject.size, number), signal))
        }
    })?;
    let (mut asked, mut changed) = (Vec::new(), Latencies::new());
    for part in parts {
        match part {
            Part::Asked(part) => asked.push(part),
            Part::Changed(part) => changed.merge(&part),
        }
    }
    let [questions, p99, p9999, passed] = figures(&asked, time);
    Ok([questions, p99, p9999, passed, rate(changed.len(), time), changed.us(0.99)])
}
