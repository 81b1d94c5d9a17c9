//! The same program under conditions that it should bear: more load than it can carry, friends in a flood, peers that
//! hang or vanish, a disk that is slow or hangs, revocations in a storm. Each row is a storm of its own, with load and
//! node in two processes; rows of one group run in turns, round by round, so that they see the same machine.
//!
//! A round takes as long as its group says, about; `--rounds` times that is the whole run.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use handfast_benches::Table;
use serde_json::Value;

use crate::narrow::Quota;
use crate::{Options, number, report, report_of};

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
    Row(
        "narrow",
        "narrow node, 3 x its capacity",
        "pending",
        "--rate {3x} --duration 8s --peers 200000 --sources 64 --in-flight 20000 --mix pending=1",
    ),
    Row(
        "narrow",
        "narrow node, 10 x its capacity",
        "pending",
        "--rate {10x} --duration 8s --peers 200000 --sources 64 --in-flight 20000 --mix pending=1",
    ),
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
        "1,000 at once, 19 of 20 of them friends",
        "new",
        "--peers 6000 --concurrency 1000 --sources 64 --mix known=19,new=1 --default-limits",
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

/// The group in which the node has this part of one processor, in percent, and the load all the rest.
const NARROW: (&str, u64) = ("narrow", 15);

/// Runs the groups that are named, or all of them.
pub(crate) fn run(options: &Options, groups: &[String]) -> Result<()> {
    if let Some(unknown) = groups.iter().find(|group| !ROWS.iter().any(|row| row.0 == group.as_str())) {
        bail!("no group {unknown}; groups are narrow, overload, spoofed, friends, slow, disk, vanish, cut");
    }
    let is_wanted = |group: &str| groups.is_empty() || groups.iter().any(|wanted| wanted == group);
    let quota = match Quota::of(NARROW.1) {
        _ if !is_wanted(NARROW.0) => None,
        Ok(quota) => Some(quota),
        Err(error) => {
            println!("left out: a node that has {} % of one processor: {error:#}", NARROW.1);
            None
        }
    };
    let mut table = Table::new(COLUMNS);
    for _ in 0..options.rounds {
        if let Some(quota) = &quota {
            let storm = |arguments: &[&str]| {
                report_of(&mut Command::new(&options.program), arguments, |storm| quota.take_node_of(storm))
            };
            let label = format!("narrow node ({} % of a processor), closed loop", NARROW.1);
            let capacity = ["--peers", "1500", "--concurrency", "64", "--sources", "64", "--mix", "pending=1"];
            turn(&mut table, (&label, "pending", &capacity), |group| group == NARROW.0, storm)?;
        }
        let (peers, concurrency) = (options.peers.to_string(), options.concurrency.to_string());
        let capacity = ["--peers", &peers, "--concurrency", &concurrency];
        let others = |group: &str| group != NARROW.0 && is_wanted(group);
        if ROWS.iter().any(|row| others(row.0)) {
            turn(&mut table, ("closed loop: the capacity", "new", &capacity), others, |arguments| {
                report(options, arguments)
            })?;
        }
    }
    println!("{}", table.show());
    Ok(())
}

/// The capacity, and the rows of the groups that are wanted, once.
fn turn(
    table: &mut Table,
    (label, watched, capacity): (&str, &str, &[&str]),
    is_wanted: impl Fn(&str) -> bool,
    storm: impl Fn(&[&str]) -> Result<Value>,
) -> Result<()> {
    let capacity = storm(capacity)?;
    let rate = number(&capacity, "/rate_per_s")?;
    table.add(label, &figures(&capacity, watched, rate)?);
    for Row(group, label, watched, arguments) in ROWS.iter().filter(|row| is_wanted(row.0)) {
        let arguments =
            arguments.replace("{3x}", &format!("{:.0}", rate * 3.0)).replace("{10x}", &format!("{:.0}", rate * 10.0));
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let found = storm(&arguments).with_context(|| format!("{group}: {label}"))?;
        table.add(label, &figures(&found, watched, rate)?);
        beside(label, &found)?;
    }
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
