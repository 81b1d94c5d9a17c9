//! Nodes with networks on simulated disks, and keys that sign what a test wants.

use std::sync::{Arc, Mutex};

use handfast_protocol::exchange::Shown;
use handfast_protocol::{
    Certificate, Incarnation, InviteSecret, Kind, Membership, NetworkId, NetworkName, Note, Notice, NoticeKind, PeerId,
    Role, SecretKey, Statement, Terms, UnixMillis, VerifiedMembership, VerifiedNotice,
};
use handfast_trust::networks::{CERTIFICATE_LIFE_MS, Invitation, Joined};
use handfast_trust::sim::{SMALL, SimClock, SimDisk};
use handfast_trust::{
    Book, Cause, Direction, Drainer, Floor, LAZY_DELAY, Monotonic, NetRecord, Networks, Next, Policy, Purpose, Rule,
    Site, Standing, Transition, TrustRecord, TrustState, create, open,
};

/// Where most tests begin.
pub(crate) const NOON: UnixMillis = UnixMillis(1_000_000_000_000);
pub(crate) const MINUTE: u64 = 60_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
pub(crate) const DAY: u64 = 24 * HOUR;

pub(crate) fn key(number: u32) -> SecretKey {
    let mut seed = [0; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    SecretKey::from_seed(&seed)
}

pub(crate) fn peer(number: u32) -> PeerId {
    key(number).peer_id()
}

/// The authority of a network.
pub(crate) fn authority(number: u32) -> SecretKey {
    key(1_000_000 + number)
}

pub(crate) fn network(number: u32) -> NetworkId {
    authority(number).network_id()
}

pub(crate) fn name(text: &str) -> NetworkName {
    NetworkName::new(text).unwrap()
}

pub(crate) fn secret(number: u8) -> InviteSecret {
    InviteSecret::new([number; 16])
}

/// A certificate of network 1.
pub(crate) fn certificate(member: u32, epoch: u64, role: Role) -> Certificate {
    Certificate {
        network: network(1),
        member: peer(member),
        epoch,
        issued_at: NOON,
        expires_at: NOON.plus(CERTIFICATE_LIFE_MS),
        role,
    }
}

/// By the authority of network 1.
pub(crate) fn certified(member: u32, epoch: u64) -> VerifiedMembership {
    certificate(member, epoch, Role::Member).by_authority(&authority(1)).unwrap()
}

pub(crate) fn sponsor(number: u32) -> VerifiedMembership {
    certificate(number, 1, Role::Sponsor).by_authority(&authority(1)).unwrap()
}

/// By a sponsor of network 1.
pub(crate) fn sponsored(member: u32, epoch: u64, by: u32) -> VerifiedMembership {
    certificate(member, epoch, Role::Member).by_sponsor(&key(by), &sponsor(by)).unwrap()
}

pub(crate) fn notice(member: u32, number: u64, kind: NoticeKind) -> VerifiedNotice {
    let notice = Notice { network: network(1), member: peer(member), number, kind, issued_at: NOON };
    notice.sign(&authority(1)).unwrap()
}

pub(crate) fn policy() -> Policy {
    Policy {
        deny: Default::default(),
        allow: Default::default(),
        accept_all: false,
        grants_per_hour: 1_000,
        grants_total: 1_000,
        grants_per_sponsor: 1_000,
        pending_total: 1_000,
        pending_per_source: 1_000,
        pending_new_per_second: 1_000,
    }
}

type Heard = Arc<Mutex<Vec<(PeerId, Transition)>>>;

/// Networks, a book, and the disk under both. This node is key 0.
pub(crate) struct Node {
    pub(crate) networks: Arc<Networks>,
    pub(crate) book: Arc<Book>,
    pub(crate) disk: SimDisk,
    drainer: Drainer<SimDisk>,
    time: Monotonic,
    policy: Policy,
    heard: Heard,
}

impl Node {
    pub(crate) fn under(policy: Policy) -> Node {
        let mut disk = SimDisk::default();
        let site = site();
        Floor::default().write(&mut disk, site.owner()).unwrap();
        create::<TrustRecord, _>(&mut disk, &site).unwrap();
        create::<NetRecord, _>(&mut disk, &site).unwrap();
        Node::open(disk, policy)
    }

    /// In no network.
    pub(crate) fn alone() -> Node {
        Node::under(policy())
    }

    /// A member of network 1, which others run.
    pub(crate) fn member() -> Node {
        Node::member_under(policy())
    }

    pub(crate) fn member_under(policy: Policy) -> Node {
        let node = Node::under(policy);
        node.joins(&certified(0, 1));
        node
    }

    /// The founder of network 1.
    pub(crate) fn founder() -> Node {
        let node = Node::alone();
        node.networks.create(authority(1), name("lab"), NOON).unwrap();
        node
    }

    pub(crate) fn open(mut disk: SimDisk, policy: Policy) -> Node {
        let site = site();
        let floor = Floor::read(&mut disk, site.owner()).unwrap();
        let trust = open::<TrustRecord, _>(&mut disk, &site, &floor).unwrap();
        let networks = open::<NetRecord, _>(&mut disk, &site, &floor).unwrap();
        let mut drainer = Drainer::new(disk.clone(), &site, floor);
        drainer.add(trust.log);
        drainer.add(networks.log);
        let heard = Heard::default();
        let events = heard.clone();
        let observer = Box::new(move |peer: &PeerId, transition: &Transition| {
            events.lock().unwrap().push((*peer, *transition));
        });
        let networks = Arc::new(Networks::new(networks.store, key(0)));
        let book = Book::new(trust.store, key(0), policy.clone(), observer).with_networks(networks.clone());
        Node { networks, book: Arc::new(book), disk, drainer, time: Monotonic::default(), policy, heard }
    }

    pub(crate) fn step(&mut self) -> Next {
        self.time = self.time.plus(LAZY_DELAY);
        self.drainer.step(self.time)
    }

    pub(crate) fn drain(&mut self) {
        while self.book.durable().current() < self.book.store().revision()
            || self.networks.durable().current() < self.networks.store().revision()
        {
            assert_ne!(self.step(), Next::Stopped);
        }
    }

    /// Stops and starts again. Keys of authorities are not on the disk.
    pub(crate) fn reopened(mut self) -> Node {
        self.drainer.stop_switch().stop();
        while self.drainer.step(self.time) != Next::Stopped {}
        Node::open(self.disk, self.policy)
    }

    pub(crate) fn joins(&self, own: &VerifiedMembership) {
        let joined = Joined { name: name("lab"), inviter: peer(9), addresses: Vec::new() };
        self.networks.joined(&joined, own, NOON).unwrap();
        self.networks.roster_is_read(own.network()).unwrap();
    }

    pub(crate) fn learns(&self, shown: &[&VerifiedMembership]) {
        self.networks.learn(shown.iter().map(|one| one.membership()), NOON).unwrap();
    }

    pub(crate) fn hears(&self, notices: &[VerifiedNotice]) -> Vec<PeerId> {
        let signed: Vec<_> = notices.iter().map(|notice| *notice.signed()).collect();
        self.networks.learn_notices(&signed).unwrap().affected
    }

    pub(crate) fn standing(&self, member: u32, now: UnixMillis) -> Standing {
        self.networks.members().standing(&network(1), &peer(member), now)
    }

    pub(crate) fn counts(&self, member: u32) -> bool {
        self.standing(member, NOON).counts()
    }

    /// A peer grants trust, as a member of network 1 does.
    pub(crate) fn is_granted(&self, by: u32, now: UnixMillis) -> TrustState {
        self.is_told(by, Kind::Grant, 1, Some(network(1)), now)
    }

    pub(crate) fn is_told(
        &self,
        by: u32,
        kind: Kind,
        epoch: u64,
        network: Option<NetworkId>,
        now: UnixMillis,
    ) -> TrustState {
        let note = Note::default();
        let terms = Terms { kind, epoch, issued_at: NOON, expires_at: None, scope: None, network, note };
        let statement = Statement { issuer: peer(by), subject: peer(0), terms };
        let shown = Shown {
            theirs: Some(statement.sign(&key(by)).unwrap()),
            ours: None,
            holds: None,
            incarnation: Incarnation([1; 16]),
            address: None,
            networks: Vec::new(),
        };
        self.book.merge(peer(by), &shown, None, now).state
    }

    pub(crate) fn state(&self, of: u32, now: UnixMillis) -> TrustState {
        self.book.state(&peer(of), now)
    }

    pub(crate) fn lets_in(&self, of: u32, now: UnixMillis) -> bool {
        self.book.authorise(&peer(of), Purpose::Session, Direction::Inbound, now).is_ok()
    }

    pub(crate) fn rule_of(&self, of: u32) -> Option<Rule> {
        self.book.record(&peer(of)).and_then(|record| record.rule)
    }

    /// Causes and ends of the transitions since the last call.
    pub(crate) fn events(&self) -> Vec<(Cause, TrustState)> {
        self.heard.lock().unwrap().drain(..).map(|(_, transition)| (transition.cause, transition.to)).collect()
    }

    pub(crate) fn invites(&self, uses: u32, number: u8) {
        let invitation =
            Invitation { network: network(1), role: Role::Member, uses, valid_from: NOON, expires_at: NOON.plus(DAY) };
        self.networks.invite(invitation, &secret(number), NOON).unwrap();
    }
}

pub(crate) fn site() -> Site {
    let owner = *peer(0).as_bytes();
    Site::new(owner, [3; 32], Arc::new(SimClock::default())).with_tuning(SMALL)
}

/// All orders of `0..n`.
pub(crate) fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for order in orders(n - 1) {
        for at in 0..n {
            let mut longer = order.clone();
            longer.insert(at, n - 1);
            all.push(longer);
        }
    }
    all
}

pub(crate) fn boxed(membership: &VerifiedMembership) -> Box<Membership> {
    Box::new(membership.membership().clone())
}
