//! The responder's side: Offer in, merge, make durable, decide afresh, Answer out, Receipt in.

use super::{
    Answer, Disposition, ExchangeFault, Offer, Parties, Patience, Receipt, Shown, Standing, networks_shown, read_frame,
    read_networks,
};
use crate::address::SignedAddressRecord;
use crate::codec;
use crate::fault::RefuseCode;
use crate::identity::Incarnation;
use crate::limits::BUSY_RETRY_AFTER_MS;
use crate::statement::{Held, SignedStatement};
use crate::stream::Extensions;

/// What the driver may tell a [`Responder`].
#[derive(Clone, Debug)]
pub enum ResponderInput {
    /// The body of the next frame.
    Frame(Vec<u8>),
    /// What the rules say now, from the current edges; `revision` is what must be durable before it may be said.
    Decided {
        /// What to answer.
        terms: Box<AnswerTerms>,
        /// The newest change that the answer rests on.
        revision: u64,
    },
    /// Everything up to this revision is durable.
    Durable(u64),
    /// The deadline of [`Responder::patience`] has passed.
    Deadline,
    /// The stream has ended.
    Closed,
}

/// What a [`Responder`] asks of its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ResponderOutput {
    /// Give this to the rules and answer with [`ResponderInput::Decided`].
    Merge(Box<Shown>),
    /// The disk has confirmed: ask the rules again, without merging, and answer with [`ResponderInput::Decided`].
    Reconsider,
    /// Answer with [`ResponderInput::Durable`] once this revision is durable.
    AwaitDurable(u64),
    /// Send the Answer, then feed the next frame.
    Answer(Vec<u8>),
    /// The exchange is over. Send `answer`, where there is one, then end the stream.
    Finish {
        /// A last frame.
        answer: Option<Vec<u8>>,
        /// Which statement of ours the opener has made durable.
        result: Result<Option<Held>, ExchangeFault>,
    },
}

/// What the rules want answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AnswerTerms {
    /// What becomes of the Offer.
    pub disposition: Disposition,
    /// The opener's statement as stored here.
    pub holds: Option<Held>,
    /// Our edge, where it is newer than what the opener holds.
    pub statement: Option<SignedStatement>,
    /// The opener's own edge, where we hold a newer one than it offered.
    pub yours: Option<SignedStatement>,
    /// Our run.
    pub incarnation: Incarnation,
    /// Our addresses, for peers that hold our grant.
    pub address: Option<SignedAddressRecord>,
    /// Our place in the networks that the opener is in too.
    pub networks: Vec<Standing>,
}

/// The responder's machine. See the module of both for how to drive it.
#[derive(Debug)]
pub struct Responder {
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitOffer(Box<Parties>),
    /// The rules are asked. `durable` is what the disk has confirmed during this exchange: nothing at first.
    AwaitDecision {
        durable: Option<u64>,
    },
    AwaitDurable {
        revision: u64,
        incarnation: Incarnation,
    },
    AwaitReceipt,
    Finished,
}

impl Responder {
    /// A machine that waits for an Offer.
    pub fn new(parties: Parties) -> Responder {
        Responder { state: State::AwaitOffer(Box::new(parties)) }
    }

    /// Which deadline runs now. The disk's runs over all waits of one exchange together.
    pub fn patience(&self) -> Patience {
        match self.state {
            State::AwaitOffer(_) | State::AwaitReceipt => Patience::Frame,
            State::AwaitDurable { .. } => Patience::Disk,
            State::AwaitDecision { .. } | State::Finished => Patience::Own,
        }
    }

    /// True once [`ResponderOutput::Finish`] was returned.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// The name of the state, for logs and snapshots.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::AwaitOffer(_) => "AwaitOffer",
            State::AwaitDecision { durable: None } => "AwaitDecision",
            State::AwaitDecision { durable: Some(_) } => "AwaitReconsidered",
            State::AwaitDurable { .. } => "AwaitDurable",
            State::AwaitReceipt => "AwaitReceipt",
            State::Finished => "Finished",
        }
    }

    /// Takes one input, returns the one thing to do next.
    pub fn handle(&mut self, input: ResponderInput) -> ResponderOutput {
        let (state, output) = match (std::mem::replace(&mut self.state, State::Finished), input) {
            (State::AwaitOffer(parties), ResponderInput::Frame(body)) => match on_offer(&parties, &body) {
                Ok(shown) => (State::AwaitDecision { durable: None }, ResponderOutput::Merge(Box::new(shown))),
                Err(fault) => failed(fault),
            },
            (State::AwaitDecision { durable }, ResponderInput::Decided { terms, revision }) => {
                on_decided(durable, *terms, revision)
            }
            (State::AwaitDurable { revision, .. }, ResponderInput::Durable(reached)) if reached >= revision => {
                let next = State::AwaitDecision { durable: Some(reached) };
                (next, ResponderOutput::Reconsider)
            }
            (State::AwaitDurable { incarnation, .. }, ResponderInput::Deadline) => {
                busy(incarnation, BUSY_RETRY_AFTER_MS as u32)
            }
            // An opener that left still made its statement: it is stored, only nobody waits for the answer.
            (State::AwaitReceipt, ResponderInput::Closed) => finished(Ok(None)),
            (State::AwaitReceipt, ResponderInput::Frame(body)) => finished(on_receipt(&body)),
            (State::AwaitOffer(_) | State::AwaitReceipt, ResponderInput::Deadline) => failed(ExchangeFault::TimedOut),
            (State::AwaitOffer(_) | State::AwaitDurable { .. }, ResponderInput::Closed) => {
                failed(ExchangeFault::Closed)
            }
            (State::AwaitDurable { .. }, ResponderInput::Frame(_)) => failed(ExchangeFault::Peer(RefuseCode::BadFrame)),
            _ => failed(ExchangeFault::OutOfTurn),
        };
        self.state = state;
        output
    }
}

fn finished(result: Result<Option<Held>, ExchangeFault>) -> (State, ResponderOutput) {
    (State::Finished, ResponderOutput::Finish { answer: None, result })
}

fn failed(fault: ExchangeFault) -> (State, ResponderOutput) {
    finished(Err(fault))
}

/// Nothing was promised; the opener may ask again.
fn busy(incarnation: Incarnation, retry_after_ms: u32) -> (State, ResponderOutput) {
    let answer = Answer {
        disposition: Disposition::Busy { retry_after_ms },
        holds: None,
        statement: None,
        yours: None,
        incarnation,
        address: None,
        extensions: Extensions::default(),
    };
    let result = Err(ExchangeFault::NotDurable);
    (State::Finished, ResponderOutput::Finish { answer: Some(codec::frame(&answer)), result })
}

fn on_offer(parties: &Parties, body: &[u8]) -> Result<Shown, ExchangeFault> {
    let offer: Offer = read_frame(body)?;
    let networks = read_networks(&offer.extensions, &parties.peer)?;
    let (theirs, ours) = parties.verify(offer.statement, offer.yours)?;
    let address = parties.own_address(offer.address)?;
    Ok(Shown { theirs, ours, holds: None, incarnation: offer.incarnation, address, networks })
}

/// The only way to an Answer other than `Busy`: its revision is among what the disk has confirmed in this exchange.
fn on_decided(durable: Option<u64>, terms: AnswerTerms, revision: u64) -> (State, ResponderOutput) {
    if let Disposition::Busy { retry_after_ms } = terms.disposition {
        return busy(terms.incarnation, retry_after_ms);
    }
    if durable.is_none_or(|durable| durable < revision) {
        let state = State::AwaitDurable { revision, incarnation: terms.incarnation };
        return (state, ResponderOutput::AwaitDurable(revision));
    }
    let AnswerTerms { disposition, holds, statement, yours, incarnation, address, networks } = terms;
    let extensions = networks_shown(&networks);
    let answer = Answer { disposition, holds, statement, yours, incarnation, address, extensions };
    (State::AwaitReceipt, ResponderOutput::Answer(codec::frame(&answer)))
}

fn on_receipt(body: &[u8]) -> Result<Option<Held>, ExchangeFault> {
    let receipt: Receipt = read_frame(body)?;
    receipt.extensions.require_understood(&[]).map_err(ExchangeFault::Peer)?;
    Ok(receipt.holds)
}
