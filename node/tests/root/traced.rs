//! System calls that strace meddles with: the node is killed at each one that changes files, and its syncs are held up.
//!
//! A kill is a power cut that takes nothing of what was written, at a moment that is known exactly: before call `n` of
//! a kind, for every `n` until the work gets through. `init` and the commands are traced from their first instruction;
//! of a running node the thread that writes record files is.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;

use std::time::Duration;

use handfast::clock::MonotonicClock;
use handfast::control::api::{IdReply, InitReply, PeersReply, RevokeReply, TrustReply};

use crate::alone;
use crate::ledger::edges;
use crate::machine::{Need, can_run};
use crate::program::{Client, Node, check_files, handfast, handfast_under, output, peer, reply};

/// Calls that change files or their names, as the standard library and rustix make them here.
const CALLS: [&str; 17] = [
    "openat",
    "mkdir",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "ftruncate",
    "fallocate",
    "chmod",
    "fchmod",
];
/// More of one kind than any part makes.
const CALLS_MAX: u32 = 400;
/// Length from which a log is replaced.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// How often the others ask while a sync is held up.
const ASK_EVERY: Duration = Duration::from_millis(10);

const OLD: u64 = 1;
const NEW: u64 = 2;

#[test]
#[ignore = "needs root: .ci/root"]
fn init_killed_at_any_call_is_finished_by_the_next() {
    let _alone = alone();
    if !can_run("init killed at each call", &[Need::Tracing]) {
        return;
    }
    let kills = sweep(|call, n| {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("data");
        let first = output(killed_at(call, n, &directory, &["init"]));
        let before = output(handfast(&directory, &["id"]));
        let made: InitReply = reply(&directory, &["init"]);
        if let Ok(told) = serde_json::from_slice::<InitReply>(&first.stdout) {
            assert_eq!(told.peer_id, made.peer_id, "LOST: {call} {n}");
        }
        if let Ok(before) = serde_json::from_slice::<IdReply>(&before.stdout) {
            assert_eq!((before.peer_id, false), (made.peer_id, made.created), "{call} {n}");
        }
        check_files(&directory);
        first.status.success()
    });
    println!("init: killed at {kills} calls; finished by the next, lost 0");
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_command_killed_at_any_call_loses_nothing() {
    let _alone = alone();
    if !can_run("a command killed at each call", &[Need::Tracing]) {
        return;
    }
    let template = template(0);
    let kills = sweep(|call, n| {
        let directory = Copied::of(template.path());
        let address = format!("{}@192.0.2.1:4433", peer(NEW));
        let first = output(killed_at(call, n, directory.path(), &["trust", &address, "--note", "new"]));
        let told = serde_json::from_slice::<TrustReply>(&first.stdout).is_ok_and(|reply| reply.durable);
        directory.judge(told.then_some("new"), &format!("{call} {n}"));
        first.status.success()
    });
    println!("the first trust, without a node: killed at {kills} calls, lost 0");
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_node_killed_at_any_call_of_its_drainer_loses_nothing() {
    let _alone = alone();
    if !can_run("a node killed at each call", &[Need::Tracing]) {
        return;
    }
    let fresh = template(0);
    let kills = sweep(|call, n| drain_until_killed(fresh.path(), call, n, false));
    println!("the first trust, in a node: killed at {kills} calls of the drainer, lost 0");
    let long = template(CHECKPOINT_BYTES - 6_000);
    let kills = sweep(|call, n| drain_until_killed(long.path(), call, n, true));
    println!("a checkpoint: killed at {kills} calls of the drainer, lost 0");
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_sync_that_takes_ten_seconds_holds_up_nobody() {
    let _alone = alone();
    if !can_run("a sync that takes ten seconds", &[Need::Tracing]) {
        return;
    }
    let template = template(0);
    let directory = Copied::of(template.path());
    let node = Node::start(directory.path());
    let tracer = Tracer::attach(node.drainer(), &["-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_enter=10s"]);
    let mut asking = node.client();
    let (answered, answer) = sync_channel(1);
    std::thread::spawn(move || {
        let clock = MonotonicClock::start();
        let answer = asking.change::<RevokeReply>("revoke", &peer(OLD), "held up").unwrap();
        answered.send((answer, clock.now().0)).unwrap();
    });
    let mut client = node.client();
    let clock = MonotonicClock::start();
    let mut answers = Answers::default();
    // As soon as the revoke has been taken; not when it is durable.
    while !edges(answers.time(|| client.peers())).values().any(|said| said.note == "held up") {
        assert!(clock.now().0 < Duration::from_secs(1), "not in force");
    }
    let in_force = clock.now().0;
    let (answer, took) = loop {
        match answer.recv_timeout(ASK_EVERY) {
            Ok(answer) => break answer,
            Err(_) => drop(answers.time(|| client.status())),
        }
    };
    let status = client.status();
    assert_eq!((status.health.as_str(), &status.reasons[..]), ("degraded", &["a write does not end".to_owned()][..]));
    assert!(!answer.durable && answer.state == "revoked", "{answer:?}");
    assert!(took < Duration::from_millis(6_500), "{took:?}");
    let by_command = output(handfast(directory.path(), &["revoke", &peer(OLD), "--note", "held up"]));
    let durable = by_command.status.success();
    assert!(durable || by_command.status.code() == Some(9), "{by_command:?}");
    // Nothing changes by asking again; each answer waits for the disk, up to five seconds.
    let mut again = || client.change::<RevokeReply>("revoke", &peer(OLD), "held up").unwrap().durable;
    assert!(durable || (0..4).any(|_| again()), "it does not catch up");
    let caught_up = clock.now().0;
    assert_eq!(client.status().health, "ok");
    drop(tracer);
    node.kill();
    directory.judge_old("held up");
    println!(
        "fdatasync held up by 10 s: in force after {in_force:?}, answered as not durable after {took:?}, \
         durable after {caught_up:?}; {} other answers meanwhile, the slowest after {:?}",
        answers.count, answers.slowest
    );
}

/// How long answers took.
#[derive(Default)]
struct Answers {
    count: u32,
    slowest: Duration,
}

impl Answers {
    fn time<T>(&mut self, ask: impl FnOnce() -> T) -> T {
        let clock = MonotonicClock::start();
        let answer = ask();
        let took = clock.now().0;
        assert!(took < Duration::from_secs(1), "an answer took {took:?}");
        self.count += 1;
        self.slowest = self.slowest.max(took);
        answer
    }
}

/// Every call of every kind, in turn. `part` says whether it got through without being killed. Returns the kills.
fn sweep(mut part: impl FnMut(&str, u32) -> bool) -> u32 {
    let mut kills = 0;
    for call in CALLS {
        let through = (1..=CALLS_MAX).find(|n| part(call, *n)).unwrap();
        kills += through - 1;
    }
    kills
}

/// The arguments of strace that kill whoever makes call `n` of a kind, before it is made. Threads count for themselves.
fn killing(call: &str, n: u32) -> [String; 4] {
    ["-e".into(), format!("trace={call}"), "-e".into(), format!("inject={call}:signal=KILL:when={n}")]
}

fn killed_at(call: &str, n: u32, directory: &Path, arguments: &[&str]) -> Command {
    let killing = killing(call, n);
    let before: Vec<&str> =
        ["-f", "-qqq", "-o", "/dev/null"].into_iter().chain(killing.iter().map(String::as_str)).collect();
    handfast_under("strace", &before, directory, arguments)
}

/// Has a node grant, and go on until a checkpoint if one is wanted, while its drainer's calls count.
fn drain_until_killed(template: &Path, call: &str, n: u32, checkpoint: bool) -> bool {
    let directory = Copied::of(template);
    let node = Node::start(directory.path());
    let killing = killing(call, n);
    let tracer = Tracer::attach(node.drainer(), &killing.each_ref().map(String::as_str));
    let mut told = None;
    let mut client = node.client();
    for round in 0..64 {
        let note = format!("{round} {}", "x".repeat(200));
        match client.change::<TrustReply>("trust", &peer(NEW), &note) {
            Ok(reply) if reply.durable => told = Some(note),
            Ok(reply) => panic!("{call} {n}: {reply:?}"),
            Err(_) => break,
        }
        if !checkpoint || is_compacted(&mut client) {
            break;
        }
    }
    let stopped = node.stop();
    drop(tracer);
    directory.judge(told.as_deref(), &format!("{call} {n}"));
    stopped.success()
}

/// Also if the node has died.
fn is_compacted(client: &mut Client) -> bool {
    client
        .try_get::<handfast::control::api::StatusReply>("/v1/status")
        .map_or(true, |status| status.storage.checkpoints > 0)
}

/// strace, attached to one thread. Dropping it lets go.
pub(crate) struct Tracer(Child);

impl Tracer {
    pub(crate) fn attach(thread: u32, rules: &[&str]) -> Self {
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null"]).args(rules).arg("-p").arg(thread.to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "{line}");
        // What else it says is read to its end, so that it never waits for a reader.
        std::thread::spawn(move || stderr.read_to_end(&mut Vec::new()));
        Self(child)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It detaches when asked to end; where its thread is gone, it has ended.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// A directory of a node that stopped in order, with a grant to peer `OLD` that was revoked; its log at least so long.
fn template(log_bytes: u64) -> tempfile::TempDir {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("data");
    let _: InitReply = reply(&directory, &["init"]);
    let node = Node::start(&directory);
    let mut client = node.client();
    let mut round = 0_u32;
    loop {
        let what = if round.is_multiple_of(2) { "trust" } else { "revoke" };
        let note = format!("old {round} {}", "x".repeat(200));
        assert!(client.change::<TrustReply>(what, &peer(OLD), &note).unwrap().durable);
        round += 1;
        let is_long = round.is_multiple_of(64) || log_bytes == 0;
        if is_long && client.status().storage.bytes_written + 64 * 1_500 >= log_bytes {
            break;
        }
    }
    while client.status().storage.bytes_written < log_bytes {
        client.change::<TrustReply>("trust", &peer(OLD), &format!("more {round}")).unwrap();
        round += 1;
    }
    assert_eq!(client.status().storage.checkpoints, 0);
    assert!(client.change::<RevokeReply>("revoke", &peer(OLD), "old").unwrap().durable);
    assert!(node.stop().success());
    outer
}

/// A copy of a template's files.
struct Copied {
    _outer: tempfile::TempDir,
    directory: PathBuf,
}

impl Copied {
    fn of(template: &Path) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("data");
        crate::machine::tool("cp", ["-a".as_ref(), template.join("data").as_os_str(), directory.as_os_str()]);
        Self { _outer: outer, directory }
    }

    fn path(&self) -> &Path {
        &self.directory
    }

    /// What was acknowledged is there: the old revoke, and the new grant at this note or a later one. And the
    /// directory takes changes.
    fn judge(&self, told: Option<&str>, at: &str) {
        self.judge_old("old");
        let found = edges(reply::<PeersReply>(&self.directory, &["peers"]));
        let found = found.get(&peer(NEW));
        let round = |note: &str| note.split(' ').next().and_then(|round| round.parse::<u32>().ok()).unwrap_or(0);
        if let Some(told) = told {
            let there = found.unwrap_or_else(|| panic!("LOST: {at}: {told}"));
            assert!(there.kind == "grant" && round(&there.note) >= round(told), "LOST: {at}: {told}, found {there:?}");
        }
        let again: TrustReply = reply(&self.directory, &["trust", &peer(NEW), "--note", "again"]);
        assert!(again.durable, "{at}");
    }

    fn judge_old(&self, note: &str) {
        check_files(&self.directory);
        let found = edges(reply::<PeersReply>(&self.directory, &["peers"]));
        let old = found.get(&peer(OLD)).unwrap();
        assert_eq!((old.kind, old.note.as_str()), ("revoke", note), "LOST");
    }
}
