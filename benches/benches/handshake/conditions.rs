//! The same program under conditions that it should bear: more load than it can carry, a slow disk, peers that hang,
//! strangers in a crowd. Each row is a storm of its own, with load and node in two processes.

use anyhow::Result;
use handfast_benches::Table;
use serde_json::Value;

use crate::{Options, number, report};

const COLUMNS: &[&str] = &[
    "",
    "completed/s",
    "failed %",
    "p50 ms",
    "p99 ms",
    "control p99 ms",
    "memory grows by MiB",
    "and stays up by %",
    "lost, wrong, leaked, stuck",
];

/// Conditions that do not depend on the capacity: what is watched, and the storm.
const CONDITIONS: [(&str, &str, &str); 8] = [
    ("disk + 50 ms", "new", "--peers 2000 --concurrency 256 --fsync-delay 50ms"),
    ("disk + 500 ms", "new", "--peers 2000 --concurrency 256 --fsync-delay 500ms"),
    ("200 new/s alone", "new", "--rate 200 --duration 12s --sources 64"),
    (
        "200 new/s, 1,000 slow peers at each stage",
        "new",
        "--rate 620 --duration 12s --sources 64 --mix new=200,slow=420",
    ),
    ("100 known/s alone", "known", "--rate 100 --duration 10s --sources 64 --mix known=1 --default-limits"),
    (
        "100 known/s in a flood of 1,000 strangers/s",
        "known",
        "--rate 1100 --peers 11000 --duration 10s --sources 64 --mix known=1,pending=10 --default-limits",
    ),
    (
        "50 strangers/s, 1,000 friends at once",
        "pending",
        "--rate 1050 --peers 5000 --duration 5s --sources 64 --mix known=20,pending=1 --default-limits",
    ),
    ("revocations", "revoke", "--peers 3000 --concurrency 128 --mix revoke=6,known=3,flap=1"),
];

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Table::new(COLUMNS);
    let (peers, concurrency) = (options.peers.to_string(), options.concurrency.to_string());
    for _ in 0..options.rounds {
        let capacity = report(options, &["--peers", &peers, "--concurrency", &concurrency])?;
        table.add("closed loop: the capacity", &figures(&capacity, "new")?);
        for times in [3.0, 10.0] {
            let rate = (number(&capacity, "/rate_per_s")? * times).to_string();
            let overload = report(options, &["--rate", &rate, "--duration", "8s", "--sources", "64"])?;
            table.add(&format!("open loop at {times} x the capacity"), &figures(&overload, "new")?);
        }
        for (label, watched, arguments) in CONDITIONS {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            table.add(label, &figures(&report(options, &arguments)?, watched)?);
        }
    }
    println!("{}", table.show());
    Ok(())
}

fn figures(report: &Value, watched: &str) -> Result<[f64; 8]> {
    let of_kind = |place: &str| {
        let kinds = report["kinds"].as_array().map(Vec::as_slice).unwrap_or_default();
        let kind = kinds.iter().find(|kind| kind["kind"] == watched);
        kind.and_then(|kind| kind.pointer(place)).and_then(Value::as_f64).unwrap_or_default()
    };
    let (completed, failed) = (of_kind("/completed"), of_kind("/failed"));
    let seconds = number(report, "/completed")? / number(report, "/rate_per_s")?;
    let memory = |place: &str| number(report, &format!("/memory_bytes/{place}"));
    let (start, mib) = (memory("start")?, f64::from(1 << 20));
    let broken = ["/lost", "/wrong", "/leaked_slots", "/stuck"].iter().map(|place| number(report, place));
    Ok([
        completed / seconds,
        100.0 * failed / (completed + failed),
        of_kind("/latency_us/p50") / 1_000.0,
        of_kind("/latency_us/p99") / 1_000.0,
        number(report, "/heartbeat_lag_us/p99")? / 1_000.0,
        (memory("peak")? - start) / mib,
        100.0 * (memory("end")? / start - 1.0),
        broken.sum::<Result<f64>>()?,
    ])
}
