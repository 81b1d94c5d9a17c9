//! Nodes with networks on simulated disks, and keys that sign what a test wants.

use std::sync::Arc;

use handfast_protocol::exchange::Shown;
use handfast_protocol::{
    Certificate, Incarnation, InviteSecret, Kind, Membership, NetworkId, NetworkName, Note, Notice, NoticeKind, PeerId,
    Role, SecretKey, Statement, Terms, UnixMillis, VerifiedMembership, VerifiedNotice,
};
use handfast_trust::networks::{CERTIFICATE_LIFE_MS, Invitation, Joined};
use handfast_trust::sim::SimDisk;
use handfast_trust::{
    Book, Cause, Direction, NetRecord, Networks, Policy, Purpose, Rule, Standing, TrustRecord, TrustState,
};

pub(crate) use crate::common::{DAY, HOUR, MINUTE, NOON, key, open_policy};
use crate::common::{Ground, begin, me};

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

/// Networks, a book, and what both stand on. This node is key 0.
pub(crate) struct Node {
    pub(crate) networks: Arc<Networks>,
    pub(crate) book: Arc<Book>,
    ground: Ground,
    policy: Policy,
}

impl Node {
    pub(crate) fn under(policy: Policy) -> Node {
        let ground = Ground::fresh(|disk| {
            begin::<TrustRecord>(disk);
            begin::<NetRecord>(disk);
        });
        Node::over(ground, policy)
    }

    /// In no network.
    pub(crate) fn alone() -> Node {
        Node::under(open_policy())
    }

    /// A member of network 1, which others run.
    pub(crate) fn member() -> Node {
        Node::member_under(open_policy())
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

    /// As a start finds an image of its disk.
    pub(crate) fn open(disk: SimDisk) -> Node {
        Node::over(Ground::on(disk), open_policy())
    }

    fn over(mut ground: Ground, policy: Policy) -> Node {
        let trust = ground.open();
        let networks = Arc::new(Networks::new(ground.open(), me()));
        let book = Book::new(trust, me(), policy.clone(), ground.observer()).with_networks(networks.clone());
        Node { networks, book: Arc::new(book), ground, policy }
    }

    pub(crate) fn disk(&self) -> &SimDisk {
        &self.ground.disk
    }

    pub(crate) fn drain(&mut self) {
        let (book, networks) = (&self.book, &self.networks);
        self.ground.drain(|| {
            book.durable().current() >= book.store().revision()
                && networks.durable().current() >= networks.store().revision()
        });
    }

    /// Starts again after a kill. Keys of authorities are not on the disk.
    pub(crate) fn killed(self) -> Node {
        Node::over(self.ground.killed(), self.policy)
    }

    /// Stops and starts again. Keys of authorities are not on the disk.
    pub(crate) fn reopened(self) -> Node {
        Node::over(self.ground.restarted(), self.policy)
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
        self.ground.events()
    }

    pub(crate) fn invites(&self, uses: u32, number: u8) {
        let invitation =
            Invitation { network: network(1), role: Role::Member, uses, valid_from: NOON, expires_at: NOON.plus(DAY) };
        self.networks.invite(invitation, &secret(number), NOON).unwrap();
    }
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
