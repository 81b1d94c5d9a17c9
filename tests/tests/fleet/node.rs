//! A node of a fleet: stores on a simulated disk, a clock that may jump, sessions; and what it has promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use handfast_protocol::expulsion::NoticeRank;
use handfast_protocol::{Incarnation, NetworkId, PeerId, SecretKey, SignedNotice, Ticket, UnixMillis};
use handfast_trust::networks::Changed;
use handfast_trust::sim::{SMALL, SimClock, SimDisk, Subsets};
use handfast_trust::{
    Book, Drainer, Floor, LAZY_DELAY, Monotonic, NetRecord, Networks, Next, Policy, Revision, Site, TrustRecord,
    TrustState, Updated, create, open, remove_leftovers,
};

use crate::plants::Plant;

pub(crate) fn key(number: usize) -> SecretKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&(number as u64).to_le_bytes());
    SecretKey::from_seed(&seed)
}

/// Something that was said to be durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Promise {
    /// A notice is kept.
    Notice(NetworkId, PeerId, NoticeRank),
    /// An operator's revoke is in force.
    Revoked(PeerId),
}

/// What runs while a node is up.
pub(crate) struct Running<P: Plant> {
    pub(crate) book: Book,
    pub(crate) networks: Arc<Networks>,
    drainer: Drainer<P::Disk>,
    pub(crate) incarnation: Incarnation,
}

pub(crate) struct Node<P: Plant> {
    pub(crate) number: usize,
    pub(crate) key: SecretKey,
    pub(crate) policy: Policy,
    disk: SimDisk,
    running: Option<Running<P>>,
    /// Ahead of the world's clock.
    pub(crate) ahead_ms: u64,
    time: Monotonic,
    starts: u8,
    /// The network that it founded.
    pub(crate) authority: Option<SecretKey>,
    pub(crate) ticket: Option<Ticket>,
    /// With whom a session goes on.
    pub(crate) sessions: BTreeSet<PeerId>,
    /// Said to be durable when the networks or the trust records reach a revision.
    owed: Vec<(Revision, Promise)>,
    pub(crate) notices: BTreeMap<(NetworkId, PeerId), NoticeRank>,
    pub(crate) revoked: BTreeSet<PeerId>,
}

impl<P: Plant> Node<P> {
    pub(crate) fn new(number: usize, policy: Policy) -> Self {
        let key = key(number);
        let mut disk = SimDisk::default();
        let site = site(&key, 0);
        Floor::default().write(&mut disk, site.owner()).unwrap();
        create::<TrustRecord, _>(&mut disk, &site).unwrap();
        create::<NetRecord, _>(&mut disk, &site).unwrap();
        let mut node = Node {
            number,
            key,
            policy,
            disk,
            running: None,
            ahead_ms: 0,
            time: Monotonic::default(),
            starts: 0,
            authority: None,
            ticket: None,
            sessions: BTreeSet::new(),
            owed: Vec::new(),
            notices: BTreeMap::new(),
            revoked: BTreeSet::new(),
        };
        node.start(UnixMillis(0)).unwrap();
        node
    }

    pub(crate) fn id(&self) -> PeerId {
        self.key.peer_id()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn running(&self) -> &Running<P> {
        self.running.as_ref().unwrap()
    }

    pub(crate) fn start(&mut self, now: UnixMillis) -> Result<(), String> {
        let closed = |error: handfast_trust::StoreError| format!("node {} does not open: {error}", self.number);
        self.starts = self.starts.wrapping_add(1);
        let site = site(&self.key, self.starts);
        let mut medium = P::disk(self.disk.clone());
        remove_leftovers(&mut medium).map_err(|error| format!("{error}"))?;
        let floor = Floor::read(&mut medium, site.owner()).map_err(closed)?;
        let trust = open::<TrustRecord, _>(&mut medium, &site, &floor).map_err(closed)?;
        let networks = open::<NetRecord, _>(&mut medium, &site, &floor).map_err(closed)?;
        let mut drainer = Drainer::new(medium, &site, floor);
        drainer.add(trust.log);
        drainer.add(networks.log);
        let networks = Arc::new(Networks::new(networks.store, self.key.clone()));
        self.authority.iter().for_each(|authority| networks.hold_authority(authority.clone()));
        let book = Book::new(trust.store, self.key.clone(), self.policy.clone(), Box::new(|_, _| {}));
        let book = book.with_networks(networks.clone());
        if P::LOOKS_BACK {
            book.reconcile_all(now);
        }
        let incarnation = Incarnation([self.starts; 16]);
        self.running = Some(Running { book, networks, drainer, incarnation });
        Ok(())
    }

    /// One step of the drainer, perhaps when what may wait has waited; what became durable is promised.
    pub(crate) fn step(&mut self, has_waited: bool) {
        let Some(running) = &mut self.running else {
            return;
        };
        if has_waited {
            self.time = self.time.plus(LAZY_DELAY);
        }
        running.drainer.step(self.time);
        self.collect();
    }

    fn collect(&mut self) {
        let Some(Running { book, networks, .. }) = &self.running else {
            return;
        };
        let (trust, nets) = (book.durable().current(), networks.durable().current());
        let kept = |promise: &(Revision, Promise)| match promise {
            (revision, Promise::Notice(..)) => *revision > nets,
            (revision, Promise::Revoked(_)) => *revision > trust,
        };
        let (owed, due): (Vec<_>, Vec<_>) = self.owed.drain(..).partition(kept);
        self.owed = owed;
        for (_, promise) in due {
            match promise {
                Promise::Notice(network, member, rank) => {
                    let held = self.notices.entry((network, member)).or_insert(rank);
                    *held = rank.max(*held);
                }
                Promise::Revoked(peer) => drop(self.revoked.insert(peer)),
            }
        }
    }

    /// Waits for trust records; `false`: the disk was too slow.
    pub(crate) fn trust_reached(&mut self, revision: u64) -> bool {
        self.reached(|running| running.book.durable().current().0 >= revision)
    }

    pub(crate) fn networks_reached(&mut self, revision: u64) -> bool {
        self.reached(|running| running.networks.durable().current().0 >= revision)
    }

    fn reached(&mut self, is: impl Fn(&Running<P>) -> bool) -> bool {
        if !P::WAITS {
            return true;
        }
        for tries in 0..8 {
            if is(self.running()) {
                return true;
            }
            self.step(tries > 2);
        }
        is(self.running())
    }

    /// Everything that memory holds is on the disk.
    pub(crate) fn drain(&mut self) {
        for _ in 0..16 {
            if self.running.is_some() && !self.is_drained() {
                self.step(true);
            }
        }
    }

    pub(crate) fn is_drained(&self) -> bool {
        let Running { book, networks, .. } = self.running();
        book.durable().current() == book.store().revision()
            && networks.durable().current() == networks.store().revision()
    }

    /// Stops in order.
    pub(crate) fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        running.drainer.stop_switch().stop();
        while running.drainer.step(self.time) != Next::Stopped {}
        self.running = Some(running);
        self.collect();
        self.running = None;
        self.owed.clear();
        self.sessions.clear();
    }

    /// The power goes: of what was not synced some is there afterwards and some is not.
    pub(crate) fn lose_power(&mut self, seed: u64) {
        self.running = None;
        self.owed.clear();
        self.sessions.clear();
        let point = self.disk.crash_point();
        let survives: Vec<bool> = Subsets::new(point.uncertain(), seed).last().unwrap_or_default();
        let mut bits = handfast_tests::Draw::new(seed);
        let survives: Vec<bool> = survives.iter().map(|_| bits.one_in(2)).collect();
        self.disk = SimDisk::of(point.image(|effect| survives.get(effect).is_some_and(|is| *is)), 512);
    }

    /// Notices were taken in: they are kept from the moment that the revision is durable.
    pub(crate) fn keeps(&mut self, notices: &[SignedNotice], revision: Revision) {
        for signed in notices {
            let verified = signed.verify().unwrap();
            let said = verified.notice();
            self.owed.push((revision, Promise::Notice(said.network, said.member, verified.rank())));
        }
        self.collect();
    }

    pub(crate) fn owes_revoke(&mut self, peer: PeerId, revision: Revision) {
        self.owed.push((revision, Promise::Revoked(peer)));
        self.collect();
    }

    /// The operator grants again: what was promised before is over.
    pub(crate) fn forgives(&mut self, peer: PeerId) {
        self.owed.retain(|(_, promise)| *promise != Promise::Revoked(peer));
        self.revoked.remove(&peer);
    }

    /// What a change of the networks asks for.
    pub(crate) fn settle(&mut self, changed: &Changed, now: UnixMillis) {
        if P::RECONCILES {
            let reconciled = self.running().book.reconcile(&changed.affected, now);
            self.cut(&reconciled.fallen);
        }
    }

    /// What a change of a trust record asks for.
    pub(crate) fn settle_trust(&mut self, peer: PeerId, updated: &Updated) {
        if updated.transition.is_some_and(|transition| transition.from == TrustState::Trusted) {
            self.cut(&[peer]);
        }
    }

    pub(crate) fn cut(&mut self, fallen: &[PeerId]) {
        if P::CUTS {
            self.sessions.retain(|peer| !fallen.contains(peer));
        }
    }
}

fn site(key: &SecretKey, seed: u8) -> Site {
    Site::new(*key.peer_id().as_bytes(), [seed; 32], Arc::new(SimClock::default())).with_tuning(SMALL)
}
