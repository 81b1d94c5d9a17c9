//! Delivers what peers have not got yet. A trust record whose own edge is not delivered *is* the entry: there is no
//! second table that could disagree, and a restart forgets nothing.
//!
//! Tried at start, when our edge changes, when an address becomes known, and again with backoff until delivered or
//! expired. After a refusal, and where the peer knows nothing of us that our word could change, the next try is at
//! contact or after a day; a request that waits is offered again daily. A peer that is busy can ask for more patience than
//! the backoff has, up to a minute, and not for less.
//! Sessions that were lost while both ends still trust each other are dialled again in the same way, a few times.
//!
//! Invariants (BOUND): [`CONTACTS_MAX`] contacts run at once, one for each peer; a dead peer costs a capped, jittered
//! number of dials.
//!
//! Thread: one task on the data runtime.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use handfast_protocol::PeerId;
use handfast_protocol::exchange::{Agreement, Disposition};
use handfast_protocol::limits::BUSY_RETRY_AFTER_MS_MAX;
use handfast_trust::trust_record::{Side, TrustState};
use handfast_trust::{Backoff, RetryPolicy};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::Notify;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use crate::clock::unix_now;
use crate::engine::{ContactFault, Engine};

/// Contacts that run at once.
const CONTACTS_MAX: usize = 64;
/// Sessions that are opened again at start.
const RECONNECT_AT_START_MAX: usize = 256;
/// Dials for a lost session before the peer is left alone until somebody wants something of it.
const RECONNECT_TRIES_MAX: u32 = 10;
/// From one second to a quarter of an hour: about 100 dials a day to a dead peer.
const POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(1), cap: Duration::from_secs(15 * 60), deadline: None };
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Rings for a peer. Coalescing: a hundred rings for one peer are one entry.
#[derive(Clone, Default)]
pub struct OutboxBell {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    rung: Mutex<Rung>,
    notify: Notify,
}

#[derive(Default)]
struct Rung {
    deliver: HashSet<PeerId>,
    reconnect: HashSet<PeerId>,
    reopen: HashSet<PeerId>,
}

impl OutboxBell {
    /// Something is owed to `peer`, or it may be reachable now.
    pub fn ring(&self, peer: PeerId) {
        self.with(|rung| rung.deliver.insert(peer));
    }

    /// The session with `peer` was lost.
    pub fn reconnect(&self, peer: PeerId) {
        self.with(|rung| rung.reconnect.insert(peer));
    }

    /// Both ends have just agreed on a session, over a connection that was closing.
    pub fn reopen(&self, peer: PeerId) {
        self.with(|rung| rung.reopen.insert(peer));
    }

    fn with(&self, change: impl FnOnce(&mut Rung) -> bool) {
        let news = change(&mut self.shared.rung.lock().unwrap_or_else(PoisonError::into_inner));
        if news {
            self.shared.notify.notify_one();
        }
    }

    fn take(&self) -> Rung {
        std::mem::take(&mut self.shared.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One peer in the queue.
struct Entry {
    due: Instant,
    backoff: Backoff,
    /// Not only what is owed: the session is wanted.
    session: bool,
}

/// One whose contact runs.
struct InFlight {
    task: Id,
    backoff: Backoff,
    session: bool,
}

/// How a contact ended.
type Contacted = (PeerId, Result<Option<Agreement>, ContactFault>);

/// The queue. Its clock is tokio's.
struct Outbox {
    engine: Arc<Engine>,
    queue: BTreeSet<(Instant, PeerId)>,
    entries: HashMap<PeerId, Entry>,
    running: JoinSet<Contacted>,
    in_flight: HashMap<PeerId, InFlight>,
    rng: StdRng,
}

/// Runs until it is aborted; a contact that is dropped with it is owed again after the next start.
pub async fn run(engine: Arc<Engine>, rng: StdRng) {
    let bell = engine.outbox.clone();
    let mut outbox = Outbox::new(engine, rng);
    // Who was rung for before is found by looking: after both it would be tried twice.
    let rung = bell.take();
    outbox.fill();
    outbox.rung(Rung { deliver: HashSet::new(), ..rung });
    loop {
        outbox.start_due();
        let next = outbox.queue.first().map(|(due, _)| *due).filter(|_| outbox.running.len() < CONTACTS_MAX);
        tokio::select! {
            () = bell.shared.notify.notified() => outbox.rung(bell.take()),
            Some(done) = outbox.running.join_next() => outbox.ended(done),
            () = async { match next { Some(due) => sleep_until(due).await, None => std::future::pending().await } } => {}
        }
    }
}

impl Outbox {
    fn new(engine: Arc<Engine>, rng: StdRng) -> Outbox {
        Outbox {
            engine,
            queue: BTreeSet::new(),
            entries: HashMap::new(),
            running: JoinSet::new(),
            in_flight: HashMap::new(),
            rng,
        }
    }

    /// What a restart finds: everything that is owed, waiting requests, and the sessions that are likely wanted.
    fn fill(&mut self) {
        let now = unix_now();
        let mut trusted = Vec::new();
        for (peer, record) in self.engine.book.store().walk().flatten() {
            let state = self.engine.book.state_of(&peer, &record, now);
            if self.engine.owes(&peer) {
                self.at(peer, Instant::now(), false);
            } else if state == TrustState::Requested {
                let due = Instant::now() + self.within_a_day();
                self.at(peer, due, false);
            } else if state == TrustState::Trusted {
                let seen = self.engine.peers.read(|table| table.get(&peer).and_then(|record| record.last_seen));
                trusted.push((seen, peer));
            }
        }
        trusted.sort_unstable_by(|a, b| b.cmp(a));
        for (_, peer) in trusted.into_iter().take(RECONNECT_AT_START_MAX) {
            self.at(peer, Instant::now(), true);
        }
    }

    fn within_a_day(&mut self) -> Duration {
        DAY.mul_f64(self.rng.random_range(0.9..=1.1))
    }

    fn at(&mut self, peer: PeerId, due: Instant, session: bool) {
        self.put(peer, Entry { due, backoff: Backoff::new(POLICY), session });
    }

    fn put(&mut self, peer: PeerId, mut entry: Entry) {
        if let Some(old) = self.entries.remove(&peer) {
            self.queue.remove(&(old.due, peer));
            entry.session |= old.session;
            entry.due = entry.due.min(old.due);
        }
        self.queue.insert((entry.due, peer));
        self.entries.insert(peer, entry);
    }

    fn rung(&mut self, rung: Rung) {
        for peer in rung.deliver {
            self.at(peer, Instant::now(), false);
        }
        // Both ends lost it at once: the smaller one dials, after a moment where many may have lost theirs; the other
        // one if nothing has come of that.
        let dials = |peer: &PeerId| self.engine.book.me() < *peer;
        let lost = |peer: PeerId| (peer, if dials(&peer) { 100..=500u64 } else { 1_500..=3_000 });
        let closing = |peer: PeerId| (peer, if dials(&peer) { 0..=0 } else { 300..=900 });
        let due: Vec<_> = rung.reconnect.into_iter().map(lost).chain(rung.reopen.into_iter().map(closing)).collect();
        for (peer, patience) in due {
            let patience = Duration::from_millis(self.rng.random_range(patience));
            self.at(peer, Instant::now() + patience, true);
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        while self.running.len() < CONTACTS_MAX {
            let Some((due, peer)) = self.queue.first().copied().filter(|(due, _)| *due <= now) else {
                return;
            };
            self.queue.remove(&(due, peer));
            let Some(entry) = self.entries.remove(&peer) else {
                continue;
            };
            if self.in_flight.contains_key(&peer) {
                // One at a time: looked at again when the running one ends.
                self.put(peer, Entry { due: now + POLICY.first, ..entry });
                continue;
            }
            let (engine, session) = (self.engine.clone(), entry.session);
            let task = self.running.spawn(async move { (peer, Box::pin(engine.contact(peer, session)).await) }).id();
            self.in_flight.insert(peer, InFlight { task, backoff: entry.backoff, session });
        }
    }

    fn ended(&mut self, done: Result<Contacted, JoinError>) {
        match done {
            Ok((peer, result)) => self.finished(peer, result),
            Err(error) => self.died(error.id()),
        }
    }

    /// A contact that panicked is owed still, and tried again like one that failed.
    fn died(&mut self, task: Id) {
        let Some((peer, InFlight { mut backoff, session, .. })) =
            self.in_flight.extract_if(|_, flight| flight.task == task).next()
        else {
            return;
        };
        tracing::error!(peer = %peer.short(), "a contact died");
        let owes = self.engine.owes(&peer);
        if let Some(due) = self.try_again(owes, session, &mut backoff) {
            self.put(peer, Entry { due, backoff, session });
        }
    }

    fn finished(&mut self, peer: PeerId, result: Result<Option<Agreement>, ContactFault>) {
        let Some(InFlight { mut backoff, session, .. }) = self.in_flight.remove(&peer) else {
            return;
        };
        tracing::debug!(peer = %peer.short(), ?result, "contact");
        let owes = self.engine.owes(&peer);
        let due = match result {
            Ok(Some(Agreement { disposition: Disposition::Busy { retry_after_ms }, .. })) => {
                let asked = u64::from(retry_after_ms).min(BUSY_RETRY_AFTER_MS_MAX);
                self.later(&mut backoff).max(Some(Instant::now() + Duration::from_millis(asked)))
            }
            // It will not have our word, or keeps none of us to change: the next contact brings it again, or a day.
            Ok(Some(
                Agreement { disposition: Disposition::Refused, .. }
                | Agreement { disposition: Disposition::Noted, delivered: None },
            ))
            | Err(ContactFault::Refused) => {
                (owes || self.is_waiting(&peer)).then(|| Instant::now() + self.within_a_day())
            }
            Ok(_) if owes => self.later(&mut backoff),
            Ok(_) => self.is_waiting(&peer).then(|| Instant::now() + self.within_a_day()),
            Err(ContactFault::NoAddress | ContactFault::NotAllowed) => None,
            Err(_) => self.try_again(owes, session, &mut backoff),
        };
        if let Some(due) = due {
            self.put(peer, Entry { due, backoff, session: session && !owes });
        }
    }

    fn try_again(&mut self, owes: bool, session: bool, backoff: &mut Backoff) -> Option<Instant> {
        let is_wanted = owes || (session && backoff.failures() < RECONNECT_TRIES_MAX);
        if is_wanted { self.later(backoff) } else { None }
    }

    fn later(&mut self, backoff: &mut Backoff) -> Option<Instant> {
        let now = self.engine.clock.now();
        backoff.failed(now, &mut self.rng).map(|at| Instant::now() + at.since(now))
    }

    fn is_waiting(&self, peer: &PeerId) -> bool {
        let now = unix_now();
        self.engine.book.record(peer).is_some_and(|record| {
            record.theirs.is_none() && record.ours.as_ref().is_some_and(|ours| ours.is_grant_at(Side::Ours, now))
        })
    }
}

#[cfg(test)]
mod tests {
    use handfast_protocol::SecretKey;
    use handfast_trust::{DirectoryLock, LockOwner};
    use rand::SeedableRng as _;

    use super::*;
    use crate::bare_node::BareNode;
    use crate::config::Config;
    use crate::data_dir::DataDir;
    use crate::initialise::initialise;
    use crate::stores;

    /// A node, and an outbox of its own for it, that owes `peer` a grant and has just begun to contact it.
    struct Rig {
        outbox: Outbox,
        peer: PeerId,
        _node: BareNode,
        _home: tempfile::TempDir,
    }

    fn rig() -> Rig {
        let home = tempfile::tempdir().unwrap();
        let directory = DataDir::create(&home.path().join("data")).unwrap();
        let lock = || {
            let owner = LockOwner { pid: 1, role: "test".into(), socket: None };
            DirectoryLock::try_acquire(directory.path(), &owner).unwrap()
        };
        initialise(&directory, None, &lock()).unwrap();
        let mut config = Config::default();
        config.listen = vec![([127, 0, 0, 1], 0).into()];
        let node = BareNode::start(stores::open_all(&directory, lock()).unwrap(), config).unwrap();
        let peer = SecretKey::from_seed(&[7; 32]).peer_id();
        let grant = handfast_trust::rules::Grant::default();
        node.engine().book.trust(peer, &grant, unix_now()).unwrap();
        let outbox = Outbox::new(node.engine().clone(), StdRng::seed_from_u64(1));
        Rig { outbox, peer, _node: node, _home: home }
    }

    impl Rig {
        /// A contact with the peer that ends as `contact` does.
        async fn contact(&mut self, contact: impl Future<Output = Contacted> + Send + 'static) {
            let Rig { outbox, peer, .. } = self;
            let before = outbox.entries.remove(peer).map(|entry| entry.backoff);
            outbox.queue.clear();
            let task = outbox.running.spawn(contact).id();
            let backoff = before.unwrap_or_else(|| Backoff::new(POLICY));
            outbox.in_flight.insert(*peer, InFlight { task, backoff, session: false });
            let done = outbox.running.join_next().await.unwrap();
            outbox.ended(done);
        }

        async fn busy(&mut self, retry_after_ms: u32) -> Duration {
            let (peer, disposition) = (self.peer, Disposition::Busy { retry_after_ms });
            let before = Instant::now();
            self.contact(async move { (peer, Ok(Some(Agreement { disposition, delivered: None }))) }).await;
            self.outbox.entries[&self.peer].due - before
        }

        fn failures(&self) -> u32 {
            self.outbox.entries[&self.peer].backoff.failures()
        }
    }

    #[tokio::test]
    async fn a_busy_peer_slows_us_down_up_to_a_minute_and_does_not_drive_us() {
        let mut rig = rig();
        let minute = Duration::from_millis(BUSY_RETRY_AFTER_MS_MAX);
        assert!(rig.busy(u32::MAX).await < 2 * minute);
        assert!(rig.busy(30_000).await >= minute / 2, "what it asks for");
        for failures in 3..20 {
            rig.busy(0).await;
            assert_eq!(rig.failures(), failures, "it is no success");
        }
    }

    #[tokio::test]
    async fn a_peer_whose_contact_panicked_is_contacted_again() {
        let mut rig = rig();
        rig.contact(async { panic!("a test's") }).await;
        assert!(rig.outbox.in_flight.is_empty());
        assert_eq!(rig.failures(), 1);
        assert!(rig.outbox.queue.contains(&(rig.outbox.entries[&rig.peer].due, rig.peer)));
    }
}
