//! How long a store takes to open, and how much memory: each time in a process of its own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use handfast_benches::records::{self, Numbers};
use handfast_benches::{Place, Slow, Stand, Stopwatch, Table, stand};
use handfast_protocol::Kind;
use handfast_trust::{TrustRecord, Urgency};

use crate::options::Options;

/// First argument of a process that opens a store and tells how it went.
pub(crate) const CHILD: &str = "open-store";

/// First argument of a process that holds so many records in a plain vector.
pub(crate) const PLAIN_CHILD: &str = "hold-records";

const COLUMNS: &[&str] = &[
    "records, file",
    "file MB",
    "ms",
    "MB/s",
    "peak MB",
    "bytes a record",
    "of them beyond the record",
    "peak beyond",
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    for size in options.sizes.iter().copied().filter(|size| *size > 0) {
        let place = Place::on_disk(&format!("open-{size}"))?;
        Stand::filled(&place, size)?.stop()?;
        compact(&place)?;
        let plain = said_by(PLAIN_CHILD, place.path(), Some(size))?[0];
        for _ in 0..options.rounds {
            table.add(&format!("{size}, checkpoint"), &open(&place, size, plain)?);
        }
        change_half(&place, size)?;
        for _ in 0..options.rounds {
            table.add(&format!("{size}, checkpoint and half as many changes"), &open(&place, size, plain)?);
        }
    }
    println!("{}", table.show());
    Ok(())
}

fn compact(place: &Place) -> Result<()> {
    let stand = Stand::<TrustRecord>::open(place, true)?;
    stand.store.write(|table| table.put(records::peer(0), records::record(Kind::Grant, 3), Urgency::Critical));
    let before = Stopwatch::start();
    while stand.health().checkpoints == 0 {
        ensure!(before.elapsed().as_secs() < 60, "no checkpoint within a minute");
        handfast_benches::pause(std::time::Duration::from_millis(5));
    }
    stand.stop()
}

fn change_half(place: &Place, size: usize) -> Result<()> {
    let stand = Stand::<TrustRecord>::open(place, false)?;
    let mut numbers = Numbers::new(1);
    let changes = (0..size / 2)
        .map(|at| (records::peer(numbers.below(size) as u64), records::record(Kind::Grant, 4 + at as u64)));
    stand.fill(changes)?;
    stand.stop()
}

#[allow(clippy::cast_precision_loss)]
fn open(place: &Place, size: usize, plain: f64) -> Result<[f64; 7]> {
    let bytes = fs::metadata(place.path().join("trust.hf"))?.len() as f64;
    let [ms, grown, peak] = said_by(CHILD, place.path(), None)?[..] else { bail!("three figures are expected") };
    let each = |bytes: f64| bytes / size as f64;
    Ok([
        bytes / 1e6,
        ms,
        bytes / 1e3 / ms,
        peak / 1e6,
        each(grown),
        each(grown) - each(plain),
        each(peak) - each(plain),
    ])
}

fn said_by(what: &str, path: &Path, count: Option<usize>) -> Result<Vec<f64>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(what).arg(path).args(count.map(|count| count.to_string()));
    let output = command.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout)?.split_whitespace().map(|figure| Ok(figure.parse()?)).collect()
}

/// Opens the store; says milliseconds, and by how many bytes the memory has grown, at the end and at its peak.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn child(path: &str) -> Result<()> {
    let before = memory("VmRSS:")?;
    let watch = Stopwatch::start();
    let opened = stand::opened::<TrustRecord, _>(Slow::default().open(Path::new(path))?, false)?;
    let took = watch.ns() as f64 / 1e6;
    println!("{took} {} {}", memory("VmRSS:")? - before, memory("VmHWM:")? - before);
    drop(opened);
    Ok(())
}

/// Holds records as a table holds each, and nothing else; says by how many bytes the memory has grown.
pub(crate) fn plain_child(_: &str, count: usize) -> Result<()> {
    let before = memory("VmRSS:")?;
    let mut all = Vec::with_capacity(count);
    all.extend((0..count as u64).map(|number| (records::peer(number), Arc::new(records::record(Kind::Grant, 2)))));
    println!("{}", memory("VmRSS:")? - before);
    drop(all);
    Ok(())
}

fn memory(name: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
    let kilobytes: f64 = line.split_whitespace().next().context("no figure")?.parse()?;
    Ok(kilobytes * 1_024.0)
}
