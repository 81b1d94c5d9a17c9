//! Changes through the trust rules: the peers' statements, already verified, and with the strict check of each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use handfast_benches::records::{self, NOW, Numbers};
use handfast_benches::threads::{self, Signal};
use handfast_benches::{Latencies, Stopwatch, Table, rate};
use handfast_protocol::{Kind, SecretKey, SignedStatement};
use handfast_trust::{Book, Urgency};

use crate::authorise::book;
use crate::memory::{Subject, peers, sum};
use crate::options::Options;

/// Peers whose keys are true ones.
const SIGNERS: u64 = 2_048;

/// What the peers say in a second, at most.
const STATEMENTS_PER_SECOND: usize = 120_000;

const COLUMNS: &[&str] = &["records, medium, threads", "changes/s", "p50 us", "p99 us", "max us"];

/// Statements that count as verified: grants and revokes in turns.
pub(crate) fn run_book(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let subjects: Vec<_> = options.sizes.iter().map(|size| subject(*size)).collect::<Result<_>>()?;
    for _ in 0..options.rounds {
        for threads in &options.threads {
            for subject in &subjects {
                let book = book(subject);
                subject.at_each_speed(|on| {
                    let epoch = subject.stand.store.revision().0;
                    let (parts, time) = threads::run(*threads, options.time, |number, signal| {
                        merge_until(&book, peers(subject.size), (number, *threads), epoch, signal)
                    })?;
                    let all = sum(&parts);
                    let label = format!("{}, {on}, {threads}", subject.size);
                    table.add(&label, &[rate(all.len(), time), all.us(0.5), all.us(0.99), all.us(1.0)]);
                    Ok(())
                })?;
            }
        }
    }
    println!("{}", table.show());
    Ok(())
}

/// A store in which all peers that will speak have our grant.
fn subject(size: usize) -> Result<Subject> {
    let subject = Subject::on_disk(size)?;
    if size == 0 {
        let all = (0..peers(size) as u64).map(|number| (records::peer(number), records::record(Kind::Grant, 1)));
        subject.stand.fill(all)?;
    }
    Ok(subject)
}

fn merge_until(
    book: &Book,
    peers: usize,
    (thread, threads): (usize, usize),
    mut epoch: u64,
    signal: &Signal,
) -> Latencies {
    let mut latencies = Latencies::new();
    let mut numbers = Numbers::new(thread as u64);
    let watch = Stopwatch::start();
    let share = peers / threads;
    while !signal.is_over() {
        let peer = records::peer((numbers.below(share) * threads + thread) as u64);
        epoch += 1;
        let kind = if epoch.is_multiple_of(2) { Kind::Grant } else { Kind::Revoke };
        let shown = records::shown(records::verified(peer, book.me(), kind, epoch + 2));
        let begin = watch.ns();
        book.merge(peer, &shown, None, NOW);
        latencies.add_ns(watch.ns() - begin);
    }
    latencies
}

/// Grants whose signatures are checked, beside the check alone.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(&["records, threads", "grants/s", "bare checks/s", "ratio"]);
    let keys: Vec<_> = (0..SIGNERS).map(|number| SecretKey::from_seed(&records::spread_bytes(number))).collect();
    let subjects: Vec<_> = options.sizes.iter().map(|size| subject(*size)).collect::<Result<_>>()?;
    for subject in &subjects {
        for key in &keys {
            let record = records::record(Kind::Grant, 1);
            subject.stand.store.write(|table| table.put(key.peer_id(), record, Urgency::Critical));
        }
        subject.stand.settle()?;
    }
    let count = (options.time.as_secs_f64() * STATEMENTS_PER_SECOND as f64) as usize;
    let mut epoch = 2;
    for _ in 0..options.rounds {
        for threads in &options.threads {
            epoch += count as u64;
            let statements = statements(&keys, &subjects, epoch, count)?;
            for subject in &subjects {
                let book = book(subject);
                let bare = check_all(&book, &statements, *threads, options.time, false)?;
                let grants = check_all(&book, &statements, *threads, options.time, true)?;
                subject.stand.settle()?;
                table.add(&format!("{}, {threads}", subject.size), &[grants, bare, grants / bare]);
            }
        }
    }
    println!("{}", table.show());
    Ok(())
}

fn statements(keys: &[SecretKey], subjects: &[Subject], epoch: u64, count: usize) -> Result<Vec<SignedStatement>> {
    let me = subjects.first().map_or_else(|| records::peer(0), |subject| book(subject).me());
    (0..count).map(|at| records::signed(&keys[at % keys.len()], me, Kind::Grant, epoch + at as u64)).collect()
}

/// Has threads check the statements, and merge them if `merged`; how many they did in a second.
fn check_all(book: &Book, statements: &[SignedStatement], threads: usize, time: Duration, merged: bool) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let me = book.me();
    let watch = Stopwatch::start();
    let (parts, _) = threads::run(threads, time, |_, signal| {
        let (mut done, mut ended) = (0, Duration::ZERO);
        while !signal.is_over() {
            let Some(statement) = statements.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let issuer = statement.statement.issuer;
            if let Ok(verified) = statement.clone().verify(&issuer, &me, None) {
                done += 1;
                if merged {
                    book.merge(issuer, &records::shown(verified), None, NOW);
                }
            }
            ended = watch.elapsed();
        }
        (done, ended)
    })?;
    let begun = watch.elapsed().min(time);
    let last = parts.iter().map(|(_, ended)| *ended).max().unwrap_or(begun);
    Ok(rate(parts.iter().map(|(done, _)| *done).sum(), last))
}
