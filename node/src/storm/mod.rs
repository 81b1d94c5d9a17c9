//! The load harness: thousands of simulated peers against one node, and the truth about what it promised them.
//!
//! ```text
//! kind, arrivals   what is done and when: pure, from a seed      peer, hostile, mute   who does it
//! plan             flags over a scenario over defaults           load                  closed and open loop
//! peers            those that nobody is using now                prepare               what is there before the load
//! own_node         another process on a directory of its own     watch, lateness       progress, heartbeat
//! ledger           promised and held, compared: pure             report, page          what is said of it
//! interrupt        the operator's signals
//! ```
//!
//! Invariants: load goes to loopback unless the user names a target; every run is bounded in time and count. What the
//! report calls durable was found in the records, after the node's own process was killed.
//!
//! Not here: the node. A storm's own node is the same program in another process.

pub mod arrivals;
mod chart;
mod cut;
pub mod hostile;
mod interrupt;
pub mod kind;
mod lateness;
pub mod ledger;
pub mod load;
pub mod measure;
pub mod mute;
pub mod own_node;
pub mod page;
pub mod peer;
mod peers;
pub mod plan;
mod prepare;
pub mod report;
pub mod slow_medium;
pub mod spoof;
mod truth;
mod vanish;
pub mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use handfast_protocol::CloseCode;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use self::hostile::MuteCallers;
use self::interrupt::Interrupts;
use self::kind::Kind;
use self::load::{Load, Threads, locked};
use self::own_node::{OwnNode, cpu_us};
use self::peer::Target;
use self::plan::Plan;
use self::report::{Detail, Remains, Report};
use self::spoof::Spoofers;
use self::watch::{Progress, Socket, Watch};
use crate::config::Config;
use crate::control::api::{ApiError, ErrorCode};
use crate::output::Output;
use crate::transport::{Callers, stand_back};

/// How long a node may take to notice that everybody has gone: its keep-alive of 10 s begins an idle time of 30 s anew.
const SETTLE_PATIENCE: Duration = Duration::from_secs(50);
/// Between two looks at whether it has.
const SETTLE_EVERY: Duration = Duration::from_millis(100);
/// When the disk begins to hang, where it is to.
const HANG_AFTER: Duration = Duration::from_secs(3);
/// Different first packets that prove nothing.
const SPOOFED_PACKETS: usize = 1_024;
/// How long the end of the load may take beyond its own deadlines.
const END_PATIENCE: Duration = Duration::from_secs(60);

/// Runs a storm against `target`, or against a node of its own.
///
/// # Errors
/// If the node cannot be started, nothing can be sent, or the operator insists on the end.
pub fn run(
    plan: &Plan,
    target: Option<Target>,
    progress: Progress,
    output: Output,
) -> Result<(Report, Detail), ApiError> {
    let runtime = |name: &str, start: fn()| {
        let built = Builder::new_multi_thread().thread_name(name).on_thread_start(start).enable_all().build();
        built.map_err(|error| ApiError::new(ErrorCode::Failure, format!("The runtime cannot start: {error}.")))
    };
    let (calm, crowd) = (runtime("storm", || {})?, runtime("crowd", || stand_back(load::CROWD_NICENESS))?);
    let threads = Threads { calm: calm.handle().clone(), crowd: crowd.handle().clone() };
    let interrupts = {
        let _inside = calm.enter();
        Interrupts::listen()
    };
    let interrupts = interrupts
        .map_err(|error| ApiError::new(ErrorCode::Failure, format!("Signals cannot be listened to: {error}.")))?;
    let own = match target {
        Some(_) => None,
        None => Some(OwnNode::start(plan)?),
    };
    let first = Arc::new(Notify::new());
    let outcome = calm.block_on(async {
        // Dropped in the middle, it takes its node and the directory with it.
        tokio::select! {
            outcome = Box::pin(storm(plan, target, own, threads, (progress, output), first.clone())) => outcome,
            () = interrupts.second(&first, output) => {
                Err(ApiError::new(ErrorCode::Failure, "Ended at once by a second interrupt.")
                    .hint("the first one ends the load and goes on to the report"))
            }
        }
    });
    crowd.shutdown_timeout(Duration::from_secs(1));
    calm.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn storm(
    plan: &Plan,
    target: Option<Target>,
    mut own: Option<OwnNode>,
    threads: Threads,
    (progress, output): (Progress, Output),
    interrupt: Arc<Notify>,
) -> Result<(Report, Detail), ApiError> {
    let target = own.as_ref().map(|own| own.target).or(target);
    let target = target.ok_or_else(|| ApiError::new(ErrorCode::Usage, "There is no node to send to."))?;
    introduce(plan, &target, own.as_ref(), output);
    let socket = own.as_ref().map(|own| Socket {
        control: own.control.clone(),
        data_dir: own.data_dir(),
        process: own.process.clone(),
    });
    let mut load = load_for(plan, target, threads, socket.clone())?;
    load.spoofers = spoofers(&load).await?;
    let load = Arc::new(load);
    let interrupted = tokio::spawn({
        let load = load.clone();
        async move {
            interrupt.notified().await;
            load.stop();
        }
    });
    prepare::prepare(&load, output).await;
    let used = |own: Option<&OwnNode>| own.map(|own| own.cpu_us() + cpu_us("self").unwrap_or_default());
    let before = used(own.as_ref());
    let watch = Watch::begin(load.clone(), socket.clone(), progress)?;
    let hangs = own.as_ref().filter(|_| plan.fsync_hang_ms > 0).map(|own| tokio::spawn(hang(load.clone(), own.gate())));
    let ended = run_load(&load, &mut own).await;
    let mut seen = watch.end();
    if load.is_full() {
        output.aside(&format!("The load ended before its time: it had begun {} operations.", plan::PEERS_MAX));
    }
    if let (Some(hangs), Some(seen)) = (hangs, &mut seen) {
        seen.hang_ended = hangs.await.ok().flatten();
    }
    let cpu = used(own.as_ref()).zip(before).map(|(after, before)| after.saturating_sub(before));
    let seen = seen.filter(|_| own.is_some());
    let starts = own.as_ref().map_or(0, |own| own.starts);
    let in_flight = load.in_flight();
    for callers in [&load.callers, &load.crowd] {
        callers.close(CloseCode::Stopping);
        // Whoever is not told notices it by silence.
        let _ = timeout(Duration::from_secs(3), callers.wait_idle()).await;
    }
    let mut remains = Remains { operations: if ended { 0 } else { in_flight.max(1) }, ..Remains::default() };
    let memories = load.peers.memories();
    let (truth, checked) = match own.take() {
        Some(mut own) => {
            if let Some(socket) = &socket {
                settle(socket, &mut own, &mut remains).await?;
                tokio::time::sleep(Duration::from_millis(plan.linger_ms)).await;
                remains.memory = socket.resident_bytes().unwrap_or_default();
            }
            own.kill();
            let truth = truth::of_own_node(&own, &memories).await?;
            (truth, "after kill -9 and recovery".to_owned())
        }
        None => {
            let asked = truth::of_remote(plan, target, &memories).await?;
            remains.unanswered = asked.unanswered;
            (asked.truth, asked.checked)
        }
    };
    interrupted.abort();
    let tally = locked(&load.tally);
    let report = Report::of(plan, &tally, truth, remains, seen.as_ref(), cpu);
    Ok((report, Detail::of(&tally, seen.as_ref(), starts, checked)))
}

fn introduce(plan: &Plan, target: &Target, own: Option<&OwnNode>, output: Output) {
    let shape = match (plan.rate, plan.concurrency) {
        (Some(rate), _) => format!("open loop, {rate} a second"),
        (None, Some(workers)) => format!("closed loop, {workers} at once"),
        (None, None) => String::new(),
    };
    let much = match (plan.peers, plan.duration_ms) {
        (Some(peers), Some(ms)) => format!("up to {peers} operations in {} s", ms as f64 / 1_000.0),
        (Some(peers), None) => format!("{peers} operations"),
        (None, ms) => format!("{} s", ms.unwrap_or_default() as f64 / 1_000.0),
    };
    let whom = match own {
        Some(own) => {
            let memory = if own.is_on_disk() { "" } else { " (in memory: a sync costs nothing there)" };
            let limits = if plan.default_limits {
                "its limits as they are by default"
            } else {
                "its limits on sources raised, because all peers come from this machine"
            };
            format!("a node of its own in {}{memory}, {limits}", own.base().display())
        }
        None => format!("{} at {}", target.peer.short(), target.at),
    };
    output.aside(&format!("Storm: {much}, {shape}, {}; against {whom}. Seed {}.", plan.mix, plan.seed));
}

/// Lets the disk hang once, unless the load is over before. Returns when that was over, in milliseconds from the start
/// of the load.
async fn hang(load: Arc<Load>, gate: PathBuf) -> Option<u64> {
    timeout(HANG_AFTER, load.until_stopped()).await.err()?;
    std::fs::File::create_new(&gate).ok()?;
    tokio::time::sleep(Duration::from_millis(load.plan.fsync_hang_ms)).await;
    std::fs::remove_file(&gate).ok()?;
    u64::try_from(load.elapsed().as_millis()).ok()
}

/// Where the mix has first packets that prove nothing.
async fn spoofers(load: &Load) -> Result<Option<Spoofers>, ApiError> {
    if load.mix.weight(Kind::Spoofed) == 0 {
        return Ok(None);
    }
    let failed = |error: std::io::Error| {
        ApiError::new(ErrorCode::Failure, format!("First packets cannot be recorded: {error}."))
    };
    let packets = spoof::record(&load.callers, &load.target.peer, SPOOFED_PACKETS).await.map_err(failed)?;
    Spoofers::new(packets, &load.plan.crowd_addresses(load.target.at)).map(Some).map_err(failed)
}

fn load_for(plan: &Plan, target: Target, threads: Threads, control: Option<Socket>) -> Result<Load, ApiError> {
    let from = plan.addresses(target.at);
    let settings = Config::default().transport();
    let no_socket = |error: crate::transport::TransportError| {
        ApiError::new(ErrorCode::Failure, format!("{error}.")).hint(error.hint())
    };
    let callers = Callers::bind(&from, &settings).map_err(no_socket)?;
    let from = plan.crowd_addresses(target.at);
    let few = from.get(..from.len().min(4)).unwrap_or_default();
    let (crowd, mute) = {
        let _inside = threads.crowd.enter();
        let crowd = Callers::bind(&from, &settings).map_err(no_socket)?;
        (crowd, MuteCallers::bind(few, &settings).map_err(no_socket)?)
    };
    Load::new(plan.clone(), target, threads, (callers, crowd), mute, control)
}

/// The load itself, with restarts of the own node where they were asked for. False when it did not come to its end.
async fn run_load(load: &Arc<Load>, own: &mut Option<OwnNode>) -> bool {
    let longest = load.plan.duration_ms.map_or(SETTLE_PATIENCE * 90, Duration::from_millis) + END_PATIENCE;
    let every = load.plan.churn_ms.map(Duration::from_millis);
    let churn = async {
        let (Some(own), Some(every)) = (own.as_mut(), every) else { return std::future::pending().await };
        let mut next = Instant::now() + every;
        loop {
            tokio::time::sleep_until(next).await;
            if load.is_stopped() {
                return std::future::pending().await;
            }
            // A node that does not come back shows in every operation from here on.
            let restarted = tokio::task::block_in_place(|| own.restart());
            if let Err(error) = restarted {
                tracing::error!(%error, "the node does not start again");
                load.stop();
            }
            next = Instant::now() + every;
        }
    };
    tokio::select! {
        ended = timeout(longest, load.run()) => ended.is_ok(),
        () = churn => false,
    }
}

/// Waits until the node knows that everybody has gone, at most as long as silence takes to be noticed.
async fn settle(socket: &Socket, own: &mut OwnNode, remains: &mut Remains) -> Result<(), ApiError> {
    let until = Instant::now() + SETTLE_PATIENCE;
    let mut has_answered = false;
    loop {
        match socket.status().await {
            Some(status) => {
                has_answered = true;
                remains.slots = status.counts.half_open.max(status.counts.under_way);
                remains.sessions = status.counts.sessions;
                if (remains.slots, remains.sessions) == (0, 0) {
                    return Ok(());
                }
            }
            None if !own.is_alive() => {
                return Err(ApiError::new(
                    ErrorCode::Failure,
                    format!("The node has died. It said: {}", own.log_tail()),
                ));
            }
            None => {}
        }
        if Instant::now() >= until {
            let silent = || {
                let patience = humantime::format_duration(SETTLE_PATIENCE);
                ApiError::new(ErrorCode::Failure, format!("The node lives and has not answered for {patience}."))
            };
            return if has_answered { Ok(()) } else { Err(silent()) };
        }
        tokio::time::sleep(SETTLE_EVERY).await;
    }
}
