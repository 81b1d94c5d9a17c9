//! `handfast storm`: small storms against real nodes end with the truth, in the form that the schema says, and leave
//! nothing behind. That a dropped record is noticed is tested beside the comparison (`storm::ledger`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, sync_channel};

use common::{Home, Node, PATIENCE, bare, let_pass, schema};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A storm whose own node lives under `place`.
fn storm(home: &Home, place: &Path, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let mut command: Command = home.command(["storm", "--seed", "7"]);
    let output = command.args(arguments).env("TMPDIR", place).output().expect("the program starts");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let report = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout} {stderr}"));
    (output.status.code(), report, stderr)
}

#[track_caller]
fn check(code: Option<i32>, report: &Value, stderr: &str) {
    schema::check("storm", report);
    for none in ["lost", "wrong", "leaked_slots", "stuck"] {
        assert_eq!(report[none], 0, "{report:#} {stderr}");
    }
    assert_eq!(code, Some(0), "{report:#} {stderr}");
    assert!(report["durable"].as_u64() > Some(0), "{report:#}");
    assert_eq!(report["seed"], 7);
}

/// A storm at work as a person starts it: in a process group of its own, telling its progress line by line.
struct Begun {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Begun {
    fn begin(place: &Path, arguments: &[&str]) -> Begun {
        let mut command = bare();
        command.args(["storm", "--seed", "7"]).args(arguments).env("TMPDIR", place).process_group(0);
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (send, lines) = sync_channel(10_000);
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Begun { child, lines, said: String::new() }
    }

    /// Waits for a line with these words.
    #[track_caller]
    fn until(&mut self, words: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("it should say {words:?}: {}", self.said));
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(words) {
                return;
            }
        }
    }

    /// Its own node: the process that one of its threads has started (proc(5), `children`).
    fn node(&self) -> Pid {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        let children = threads.map(|thread| std::fs::read_to_string(thread.path().join("children")).unwrap());
        let first = children.filter_map(|children| children.split_ascii_whitespace().next()?.parse().ok()).next();
        Pid::from_raw(first.expect("the storm has a node")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its exit code, and what it printed: the report, and everything else.
    fn ended(mut self) -> (Option<i32>, String, String) {
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        self.said.extend(self.lines.iter().map(|line| line + "\n"));
        (self.child.wait().unwrap().code(), stdout, std::mem::take(&mut self.said))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        drop((self.child.kill(), self.child.wait()));
    }
}

/// Waits until a process that is nobody's child here is gone.
#[track_caller]
fn until_gone(process: Pid) {
    // Its end has no event for somebody who has not started it.
    for _ in 0..PATIENCE.as_millis() / 10 {
        if test_kill_process(process).is_err() {
            return;
        }
        let_pass(std::time::Duration::from_millis(10));
    }
    panic!("{process:?} goes on");
}

#[test]
fn the_first_interrupt_ends_the_load_and_the_report_follows() {
    let check = |interrupt: fn(&Begun)| {
        let place = TempDir::new().unwrap();
        let mut storm = Begun::begin(place.path(), &["--rate", "20", "--duration", "60s"]);
        storm.until(" done ");
        interrupt(&storm);
        let (code, stdout, said) = storm.ended();
        assert_eq!(code, Some(0), "{stdout} {said}");
        assert!(stdout.contains("0 lost, 0 wrong, 0 leaked slots, 0 stuck: good"), "{stdout} {said}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "the node's directory is removed");
    };
    // What Ctrl-C on a terminal sends, and to whom.
    check(|storm| kill_process_group(Pid::from_child(&storm.child), Signal::INT).unwrap());
    check(|storm| storm.signal(Signal::TERM));
    check(|storm| storm.signal(Signal::HUP));
}

#[test]
fn the_second_interrupt_ends_the_storm_at_once_and_its_node_with_it() {
    let place = TempDir::new().unwrap();
    let mut storm = Begun::begin(place.path(), &["--rate", "20", "--duration", "60s", "--linger", "200s"]);
    storm.until(" done ");
    let node = storm.node();
    storm.signal(Signal::INT);
    storm.until("Interrupted");
    storm.signal(Signal::INT);
    let (code, stdout, said) = storm.ended();
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{said}");
    assert!(said.contains("second interrupt"), "{said}");
    until_gone(node);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "the node's directory is removed");
}

#[test]
fn a_storm_that_is_killed_takes_its_node_with_it() {
    let place = TempDir::new().unwrap();
    let mut storm = Begun::begin(place.path(), &["--rate", "20", "--duration", "60s"]);
    storm.until(" done ");
    let node = storm.node();
    storm.signal(Signal::KILL);
    storm.ended();
    until_gone(node);
}

#[test]
fn a_node_that_stands_still_shows_in_what_its_control_api_and_ticker_tell() {
    let place = TempDir::new().unwrap();
    let mut storm = Begun::begin(place.path(), &["--rate", "20", "--duration", "4s"]);
    storm.until(" done ");
    let node = storm.node();
    kill_process(node, Signal::STOP).unwrap();
    // Two lines of progress are a second apart.
    storm.until(" done ");
    storm.until(" done ");
    kill_process(node, Signal::CONT).unwrap();
    let (code, stdout, said) = storm.ended();
    assert_eq!(code, Some(0), "{stdout} {said}");
    for (row, slow) in [("Control API:", ["p99 ", "max "]), ("Ticker:", ["p99.9 ", "max "])] {
        let line = stdout.lines().find(|line| line.starts_with(row)).unwrap();
        for figure in slow {
            let (_, figure) = line.split_once(figure).unwrap();
            let ms: f64 = figure.split_once(" ms").unwrap().0.parse().unwrap();
            assert!(ms > 500.0, "{line}: {said}");
        }
    }
}

#[test]
fn a_report_that_cannot_be_kept_is_told_before_the_storm() {
    let place = TempDir::new().unwrap();
    let report = place.path().join("not there").join("page.html");
    let mut command = Home::new().command(["storm", "--report", report.to_str().unwrap()]);
    let output = command.env("TMPDIR", place.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "no storm was run: {output:?}");
}

#[test]
fn two_hundred_peers_of_every_quick_kind_find_every_promise_kept() {
    let place = TempDir::new().unwrap();
    let page = place.path().join("page.html");
    let mix = "new=10,known=4,again=4,revoke=3,flap=2,pending=3,garbage=3,replay=3,idle=1";
    let arguments = ["--peers", "200", "--concurrency", "16", "--mix", mix, "--report", page.to_str().unwrap()];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    assert_eq!(report["failed"], 0, "{report:#} {stderr}");
    assert!(report["completed"].as_u64() > Some(120), "{report:#}");
    assert!(report["cpu_us_per_handshake"].as_f64() > Some(0.0), "{report:#}");
    assert!(report["latency_us"]["p50"].as_u64() <= report["latency_us"]["max"].as_u64());
    assert!(std::fs::read_to_string(&page).unwrap().starts_with("<!doctype html>"));
    let left: Vec<_> = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["page.html"], "the node's directory is removed");
}

#[test]
fn a_node_that_is_killed_again_and_again_keeps_what_it_has_acknowledged() {
    let place = TempDir::new().unwrap();
    let arguments = ["--rate", "60", "--duration", "5s", "--churn", "1s", "--mix", "new=3,known=1,revoke=1"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    assert_eq!(report["options"]["churn_ms"], 1_000);
}

#[test]
fn peers_that_vanish_at_any_stage_leave_no_permit_behind() {
    let place = TempDir::new().unwrap();
    let arguments = ["--peers", "150", "--concurrency", "16", "--mix", "new=1,vanish=2,slow=1"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    let of_kind = |kind: &str| report["kinds"].as_array().unwrap().iter().find(|row| row["kind"] == kind).cloned();
    assert!(of_kind("vanish").unwrap()["completed"].as_u64() > Some(30), "{report:#}");
    assert_eq!(of_kind("new").unwrap()["failed"], 0, "the others do not notice: {report:#}");
    let stages: Vec<&str> =
        report["hung"].as_array().unwrap().iter().map(|row| row["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["before the first frame", "before the receipt", "deaf", "within TLS", "within a frame"]);
}

#[test]
fn while_the_disk_hangs_trusted_peers_go_on_and_afterwards_all_is_on_it() {
    let place = TempDir::new().unwrap();
    let arguments = ["--rate", "40", "--duration", "9s", "--fsync-hang", "4s", "--mix", "known=3,new=1"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    let known = report["kinds"].as_array().unwrap().iter().find(|row| row["kind"] == "known").cloned().unwrap();
    assert_eq!(known["failed"], 0, "what asks nothing of the disk goes on: {report:#}");
    assert!(report["caught_up_ms"].is_u64(), "{report:#}");
}

#[test]
fn a_load_that_ends_before_the_disk_was_to_hang_is_not_made_to_hang() {
    let place = TempDir::new().unwrap();
    let arguments = ["--peers", "20", "--concurrency", "4", "--fsync-hang", "20s"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    assert_eq!(report["caught_up_ms"], Value::Null);
}

#[test]
fn a_revocation_by_the_operator_that_got_no_answer_may_be_on_the_disk() {
    let place = TempDir::new().unwrap();
    let arguments = ["--concurrency", "16", "--duration", "4s", "--churn", "1s", "--mix", "cut=1"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    assert_eq!((&report["latency_us"], &report["cpu_us_per_handshake"]), (&Value::Null, &Value::Null));
}

#[test]
fn sessions_that_the_operator_revokes_amid_first_packets_that_prove_nothing_end() {
    let place = TempDir::new().unwrap();
    let arguments = ["--rate", "1000", "--duration", "3s", "--sources", "8", "--mix", "cut=10,new=40,spoofed=950"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &arguments);
    check(code, &report, &stderr);
    for kind in report["kinds"].as_array().unwrap() {
        assert!(kind["completed"].as_u64() > Some(0), "{report:#}");
        assert!(kind["kind"] != "cut" || kind["failed"] == 0, "{report:#}");
    }
    assert!(report["serving_us"]["max"].is_u64(), "{report:#}");
}

#[test]
fn somebody_elses_node_is_asked_again() {
    let home = Home::initialised();
    let config = home.beside("storm.toml");
    std::fs::File::create(&config).unwrap().write_all(b"policy.accept_all = true\n").unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let node = Node::start_with(&home, &format!("{}:0", home.ip()), &arguments);
    let place = TempDir::new().unwrap();
    let target = ["--target", &node.at(), "--peers", "30", "--concurrency", "4", "--mix", "new=4,revoke=1"];
    let (code, report, stderr) = storm(&Home::new(), place.path(), &target);
    check(code, &report, &stderr);
    assert_eq!(report["heartbeat_lag_us"], Value::Null);
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    node.stop();
}

#[test]
fn two_reports_are_compared() {
    let place = TempDir::new().unwrap();
    let (_, report, _) = storm(&Home::new(), place.path(), &["--peers", "20", "--concurrency", "4"]);
    let path = place.path().join("a.json");
    std::fs::File::create(&path).unwrap().write_all(report.to_string().as_bytes()).unwrap();
    let path = path.to_str().unwrap();
    let both = Home::new().ok(["storm", "--compare", path, path]);
    assert_eq!(both["a"], both["b"]);
    assert_eq!(both["a"]["completed"], 20);
}
