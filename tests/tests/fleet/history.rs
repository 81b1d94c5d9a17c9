//! One history: a few nodes, a network, and what happens to them.

use std::collections::BTreeMap;

use handfast_protocol::join::Errand;
use handfast_protocol::{
    InviteId, InviteSecret, JoinRefusal, Membership, NetworkId, NetworkName, Note, PeerId, Role, SecretKey,
    Standing as Shown, Ticket, UnixMillis,
};
use handfast_tests::Draw;
use handfast_trust::networks::Invitation;
use handfast_trust::rules::Grant;
use handfast_trust::{Cause, Policy, Rule};

use crate::node::{Node, key};
use crate::plants::Plant;
use crate::talk::Outcome;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
/// The founder, whose machine holds the authority's key.
pub(crate) const FOUNDER: usize = 0;
/// The member that the founder makes a sponsor.
pub(crate) const SPONSOR: usize = 1;

/// What a history is like. All of it follows from the seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) nodes: usize,
    pub(crate) steps: u64,
    /// Uses of the founder's ordinary invite.
    pub(crate) uses: u32,
    /// At each wait the power goes once in so many times,
    pub(crate) power: u64,
    /// somebody decides something,
    pub(crate) decides: u64,
    /// or the frame is lost.
    pub(crate) loses: u64,
    /// Grants that a network's rule may make in all.
    pub(crate) budget: u64,
    /// Clocks jump, and months pass.
    pub(crate) wild_clocks: bool,
}

impl Options {
    pub(crate) fn of(seed: u64) -> Options {
        let mut draw = Draw::new(seed ^ 0x0051_AB1E);
        // One in a hundred is long.
        let long = seed.is_multiple_of(100);
        Options {
            nodes: if long { 6 } else { draw.of(&[3, 3, 3, 4]) },
            steps: if long { 120 } else { draw.of(&[6, 8, 10]) },
            uses: draw.of(&[1, 2, 8]),
            power: draw.of(&[20, 60, 1_000_000]),
            decides: draw.of(&[10, 40]),
            loses: draw.of(&[15, 80]),
            budget: if draw.one_in(8) { 1 } else { 1_000 },
            wild_clocks: draw.one_in(3),
        }
    }
}

/// What happened, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lived {
    pub(crate) histories: u64,
    pub(crate) exchanges: u64,
    pub(crate) visits: u64,
    pub(crate) joins: u64,
    pub(crate) refused: u64,
    pub(crate) sessions: u64,
    pub(crate) expulsions: u64,
    pub(crate) cuts: u64,
    pub(crate) stops: u64,
    pub(crate) jumps: u64,
    pub(crate) partitions: u64,
    /// Of all that happened, in order.
    pub(crate) trace: u64,
}

impl Lived {
    pub(crate) fn add(&mut self, other: &Lived) {
        self.histories += other.histories;
        self.exchanges += other.exchanges;
        self.visits += other.visits;
        self.joins += other.joins;
        self.refused += other.refused;
        self.sessions += other.sessions;
        self.expulsions += other.expulsions;
        self.cuts += other.cuts;
        self.stops += other.stops;
        self.jumps += other.jumps;
        self.partitions += other.partitions;
        self.trace ^= other.trace;
    }
}

pub(crate) struct World<P: Plant> {
    pub(crate) draw: Draw,
    pub(crate) options: Options,
    pub(crate) nodes: Vec<Node<P>>,
    pub(crate) network: NetworkId,
    pub(crate) name: NetworkName,
    clock_ms: u64,
    /// On which side of a partition a node is.
    side: Vec<bool>,
    pub(crate) faults: bool,
    /// Who is to fetch notices of which network from whom.
    pub(crate) to_fetch: Vec<(usize, usize, NetworkId)>,
    /// Every certificate that was signed.
    pub(crate) issued: Vec<Membership>,
    /// What each key got for each invite.
    pub(crate) redeemed: BTreeMap<(InviteId, PeerId), Membership>,
    invites: u8,
    pub(crate) lived: Lived,
}

/// Lives one history.
pub(crate) fn live<P: Plant>(seed: u64, options: Options) -> Result<Lived, String> {
    let mut world = World::<P>::found(seed, options);
    for step in 0..options.steps {
        world.act().and_then(|()| world.after_step()).map_err(|what| format!("step {step}: {what}"))?;
    }
    world.converges()?;
    world.lived.histories = 1;
    Ok(world.lived)
}

impl<P: Plant> World<P> {
    fn found(seed: u64, options: Options) -> World<P> {
        let policy = Policy {
            deny: Default::default(),
            allow: Default::default(),
            accept_all: false,
            grants_per_hour: 1_000,
            grants_total: options.budget,
            grants_per_sponsor: 1_000,
            pending_total: 100,
            pending_per_source: 100,
            pending_new_per_second: 100,
        };
        let authority: SecretKey = key(1_000);
        let network = authority.network_id();
        let mut world = World {
            draw: Draw::new(seed),
            options,
            nodes: (0..options.nodes).map(|number| Node::new(number, policy.clone())).collect(),
            network,
            name: NetworkName::new("lab").unwrap(),
            clock_ms: 1_000_000_000_000,
            side: vec![false; options.nodes],
            faults: true,
            to_fetch: Vec::new(),
            issued: Vec::new(),
            redeemed: BTreeMap::new(),
            invites: 0,
            lived: Lived::default(),
        };
        let now = world.now(FOUNDER);
        world.nodes[FOUNDER].authority = Some(authority.clone());
        let networks = world.nodes[FOUNDER].running().networks.clone();
        networks.create(authority, world.name.clone(), now).unwrap();
        world.issued.extend(networks.own_chain(network));
        world.nodes[FOUNDER].drain();
        let for_sponsor = world.invite(FOUNDER, Role::Sponsor, 1);
        let for_members = world.invite(FOUNDER, Role::Member, options.uses);
        for (number, node) in world.nodes.iter_mut().enumerate().skip(SPONSOR) {
            node.ticket = if number == SPONSOR { for_sponsor.clone() } else { for_members.clone() };
        }
        world
    }

    pub(crate) fn now(&self, node: usize) -> UnixMillis {
        UnixMillis(self.clock_ms + self.nodes[node].ahead_ms)
    }

    /// The greatest of all clocks.
    fn latest(&self) -> u64 {
        (0..self.nodes.len()).map(|node| self.now(node).0).max().unwrap_or(0)
    }

    pub(crate) fn can_talk(&self, a: usize, b: usize) -> bool {
        a != b && self.side[a] == self.side[b] && self.nodes[a].is_up() && self.nodes[b].is_up()
    }

    fn somebody(&mut self) -> usize {
        usize::try_from(self.draw.below(self.nodes.len() as u64)).unwrap()
    }

    fn invite(&mut self, by: usize, role: Role, uses: u32) -> Option<Ticket> {
        self.invites += 1;
        let secret = InviteSecret::new([self.invites; 16]);
        let now = self.now(by);
        let (network, expires_at) = (self.network, now.plus(1_000 * DAY));
        let wanted = Invitation { network, role, uses, valid_from: UnixMillis(0), expires_at };
        self.nodes[by].running().networks.invite(wanted, &secret, now).ok()?;
        // The ticket is printed when the invite is on the disk.
        self.nodes[by].drain();
        let (name, inviter, valid_from) = (self.name.clone(), self.nodes[by].id(), UnixMillis(0));
        let ticket = Ticket { network, name, inviter, addresses: Vec::new(), secret, uses, valid_from, expires_at };
        // As it would be typed.
        Some(ticket.to_text().parse().unwrap())
    }

    /// Something happens.
    fn act(&mut self) -> Result<(), String> {
        let (a, b) = (self.somebody(), self.somebody());
        match self.draw.below(100) {
            0..28 => self.join(a)?,
            28..56 => drop(self.exchange(a, b)?),
            56..64 => self.enlist(a),
            64..72 => self.decide_something(a),
            72..76 => self.authority_decides(),
            76..80 => self.time_passes(),
            80..84 => self.clock_jumps(a),
            84..88 => self.partition(),
            88..95 => self.restart(a)?,
            95..97 => self.leave(a),
            _ => self.undo(a),
        }
        self.fetch()
    }

    /// At a wait: power, decisions, lost frames. `false`: the conversation is over.
    pub(crate) fn meanwhile(&mut self, a: usize, b: usize) -> Result<bool, String> {
        if !self.faults {
            return Ok(true);
        }
        if self.draw.one_in(self.options.decides) {
            match self.draw.below(3) {
                0 => self.authority_decides(),
                1 => self.decide_something(a),
                _ => self.decide_something(b),
            }
        }
        if self.draw.one_in(self.options.power) {
            let who = self.draw.of(&[a, b]);
            self.restart(who)?;
            return Ok(false);
        }
        Ok(!self.draw.one_in(self.options.loses))
    }

    /// `a` redeems its ticket, or goes on with a join.
    pub(crate) fn join(&mut self, a: usize) -> Result<(), String> {
        let Some(ticket) = self.nodes[a].ticket.clone().filter(|_| self.nodes[a].is_up()) else {
            return Ok(());
        };
        let networks = self.nodes[a].running().networks.clone();
        let inviter = (0..self.nodes.len()).find(|node| self.nodes[*node].id() == ticket.inviter).unwrap();
        let here = networks.members().here(&self.network);
        let errand = match here.as_ref().and_then(|_| networks.proof(self.network, networks.me(), self.now(a))) {
            Some(own) => Errand::Resume(Box::new(own)),
            None => Errand::Redeem { network: ticket.network, secret: ticket.secret.clone() },
        };
        let outcome = self.visit(a, inviter, errand)?;
        match outcome {
            Outcome::Done => {
                if self.nodes[a].is_up() && networks.roster_is_read(self.network).is_ok() {
                    self.enlist(a);
                }
                if a == SPONSOR && self.nodes[a].is_up() && self.nodes.len() > 3 && self.draw.one_in(2) {
                    self.nodes[3].ticket = self.invite(SPONSOR, Role::Member, 4).or(self.nodes[3].ticket.take());
                }
                Ok(())
            }
            Outcome::Refused(JoinRefusal::Unknown | JoinRefusal::WrongNetwork | JoinRefusal::NotYetValid) => {
                Err(format!("node {a} is refused a ticket that is good: {outcome:?}"))
            }
            Outcome::Refused(_) | Outcome::Broken => Ok(()),
        }
    }

    /// The network's rule of `a` grants to all that it knows.
    pub(crate) fn enlist(&mut self, a: usize) {
        if !self.nodes[a].is_up() {
            return;
        }
        let now = self.now(a);
        let networks = self.nodes[a].running().networks.clone();
        for peer in networks.roster(self.network, now) {
            let enlisted = self.nodes[a].running().book.enlist(peer, self.network, now);
            if let Ok(updated) = enlisted {
                self.nodes[a].settle_trust(peer, &updated);
            }
        }
    }

    /// An operator trusts, revokes or blocks.
    fn decide_something(&mut self, a: usize) {
        let b = self.somebody();
        if a == b || !self.nodes[a].is_up() {
            return;
        }
        let (peer, now) = (self.nodes[b].id(), self.now(a));
        let book = &self.nodes[a].running().book;
        let decided = match self.draw.below(8) {
            0..3 => book.trust(peer, &Grant::default(), now),
            3..5 => book.revoke(peer, &Note::default(), Cause::Revoked, now),
            5 => book.block(peer, true, now),
            _ => book.block(peer, false, now),
        };
        let Ok(updated) = decided else {
            return;
        };
        self.nodes[a].settle_trust(peer, &updated);
        let record = self.nodes[a].running().book.record(&peer);
        match record.and_then(|record| record.ours.clone()) {
            Some(ours) if ours.is_revoke() => self.nodes[a].owes_revoke(peer, updated.revision),
            _ => self.nodes[a].forgives(peer),
        }
    }

    fn authority_decides(&mut self) {
        let about = self.somebody();
        if about == FOUNDER || !self.nodes[FOUNDER].is_up() {
            return;
        }
        let (member, now) = (self.nodes[about].id(), self.now(FOUNDER));
        let networks = self.nodes[FOUNDER].running().networks.clone();
        let is_expelled = networks.members().is_expelled(&self.network, &member);
        let decided = if is_expelled {
            networks.readmit(self.network, member, now)
        } else {
            networks.expel(self.network, member, now)
        };
        if let Ok(changed) = decided {
            self.lived.expulsions += u64::from(!is_expelled);
            let key = handfast_trust::networks::NetKey::Notice(self.network, member);
            let notice = networks.store().read(|table| table.get(&key).and_then(|record| record.notice().copied()));
            let notice = notice.map(|notice| *notice.signed());
            self.nodes[FOUNDER].keeps(notice.as_slice(), changed.revision);
            self.nodes[FOUNDER].settle(&changed, now);
        }
    }

    fn time_passes(&mut self) {
        self.clock_ms += match self.options.wild_clocks && self.draw.one_in(3) {
            true => self.draw.below(70) * DAY,
            false => self.draw.below(6) * HOUR + 1,
        };
    }

    fn clock_jumps(&mut self, a: usize) {
        if self.options.wild_clocks {
            self.lived.jumps += 1;
            self.nodes[a].ahead_ms = self.draw.below(40) * DAY;
        }
    }

    fn partition(&mut self) {
        self.lived.partitions += 1;
        for node in 0..self.side.len() {
            self.side[node] = self.draw.one_in(3);
        }
    }

    fn restart(&mut self, a: usize) -> Result<(), String> {
        if !self.nodes[a].is_up() {
            let now = self.now(a);
            return self.nodes[a].start(now);
        }
        if self.draw.one_in(4) {
            self.lived.stops += 1;
            self.nodes[a].stop();
        } else {
            self.lived.cuts += 1;
            let seed = self.draw.next();
            self.nodes[a].lose_power(seed);
        }
        if self.draw.one_in(3) {
            return Ok(());
        }
        let now = self.now(a);
        self.nodes[a].start(now)
    }

    fn leave(&mut self, a: usize) {
        if a != FOUNDER && self.nodes[a].is_up() && self.draw.one_in(2) {
            let now = self.now(a);
            if let Ok(changed) = self.nodes[a].running().networks.leave(self.network) {
                self.nodes[a].settle(&changed, now);
            }
        }
    }

    fn undo(&mut self, a: usize) {
        if self.nodes[a].is_up() {
            let now = self.now(a);
            let since = UnixMillis(now.0.saturating_sub(HOUR));
            let undone = self.nodes[a].running().book.undo(&Rule::Network(self.network), since, false, now);
            for (peer, updated) in undone {
                if let Some(updated) = updated {
                    self.nodes[a].settle_trust(peer, &updated);
                    self.nodes[a].owes_revoke(peer, updated.revision);
                }
            }
        }
    }

    /// What a peer may show again: any certificate it ever had.
    pub(crate) fn old_standings(&mut self, a: usize) -> Vec<Shown> {
        let me = self.nodes[a].id();
        let mine: Vec<&Membership> = self.issued.iter().filter(|one| one.member() == me).collect();
        if mine.is_empty() {
            return Vec::new();
        }
        let membership = mine[usize::try_from(self.draw.below(mine.len() as u64)).unwrap()].clone();
        vec![Shown { membership, expulsions: Default::default() }]
    }

    /// A host has certified `peer`, and its frame leaves.
    pub(crate) fn certified(
        &mut self,
        by: usize,
        peer: PeerId,
        membership: &Membership,
        invite: Option<InviteId>,
    ) -> Result<(), String> {
        let networks = &self.nodes[by].running().networks;
        if networks.members().is_expelled(&membership.network(), &peer) {
            return Err(format!("node {by} certified somebody that it knows as expelled"));
        }
        let Some(invite) = invite else {
            return Ok(());
        };
        if let Some(before) = self.redeemed.insert((invite, peer), membership.clone())
            && before != *membership
        {
            return Err(format!("node {by} gave the same key another certificate"));
        }
        let uses = networks.invites().iter().find(|(id, _)| *id == invite).map_or(0, |(_, record)| record.uses);
        let redeemers = self.redeemed.keys().filter(|(id, _)| *id == invite).count();
        if redeemers > uses as usize { Err(format!("more keys than uses: {redeemers} of {uses}")) } else { Ok(()) }
    }

    /// Clocks go together, everybody is up and may talk to everybody.
    pub(crate) fn calms(&mut self) -> Result<(), String> {
        self.faults = false;
        let latest = self.latest();
        self.clock_ms = latest;
        for node in 0..self.nodes.len() {
            self.side[node] = false;
            self.nodes[node].ahead_ms = 0;
            if !self.nodes[node].is_up() {
                self.nodes[node].start(UnixMillis(latest))?;
            }
        }
        Ok(())
    }
}
