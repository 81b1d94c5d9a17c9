//! What a storm found: the object that `--json` prints, the table for people, and what is drawn (`page`).
//!
//! Stable: the fields of [`Report`] may be added to, never renamed; `node/schemas/storm.json` has them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::kind::Kind;
use super::ledger::Truth;
use super::measure::{Outcomes, Percentiles, SLOT_MS, Slot, Tally};
use super::plan::Plan;
use super::watch::{Beat, Seen, milliseconds};

/// The reply of `handfast storm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Handshakes that came to their end as they should.
    pub completed: u64,
    /// Operations of any kind that did not.
    pub failed: u64,
    /// Of those that failed: arrivals of an open loop for which the generator had no place, or no peer.
    #[serde(default)]
    pub not_sent: u64,
    pub rate_per_s: f64,
    /// Of completed handshakes; in an open loop from the intended start. Absent without any.
    pub latency_us: Option<Percentiles>,
    /// User and system time of the storm and its own node together; absent where the node is somebody else's, and where
    /// no handshake was completed.
    pub cpu_us_per_handshake: Option<f64>,
    /// Acknowledged statements of both ends that were found in the node's records afterwards.
    pub durable: u64,
    pub lost: u64,
    pub wrong: u64,
    /// Connections that the node still counts as half open or under way when nobody is there any more.
    pub leaked_slots: u64,
    /// Operations and sessions that did not come to an end.
    pub stuck: u64,
    /// Of somebody else's node: peers to whom it had made a promise and that it did not answer when they asked again.
    #[serde(default)]
    pub unanswered: u64,
    /// How late the node's control API answered; absent where the node is somebody else's, or never answered.
    pub heartbeat_lag_us: Option<Percentiles>,
    /// How often it did not; absent where the node is somebody else's.
    #[serde(default)]
    pub heartbeats_missed: Option<u64>,
    /// How late a 10-ms ticker of the node's control thread was; absent where the node is somebody else's, or in a run
    /// that is too short for it.
    #[serde(default)]
    pub ticker_drift_us: Option<Percentiles>,
    /// How long sessions went on serving once the operator's revocation had been asked for; absent without such.
    #[serde(default)]
    pub serving_us: Option<Percentiles>,
    /// How long after its disk had hung the own node had everything on it; absent where it did not hang, or never had.
    #[serde(default)]
    pub caught_up_ms: Option<u64>,
    /// What became of connections that hung.
    #[serde(default)]
    pub hung: Vec<HungReport>,
    /// What became of each kind that the mix has.
    #[serde(default)]
    pub kinds: Vec<KindReport>,
    /// The resident memory of the own node; absent where the node is somebody else's.
    #[serde(default)]
    pub memory_bytes: Option<MemoryReport>,
    pub seed: u64,
    pub options: Plan,
}

/// One kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindReport {
    pub kind: Kind,
    pub completed: u64,
    pub failed: u64,
    /// Absent where none was completed.
    pub latency_us: Option<Percentiles>,
}

/// Connections that hung at one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HungReport {
    pub stage: String,
    pub count: u64,
    /// Those that heard of their end.
    pub heard: u64,
    /// The longest time until one heard of it.
    pub longest_us: u64,
}

/// Resident memory of the node: before the load, at most, and when everybody had gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    pub start: u64,
    pub peak: u64,
    pub end: u64,
}

/// What is shown beside the report and not kept in it.
pub struct Detail {
    pub seconds: f64,
    pub faults: Vec<(String, u64)>,
    pub slots: Vec<Slot>,
    pub beats: Vec<Beat>,
    /// Latency at each of [`CURVE`].
    pub curve: Vec<(f64, u64)>,
    pub starts: u64,
    /// Whether the own node's disk has hung.
    pub hung: bool,
    /// How the truth was found.
    pub checked: String,
}

/// Quantiles of the latency curve: each step halves what is slower.
const CURVE: [f64; 14] = [0.0, 0.25, 0.5, 0.75, 0.875, 0.9375, 0.97, 0.984, 0.992, 0.996, 0.998, 0.999, 0.9995, 1.0];

/// What was left when everything had settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Remains {
    /// Connections that have a permit, half open or under way.
    pub slots: u64,
    pub sessions: u64,
    pub operations: u64,
    /// Peers with a promise about which nobody answered.
    pub unanswered: u64,
    /// Resident bytes of the node.
    pub memory: u64,
}

impl Report {
    /// Puts everything together.
    pub fn of(
        plan: &Plan,
        tally: &Tally,
        truth: Truth,
        remains: Remains,
        seen: Option<&Seen>,
        cpu_us: Option<u64>,
    ) -> Report {
        let totals = tally.totals();
        // In an open loop the load is over at a given time; those that come in later are late.
        let open_ms = plan.duration_ms.filter(|ms| plan.rate.is_some() && Duration::from_millis(*ms) < tally.last);
        let (in_time, seconds) = match open_ms.map(Duration::from_millis) {
            Some(open) => (tally.completed_in_time, open.as_secs_f64()),
            None => (totals.completed, tally.last.as_secs_f64()),
        };
        let per_handshake = |us: u64| round(us as f64 / totals.completed as f64, 1);
        Report {
            completed: totals.completed,
            failed: totals.failed,
            not_sent: tally.not_sent,
            rate_per_s: if seconds > 0.0 { round(in_time as f64 / seconds, 1) } else { 0.0 },
            latency_us: Percentiles::of(&tally.latency),
            cpu_us_per_handshake: cpu_us.filter(|_| totals.completed > 0).map(per_handshake),
            durable: truth.durable,
            lost: truth.lost,
            wrong: truth.wrong,
            leaked_slots: remains.slots,
            stuck: remains.operations + remains.sessions,
            unanswered: remains.unanswered,
            heartbeat_lag_us: seen.and_then(Seen::lag),
            heartbeats_missed: seen.map(|seen| seen.missed),
            ticker_drift_us: seen.and_then(Seen::drift),
            serving_us: Percentiles::of(&tally.serving),
            caught_up_ms: seen.and_then(Seen::caught_up_ms),
            hung: tally
                .stages
                .iter()
                .map(|(stage, found)| HungReport {
                    stage: (*stage).to_owned(),
                    count: found.count,
                    heard: found.heard,
                    longest_us: found.longest_us,
                })
                .collect(),
            kinds: of_kinds(tally),
            memory_bytes: seen.and_then(|seen| {
                let (start, peak) = seen.memory?;
                Some(MemoryReport { start, peak: peak.max(remains.memory), end: remains.memory })
            }),
            seed: plan.seed,
            options: plan.clone(),
        }
    }

    /// True when nothing that the node promised was broken, it could be asked for it, and not everything failed.
    pub fn is_good(&self) -> bool {
        let is_answered = |kind: &KindReport| kind.kind.needs_answers() && kind.completed > 0;
        let is_any_completed = self.completed > 0 || self.kinds.iter().any(is_answered);
        self.lost == 0
            && self.wrong == 0
            && self.leaked_slots == 0
            && self.stuck == 0
            && (self.durable > 0 || self.unanswered == 0)
            && (is_any_completed || self.failed == 0)
    }
}

fn of_kinds(tally: &Tally) -> Vec<KindReport> {
    let seen = Kind::ALL.into_iter().zip(&tally.kinds).zip(&tally.latencies);
    seen.filter(|((_, outcomes), _)| **outcomes != Outcomes::default())
        .map(|((kind, outcomes), latency)| KindReport {
            kind,
            completed: outcomes.completed,
            failed: outcomes.failed,
            latency_us: Percentiles::of(latency),
        })
        .collect()
}

impl Detail {
    /// What a tally and a watch know.
    pub fn of(tally: &Tally, seen: Option<&Seen>, starts: u64, checked: String) -> Detail {
        let mut faults: Vec<(String, u64)> = tally.faults.iter().map(|(text, count)| (text.clone(), *count)).collect();
        faults.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        Detail {
            seconds: tally.last.max(Duration::from_millis(SLOT_MS)).as_secs_f64(),
            faults,
            slots: tally.slots.clone(),
            beats: seen.map(|seen| seen.beats.clone()).unwrap_or_default(),
            curve: CURVE.iter().map(|quantile| (*quantile, tally.latency.value_at_quantile(*quantile))).collect(),
            starts,
            hung: seen.is_some_and(|seen| seen.hang_ended.is_some()),
            checked,
        }
    }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

/// Rows for what was seen of the node beside its answers.
fn watched(report: &Report, detail: &Detail) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(lag) = &report.heartbeat_lag_us {
        let missed = report.heartbeats_missed.filter(|missed| *missed > 0);
        let missed = missed.map_or_else(String::new, |missed| format!(", {missed} missed"));
        rows.push((
            "Control API",
            format!(
                "answers after p50 {}, p99 {}, max {}{missed}",
                milliseconds(lag.p50),
                milliseconds(lag.p99),
                milliseconds(lag.max)
            ),
        ));
    }
    if let Some(drift) = &report.ticker_drift_us {
        rows.push((
            "Ticker",
            format!(
                "of the control thread late by p50 {}, p99.9 {}, max {}",
                milliseconds(drift.p50),
                milliseconds(drift.p999),
                milliseconds(drift.max)
            ),
        ));
    }
    if let Some(memory) = &report.memory_bytes {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (start, peak, end) = (mib(memory.start), mib(memory.peak), mib(memory.end));
        rows.push(("Memory", format!("{start:.1} MiB before, {peak:.1} at most, {end:.1} afterwards")));
    }
    if let Some(serving) = &report.serving_us {
        let (p99, max) = (milliseconds(serving.p99), milliseconds(serving.max));
        rows.push(("Revoked", format!("sessions served until p99 {p99}, max {max} after it was asked for")));
    }
    if report.options.fsync_hang_ms > 0 {
        let after = report.caught_up_ms.map_or("never".to_owned(), |ms| format!("{ms} ms after it"));
        let hung = format!("hung for {} ms; all was on it {after}", report.options.fsync_hang_ms);
        rows.push(("Disk", if detail.hung { hung } else { "did not hang: the load was over before".to_owned() }));
    }
    for HungReport { stage, count, heard, longest_us } in &report.hung {
        let longest = milliseconds(*longest_us);
        rows.push(("Hung", format!("{count} {stage}: {heard} heard of their end, the last after {longest}")));
    }
    rows
}

/// The table for people.
pub fn text(report: &Report, detail: &Detail) -> String {
    let mut rows =
        vec![("Handshakes", handshakes(report, detail)), ("Rate", format!("{:.0} a second", report.rate_per_s))];
    if let Some(latency) = &report.latency_us {
        rows.push((
            "Latency",
            format!(
                "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                milliseconds(latency.p50),
                milliseconds(latency.p90),
                milliseconds(latency.p99),
                milliseconds(latency.p999),
                milliseconds(latency.max)
            ),
        ));
    }
    if let Some(cpu) = report.cpu_us_per_handshake {
        rows.push(("Processor", format!("{cpu:.0} us a handshake, both ends")));
    }
    rows.extend(watched(report, detail));
    for of_kind in report.kinds.iter().filter(|_| report.kinds.len() > 1) {
        let latency = of_kind.latency_us.map_or_else(String::new, |latency| {
            format!(", p50 {}, p99 {}", milliseconds(latency.p50), milliseconds(latency.p99))
        });
        let KindReport { kind, completed, failed, .. } = of_kind;
        rows.push(("", format!("{:<8} {completed} completed, {failed} failed{latency}", kind.as_str())));
    }
    for (fault, count) in detail.faults.iter().take(8) {
        rows.push(("Failed", format!("{count} x {fault}")));
    }
    rows.push(("Durable", format!("{} acknowledged statements found ({})", report.durable, detail.checked)));
    let unanswered = if report.unanswered > 0 { format!(", {} unanswered", report.unanswered) } else { String::new() };
    rows.push((
        "Truth",
        format!(
            "{} lost, {} wrong, {} leaked slots, {} stuck{unanswered}: {}",
            report.lost,
            report.wrong,
            report.leaked_slots,
            report.stuck,
            if report.is_good() { "good" } else { "NOT GOOD" }
        ),
    ));
    rows.push(("Seed", report.seed.to_string()));
    rows.iter()
        .map(|(name, value)| {
            format!("{:<13}{value}\n", if name.is_empty() { String::new() } else { format!("{name}:") })
        })
        .collect()
}

fn handshakes(report: &Report, detail: &Detail) -> String {
    let not_sent = if report.not_sent > 0 { format!(" ({} not sent)", report.not_sent) } else { String::new() };
    format!("{} completed, {} failed{not_sent}, in {:.1} s", report.completed, report.failed, detail.seconds)
}

/// One line of a comparison.
struct Line {
    name: &'static str,
    a: Option<f64>,
    b: Option<f64>,
    unit: &'static str,
}

/// Two reports beside each other.
pub fn comparison(a: &Report, b: &Report) -> String {
    let us = |report: &Report, pick: fn(&Percentiles) -> u64| Some(pick(report.latency_us.as_ref()?) as f64 / 1_000.0);
    let count = |a: u64, b: u64, name| Line { name, a: Some(a as f64), b: Some(b as f64), unit: "" };
    let lag = |report: &Report| report.heartbeat_lag_us.map(|lag| lag.p99 as f64 / 1_000.0);
    let drift = |report: &Report| report.ticker_drift_us.map(|drift| drift.p999 as f64 / 1_000.0);
    let lines = [
        count(a.completed, b.completed, "completed"),
        count(a.failed, b.failed, "failed"),
        Line { name: "rate", a: Some(a.rate_per_s), b: Some(b.rate_per_s), unit: "/s" },
        Line { name: "p50", a: us(a, |l| l.p50), b: us(b, |l| l.p50), unit: " ms" },
        Line { name: "p90", a: us(a, |l| l.p90), b: us(b, |l| l.p90), unit: " ms" },
        Line { name: "p99", a: us(a, |l| l.p99), b: us(b, |l| l.p99), unit: " ms" },
        Line { name: "p99.9", a: us(a, |l| l.p999), b: us(b, |l| l.p999), unit: " ms" },
        Line { name: "max", a: us(a, |l| l.max), b: us(b, |l| l.max), unit: " ms" },
        Line { name: "processor", a: a.cpu_us_per_handshake, b: b.cpu_us_per_handshake, unit: " us" },
        Line { name: "control p99", a: lag(a), b: lag(b), unit: " ms" },
        Line { name: "ticker p99.9", a: drift(a), b: drift(b), unit: " ms" },
        count(a.lost, b.lost, "lost"),
        count(a.wrong, b.wrong, "wrong"),
        count(a.leaked_slots, b.leaked_slots, "leaked slots"),
        count(a.stuck, b.stuck, "stuck"),
    ];
    let mut text = format!("{:<14}{:>14}{:>14}{:>10}\n", "", "A", "B", "B / A");
    for line in lines {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{}{}", number(value), line.unit));
        let ratio = match (line.a, line.b) {
            (Some(a), Some(b)) if a > 0.0 => format!("{:.2}", b / a),
            _ => "-".to_owned(),
        };
        text.push_str(&format!("{:<14}{:>14}{:>14}{ratio:>10}\n", line.name, show(line.a), show(line.b)));
    }
    if a.options != b.options {
        text.push_str("\nThe two ran with different options.\n");
    }
    text
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::plan::Wishes;

    fn report(lost: u64, slow: u64) -> Report {
        let plan = Plan::of(Wishes::default(), None, true, 4).unwrap();
        let mut tally = Tally::new().unwrap();
        for us in 1..=1_000 {
            tally.completed(Kind::New, Duration::from_millis(us * 2), Duration::from_micros(us * slow));
        }
        tally.failed(Kind::New, Duration::from_millis(5), "refused");
        let truth = Truth { durable: 2_000 - lost, lost, wrong: 0 };
        Report::of(&plan, &tally, truth, Remains::default(), None, Some(600_000))
    }

    #[test]
    fn the_numbers_are_those_of_the_tally() {
        let good = report(0, 1);
        assert_eq!((good.completed, good.failed, good.rate_per_s), (1_000, 1, 500.0));
        assert_eq!(good.cpu_us_per_handshake, Some(600.0));
        assert_eq!(good.latency_us.map(|latency| latency.p99), Some(990));
        assert!(good.is_good());
        assert!(!report(1, 1).is_good());
    }

    #[test]
    fn what_completes_without_the_node_makes_nothing_good() {
        let plan = Plan::of(Wishes::default(), None, true, 4).unwrap();
        let mut tally = Tally::new().unwrap();
        let at = Duration::from_millis(1);
        tally.failed(Kind::New, at, "the node did not answer in time");
        tally.completed(Kind::Spoofed, at, at);
        let report = |tally: &Tally| Report::of(&plan, tally, Truth::default(), Remains::default(), None, None);
        assert!(!report(&tally).is_good());
        tally.completed(Kind::Pending, at, at);
        assert!(report(&tally).is_good());
    }

    #[test]
    fn promises_that_nobody_answers_for_are_not_good() {
        let good = report(0, 1);
        assert!(Report { unanswered: 7, ..good.clone() }.is_good(), "the others have answered");
        let silent = Report { unanswered: 7, durable: 0, ..good };
        assert!(!silent.is_good());
        let detail = Detail::of(&Tally::new().unwrap(), None, 0, "0 of 7 peers asked again".into());
        assert!(text(&silent, &detail).contains("0 stuck, 7 unanswered: NOT GOOD"));
    }

    #[test]
    fn what_was_not_measured_is_no_figure() {
        let plan = Plan::of(Wishes { mix: Some("cut=1".into()), ..Wishes::default() }, None, true, 4).unwrap();
        let mut tally = Tally::new().unwrap();
        tally.failed(Kind::Cut, Duration::from_millis(5), "refused");
        let report = |tally: &Tally| Report::of(&plan, tally, Truth::default(), Remains::default(), None, Some(1_000));
        let none = report(&tally);
        assert_eq!((none.latency_us, none.cpu_us_per_handshake, none.kinds[0].latency_us), (None, None, None));
        assert!(!none.is_good(), "everything failed");
        assert!(!text(&none, &Detail::of(&tally, None, 1, String::new())).contains(" ms"));
        tally.completed(Kind::Cut, Duration::from_millis(9), Duration::from_millis(3));
        assert!(report(&tally).is_good(), "no handshake, and not nothing");
    }

    #[test]
    fn people_read_the_truth_and_the_comparison() {
        let (a, b) = (report(0, 1), report(1, 2));
        let detail = Detail::of(&Tally::new().unwrap(), None, 1, "after kill -9 and recovery".into());
        assert!(text(&a, &detail).contains("0 lost, 0 wrong, 0 leaked slots, 0 stuck: good"));
        assert!(text(&b, &detail).contains("1 lost, 0 wrong, 0 leaked slots, 0 stuck: NOT GOOD"));
        let beside = comparison(&a, &b);
        let line = beside.lines().find(|line| line.starts_with("p99 ")).unwrap();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["p99", "1.0", "ms", "2.0", "ms", "2.00"]);
        let kept: Report = serde_json::from_str(&serde_json::to_string(&a).unwrap()).unwrap();
        assert_eq!(kept, a);
    }
}
