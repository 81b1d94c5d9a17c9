//! One simulated peer: its key, what it has said, what the node has told it, and one conversation with the node.
//!
//! A conversation runs the project's own protocol machine: connect, Offer, Answer (the node's statement is verified
//! strictly), Receipt, close. It counts as over when the node has taken the Receipt. A simulated peer has no disk: what
//! it says to hold it holds in memory.
//!
//! It closes as one that is stopping: the node is not to dial it again.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use handfast_protocol::codec;
use handfast_protocol::exchange::{
    Agreement, AnswerTerms, Disposition, ExchangeFault, Initiator, InitiatorInput, InitiatorOutput, Offer, Parties,
    Responder, ResponderInput, ResponderOutput,
};
use handfast_protocol::limits::{FRAME_BYTES_MAX, HEAD_BYTES_MAX};
use handfast_protocol::statement::next_epoch;
use handfast_protocol::stream::{Extensions, Head, StreamKind};
use handfast_protocol::{
    CloseCode, Held, Incarnation, Kind, Note, PeerId, RefuseCode, SecretKey, Statement, Terms, UnixMillis, Verified,
};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use super::ledger::{Memory, Said};
use crate::clock::unix_now;
use crate::driver::{read_frame_in_time, refuse};
use crate::transport::{Caller, Callers, CloseReason, DialError, close_reason};

/// How long a dial may take: a few lost first packets.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a whole conversation may take: a dial, an exchange at its deadline.
const CONVERSATION_DEADLINE: Duration = Duration::from_secs(20);

/// The node that the storm is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    pub peer: PeerId,
    pub at: SocketAddr,
}

/// Why a conversation did not do what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No connection.
    Dial(DialError),
    /// The node ended the connection or the stream.
    Closed(Option<CloseReason>),
    /// An answer or the whole conversation took too long.
    TimedOut,
    /// The node broke the protocol.
    Protocol(ExchangeFault),
    /// The node promised nothing and asked to try again.
    Busy,
    /// Another answer than the one that was due.
    Answered(Disposition),
    /// The node says that it trusts, without having our statement or giving its own.
    Contradiction,
    /// The generator had too much to do already.
    NotSent,
    /// What should have been refused was not.
    NotRefused,
    /// The node kept a connection that hangs at this stage.
    Kept(&'static str),
    /// The node ended a session that it should have kept.
    NotKept(CloseReason),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Dial(error) => write!(f, "{error}"),
            Fault::Closed(Some(reason)) => write!(f, "{reason}"),
            Fault::Closed(None) => f.write_str("the node ended the stream"),
            Fault::TimedOut => f.write_str("the node did not answer in time"),
            Fault::Protocol(fault) => write!(f, "{fault}"),
            Fault::Busy => f.write_str("the node is busy"),
            Fault::Answered(disposition) => write!(f, "the node answered {disposition:?}"),
            Fault::Contradiction => f.write_str("the node's answer contradicts itself"),
            Fault::NotSent => f.write_str("not sent: the load generator was at its limit"),
            Fault::NotRefused => f.write_str("the node did not refuse it"),
            Fault::Kept(stage) => write!(f, "the node kept a connection that hangs {stage}"),
            Fault::NotKept(reason) => write!(f, "the node did not keep the session: {reason}"),
        }
    }
}

/// Which identities there are; each group counts from 0, so that a seed names every key of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Those that a rule of the node trusts.
    Friends,
    /// Those that nobody knows.
    Strangers,
}

/// The key of an identity.
pub fn key_of(seed: u64, group: Group, number: u64) -> SecretKey {
    let mut hasher = blake3::Hasher::new_derive_key("handfast storm 2026 simulated identities");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&[group as u8]);
    hasher.update(&number.to_le_bytes());
    SecretKey::from_seed(hasher.finalize().as_bytes())
}

/// See the module.
pub struct Peer {
    pub key: SecretKey,
    pub group: Group,
    pub number: u64,
    /// Kept over its dials.
    caller: Option<Caller>,
    incarnation: Incarnation,
    ours: Option<Verified>,
    theirs: Option<Verified>,
    pub memory: Memory,
}

/// A conversation that came to its end, with the connection that carried it.
pub struct Conversed {
    pub agreement: Agreement,
    pub connection: quinn::Connection,
}

impl Conversed {
    /// Ends the connection as a peer that stops.
    pub fn close(self) {
        close(&self.connection);
    }
}

/// Whether the answer is the one that was due.
fn due_answer(agreement: &Agreement, due: Disposition) -> Result<(), Fault> {
    match agreement.disposition {
        found if found == due => Ok(()),
        Disposition::Busy { .. } => Err(Fault::Busy),
        found => Err(Fault::Answered(found)),
    }
}

/// Ends a connection as a peer that stops.
pub fn close(connection: &quinn::Connection) {
    connection.close(VarInt::from_u32(CloseCode::Stopping.code()), b"");
}

impl Peer {
    /// A peer that has not said anything yet.
    pub fn new(seed: u64, group: Group, number: u64) -> Peer {
        Peer::with_key(key_of(seed, group, number), group, number)
    }

    /// As [`Peer::new`], with its key at hand.
    pub fn with_key(key: SecretKey, group: Group, number: u64) -> Peer {
        let memory = Memory::new(key.peer_id(), number);
        let mut incarnation = [0; 16];
        incarnation.copy_from_slice(&key.peer_id().as_bytes()[..16]);
        let incarnation = Incarnation(incarnation);
        Peer { key, group, number, caller: None, incarnation, ours: None, theirs: None, memory }
    }

    /// True while it has said nothing to anybody.
    pub fn is_unheard(&self) -> bool {
        self.memory.said.is_empty()
    }

    /// What it says of `subject` from now on.
    pub fn say(&mut self, subject: PeerId, kind: Kind, now: UnixMillis) -> Option<Verified> {
        let stored = self.ours.as_ref().map(|ours| ours.terms().epoch);
        let terms = Terms {
            kind,
            epoch: next_epoch(stored, 0, now),
            issued_at: now,
            expires_at: None,
            scope: None,
            network: None,
            note: Note::default(),
        };
        let said = Statement { issuer: self.key.peer_id(), subject, terms }.sign(&self.key).ok()?;
        self.memory.said.push(Said { held: said.held(), kind, acknowledged: false });
        self.ours = Some(said);
        self.ours.clone()
    }

    /// The exchange with what it says now, which is something new with `says`; `due` is the answer that it has a right
    /// to. Who is turned away before it is connected has said nothing.
    pub async fn converse(
        &mut self,
        callers: &Callers,
        target: &Target,
        says: Option<Kind>,
        due: Disposition,
    ) -> Result<Conversed, Fault> {
        let conversed = timeout(CONVERSATION_DEADLINE, self.conversation(callers, target, says)).await;
        let conversed = conversed.unwrap_or(Err(Fault::TimedOut))?;
        match due_answer(&conversed.agreement, due) {
            Ok(()) => Ok(conversed),
            Err(fault) => {
                conversed.close();
                Err(fault)
            }
        }
    }

    /// As [`Peer::converse`], over a connection that stands.
    pub async fn converse_over(
        &mut self,
        connection: &quinn::Connection,
        target: &Target,
        due: Disposition,
    ) -> Result<(), Fault> {
        let agreed = timeout(CONVERSATION_DEADLINE, self.exchange(connection, target)).await;
        due_answer(&agreed.unwrap_or(Err(Fault::TimedOut))?, due)
    }

    async fn conversation(
        &mut self,
        callers: &Callers,
        target: &Target,
        says: Option<Kind>,
    ) -> Result<Conversed, Fault> {
        let connection = self.dial(callers, target).await.map_err(Fault::Dial)?;
        if let Some(says) = says {
            self.say(target.peer, says, unix_now());
        }
        match self.exchange(&connection, target).await {
            Ok(agreement) => Ok(Conversed { agreement, connection }),
            Err(fault) => {
                let reason = connection.close_reason().map(|error| close_reason(&error));
                close(&connection);
                Err(match (fault, reason) {
                    (Fault::Closed(None) | Fault::Protocol(ExchangeFault::Closed), reason) => Fault::Closed(reason),
                    (fault, _) => fault,
                })
            }
        }
    }

    async fn dial(&mut self, callers: &Callers, target: &Target) -> Result<quinn::Connection, DialError> {
        let caller = match self.caller.take() {
            Some(caller) => caller,
            None => callers.caller(&self.key, &target.peer)?,
        };
        let from = usize::try_from(self.number).unwrap_or_default();
        let dialled = callers.dial_as(from, &caller, target.at, DIAL_DEADLINE).await;
        self.caller = Some(caller);
        dialled
    }

    /// Offer, Answer, Receipt on a stream of `connection`.
    async fn exchange(&mut self, connection: &quinn::Connection, target: &Target) -> Result<Agreement, Fault> {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| Fault::Closed(None))?;
        let (mut machine, offer) = Initiator::start(self.parties(target), &self.offer(true));
        let opening = [codec::frame(&Head::new(StreamKind::Exchange)), offer].concat();
        send.write_all(&opening).await.map_err(|_| Fault::Closed(None))?;
        let mut next = match read_frame_in_time(&mut recv, FRAME_BYTES_MAX).await {
            Ok(Some(body)) => InitiatorInput::Frame(body),
            Ok(None) => InitiatorInput::Closed,
            Err(ExchangeFault::TimedOut) => InitiatorInput::Deadline,
            Err(_) => InitiatorInput::Closed,
        };
        loop {
            next = match machine.handle(next) {
                InitiatorOutput::Merge(shown) => {
                    if let Some(theirs) = shown.theirs {
                        self.theirs = Some(theirs);
                    }
                    InitiatorInput::Merged { holds: self.theirs.as_ref().map(Verified::held), revision: 0 }
                }
                InitiatorOutput::AwaitDurable(revision) => InitiatorInput::Durable(revision),
                InitiatorOutput::Finish { receipt, result } => {
                    let agreement = result.map_err(|fault| match fault {
                        ExchangeFault::TimedOut => Fault::TimedOut,
                        ExchangeFault::Closed => Fault::Closed(None),
                        fault => Fault::Protocol(fault),
                    })?;
                    self.learn(&agreement)?;
                    if let Some(receipt) = receipt {
                        // A node that promised nothing waits for no receipt.
                        let sent = send.write_all(&receipt).await;
                        let _ = send.finish();
                        let taken = sent.is_ok() && matches!(read_frame_in_time(&mut recv, 0).await, Ok(None));
                        if !taken && !matches!(agreement.disposition, Disposition::Busy { .. }) {
                            return Err(Fault::Closed(None));
                        }
                    }
                    return Ok(agreement);
                }
            };
        }
    }

    fn offer(&self, with_ours: bool) -> Offer {
        Offer {
            statement: self.ours.as_ref().filter(|_| with_ours).map(|ours| ours.signed().clone()),
            yours: self.theirs.as_ref().map(|theirs| theirs.signed().clone()),
            incarnation: self.incarnation,
            address: None,
            extensions: Extensions::default(),
        }
    }

    /// Takes down what the node has promised.
    fn learn(&mut self, agreement: &Agreement) -> Result<(), Fault> {
        if matches!(agreement.disposition, Disposition::Busy { .. }) {
            return Ok(());
        }
        if let Some(holds) = agreement.delivered {
            self.memory.acknowledge(holds);
        }
        if agreement.disposition == Disposition::Granted {
            let theirs = self.theirs.as_ref().filter(|theirs| theirs.terms().kind == Kind::Grant);
            let mine = self.ours.as_ref().map(Verified::held);
            let (Some(theirs), true) = (theirs, agreement.delivered == mine) else {
                self.memory.contradicted = true;
                return Err(Fault::Contradiction);
            };
            self.memory.granted = Some(theirs.held());
        }
        Ok(())
    }

    /// Answers what the node opens on a session, as a peer that keeps one must, until the connection ends.
    pub async fn serve(&self, connection: &quinn::Connection, target: &Target) {
        while let Ok((mut send, mut recv)) = connection.accept_bi().await {
            let answered = timeout(CONVERSATION_DEADLINE, self.respond(&mut send, &mut recv, target)).await;
            if !matches!(answered, Ok(Some(()))) {
                refuse(&mut send, &mut recv, RefuseCode::Unspecified);
            }
        }
    }

    async fn respond(&self, send: &mut SendStream, recv: &mut RecvStream, target: &Target) -> Option<()> {
        let head = read_frame_in_time(recv, HEAD_BYTES_MAX).await.ok()??;
        if Head::read(&head) != Ok(StreamKind::Exchange) {
            return None;
        }
        let mut machine = Responder::new(self.parties(target));
        // Whatever it is told it holds, at once: a node tells a peer again that does not.
        let mut holds = self.theirs.as_ref().map(Verified::held);
        let decided = |holds| {
            let terms = AnswerTerms {
                disposition: Disposition::Granted,
                holds,
                statement: self.ours.as_ref().map(|ours| ours.signed().clone()),
                yours: None,
                incarnation: self.incarnation,
                address: None,
                networks: Vec::new(),
            };
            ResponderInput::Decided { terms: Box::new(terms), revision: 0 }
        };
        let mut next = ResponderInput::Frame(read_frame_in_time(recv, FRAME_BYTES_MAX).await.ok()??);
        loop {
            next = match machine.handle(next) {
                ResponderOutput::Merge(shown) => {
                    holds = shown.theirs.as_ref().map(Verified::held).or(holds);
                    decided(holds)
                }
                ResponderOutput::Reconsider => decided(holds),
                ResponderOutput::AwaitDurable(revision) => ResponderInput::Durable(revision),
                ResponderOutput::Answer(frame) => {
                    send.write_all(&frame).await.ok()?;
                    match read_frame_in_time(recv, FRAME_BYTES_MAX).await.ok()? {
                        Some(body) => ResponderInput::Frame(body),
                        None => ResponderInput::Closed,
                    }
                }
                ResponderOutput::Finish { .. } => return send.finish().ok(),
            };
        }
    }

    fn parties(&self, target: &Target) -> Parties {
        Parties { me: self.key.peer_id(), peer: target.peer, ours: self.ours.clone(), theirs: self.theirs.clone() }
    }

    /// Asks a node what it holds of this peer, without saying anything new: an Offer without a statement.
    ///
    /// # Errors
    /// Why there was no answer.
    pub async fn ask(&mut self, callers: &Callers, target: &Target) -> Result<(Option<Held>, Disposition), Fault> {
        let asked = async {
            let connection = self.dial(callers, target).await.map_err(Fault::Dial)?;
            let answer = self.asked_on(&connection, target).await;
            close(&connection);
            answer
        };
        timeout(CONVERSATION_DEADLINE, asked).await.unwrap_or(Err(Fault::TimedOut))
    }

    async fn asked_on(
        &self,
        connection: &quinn::Connection,
        target: &Target,
    ) -> Result<(Option<Held>, Disposition), Fault> {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|_| Fault::Closed(None))?;
        let (mut machine, offer) = Initiator::start(self.parties(target), &self.offer(false));
        let opening = [codec::frame(&Head::new(StreamKind::Exchange)), offer].concat();
        send.write_all(&opening).await.map_err(|_| Fault::Closed(None))?;
        let Ok(Some(body)) = read_frame_in_time(&mut recv, FRAME_BYTES_MAX).await else {
            return Err(Fault::Closed(None));
        };
        machine.handle(InitiatorInput::Frame(body));
        let finished = machine.handle(InitiatorInput::Merged { holds: None, revision: 0 });
        debug_assert!(matches!(finished, InitiatorOutput::AwaitDurable(0) | InitiatorOutput::Finish { .. }));
        match machine.handle(InitiatorInput::Durable(0)) {
            InitiatorOutput::Finish { result: Ok(agreement), .. } => Ok((agreement.delivered, agreement.disposition)),
            InitiatorOutput::Finish { result: Err(fault), .. } => Err(Fault::Protocol(fault)),
            _ => Err(Fault::Closed(None)),
        }
    }
}
