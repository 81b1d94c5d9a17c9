//! How far an expulsion has come: a thousand nodes, random contacts, partitions.

use std::collections::VecDeque;

use handfast_protocol::exchange::Patience;
use handfast_protocol::join::{
    Brought, Errand, JoinHost, JoinHostInput, JoinHostOutput, Joiner, JoinerInput, JoinerOutput,
};
use handfast_protocol::{Certificate, NetworkName, Role, SecretKey, UnixMillis, VerifiedMembership};
use handfast_tests::Draw;
use handfast_trust::networks::Joined;
use handfast_trust::sim::{SMALL, SimClock, SimDisk};
use handfast_trust::{Drainer, Floor, LAZY_DELAY, Monotonic, NetRecord, Networks, Site, create};

use crate::node::key;

const NODES: usize = 1_000;
const NOW: UnixMillis = UnixMillis(1_000_000_000_000);

struct Member {
    networks: Networks,
    drainer: Drainer<SimDisk>,
    time: Monotonic,
    own: VerifiedMembership,
}

fn authority() -> SecretKey {
    key(5_000)
}

impl Member {
    fn new(number: usize) -> Member {
        let key = key(number);
        let site = Site::new(*key.peer_id().as_bytes(), [1; 32], std::sync::Arc::new(SimClock::default()));
        let (site, mut disk) = (site.with_tuning(SMALL), SimDisk::default());
        Floor::default().write(&mut disk, site.owner()).unwrap();
        let opened = create::<NetRecord, _>(&mut disk, &site).unwrap();
        let mut drainer = Drainer::new(disk, &site, Floor::default());
        drainer.add(opened.log);
        let networks = Networks::new(opened.store, key.clone());
        let certificate = Certificate {
            network: authority().network_id(),
            member: key.peer_id(),
            epoch: 1,
            issued_at: NOW,
            expires_at: NOW.plus(1_000_000_000),
            role: Role::Member,
        };
        let own = certificate.by_authority(&authority()).unwrap();
        let joined = Joined { name: NetworkName::new("lab").unwrap(), inviter: key.peer_id(), addresses: Vec::new() };
        networks.joined(&joined, &own, NOW).unwrap();
        let mut member = Member { networks, drainer, time: Monotonic::default(), own };
        member.drain();
        member
    }

    fn drain(&mut self) {
        while self.networks.durable().current() < self.networks.store().revision() {
            self.time = self.time.plus(LAZY_DELAY);
            self.drainer.step(self.time);
        }
    }

    fn held(&self) -> handfast_protocol::ExpulsionsHeld {
        self.networks.members().expulsions(&authority().network_id())
    }
}

/// `a` asks `b` for the expulsions, over both machines.
fn fetch(a: &mut Member, b: &mut Member) {
    let errand = Errand::Expulsions(Box::new(a.own.membership().clone()));
    let (mut joiner, frame) = Joiner::start(a.networks.me(), errand);
    let mut host = JoinHost::new();
    let mut request = frame.as_slice()[4..].to_vec();
    loop {
        let mut next = JoinHostInput::Frame(request.clone().into());
        let mut asked = None;
        let answer = loop {
            let decided = |request| {
                let (reply, revision) = b.networks.reply(a.networks.me(), request, &|_| None, NOW);
                JoinHostInput::Decided { reply: Box::new(reply), revision: revision.0 }
            };
            next = match host.handle(next) {
                JoinHostOutput::Decide(request) => decided(asked.insert(request)),
                JoinHostOutput::Reconsider => decided(asked.as_ref().unwrap()),
                JoinHostOutput::AwaitDurable(revision) => {
                    b.drain();
                    JoinHostInput::Durable(revision)
                }
                JoinHostOutput::Answer(frame) => break frame,
                JoinHostOutput::Finish { result, .. } => panic!("{result:?}"),
            };
        };
        let mut next = JoinerInput::Frame(answer[4..].to_vec());
        request = loop {
            next = match joiner.handle(next) {
                JoinerOutput::Keep(Brought::Notices(notices)) => {
                    JoinerInput::Kept(a.networks.learn_notices(&notices).unwrap().revision.0)
                }
                JoinerOutput::AwaitDurable(revision) => {
                    assert_eq!(joiner.patience(), Patience::Disk);
                    a.drain();
                    JoinerInput::Durable(revision)
                }
                JoinerOutput::Ask(frame) => break frame[4..].to_vec(),
                JoinerOutput::Finish(result) => return result.unwrap(),
                JoinerOutput::Keep(other) => panic!("{other:?}"),
            };
        };
    }
}

/// Two nodes meet: both show what they hold, and fetch where that differs.
fn meet(members: &mut [Member], a: usize, b: usize) {
    if members[a].held() != members[b].held() {
        let (low, high) = members.split_at_mut(a.max(b));
        let (low, high) = (&mut low[a.min(b)], &mut high[0]);
        fetch(low, high);
        fetch(high, low);
    }
}

/// Who knows whom: a ring, so that all are connected, and random friends.
fn friends(draw: &mut Draw) -> Vec<Vec<usize>> {
    let mut friends = vec![Vec::new(); NODES];
    let mut link = |a: usize, b: usize| {
        if a != b && !friends[a].contains(&b) {
            friends[a].push(b);
            friends[b].push(a);
        }
    };
    for node in 0..NODES {
        link(node, (node + 1) % NODES);
        link(node, usize::try_from(draw.below(NODES as u64)).unwrap());
    }
    friends
}

/// How many contacts lie between `from` and the others that it can reach.
fn distances(friends: &[Vec<usize>], from: usize, open: impl Fn(usize, usize) -> bool) -> Vec<Option<usize>> {
    let mut distances = vec![None; friends.len()];
    distances[from] = Some(0);
    let mut next = VecDeque::from([from]);
    while let Some(node) = next.pop_front() {
        for friend in friends[node].iter().copied().filter(|friend| open(node, *friend)) {
            if distances[friend].is_none() {
                distances[friend] = distances[node].map(|far| far + 1);
                next.push_back(friend);
            }
        }
    }
    distances
}

fn diameter(friends: &[Vec<usize>], open: &dyn Fn(usize, usize) -> bool, of: &[Option<usize>]) -> usize {
    let reachable = (0..friends.len()).filter(|node| of[*node].is_some());
    reachable.flat_map(|node| distances(friends, node, open)).flatten().max().unwrap_or(0)
}

/// One round: everybody tries each of its friends once, in random order, and one try in three fails.
fn round(members: &mut [Member], friends: &[Vec<usize>], open: &dyn Fn(usize, usize) -> bool, draw: &mut Draw) {
    let mut tries: Vec<(u64, usize, usize)> = Vec::new();
    for (node, known) in friends.iter().enumerate() {
        tries.extend(known.iter().filter(|friend| open(node, **friend)).map(|friend| (draw.next(), node, *friend)));
    }
    tries.sort_unstable();
    for (_, a, b) in tries {
        if !draw.one_in(3) {
            meet(members, a, b);
        }
    }
}

#[test]
fn an_expulsion_reaches_everybody_within_twice_the_diameter_in_rounds() {
    match crate::from_environment("HANDFAST_SIM_SEED") {
        Some(seed) => spreads(seed),
        None => (1..=3).for_each(spreads),
    }
}

fn spreads(seed: u64) {
    let mut draw = Draw::new(seed);
    let mut members: Vec<Member> = (0..NODES).map(Member::new).collect();
    let friends = friends(&mut draw);
    let network = authority().network_id();
    members[0].networks.hold_authority(authority());
    // The network is in two parts at first, and one node in twenty is down.
    let (half, down): (Vec<bool>, Vec<bool>) =
        (0..NODES).map(|node| (draw.one_in(2), node != 0 && draw.one_in(20))).unzip();
    let parted = |a: usize, b: usize| half[a] == half[b] && !down[a] && !down[b];
    let whole = |_: usize, _: usize| true;
    let victim = members[NODES / 2].networks.me();
    let another = members[NODES / 3].networks.me();
    for (open, which) in [(&parted as &dyn Fn(usize, usize) -> bool, "in two parts"), (&whole, "whole again")] {
        let reachable = distances(&friends, 0, open);
        let diameter = diameter(&friends, open, &reachable);
        let expelled = if which == "whole again" { another } else { victim };
        members[0].networks.expel(network, expelled, NOW).unwrap();
        let mut rounds = 0;
        let missing = |members: &[Member]| {
            let lacks = |node: &usize| !members[*node].networks.members().is_expelled(&network, &expelled);
            (0..NODES).filter(|node| reachable[*node].is_some()).filter(lacks).count()
        };
        while missing(&members) > 0 && rounds < 2 * diameter {
            round(&mut members, &friends, open, &mut draw);
            rounds += 1;
        }
        let reached = reachable.iter().flatten().count();
        println!("seed {seed}, {which}: {reached} nodes reachable, diameter {diameter}, reached after {rounds} rounds");
        assert_eq!(missing(&members), 0, "after {rounds} rounds, with a diameter of {diameter}");
        let unreachable = (0..NODES).filter(|node| reachable[*node].is_none());
        assert!(unreachable.into_iter().all(|node| members[node].held().count == 0));
    }
    assert!(members.iter().all(|member| member.held() == members[0].held() && member.held().count == 2));
}
