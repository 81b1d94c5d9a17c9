//! The same program under conditions that it should bear: more load than it can carry, friends in a flood, peers that
//! hang or vanish, a disk that is slow or hangs, revocations in a storm. Each row is a storm of its own, with load and
//! node in two processes; rows of one group run in turns, round by round, so that they see the same machine.
//!
//! A round takes as long as its group says, about; `--rounds` times that is the whole run.

use anyhow::{Result, bail};
use handfast_benches::Table;
use serde_json::Value;

use crate::{Options, number, report};

const COLUMNS: &[&str] = &[
    "",
    "completed/s",
    "of capacity",
    "not sent %",
    "failed % of sent",
    "p50 ms",
    "p99 ms",
    "control p99 ms",
    "ticker p99.9 ms",
    "memory grows by MiB",
    "and stays up by MiB",
    "lost, wrong, leaked, stuck",
];

/// One storm: its group, its label, the kind that is watched, and its options. `{3x}` is three times the capacity that
/// was measured in the same round.
struct Row(&'static str, &'static str, &'static str, &'static str);

const ROWS: &[Row] = &[
    Row("overload", "open loop, 3 x the capacity", "new", "--rate {3x} --duration 8s --sources 64 --linger 15s"),
    Row("overload", "open loop, 10 x the capacity", "new", "--rate {10x} --duration 8s --sources 64 --linger 15s"),
    Row(
        "spoofed",
        "2 x the capacity from new peers, 8 x from spoofed addresses",
        "new",
        "--rate {10x} --duration 8s --sources 64 --mix new=2,spoofed=8",
    ),
    Row(
        "friends",
        "200 known/s alone",
        "known",
        "--rate 200 --duration 10s --sources 64 --mix known=1 --default-limits",
    ),
    Row("friends", "200 known/s in a flood of 20,000/s", "known", "--scenario flood"),
    Row(
        "friends",
        "1,000 friends at once, 50 strangers/s",
        "pending",
        "--rate 1050 --peers 6000 --duration 5s --sources 64 --mix known=20,pending=1 --default-limits",
    ),
    Row("slow", "200 new/s alone", "new", "--rate 200 --duration 12s --sources 64"),
    Row("slow", "200 new/s, 1,000 that hang at each of 5 stages", "new", "--scenario slowloris"),
    Row("disk", "disk + 50 ms", "new", "--scenario slow-disk"),
    Row("disk", "disk + 500 ms", "new", "--peers 2000 --concurrency 256 --fsync-delay 500ms"),
    Row("disk", "disk hangs for 10 s: peers known", "known", "--scenario hung-disk"),
    Row("vanish", "half of the peers vanish", "new", "--scenario vanish"),
    Row("cut", "20 revocations/s alone", "cut", "--rate 20 --duration 8s --sources 64 --mix cut=1"),
    Row("cut", "20 revocations/s in a storm of 20,000/s", "cut", "--scenario cut"),
];

/// Runs the groups that are named, or all of them.
pub(crate) fn run(options: &Options, groups: &[String]) -> Result<()> {
    if let Some(unknown) = groups.iter().find(|group| !ROWS.iter().any(|row| row.0 == group.as_str())) {
        bail!("no group {unknown}; groups are overload, spoofed, friends, slow, disk, vanish, cut");
    }
    let mut table = Table::new(COLUMNS);
    let (peers, concurrency) = (options.peers.to_string(), options.concurrency.to_string());
    for _ in 0..options.rounds {
        let capacity = report(options, &["--peers", &peers, "--concurrency", &concurrency])?;
        let rate = number(&capacity, "/rate_per_s")?;
        table.add("closed loop: the capacity", &figures(&capacity, "new", rate)?);
        for Row(group, label, watched, arguments) in ROWS {
            if !groups.is_empty() && !groups.iter().any(|wanted| wanted == group) {
                continue;
            }
            let arguments = arguments
                .replace("{3x}", &format!("{:.0}", rate * 3.0))
                .replace("{10x}", &format!("{:.0}", rate * 10.0));
            let arguments: Vec<&str> = arguments.split(' ').collect();
            let found = report(options, &arguments)?;
            table.add(label, &figures(&found, watched, rate)?);
            beside(label, &found)?;
        }
    }
    println!("{}", table.show());
    Ok(())
}

/// What only some storms have.
fn beside(label: &str, report: &Value) -> Result<()> {
    for hung in report["hung"].as_array().into_iter().flatten() {
        let [count, heard, longest] = ["/count", "/heard", "/longest_us"].map(|place| number(hung, place));
        let (stage, longest) = (&hung["stage"], longest? / 1e6);
        println!("{label}: {stage}: {} hung, {} heard of their end, the last after {longest:.2} s", count?, heard?);
    }
    if report["serving_us"].is_object() {
        let [p99, max] = ["/serving_us/p99", "/serving_us/max"].map(|place| number(report, place));
        println!("{label}: served until p99 {:.1} ms, max {:.1} ms after it was asked for", p99? / 1e3, max? / 1e3);
    }
    if let Some(ms) = report["caught_up_ms"].as_u64() {
        println!("{label}: caught up {ms} ms after the disk went on");
    }
    for kind in report["kinds"].as_array().into_iter().flatten() {
        println!("{label}: {}: {} completed, {} failed", kind["kind"], kind["completed"], kind["failed"]);
    }
    Ok(())
}

fn figures(report: &Value, watched: &str, capacity: f64) -> Result<[f64; 11]> {
    let of_kind = |place: &str| {
        let kinds = report["kinds"].as_array().map(Vec::as_slice).unwrap_or_default();
        let kind = kinds.iter().find(|kind| kind["kind"] == watched);
        kind.and_then(|kind| kind.pointer(place)).and_then(Value::as_f64).unwrap_or_default()
    };
    let (completed, failed) = (of_kind("/completed"), of_kind("/failed"));
    let not_sent = number(report, "/not_sent")?;
    let rate = number(report, "/rate_per_s")?;
    let memory = |place: &str| number(report, &format!("/memory_bytes/{place}"));
    let (start, mib) = (memory("start")?, f64::from(1 << 20));
    let broken = ["/lost", "/wrong", "/leaked_slots", "/stuck"].iter().map(|place| number(report, place));
    let share = |part: f64, whole: f64| if whole > 0.0 { 100.0 * part / whole } else { 0.0 };
    Ok([
        rate,
        rate / capacity,
        share(not_sent, completed + failed),
        share((failed - not_sent).max(0.0), completed + (failed - not_sent).max(0.0)),
        of_kind("/latency_us/p50") / 1_000.0,
        of_kind("/latency_us/p99") / 1_000.0,
        number(report, "/heartbeat_lag_us/p99")? / 1_000.0,
        number(report, "/ticker_drift_us/p999")? / 1_000.0,
        (memory("peak")? - start) / mib,
        (memory("end")? - start) / mib,
        broken.sum::<Result<f64>>()?,
    ])
}
