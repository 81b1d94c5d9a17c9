//! Power cuts under a node at work: a stream of grants and revokes over eight connections, the file system shut down at
//! a drawn moment, the node killed, the file system mounted again, the files checked, a node started on them.
//!
//! A third of the cuts waits for a checkpoint to begin, a tenth for the floor file to be written; the others come after
//! a drawn number of acknowledgements. One directory lives through all cuts of a file system, so that what the last
//! recovery left is what the next cut meets.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use handfast::clock::MonotonicClock;
use handfast::control::api::{InitReply, TrustReply};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::ledger::{Answer, Change, Counts, Found, Ledger, Said, edges};
use crate::machine::{Cutter, FileSystem, Image, Mount, Need, can_run};
use crate::program::{Client, Node, check_files, handfast, output, peer, reply};
use crate::traced::Tracer;
use crate::{alone, setting};

const WRITERS: u64 = 8;
const PEERS_PER_WRITER: u64 = 48;
/// Acknowledgements after which a cut comes that waited for something in vain: more than lie between two checkpoints.
const ACKNOWLEDGEMENTS_MAX: u64 = 48_000;
/// About as long as an init takes once it has begun, and a little longer.
const INIT_US_MAX: u64 = 6_000;
const QUIET_MAX: Duration = Duration::from_secs(20);
/// In all: 30 for each file system.
const CUTS_DEFAULT: u64 = 90;

#[test]
#[ignore = "needs root: .ci/root"]
fn a_power_cut_of_ext4_takes_nothing_that_was_acknowledged() {
    cut_again_and_again(FileSystem::EXT4, 0);
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_power_cut_of_ext4_without_auto_allocation_takes_nothing_that_was_acknowledged() {
    cut_again_and_again(FileSystem::EXT4_NO_AUTO_ALLOC, 1);
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_power_cut_of_xfs_takes_nothing_that_was_acknowledged() {
    cut_again_and_again(FileSystem::XFS, 2);
}

#[test]
#[ignore = "needs root: .ci/root"]
fn a_power_cut_during_init_leaves_what_init_finishes() {
    for file_system in [FileSystem::EXT4, FileSystem::EXT4_NO_AUTO_ALLOC, FileSystem::XFS] {
        cut_init(file_system);
    }
}

/// What this suite is worth: syncs that do nothing are noticed.
#[test]
#[ignore = "needs root: .ci/root"]
fn a_node_whose_syncs_do_nothing_is_caught() {
    let _alone = alone();
    let file_system = FileSystem::EXT4;
    let needs = file_system.needs();
    if !can_run("a node whose syncs do nothing", &[needs[0], needs[1], needs[2], Need::Tracing]) {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path().join("mnt");
    let image = Image::make(scratch.path().join("image"), file_system);
    let mount = image.mount(&at);
    let directory = at.join("data");
    let _: InitReply = reply(&directory, &["init"]);
    let node = Node::start(&directory);
    let rules = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:retval=0"];
    let tracer = Tracer::attach(node.drainer(), &rules);
    let plan = Plan { moment: Moment::After(100), then: Duration::ZERO, linger: Duration::ZERO };
    let mut rng = StdRng::seed_from_u64(1);
    let mut ledger = Ledger::default();
    let changes = work_until_cut(&node, &mount, &directory, plan, (&ledger, &mut rng, 0));
    node.kill();
    drop(tracer);
    mount.unmount();
    let mount = image.mount(&at);
    let node = Node::start(&directory);
    let judged = ledger.judge(&changes, found(&node));
    println!("syncs that do nothing: {judged:?}");
    assert!(judged.is_err_and(|why| why.starts_with("LOST")), "nobody noticed");
    drop(node);
    mount.unmount();
}

fn found(node: &Node) -> Found {
    let mut client = node.client();
    Found { revision: client.status().revision, edges: edges(client.peers()) }
}

/// When to cut.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After so many acknowledgements.
    After(u64),
    /// When this file is there.
    Sees(&'static str),
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    moment: Moment,
    /// How long after that.
    then: Duration,
    /// How long the node goes on on the dead file system.
    linger: Duration,
}

impl Plan {
    fn draw(rng: &mut StdRng) -> Self {
        let moment = match rng.random_range(0..30) {
            0..10 => Moment::Sees("trust.hf.tmp"),
            10..13 => Moment::Sees("floor.tmp"),
            _ => Moment::After(rng.random_range(0..600)),
        };
        let then = Duration::from_micros(rng.random_range(0..3_000));
        let linger = Duration::from_millis(if rng.random_bool(0.1) { 1_000 } else { rng.random_range(0..20) });
        Self { moment, then, linger }
    }
}

#[derive(Debug, Default)]
struct Report {
    cuts: u64,
    counts: Counts,
    /// Cuts that left a checkpoint unfinished, an unfinished floor, a torn tail.
    checkpoints: u64,
    floors: u64,
    torn: u64,
}

fn cut_again_and_again(file_system: FileSystem, salt: u64) {
    let _alone = alone();
    let suite = format!("power cuts of {}", file_system.name);
    if !can_run(&suite, &file_system.needs()) {
        return;
    }
    let cuts = setting("HANDFAST_ROOT_CUTS", CUTS_DEFAULT).div_ceil(3);
    let seed = setting("HANDFAST_ROOT_SEED", 1);
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path().join("mnt");
    let image = Image::make(scratch.path().join("image"), file_system);
    let mut mount = image.mount(&at);
    let directory = at.join("data");
    let _: InitReply = reply(&directory, &["init"]);
    let mut node = Node::start(&directory);
    let mut rng = StdRng::seed_from_u64(seed << 8 | salt);
    let (mut ledger, mut report) = (Ledger::default(), Report::default());
    for cut in 0..cuts {
        let plan = Plan::draw(&mut rng);
        let changes = work_until_cut(&node, &mount, &directory, plan, (&ledger, &mut rng, cut));
        node.kill();
        mount.unmount();
        mount = image.mount(&at);
        report.see_leftovers(&directory);
        node = Node::start(&directory);
        match ledger.judge(&changes, found(&node)) {
            // One sync was under way, so each writer heard of one change at most.
            Ok(counts) if counts.late_missing <= WRITERS as usize => report.counts.add(counts),
            Ok(counts) => panic!("{suite}: seed {seed}, cut {cut}, {plan:?}: goes on acknowledging: {counts:?}"),
            Err(why) => panic!("{suite}: seed {seed}, cut {cut}, {plan:?}: {why}"),
        }
    }
    let stopped = node.stop();
    assert!(stopped.success(), "{stopped}");
    mount.unmount();
    println!("{suite}: seed {seed}, {report:?}, lost 0");
}

impl Report {
    /// What the cut left, before anybody mends it. The check has to find every file sound.
    fn see_leftovers(&mut self, directory: &Path) {
        self.cuts += 1;
        self.checkpoints += u64::from(directory.join("trust.hf.tmp").exists());
        self.floors += u64::from(directory.join("floor.tmp").exists());
        self.torn += u64::from(check_files(directory).files.iter().any(|row| row.torn_bytes > 0));
    }
}

/// Has the node work, cuts, and returns what it was asked and what it answered until it went silent.
fn work_until_cut(
    node: &Node,
    mount: &Mount,
    directory: &Path,
    plan: Plan,
    (ledger, rng, cut): (&Ledger, &mut StdRng, u64),
) -> Vec<Change> {
    let cutter = Cutter::at(mount);
    let (acknowledge, acknowledged) = sync_channel(4_096);
    let cutting = Arc::new(AtomicBool::new(false));
    let writers: Vec<JoinHandle<Vec<Change>>> = (0..WRITERS)
        .map(|number| {
            let known = |n: &u64| ledger.edges.contains_key(&peer(*n));
            let writer = Writer {
                client: node.client(),
                rng: StdRng::seed_from_u64(rng.random()),
                name: format!("{cut}.{number}"),
                peers: (number * PEERS_PER_WRITER..(number + 1) * PEERS_PER_WRITER)
                    .map(|n| (peer(n), known(&n)))
                    .collect(),
                acknowledge: acknowledge.clone(),
                cutting: Arc::clone(&cutting),
            };
            std::thread::spawn(move || writer.work())
        })
        .collect();
    drop(acknowledge);
    wait_for(plan, &acknowledged, directory);
    cutting.store(true, Ordering::SeqCst);
    cutter.cut();
    linger(&acknowledged, plan.linger);
    // The node ends here, and the writers with it: their connections close.
    let pid = node.pid();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
}

fn wait_for(plan: Plan, acknowledged: &Receiver<()>, directory: &Path) {
    let mut count = 0;
    let reached = |count| match plan.moment {
        Moment::After(acknowledgements) => count >= acknowledgements,
        Moment::Sees(name) => count >= ACKNOWLEDGEMENTS_MAX || directory.join(name).exists(),
    };
    while !reached(count) {
        acknowledged.recv_timeout(QUIET_MAX).unwrap();
        count += 1;
    }
    let clock = MonotonicClock::start();
    while clock.now().0 < plan.then {
        std::hint::spin_loop();
    }
}

/// Time passes; the node may answer what it likes meanwhile.
fn linger(acknowledged: &Receiver<()>, time: Duration) {
    let clock = MonotonicClock::start();
    while let Some(left) = time.checked_sub(clock.now().0) {
        if acknowledged.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// Asks for one change after the other, of peers that are its own.
struct Writer {
    client: Client,
    rng: StdRng,
    name: String,
    /// And whether the node knows them.
    peers: Vec<(String, bool)>,
    acknowledge: SyncSender<()>,
    cutting: Arc<AtomicBool>,
}

impl Writer {
    /// Until the node is gone, or says that it cannot.
    fn work(mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            let place = self.rng.random_range(0..self.peers.len());
            let (peer, known) = self.peers[place].clone();
            let (what, kind) =
                if known && self.rng.random_bool(0.5) { ("revoke", "revoke") } else { ("trust", "grant") };
            let padding = "x".repeat(self.rng.random_range(0..200));
            let note = format!("{}.{} {padding}", self.name, changes.len()).trim_end().to_owned();
            let answer = self.client.change::<TrustReply>(what, &peer, &note);
            // After the answer was read: what is not late by now came before the cut.
            let late = self.cutting.load(Ordering::SeqCst);
            let answer = answer.ok().map(|reply| Answer { revision: reply.revision, durable: reply.durable, late });
            self.peers[place].1 = true;
            changes.push(Change { peer, said: Said { kind, note }, answer });
            if !answer.is_some_and(|answer| answer.durable) {
                return changes;
            }
            // Nobody has to count them all.
            let _ = self.acknowledge.try_send(());
        }
    }
}

fn cut_init(file_system: FileSystem) {
    let _alone = alone();
    let suite = format!("power cuts of {} during init", file_system.name);
    if !can_run(&suite, &file_system.needs()) {
        return;
    }
    let cuts = setting("HANDFAST_ROOT_CUTS", CUTS_DEFAULT).div_ceil(9);
    let seed = setting("HANDFAST_ROOT_SEED", 1);
    let mut rng = StdRng::seed_from_u64(seed);
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path().join("mnt");
    let image = Image::make(scratch.path().join("image"), file_system);
    let (mut told, mut half_made) = (0, 0);
    for cut in 0..cuts {
        let mount = image.mount(&at);
        let directory = at.join(format!("data-{cut}"));
        let cutter = Cutter::at(&mount);
        let mut command = handfast(&directory, &["init"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        while !directory.exists() && child.try_wait().unwrap().is_none() {}
        let clock = MonotonicClock::start();
        let moment = Duration::from_micros(rng.random_range(0..INIT_US_MAX));
        while clock.now().0 < moment {
            std::hint::spin_loop();
        }
        cutter.cut();
        let first = child.wait_with_output().unwrap();
        mount.unmount();
        let mount = image.mount(&at);
        let has_identity = directory.join("identity.pem").exists();
        half_made += u64::from(directory.exists() && !has_identity);
        let made: InitReply = reply(&directory, &["init"]);
        assert_eq!(made.created, !has_identity, "seed {seed}, cut {cut}");
        if first.status.success() {
            told += 1;
            let first: InitReply = serde_json::from_slice(&first.stdout).unwrap();
            assert_eq!(first.peer_id, made.peer_id, "LOST: seed {seed}, cut {cut}");
        }
        check_files(&directory);
        let listed = output(handfast(&directory, &["peers"]));
        assert!(listed.status.success(), "{listed:?}");
        mount.unmount();
    }
    println!("{suite}: seed {seed}, {cuts} cuts, {told} after it was done, {half_made} in the middle, lost 0");
}
