//! The opener's side: a certificate first, where one is asked for; then the expulsions, then the roster, page by page.
//!
//! While the disk takes the certificate and the expulsions, the first page of the roster is on its way; it is given to
//! be kept, and its members to be met, only when they are durable.

use super::{
    JoinAnswer, JoinAsk, JoinFault, JoinReply, JoinRequest, NoticePage, Patience, RosterEntry, RosterPage, SecretBytes,
    read_frame,
};
use crate::codec;
use crate::expulsion::SignedNotice;
use crate::fault::{JoinRefusal, RefuseCode};
use crate::identity::{NetworkId, PeerId};
use crate::limits::JOIN_REQUESTS_MAX;
use crate::membership::{Membership, VerifiedMembership};
use crate::stream::Extensions;
use crate::ticket::InviteSecret;

/// What a conversation is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Errand {
    /// Redeem an invite, then read expulsions and roster.
    Redeem {
        /// The network that the ticket names.
        network: NetworkId,
        /// The secret of the ticket.
        secret: InviteSecret,
    },
    /// Read expulsions and roster with a certificate that we have.
    Resume(Box<Membership>),
    /// Only the expulsions.
    Expulsions(Box<Membership>),
    /// A new certificate, and nothing else.
    Renew(Box<Membership>),
}

/// What the driver may tell a [`Joiner`].
#[derive(Clone, Debug)]
pub enum JoinerInput {
    /// The body of the next frame.
    Frame(Vec<u8>),
    /// What was brought is stored with this revision; or was known, then any revision will do.
    Kept(u64),
    /// What was brought is not to be believed.
    NotBelieved,
    /// Everything up to this revision is durable.
    Durable(u64),
    /// The deadline of [`Joiner::patience`] has passed.
    Deadline,
    /// The stream has ended.
    Closed,
}

/// What the host has given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Brought {
    /// Our own membership, checked.
    Own(Box<VerifiedMembership>),
    /// Members of the network; signatures are unchecked.
    Members(Vec<RosterEntry>),
    /// Notices of the network's authority; signatures are unchecked.
    Notices(Vec<SignedNotice>),
}

/// What a [`Joiner`] asks of its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinerOutput {
    /// Send the frame, then feed the next one.
    Ask(Vec<u8>),
    /// Keep this, and answer with [`JoinerInput::Kept`] or [`JoinerInput::NotBelieved`].
    Keep(Brought),
    /// Answer with [`JoinerInput::Durable`] once this revision is durable.
    AwaitDurable(u64),
    /// The conversation is over: end the stream.
    Finish(Result<(), JoinFault>),
}

/// The opener's machine. See the module of both for how to drive it.
#[derive(Debug)]
pub struct Joiner {
    me: PeerId,
    network: NetworkId,
    /// Whether the roster is read.
    roster: bool,
    /// What must be durable before all is done.
    revision: u64,
    /// What must be durable before members are kept: our certificate, and the expulsions.
    relied_on: u64,
    /// What the disk has confirmed.
    durable: u64,
    requests: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitCertificate {
        renewal: bool,
    },
    AwaitNotices {
        membership: Box<Membership>,
        after: Option<PeerId>,
    },
    AwaitRoster {
        membership: Box<Membership>,
        after: Option<PeerId>,
    },
    AwaitKept(Next),
    /// A page is here, what its members rest on is not durable yet.
    AwaitReliable {
        entries: Vec<RosterEntry>,
        next: Next,
    },
    AwaitAllDurable,
    Finished,
}

/// What follows when what was brought is stored.
#[derive(Debug)]
enum Next {
    Notices { membership: Box<Membership>, after: Option<PeerId> },
    Roster { membership: Box<Membership>, after: Option<PeerId> },
    End,
}

impl Joiner {
    /// Begins a conversation. Returns the machine and the first frame to send.
    pub fn start(me: PeerId, errand: Errand) -> (Joiner, SecretBytes) {
        let network = match &errand {
            Errand::Redeem { network, .. } => *network,
            Errand::Resume(membership) | Errand::Expulsions(membership) | Errand::Renew(membership) => {
                membership.network()
            }
        };
        let roster = matches!(errand, Errand::Redeem { .. } | Errand::Resume(_));
        let (state, request) = match errand {
            Errand::Redeem { network, secret } => {
                (State::AwaitCertificate { renewal: false }, JoinRequest::Redeem { network, secret })
            }
            Errand::Renew(membership) => (State::AwaitCertificate { renewal: true }, JoinRequest::Renew { membership }),
            Errand::Resume(membership) | Errand::Expulsions(membership) => {
                let request = JoinRequest::Expulsions { membership: membership.clone(), after: None };
                (State::AwaitNotices { membership, after: None }, request)
            }
        };
        let first = SecretBytes::from(frame(request));
        (Joiner { me, network, roster, revision: 0, relied_on: 0, durable: 0, requests: 1, state }, first)
    }

    /// Which deadline runs now.
    pub fn patience(&self) -> Patience {
        match self.state {
            State::AwaitCertificate { .. } | State::AwaitNotices { .. } | State::AwaitRoster { .. } => Patience::Frame,
            State::AwaitReliable { .. } | State::AwaitAllDurable => Patience::Disk,
            State::AwaitKept(_) | State::Finished => Patience::Own,
        }
    }

    /// True once [`JoinerOutput::Finish`] was returned.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// The name of the state, for logs and snapshots.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::AwaitCertificate { renewal: false } => "AwaitCertificate",
            State::AwaitCertificate { renewal: true } => "AwaitRenewal",
            State::AwaitNotices { .. } => "AwaitNotices",
            State::AwaitRoster { .. } => "AwaitRoster",
            State::AwaitKept(_) => "AwaitKept",
            State::AwaitReliable { .. } => "AwaitReliable",
            State::AwaitAllDurable => "AwaitAllDurable",
            State::Finished => "Finished",
        }
    }

    /// Takes one input, returns the one thing to do next.
    pub fn handle(&mut self, input: JoinerInput) -> JoinerOutput {
        let (state, output) = match (std::mem::replace(&mut self.state, State::Finished), input) {
            (State::AwaitCertificate { renewal }, JoinerInput::Frame(body)) => {
                on_reply(&body).and_then(|reply| self.on_certificate(renewal, reply)).unwrap_or_else(failed)
            }
            (State::AwaitNotices { membership, after }, JoinerInput::Frame(body)) => {
                on_reply(&body).and_then(|reply| self.on_notices(membership, after, reply)).unwrap_or_else(failed)
            }
            (State::AwaitRoster { membership, after }, JoinerInput::Frame(body)) => {
                on_reply(&body).and_then(|reply| self.on_roster(membership, after, reply)).unwrap_or_else(failed)
            }
            (State::AwaitKept(next), JoinerInput::Kept(revision)) => {
                self.revision = self.revision.max(revision);
                self.go_on(next)
            }
            (State::AwaitKept(_), JoinerInput::NotBelieved) => failed(JoinFault::Peer(RefuseCode::BadStatement)),
            (State::AwaitReliable { entries, next }, JoinerInput::Durable(reached)) if reached >= self.relied_on => {
                self.durable = reached;
                (State::AwaitKept(next), JoinerOutput::Keep(Brought::Members(entries)))
            }
            (State::AwaitAllDurable, JoinerInput::Durable(reached)) if reached >= self.revision => {
                (State::Finished, JoinerOutput::Finish(Ok(())))
            }
            // What is stored still becomes durable, whoever has left.
            (State::AwaitAllDurable, JoinerInput::Closed) => {
                (State::AwaitAllDurable, JoinerOutput::AwaitDurable(self.revision))
            }
            (State::AwaitReliable { .. } | State::AwaitAllDurable, JoinerInput::Deadline) => {
                failed(JoinFault::NotDurable)
            }
            (State::AwaitReliable { .. } | State::AwaitAllDurable, JoinerInput::Frame(_)) => {
                failed(JoinFault::Peer(RefuseCode::BadFrame))
            }
            (State::AwaitKept(_) | State::Finished, _) => failed(JoinFault::OutOfTurn),
            (_, JoinerInput::Deadline) => failed(JoinFault::TimedOut),
            (_, JoinerInput::Closed) => failed(JoinFault::Closed),
            _ => failed(JoinFault::OutOfTurn),
        };
        self.state = state;
        output
    }

    fn on_certificate(&self, renewal: bool, reply: JoinReply) -> Result<(State, JoinerOutput), JoinFault> {
        let JoinReply::Certified(membership) = reply else {
            return Err(JoinFault::Peer(RefuseCode::BadFrame));
        };
        let own = membership.verify().map_err(|_| JoinFault::Peer(RefuseCode::BadStatement))?;
        if own.member() != self.me || own.network() != self.network {
            return Err(JoinFault::Peer(RefuseCode::BadStatement));
        }
        let asked_next = || Next::Notices { membership: Box::new(own.membership().clone()), after: None };
        let next = if renewal { Next::End } else { asked_next() };
        Ok((State::AwaitKept(next), JoinerOutput::Keep(Brought::Own(Box::new(own)))))
    }

    fn on_notices(
        &self,
        membership: Box<Membership>,
        after: Option<PeerId>,
        reply: JoinReply,
    ) -> Result<(State, JoinerOutput), JoinFault> {
        let JoinReply::Expulsions(NoticePage { notices, more }) = reply else {
            return Err(JoinFault::Peer(RefuseCode::BadFrame));
        };
        let here = |signed: &SignedNotice| signed.notice.network == self.network;
        let last = ascending(after, notices.iter().map(|signed| signed.notice.member), more)?;
        if !notices.iter().all(here) {
            return Err(JoinFault::Peer(RefuseCode::BadStatement));
        }
        let next = match last {
            after @ Some(_) if more => Next::Notices { membership, after },
            _ if self.roster => Next::Roster { membership, after: None },
            _ => Next::End,
        };
        Ok((State::AwaitKept(next), JoinerOutput::Keep(Brought::Notices(notices))))
    }

    fn on_roster(
        &self,
        membership: Box<Membership>,
        after: Option<PeerId>,
        reply: JoinReply,
    ) -> Result<(State, JoinerOutput), JoinFault> {
        let JoinReply::Roster(RosterPage { entries, more }) = reply else {
            return Err(JoinFault::Peer(RefuseCode::BadFrame));
        };
        let fits = |entry: &RosterEntry| {
            let own = |address: &crate::SignedAddressRecord| address.record.peer == entry.membership.member();
            entry.membership.network() == self.network && entry.address.as_ref().is_none_or(own)
        };
        let last = ascending(after, entries.iter().map(|entry| entry.membership.member()), more)?;
        if !entries.iter().all(fits) {
            return Err(JoinFault::Peer(RefuseCode::BadStatement));
        }
        let next = match last {
            after @ Some(_) if more => Next::Roster { membership, after },
            _ => Next::End,
        };
        if self.durable < self.relied_on {
            return Ok((State::AwaitReliable { entries, next }, JoinerOutput::AwaitDurable(self.relied_on)));
        }
        Ok((State::AwaitKept(next), JoinerOutput::Keep(Brought::Members(entries))))
    }

    fn go_on(&mut self, next: Next) -> (State, JoinerOutput) {
        match next {
            Next::End => (State::AwaitAllDurable, JoinerOutput::AwaitDurable(self.revision)),
            Next::Notices { membership, after } => {
                let request = JoinRequest::Expulsions { membership: membership.clone(), after };
                self.ask(State::AwaitNotices { membership, after }, request)
            }
            Next::Roster { membership, after } => {
                if after.is_none() {
                    self.relied_on = self.revision;
                }
                let request = JoinRequest::Roster { membership: membership.clone(), after };
                self.ask(State::AwaitRoster { membership, after }, request)
            }
        }
    }

    fn ask(&mut self, state: State, request: JoinRequest) -> (State, JoinerOutput) {
        self.requests += 1;
        if self.requests > JOIN_REQUESTS_MAX {
            return failed(JoinFault::Peer(RefuseCode::BadFrame));
        }
        (state, JoinerOutput::Ask(frame(request)))
    }
}

fn frame(request: JoinRequest) -> Vec<u8> {
    codec::frame(&JoinAsk { request, extensions: Extensions::default() })
}

fn failed(fault: JoinFault) -> (State, JoinerOutput) {
    (State::Finished, JoinerOutput::Finish(Err(fault)))
}

/// What both sides end with is no page and no certificate.
fn on_reply(body: &[u8]) -> Result<JoinReply, JoinFault> {
    let answer: JoinAnswer = read_frame(body)?;
    answer.extensions.require_understood(&[]).map_err(JoinFault::Peer)?;
    match answer.reply {
        JoinReply::Refused(code) => Err(JoinFault::Refused(JoinRefusal::from_code(u64::from(code)))),
        JoinReply::Busy(retry_after_ms) => Err(JoinFault::Busy(retry_after_ms)),
        reply => Ok(reply),
    }
}

/// The last of a page, which must ascend from `after`; one that more follow must not be empty.
fn ascending(
    after: Option<PeerId>,
    members: impl Iterator<Item = PeerId>,
    more: bool,
) -> Result<Option<PeerId>, JoinFault> {
    let mut last = after;
    let mut empty = true;
    for member in members {
        if last.is_some_and(|last| last >= member) {
            return Err(JoinFault::Peer(RefuseCode::BadFrame));
        }
        last = Some(member);
        empty = false;
    }
    if more && empty { Err(JoinFault::Peer(RefuseCode::BadFrame)) } else { Ok(last) }
}
