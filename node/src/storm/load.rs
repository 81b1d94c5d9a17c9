//! The load: operations in a closed or an open loop, each carried out by simulated peers.
//!
//! Closed loop: so many workers, each begins the next operation when its last one has ended. Open loop: operations
//! begin when a Poisson process says, whatever became of earlier ones, and latency counts from the *intended* start: an
//! answer that comes late is not excused by a generator that waited for it.
//!
//! Hostile kinds run beside the loop, so that a connection that hangs does not slow the honest ones down. What a crowd
//! does runs on threads of its own with a lower priority ([`CROWD_NICENESS`]): a generator on the node's own machine is
//! not to take the processors that the node needs, nor those of the peers whose latency is measured beside the crowd.
//!
//! Invariants (BOUND): in an open loop as many operations of the crowd as the plan says, and as many others at once, and
//! [`BESIDE_MAX`] hostile ones; an arrival that finds no place is not sent, which is counted as a failure. Every
//! conversation has a deadline, so the load ends when its time is over and the last deadline with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handfast_protocol::Kind as Statement;
use handfast_protocol::exchange::Disposition;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::arrivals::Arrivals;
use super::cut::cut;
use super::hostile;
use super::kind::{Kind, Mix};
use super::measure::Tally;
use super::peer::{Conversed, Fault, Peer, Target};
use super::peers::Peers;
use super::plan::{PEERS_MAX, Plan};
use super::spoof::Spoofers;
use super::watch::Socket;
use crate::control::api::ApiError;
use crate::transport::Callers;

/// How far the crowd's threads stand back (nice(2)).
pub const CROWD_NICENESS: i32 = 10;
/// Hostile operations at once.
const BESIDE_MAX: usize = 16_384;
/// What one storm shares.
pub struct Load {
    pub plan: Plan,
    pub mix: Mix,
    pub target: Target,
    pub callers: Callers,
    /// The same for the crowd, on its threads.
    pub crowd: Callers,
    threads: Threads,
    /// The own node's control socket.
    pub control: Option<Socket>,
    pub spoofers: Option<Spoofers>,
    pub mute: hostile::MuteCallers,
    pub tally: Mutex<Tally>,
    /// When the load began; set once, before the first operation.
    began: Mutex<Option<Instant>>,
    pub peers: Peers,
    next_operation: AtomicU64,
    in_flight: [AtomicU64; 2],
    beside: Arc<Semaphore>,
    stopped: AtomicBool,
    stop: Notify,
}

/// Where operations run.
#[derive(Clone)]
pub struct Threads {
    pub calm: Handle,
    pub crowd: Handle,
}

impl Threads {
    fn of(&self, kind: Kind) -> &Handle {
        if kind.is_crowd() { &self.crowd } else { &self.calm }
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it are counters and lists: usable after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// A load that has not begun.
    ///
    /// # Errors
    /// As [`Tally::new`].
    pub fn new(
        plan: Plan,
        target: Target,
        threads: Threads,
        (callers, crowd): (Callers, Callers),
        mute: hostile::MuteCallers,
        control: Option<Socket>,
    ) -> Result<Load, ApiError> {
        let mut tally = Tally::new()?;
        tally.open = plan.rate.and(plan.duration_ms).map(Duration::from_millis);
        Ok(Load {
            mix: plan.mix(),
            target,
            callers,
            crowd,
            threads,
            control,
            spoofers: None,
            mute,
            tally: Mutex::new(tally),
            peers: Peers::new(&plan),
            plan,
            began: Mutex::default(),
            next_operation: AtomicU64::new(0),
            in_flight: Default::default(),
            beside: Arc::new(Semaphore::new(BESIDE_MAX)),
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
        })
    }

    /// Ends the load early: no operation begins any more.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.stop.notify_waiters();
    }

    /// True once no operation begins any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Returns when [`Load::stop`] was called.
    pub async fn until_stopped(&self) {
        let stopped = self.stop.notified();
        if !self.is_stopped() {
            stopped.await;
        }
    }

    /// Time since the load began; zero before.
    pub fn elapsed(&self) -> Duration {
        locked(&self.began).map(|began| began.elapsed()).unwrap_or_default()
    }

    /// Honest operations that have begun and not ended.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// True when it has ended because it was as long as any may be.
    pub fn is_full(&self) -> bool {
        self.plan.peers.is_none() && self.next_operation.load(Ordering::Relaxed) > PEERS_MAX
    }

    /// Operations that are to come, where that is known.
    pub fn operations(&self) -> Option<u64> {
        self.plan.peers
    }

    /// Runs all operations. Returns when the last has ended, or has been given up at its deadline.
    pub async fn run(self: &Arc<Load>) {
        let began = Instant::now();
        *locked(&self.began) = Some(began);
        let end = self.plan.duration_ms.map(|ms| began + Duration::from_millis(ms));
        let all = async {
            match self.plan.rate {
                Some(rate) => self.open_loop(began, rate).await,
                None => self.closed_loop(began).await,
            }
        };
        let timer = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
            self.stop();
        };
        let idles = self.mix.weight(Kind::Idle) > 0 && end.is_some();
        let all = async {
            all.await;
            // Sessions that idle are held as long as was asked for.
            if idles {
                self.until_stopped().await;
            }
            self.stop();
        };
        tokio::join!(all, async {
            tokio::select! {
                () = timer => {}
                () = self.until_stopped() => {}
            }
        });
        // Hostile operations end by their own deadlines.
        let _ = self.beside.acquire_many(u32::try_from(BESIDE_MAX).unwrap_or(u32::MAX)).await;
    }

    /// The next operation's number; `None` when there is none.
    fn begin(&self) -> Option<u64> {
        if self.is_stopped() {
            return None;
        }
        let number = self.next_operation.fetch_add(1, Ordering::Relaxed);
        if self.plan.peers.unwrap_or(PEERS_MAX) > number { Some(number) } else { None }
    }

    async fn closed_loop(self: &Arc<Load>, began: Instant) {
        let workers_wanted = self.plan.concurrency.unwrap_or(1);
        let ramp = Duration::from_millis(self.plan.ramp_ms);
        let mut workers = JoinSet::new();
        for worker in 0..workers_wanted {
            let load = self.clone();
            let work = async move {
                tokio::select! {
                    () = sleep_until(began + ramp * worker / workers_wanted) => {}
                    () = load.until_stopped() => return,
                }
                while let Some(number) = load.begin() {
                    let kind = load.mix.at(load.plan.seed, number);
                    let operation = load.clone().operate(kind, number, Instant::now());
                    if kind.is_crowd() {
                        operation.await;
                    } else {
                        // A panic in it has been told, and its operation never ends.
                        let _ = load.threads.calm.spawn(operation).await;
                    }
                }
            };
            workers.spawn_on(work, &self.threads.crowd);
        }
        while workers.join_next().await.is_some() {}
    }

    async fn open_loop(self: &Arc<Load>, began: Instant, rate: f64) {
        let arrivals = Arrivals::new(self.plan.seed, rate, Duration::from_millis(self.plan.ramp_ms));
        let mut running = JoinSet::new();
        for offset in arrivals {
            let intended = began + offset;
            tokio::select! {
                () = sleep_until(intended) => {}
                () = self.until_stopped() => break,
            }
            let Some(number) = self.begin() else { break };
            while running.try_join_next().is_some() {}
            let kind = self.mix.at(self.plan.seed, number);
            if kind == Kind::Spoofed {
                self.spoof(kind, number);
                continue;
            }
            if self.counter(kind).load(Ordering::Relaxed) >= u64::from(self.plan.in_flight) {
                self.failed(kind, Fault::NotSent);
                continue;
            }
            running.spawn_on(self.clone().operate(kind, number, intended), self.threads.of(kind));
        }
        while running.join_next().await.is_some() {}
    }

    fn counter(&self, kind: Kind) -> &AtomicU64 {
        &self.in_flight[usize::from(kind.is_crowd())]
    }

    fn callers(&self, kind: Kind) -> &Callers {
        if kind.is_crowd() { &self.crowd } else { &self.callers }
    }

    fn spoof(&self, kind: Kind, number: u64) {
        match &self.spoofers {
            Some(spoofers) => {
                spoofers.send(number, self.target.at);
                self.completed(kind, Instant::now());
            }
            None => self.failed(kind, Fault::NotSent),
        }
    }

    /// One operation; `intended` is when it was to begin.
    async fn operate(self: Arc<Load>, kind: Kind, number: u64, intended: Instant) {
        match kind {
            Kind::Idle => return self.idle().await,
            Kind::Spoofed => return self.spoof(kind, number),
            Kind::Cut => {
                let _counted = InFlight::new(self.counter(kind));
                return cut(&self).await;
            }
            _ if !kind.is_honest() => return self.beside(kind, number).await,
            _ => {}
        }
        let _counted = InFlight::new(self.counter(kind));
        match kind {
            Kind::Known | Kind::Revoke => match self.take_friend(intended).await {
                Some(Ok((peer, began))) => self.friend(kind, peer, began).await,
                Some(Err(fault)) => self.failed(kind, fault),
                None => self.stop(),
            },
            Kind::Again => self.again(intended).await,
            Kind::Pending => {
                let mut peer = self.peers.new_stranger();
                peer.memory.may_be_forgotten = true;
                let says = Some(Statement::Grant);
                // What became of it is counted.
                let _ = self.conversation(kind, &mut peer, says, Disposition::Pending, intended).await;
                self.peers.put_aside(peer);
            }
            _ => match self.peers.new_friend() {
                Some(peer) => self.newcomer(kind, peer, intended).await,
                None => self.stop(),
            },
        }
    }

    async fn newcomer(&self, kind: Kind, mut peer: Peer, intended: Instant) {
        let grant = (Statement::Grant, Disposition::Granted);
        let revoke = (Statement::Revoke, Disposition::Noted);
        let steps = if kind == Kind::Flap { vec![grant, revoke, grant] } else { vec![grant] };
        let mut began = intended;
        for (says, due) in steps {
            if self.conversation(kind, &mut peer, Some(says), due, began).await.is_err() {
                return self.peers.put_aside(peer);
            }
            began = Instant::now();
        }
        self.peers.give_back(peer);
    }

    async fn friend(&self, kind: Kind, mut peer: Peer, intended: Instant) {
        let (says, due) = match kind {
            Kind::Revoke => (Some(Statement::Revoke), Disposition::Noted),
            _ => (None, Disposition::Granted),
        };
        match self.conversation(kind, &mut peer, says, due, intended).await {
            _ if kind == Kind::Revoke => self.peers.retire(peer),
            // The node does not trust it any more.
            Err(Fault::Answered(_) | Fault::Contradiction) => self.peers.retire(peer),
            // Who was not heard is trusted as before, and comes again.
            Ok(()) | Err(_) => self.peers.give_back(peer),
        }
    }

    /// An exchange over a session; one that is to be made first is not part of what is measured.
    async fn again(&self, intended: Instant) {
        let (began, settled) = match self.peers.session() {
            Some(session) => (intended, Ok(session)),
            None => {
                let settled = hostile::settle_down(self).await;
                (Instant::now(), settled)
            }
        };
        let (mut peer, session) = match settled {
            Ok(settled) => settled,
            Err(fault) => return self.failed(Kind::Again, fault),
        };
        match peer.converse_over(&session.connection, &self.target, Disposition::Granted).await {
            Ok(()) => {
                self.completed(Kind::Again, began);
                self.peers.keep_session(peer, session);
            }
            Err(fault) => {
                self.failed(Kind::Again, fault);
                session.close();
                self.peers.retire(peer);
            }
        }
    }

    /// One conversation, counted.
    async fn conversation(
        &self,
        kind: Kind,
        peer: &mut Peer,
        says: Option<Statement>,
        due: Disposition,
        began: Instant,
    ) -> Result<(), Fault> {
        match peer.converse(self.callers(kind), &self.target, says, due).await {
            Ok(conversed) => {
                self.completed(kind, began);
                conversed.close();
                Ok(())
            }
            Err(fault) => {
                self.failed(kind, fault);
                Err(fault)
            }
        }
    }

    pub(super) fn completed(&self, kind: Kind, began: Instant) {
        let (at, latency) = (self.elapsed(), began.elapsed());
        locked(&self.tally).completed(kind, at, latency);
    }

    pub(super) fn failed(&self, kind: Kind, fault: Fault) {
        let at = self.elapsed();
        let mut tally = locked(&self.tally);
        tally.failed(kind, at, &fault.to_string());
        tally.not_sent += u64::from(fault == Fault::NotSent);
    }

    pub(super) fn hung(&self, stage: &'static str, heard: Option<Duration>) {
        locked(&self.tally).hung(stage, heard);
    }

    /// A revocation that was durable after one time, of a session that served for another.
    pub(super) fn cut(&self, durable_after: Duration, serves_for: Duration) {
        let at = self.elapsed();
        let mut tally = locked(&self.tally);
        tally.completed(Kind::Cut, at, durable_after);
        tally.serving.saturating_record(u64::try_from(serves_for.as_micros()).unwrap_or(u64::MAX));
    }

    /// A session that idles: made within the loop, so that no more are made at once than was asked for; kept beside it.
    async fn idle(self: Arc<Load>) {
        let Ok(place) = self.beside.clone().acquire_owned().await else { return };
        match hostile::settle_down(&self).await {
            Ok((peer, conversed)) => {
                let load = self.clone();
                tokio::spawn(async move {
                    hostile::idle(&load, peer, conversed).await;
                    drop(place);
                });
            }
            Err(fault) => self.failed(Kind::Idle, fault),
        }
    }

    /// A hostile operation, beside the loop. A closed loop waits for a place.
    async fn beside(self: Arc<Load>, kind: Kind, number: u64) {
        let place = match self.plan.rate {
            Some(_) => self.beside.clone().try_acquire_owned().ok(),
            None => self.beside.clone().acquire_owned().await.ok(),
        };
        let Some(place) = place else { return self.failed(kind, Fault::NotSent) };
        let load = self.clone();
        tokio::spawn(async move {
            hostile::operate(&load, kind, number).await;
            drop(place);
        });
    }

    /// Makes a new peer trusted, without counting it.
    pub(super) async fn befriend(&self) -> Option<Result<Peer, Fault>> {
        let mut peer = self.peers.new_friend()?;
        Some(match self.befriended(&mut peer).await {
            Ok(conversed) => {
                conversed.close();
                Ok(peer)
            }
            Err(fault) => {
                self.peers.put_aside(peer);
                Err(fault)
            }
        })
    }

    pub(super) async fn befriended(&self, peer: &mut Peer) -> Result<Conversed, Fault> {
        peer.converse(&self.callers, &self.target, Some(Statement::Grant), Disposition::Granted).await
    }

    /// A trusted peer, and when its operation began. Where none is left a closed loop makes one, which is not part of
    /// what is measured; the arrivals of an open one have no time for it.
    async fn take_friend(&self, intended: Instant) -> Option<Result<(Peer, Instant), Fault>> {
        match self.peers.trusted() {
            Some(peer) => Some(Ok((peer, intended))),
            None if self.plan.rate.is_some() => Some(Err(Fault::NotSent)),
            None => Some(self.befriend().await?.map(|peer| (peer, Instant::now()))),
        }
    }
}

/// Counts an operation while it runs, however it ends.
pub(super) struct InFlight<'a>(&'a AtomicU64);

impl InFlight<'_> {
    fn new(count: &AtomicU64) -> InFlight<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
