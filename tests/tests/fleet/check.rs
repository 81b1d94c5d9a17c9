//! What must never happen, looked for after every step; and what must have happened in the end.
//!
//! What a node was told is kept apart from the node ([`crate::node::Node::notices`] and the certificates of the world),
//! and judged by the words of the design, not by the code under test.

use handfast_protocol::join::Errand;
use handfast_protocol::{Kind, NetworkId, PeerId, UnixMillis};
use handfast_trust::{Direction, Edge, Purpose, Side, TrustRecord, TrustState};

use crate::history::{FOUNDER, World};
use crate::plants::Plant;

/// Rounds in which everybody meets everybody, after which all must be well.
const ROUNDS: usize = 5;

fn grants(edge: &Option<Edge>) -> bool {
    edge.as_ref().is_some_and(|edge| edge.terms.kind == Kind::Grant)
}

fn network_of(edge: &Option<Edge>) -> Option<NetworkId> {
    edge.as_ref().and_then(|edge| edge.terms.network)
}

impl<P: Plant> World<P> {
    /// Time moves on at every node, the disk works now and then, and everything is looked at.
    pub(crate) fn after_step(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_up() {
                let now = self.now(node);
                let fallen = self.nodes[node].running().book.expire(now);
                self.nodes[node].cut(&fallen);
                let (works, has_waited) = (self.draw.one_in(2), self.draw.one_in(4));
                if works {
                    self.nodes[node].step(has_waited);
                }
            }
        }
        (0..self.nodes.len()).filter(|node| self.nodes[*node].is_up()).try_for_each(|node| self.is_safe(node))?;
        self.traces();
        Ok(())
    }

    fn is_safe(&self, at: usize) -> Result<(), String> {
        let (node, now) = (&self.nodes[at], self.now(at));
        let running = node.running();
        for ((network, member), promised) in &node.notices {
            let key = handfast_trust::networks::NetKey::Notice(*network, *member);
            let held = running
                .networks
                .store()
                .read(|table| table.get(&key).and_then(|record| record.notice().map(|n| n.rank())));
            if held < Some(*promised) {
                return Err(format!("node {at} has forgotten a notice that was on its disk"));
            }
        }
        for (other, _) in self.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
            self.is_safe_towards(at, other, now)?;
        }
        for (id, invite) in running.networks.invites() {
            let redeemed = running.networks.redemptions(id).len();
            if invite.used as usize != redeemed || invite.used > invite.uses {
                return Err(format!("node {at} counts {} of {} uses for {redeemed} keys", invite.used, invite.uses));
            }
        }
        Ok(())
    }

    fn is_safe_towards(&self, at: usize, other: usize, now: UnixMillis) -> Result<(), String> {
        let (node, peer) = (&self.nodes[at], self.nodes[other].id());
        let book = &node.running().book;
        let record = book.record(&peer);
        let empty = TrustRecord::default();
        let record = record.as_deref().unwrap_or(&empty);
        let state = book.state_of(&peer, record, now);
        let who = || format!("node {at} about node {other}, {state}");
        if record.rests_on_networks() && record.told() != state {
            return Err(format!("{}: was not told, but {}", who(), record.told()));
        }
        if !record.history.windows(2).all(|two| two[0].to == two[1].from) {
            return Err(format!("{}: the history has a gap", who()));
        }
        let passes = book.authorise(&peer, Purpose::Session, Direction::Inbound, now).is_ok();
        if passes && !self.may_pass(at, peer, record, now) {
            return Err(format!("{}: passes", who()));
        }
        if passes && state != TrustState::Trusted {
            return Err(format!("{}: passes without trust", who()));
        }
        if state != TrustState::Trusted && node.sessions.contains(&peer) {
            return Err(format!("{}: a session goes on", who()));
        }
        if node.revoked.contains(&peer) && !record.ours.as_ref().is_some_and(Edge::is_revoke) {
            return Err(format!("{}: a revoke is forgotten", who()));
        }
        // An operator's trust does not depend on any membership.
        let by_operators = grants(&record.ours) && grants(&record.theirs) && !record.rests_on_networks();
        if by_operators && !record.blocked && state != TrustState::Trusted {
            return Err(format!("{}: what operators granted does not count", who()));
        }
        let (standing, _) = book.store().index().grants_of(&handfast_trust::Rule::Network(self.network), now);
        if standing > self.options.budget {
            return Err(format!("node {at} has made {standing} grants by a rule for {}", self.options.budget));
        }
        Ok(())
    }

    /// By the words of the design: both grant, nothing blocks, and a grant of a network's rule needs a certificate for
    /// its subject that was really given out, that has not ended, and that no expulsion voids of which the node was told.
    fn may_pass(&self, at: usize, peer: PeerId, record: &TrustRecord, now: UnixMillis) -> bool {
        let subject_counts = |edge: &Option<Edge>, side| {
            let subject = if side == Side::Ours { peer } else { self.nodes[at].id() };
            network_of(edge).is_none_or(|network| {
                let expelled = |who: PeerId| {
                    self.nodes[at].notices.get(&(network, who)).is_some_and(|rank| {
                        // What was promised may have been readmitted in memory since; then the newer notice decides.
                        rank.kind == handfast_protocol::NoticeKind::Expel
                            && !self.is_readmitted(at, network, who, rank.number)
                    })
                };
                let certified = self.issued.iter().any(|one| {
                    one.network() == network
                        && one.member() == subject
                        && one.ends_at() > now
                        && !one.sponsor().is_some_and(expelled)
                });
                certified && !expelled(subject)
            })
        };
        grants(&record.ours)
            && grants(&record.theirs)
            && !record.blocked
            && subject_counts(&record.ours, Side::Ours)
            && subject_counts(&record.theirs, Side::Theirs)
    }

    fn is_readmitted(&self, at: usize, network: NetworkId, who: PeerId, than: u64) -> bool {
        let key = handfast_trust::networks::NetKey::Notice(network, who);
        let held =
            self.nodes[at].running().networks.store().read(|table| table.get(&key).and_then(|r| r.notice().copied()));
        held.is_some_and(|notice| notice.notice().number > than && !notice.expels())
    }

    fn traces(&mut self) {
        for node in self.nodes.iter().filter(|node| node.is_up()) {
            let running = node.running();
            let seen = [running.book.store().revision().0, running.networks.store().revision().0, node.number as u64];
            for number in seen {
                self.lived.trace = (self.lived.trace ^ number).wrapping_mul(0x0100_0000_01B3);
            }
        }
    }

    /// Nothing goes wrong any more: then everything is as it should be, without a command.
    pub(crate) fn converges(&mut self) -> Result<(), String> {
        self.calms()?;
        let mut outcome = Ok(());
        for round in 0..ROUNDS {
            self.round(round % 2 == 0)?;
            self.nodes.iter_mut().for_each(crate::node::Node::drain);
            self.after_step().map_err(|what| format!("in the end: {what}"))?;
            self.nodes.iter_mut().for_each(crate::node::Node::drain);
            outcome = (0..self.nodes.len()).try_for_each(|node| self.has_converged(node));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// What nodes do by themselves: renew, go on with joins, read the roster anew, grant by rule, meet, ask what they lack.
    fn round(&mut self, forth: bool) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let now = self.now(node);
            let networks = self.nodes[node].running().networks.clone();
            let renewed = networks.renew_own(now);
            self.nodes[node].settle(&renewed, now);
            for (_, own) in networks.due_for_renewal(now) {
                self.visit(node, FOUNDER, Errand::Renew(Box::new(own)))?;
            }
            self.issued.extend(networks.own_chain(self.network));
            let counts = networks.members().counts(&self.network, &networks.me(), now);
            if let Some(chain) = networks.own_chain(self.network).filter(|_| !counts) {
                self.visit(node, FOUNDER, Errand::Expulsions(Box::new(chain)))?;
            }
            let here = networks.members().here(&self.network);
            if here.is_some_and(|record| record.joining.is_some()) {
                self.join(node)?;
            } else if let Some(own) = networks.proof(self.network, networks.me(), now).filter(|_| !forth) {
                // Two that were not members when the other read the roster do not know of each other.
                self.visit(node, FOUNDER, Errand::Resume(Box::new(own)))?;
            }
        }
        for a in 0..self.nodes.len() {
            self.enlist(a);
            for b in a + 1..self.nodes.len() {
                let (opener, responder) = if forth { (a, b) } else { (b, a) };
                self.exchange(opener, responder)?;
                self.fetch()?;
            }
        }
        Ok(())
    }

    fn has_converged(&self, at: usize) -> Result<(), String> {
        let (node, now) = (&self.nodes[at], self.now(at));
        if P::WAITS && !node.is_drained() {
            return Err(format!("node {at} has not written everything"));
        }
        let (members, founder) = (node.running().networks.members(), self.nodes[FOUNDER].running().networks.members());
        let Some(here) = members.here(&self.network) else {
            return Ok(());
        };
        // Who is blocked is not talked to; with more nodes it would hear of it from others.
        let blocks = |one: usize, other: usize| {
            let record = self.nodes[one].running().book.record(&self.nodes[other].id());
            record.is_some_and(|record| record.blocked)
        };
        let cut_off = blocks(at, FOUNDER) || blocks(FOUNDER, at);
        if !cut_off && members.expulsions(&self.network) != founder.expulsions(&self.network) {
            return Err(format!("node {at}: the expulsions differ from the founder's"));
        }
        let counts = |who: &PeerId| founder.counts(&self.network, who, now);
        if here.joining.is_some() && counts(&node.id()) {
            return Err(format!("node {at}: a join is still half done"));
        }
        for other in self.nodes.iter().filter(|other| other.number != at) {
            let is_here =
                |other: &crate::node::Node<P>| other.running().networks.members().here(&self.network).is_some();
            let both = counts(&node.id()) && counts(&other.id()) && is_here(other);
            let (ours, theirs) = (node.running().book.record(&other.id()), other.running().book.record(&node.id()));
            let undisturbed = [&ours, &theirs].into_iter().all(|record| {
                let Some(record) = record else { return true };
                !record.blocked && ![&record.ours, &record.theirs].into_iter().flatten().any(Edge::is_revoke)
            });
            let ample = self.options.budget as usize >= self.nodes.len();
            let book = &node.running().book;
            let trusted = book.authorise(&other.id(), Purpose::Session, Direction::Inbound, now).is_ok();
            if both && undisturbed && ample && !trusted {
                let state = book.state(&other.id(), now);
                return Err(format!("node {at} and node {}, both members: {state} in the end", other.number));
            }
            // A grant of a network's rule is worth what its subject's membership is worth to the founder.
            let rests_on = |edge: fn(&TrustRecord) -> &Option<Edge>, subject: PeerId| {
                let network = ours.as_deref().and_then(|record| network_of(edge(record)));
                network.is_some() && !counts(&subject)
            };
            if trusted && (rests_on(|record| &record.ours, other.id()) || rests_on(|record| &record.theirs, node.id()))
            {
                return Err(format!("node {at} trusts node {}, which is no member, in the end", other.number));
            }
        }
        Ok(())
    }
}
