//! Two nodes talk: the production machines, with the suite in place of the wire and of the drivers.
//!
//! Where a driver would wait, for a frame or for the disk, something else may happen: the power goes, the network falls
//! apart, an operator decides.

use handfast_protocol::exchange::{
    Initiator, InitiatorInput, InitiatorOutput, Responder, ResponderInput, ResponderOutput, Shown,
};
use handfast_protocol::join::{
    Brought, Errand, JoinFault, JoinHost, JoinHostInput, JoinHostOutput, JoinReply, JoinRequest, Joiner, JoinerInput,
    JoinerOutput,
};
use handfast_protocol::limits::FRAME_LENGTH_BYTES;
use handfast_protocol::{JoinRefusal, Membership};
use handfast_trust::networks::Joined;
use handfast_trust::rules::Showing;
use handfast_trust::{Direction, Purpose, TrustState};

use crate::history::World;
use crate::plants::Plant;

/// What became of a conversation.
pub(crate) type Talked = Result<Outcome, String>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Done,
    Refused(JoinRefusal),
    Broken,
}

fn body(frame: &[u8]) -> Vec<u8> {
    frame[FRAME_LENGTH_BYTES..].to_vec()
}

impl<P: Plant> World<P> {
    /// `a` opens an exchange with `b`.
    pub(crate) fn exchange(&mut self, a: usize, b: usize) -> Talked {
        if !self.can_talk(a, b) {
            return Ok(Outcome::Broken);
        }
        self.lived.exchanges += 1;
        let (peer_a, peer_b) = (self.nodes[a].id(), self.nodes[b].id());
        let now = self.now(a);
        let running = self.nodes[a].running();
        let networks =
            if self.draw.one_in(8) { self.old_standings(a) } else { running.networks.standings_with(&peer_b, now) };
        let running = self.nodes[a].running();
        let showing = Showing { incarnation: running.incarnation, address: None, networks };
        let (parties, offer, revision) = running.book.offer(peer_b, &showing, now);
        if !self.nodes[a].trust_reached(revision.0) {
            return Ok(Outcome::Broken);
        }
        let (mut initiator, frame) = Initiator::start(parties, &offer);
        let mut responder = Responder::new(self.nodes[b].running().book.parties(peer_a));
        let mut next = ResponderInput::Frame(body(&frame));
        let mut asked: Option<Shown> = None;
        let mut first = None;
        let answer = loop {
            // Between a decision and the frame that says it nothing happens.
            if !matches!(next, ResponderInput::Decided { .. }) && !self.meanwhile(a, b)? {
                return Ok(Outcome::Broken);
            }
            let now = self.now(b);
            next = match responder.handle(next) {
                ResponderOutput::Merge(shown) => {
                    self.take_in(b, a, &shown)?;
                    let shown = asked.insert(*shown);
                    let (terms, revision) = self.decide(b, a, shown);
                    first = Some(terms.clone());
                    ResponderInput::Decided { terms: Box::new(terms), revision: revision.0 }
                }
                ResponderOutput::Reconsider => {
                    let (mut terms, mut revision) = self.decide(b, a, asked.as_ref().unwrap());
                    if !P::DECIDES_AFRESH {
                        (terms, revision) = (first.clone().unwrap(), handfast_trust::Revision(0));
                    }
                    ResponderInput::Decided { terms: Box::new(terms), revision: revision.0 }
                }
                ResponderOutput::AwaitDurable(revision) => {
                    if self.nodes[b].trust_reached(revision) {
                        ResponderInput::Durable(revision)
                    } else {
                        ResponderInput::Deadline
                    }
                }
                ResponderOutput::Answer(frame) => {
                    if answers_granted(&frame)
                        && self.nodes[b].running().book.state(&peer_a, now) != TrustState::Trusted
                    {
                        return Err(format!("node {b} granted to somebody that it does not trust: node {a}"));
                    }
                    break frame;
                }
                ResponderOutput::Finish { .. } => return Ok(Outcome::Broken),
            };
        };
        self.end_exchange((a, b), &mut initiator, &mut responder, InitiatorInput::Frame(body(&answer)))
    }

    fn end_exchange(
        &mut self,
        (a, b): (usize, usize),
        initiator: &mut Initiator,
        responder: &mut Responder,
        mut next: InitiatorInput,
    ) -> Talked {
        let (peer_a, peer_b) = (self.nodes[a].id(), self.nodes[b].id());
        loop {
            if !self.meanwhile(a, b)? {
                return Ok(Outcome::Broken);
            }
            next = match initiator.handle(next) {
                InitiatorOutput::Merge(shown) => {
                    self.take_in(a, b, &shown)?;
                    let now = self.now(a);
                    let updated = self.nodes[a].running().book.merge(peer_b, &shown, None, now);
                    self.nodes[a].settle_trust(peer_b, &updated);
                    InitiatorInput::Merged { holds: updated.holds, revision: updated.revision.0 }
                }
                InitiatorOutput::AwaitDurable(revision) => {
                    if self.nodes[a].trust_reached(revision) {
                        InitiatorInput::Durable(revision)
                    } else {
                        InitiatorInput::Deadline
                    }
                }
                InitiatorOutput::Finish { receipt: Some(receipt), result: Ok(_) } => {
                    if let ResponderOutput::Finish { result: Ok(Some(holds)), .. } =
                        responder.handle(ResponderInput::Frame(body(&receipt)))
                    {
                        self.nodes[b].running().book.receipt(peer_a, holds);
                    }
                    self.open_session(a, b);
                    return Ok(Outcome::Done);
                }
                InitiatorOutput::Finish { .. } => return Ok(Outcome::Broken),
            };
        }
    }

    /// Both ends hold a session while both let the other in.
    fn open_session(&mut self, a: usize, b: usize) {
        let lets_in = |node: usize, other: usize| {
            let now = self.now(node);
            let book = &self.nodes[node].running().book;
            book.authorise(&self.nodes[other].id(), Purpose::Session, Direction::Inbound, now).is_ok()
        };
        if lets_in(a, b) && lets_in(b, a) {
            let (peer_a, peer_b) = (self.nodes[a].id(), self.nodes[b].id());
            self.nodes[a].sessions.insert(peer_b);
            self.nodes[b].sessions.insert(peer_a);
            self.lived.sessions += 1;
        }
    }

    /// What a peer shows of its networks: the shell takes it in before the rules see the edges.
    fn take_in(&mut self, at: usize, from: usize, shown: &Shown) -> Result<(), String> {
        let now = self.now(at);
        let learnt = self.nodes[at].running().networks.learn(shown.networks.iter().map(|one| &one.membership), now);
        let Ok(changed) = learnt else {
            return Err(format!("node {at} does not believe node {from}"));
        };
        self.nodes[at].settle(&changed, now);
        let differing = self.nodes[at].running().networks.differing(&shown.networks);
        self.to_fetch.extend(differing.into_iter().map(|network| (at, from, network)));
        Ok(())
    }

    fn decide(
        &mut self,
        at: usize,
        from: usize,
        shown: &Shown,
    ) -> (handfast_protocol::exchange::AnswerTerms, handfast_trust::Revision) {
        let (peer, now) = (self.nodes[from].id(), self.now(at));
        let updated = self.nodes[at].running().book.merge(peer, shown, None, now);
        self.nodes[at].settle_trust(peer, &updated);
        let running = self.nodes[at].running();
        let networks = running.networks.standings_like(&shown.networks, now);
        let showing = Showing { incarnation: running.incarnation, address: None, networks };
        running.book.answer(peer, shown, updated.turned_away, &showing, now)
    }

    /// `a` talks to `b` on a join stream.
    pub(crate) fn visit(&mut self, a: usize, b: usize, errand: Errand) -> Talked {
        if !self.can_talk(a, b) {
            return Ok(Outcome::Broken);
        }
        self.lived.visits += 1;
        let secret = match &errand {
            Errand::Redeem { secret, .. } => Some(secret.id()),
            _ => None,
        };
        let (mut joiner, frame) = Joiner::start(self.nodes[a].id(), errand);
        let mut host = JoinHost::new();
        let mut request = body(frame.as_slice());
        loop {
            let Some(reply) = self.host_replies((a, b), &mut host, request, secret)? else {
                return Ok(Outcome::Broken);
            };
            match self.joiner_goes_on((a, b), &mut joiner, reply)? {
                Ok(again) => request = again,
                Err(outcome) => return Ok(outcome),
            }
        }
    }

    fn host_replies(
        &mut self,
        (a, b): (usize, usize),
        host: &mut JoinHost,
        request: Vec<u8>,
        secret: Option<handfast_protocol::InviteId>,
    ) -> Result<Option<Vec<u8>>, String> {
        let peer = self.nodes[a].id();
        let mut asked: Option<JoinRequest> = None;
        let mut first = None;
        let mut said = None;
        let mut next = JoinHostInput::Frame(request.into());
        loop {
            if !matches!(next, JoinHostInput::Decided { .. }) && !self.meanwhile(a, b)? {
                return Ok(None);
            }
            let now = self.now(b);
            let reply = |world: &Self, request: &JoinRequest| {
                world.nodes[b].running().networks.reply(peer, request, &|_| None, now)
            };
            next = match host.handle(next) {
                JoinHostOutput::Decide(request) => {
                    let (reply, revision) = reply(self, asked.insert(*request));
                    self.notes_certificate(&reply);
                    first = Some(reply.clone());
                    said = first.clone();
                    JoinHostInput::Decided { reply: Box::new(reply), revision: revision.0 }
                }
                JoinHostOutput::Reconsider => {
                    let (mut reply, mut revision) = reply(self, asked.as_ref().unwrap());
                    self.notes_certificate(&reply);
                    if !P::DECIDES_AFRESH {
                        (reply, revision) = (first.clone().unwrap(), handfast_trust::Revision(0));
                    }
                    said = Some(reply.clone());
                    JoinHostInput::Decided { reply: Box::new(reply), revision: revision.0 }
                }
                JoinHostOutput::AwaitDurable(revision) => {
                    if self.nodes[b].networks_reached(revision) {
                        JoinHostInput::Durable(revision)
                    } else {
                        JoinHostInput::Deadline
                    }
                }
                JoinHostOutput::Answer(frame) => {
                    if let Some(JoinReply::Certified(membership)) = said {
                        self.certified(b, peer, &membership, secret)?;
                    }
                    return Ok(Some(body(&frame)));
                }
                JoinHostOutput::Finish { answer: Some(frame), .. } => return Ok(Some(body(&frame))),
                JoinHostOutput::Finish { answer: None, result } => {
                    return Err(format!("node {b} does not understand node {a}: {result:?}"));
                }
            };
        }
    }

    /// What is signed may count here from now on, whether it is ever sent or not.
    fn notes_certificate(&mut self, reply: &JoinReply) {
        if let JoinReply::Certified(membership) = reply
            && !self.issued.contains(membership)
        {
            self.issued.push(Membership::clone(membership));
        }
    }

    /// The next request, or how it ended.
    fn joiner_goes_on(
        &mut self,
        (a, b): (usize, usize),
        joiner: &mut Joiner,
        reply: Vec<u8>,
    ) -> Result<Result<Vec<u8>, Outcome>, String> {
        let mut next = JoinerInput::Frame(reply);
        loop {
            next = match joiner.handle(next) {
                JoinerOutput::Ask(frame) => return Ok(Ok(body(&frame))),
                JoinerOutput::Keep(brought) => self.keep(a, b, brought)?,
                JoinerOutput::AwaitDurable(revision) => {
                    if self.nodes[a].networks_reached(revision) {
                        JoinerInput::Durable(revision)
                    } else {
                        JoinerInput::Deadline
                    }
                }
                JoinerOutput::Finish(Ok(())) => return Ok(Err(Outcome::Done)),
                JoinerOutput::Finish(Err(JoinFault::Refused(refusal))) => {
                    self.lived.refused += 1;
                    return Ok(Err(Outcome::Refused(refusal)));
                }
                JoinerOutput::Finish(Err(JoinFault::Peer(code))) => {
                    return Err(format!("node {a} does not understand node {b}: {code}"));
                }
                JoinerOutput::Finish(Err(_)) => return Ok(Err(Outcome::Broken)),
            };
            if !self.meanwhile(a, b)? {
                return Ok(Err(Outcome::Broken));
            }
        }
    }

    fn keep(&mut self, at: usize, from: usize, brought: Brought) -> Result<JoinerInput, String> {
        let now = self.now(at);
        let networks = self.nodes[at].running().networks.clone();
        let kept = match brought {
            Brought::Own(membership) => {
                let name = self.name.clone();
                let joined = Joined { name, inviter: self.nodes[from].id(), addresses: Vec::new() };
                let is_join = networks.members().here(&membership.network()).is_none();
                self.lived.joins += u64::from(is_join);
                if is_join {
                    networks.joined(&joined, &membership, now).map_err(|refusal| refusal.to_string())
                } else {
                    networks.learn([membership.membership()], now).map_err(|fault| fault.to_string())
                }
            }
            Brought::Members(entries) => {
                let learnt = networks.learn(entries.iter().map(|entry| &entry.membership), now);
                learnt.map_err(|fault| fault.to_string())
            }
            Brought::Notices(_) if !P::KEEPS_NOTICES => return Ok(JoinerInput::Kept(0)),
            Brought::Notices(notices) => {
                let learnt = networks.learn_notices(&notices).map_err(|fault| fault.to_string());
                if let Ok(changed) = &learnt {
                    self.nodes[at].keeps(&notices, changed.revision);
                }
                learnt
            }
        };
        let changed = kept?;
        self.nodes[at].settle(&changed, now);
        Ok(JoinerInput::Kept(changed.revision.0))
    }

    /// What an exchange has shown to be missing is fetched.
    pub(crate) fn fetch(&mut self) -> Result<(), String> {
        for (a, b, network) in std::mem::take(&mut self.to_fetch) {
            if !self.nodes[a].is_up() {
                continue;
            }
            if let Some(chain) = self.nodes[a].running().networks.own_chain(network) {
                self.visit(a, b, Errand::Expulsions(Box::new(chain)))?;
            }
        }
        Ok(())
    }
}

fn answers_granted(frame: &[u8]) -> bool {
    let read = handfast_protocol::codec::decode::<handfast_protocol::exchange::Answer>(&body(frame), frame.len());
    read.is_ok_and(|answer| answer.disposition == handfast_protocol::exchange::Disposition::Granted)
}
