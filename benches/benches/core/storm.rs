//! How many bytes go to the disk for a durable change: in a storm from two threads, which changes some records more
//! often than they are written, and with 256 waiters, who have each change written.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use handfast_benches::{Table, pause, threads};
use handfast_trust::StorageHealth;

use crate::durable::{Ran, runtime, waiters};
use crate::memory::{Changes, Subject, change_until, sum};
use crate::options::Options;

const COLUMNS: &[&str] = &[
    "records, changed by",
    "changes/s, all durable",
    "changes in a batch",
    "appended bytes a change",
    "checkpoint bytes a change",
    "all written bytes a change",
    "checkpoints",
    "MB a checkpoint",
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let subjects: Vec<_> = options.sizes.iter().map(|size| Subject::on_disk(*size)).collect::<Result<_>>()?;
    let runtime = runtime()?;
    for _ in 0..options.rounds {
        for subject in &subjects {
            let before = Written::now(subject)?;
            let watch = handfast_benches::Stopwatch::start();
            let (parts, _) = threads::run(2, options.time, |number, signal| {
                change_until(Changes::new(&subject.stand.store, subject.size, number), signal)
            })?;
            subject.stand.settle()?;
            let row = before.row(subject, sum(&parts).len(), watch.elapsed())?;
            table.add(&format!("{}, two threads", subject.size), &row);

            let before = Written::now(subject)?;
            let mut ran = Ran::default();
            waiters(&subject.stand.store, subject.size, &runtime, &mut ran, || pause(options.time))?;
            subject.stand.settle()?;
            let row = before.row(subject, ran.latencies.len(), ran.time)?;
            table.add(&format!("{}, 256 waiters", subject.size), &row);
        }
    }
    println!("{}", table.show());
    Ok(())
}

/// What had been written at one moment.
struct Written {
    health: StorageHealth,
    by_process: u64,
}

impl Written {
    fn now(subject: &Subject) -> Result<Self> {
        let io = fs::read_to_string("/proc/self/io")?;
        let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
        Ok(Self { health: subject.stand.health(), by_process: line.parse()? })
    }

    #[allow(clippy::cast_precision_loss)]
    fn row(&self, subject: &Subject, changes: u64, time: Duration) -> Result<[f64; 7]> {
        let after = Self::now(subject)?;
        let each = |bytes: u64| bytes as f64 / changes as f64;
        let checkpoints = (after.health.checkpoints - self.health.checkpoints) as f64;
        let checkpointed = after.health.bytes_checkpointed - self.health.bytes_checkpointed;
        Ok([
            handfast_benches::rate(changes, time),
            changes as f64 / (after.health.batches - self.health.batches).max(1) as f64,
            each(after.health.bytes_appended - self.health.bytes_appended),
            each(checkpointed),
            each(after.by_process - self.by_process),
            checkpoints,
            if checkpoints > 0.0 { checkpointed as f64 / checkpoints / 1e6 } else { f64::NAN },
        ])
    }
}
