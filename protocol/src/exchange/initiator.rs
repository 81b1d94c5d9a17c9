//! The opener's side: Offer out, Answer in, decide, make durable, Receipt out.

use super::{Answer, Disposition, ExchangeFault, Offer, Parties, Patience, Receipt, Shown, read_frame, read_networks};
use crate::codec;
use crate::fault::RefuseCode;
use crate::statement::Held;
use crate::stream::Extensions;

/// What the driver may tell an [`Initiator`].
#[derive(Clone, Debug)]
pub enum InitiatorInput {
    /// The body of the next frame.
    Frame(Vec<u8>),
    /// The rules have merged what was shown.
    Merged {
        /// Which statement of the peer this end now holds.
        holds: Option<Held>,
        /// The revision that must be durable before the receipt says so.
        revision: u64,
    },
    /// Everything up to this revision is durable.
    Durable(u64),
    /// The deadline of [`Initiator::patience`] has passed.
    Deadline,
    /// The stream has ended.
    Closed,
}

/// What an [`Initiator`] asks of its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InitiatorOutput {
    /// Give this to the rules and answer with [`InitiatorInput::Merged`].
    Merge(Box<Shown>),
    /// Answer with [`InitiatorInput::Durable`] once this revision is durable.
    AwaitDurable(u64),
    /// The exchange is over. Send `receipt`, then end the stream.
    Finish {
        /// The last frame, where one is owed.
        receipt: Option<Vec<u8>>,
        /// What was agreed.
        result: Result<Agreement, ExchangeFault>,
    },
}

/// What the responder said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreement {
    /// What became of the Offer.
    pub disposition: Disposition,
    /// Which statement of ours the responder has made durable.
    pub delivered: Option<Held>,
}

/// The opener's machine. See the module of both for how to drive it.
#[derive(Debug)]
pub struct Initiator {
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitAnswer(Box<Parties>),
    AwaitMerge(Agreement),
    AwaitDurable { agreement: Agreement, holds: Option<Held>, revision: u64 },
    Finished,
}

impl Initiator {
    /// Begins an exchange. Returns the machine and the first frame to send.
    pub fn start(parties: Parties, offer: &Offer) -> (Initiator, Vec<u8>) {
        (Initiator { state: State::AwaitAnswer(Box::new(parties)) }, codec::frame(offer))
    }

    /// Which deadline runs now.
    pub fn patience(&self) -> Patience {
        match self.state {
            State::AwaitAnswer(_) => Patience::Frame,
            State::AwaitDurable { .. } => Patience::Disk,
            State::AwaitMerge(_) | State::Finished => Patience::Own,
        }
    }

    /// True once [`InitiatorOutput::Finish`] was returned.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// The name of the state, for logs and snapshots.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::AwaitAnswer(_) => "AwaitAnswer",
            State::AwaitMerge(_) => "AwaitMerge",
            State::AwaitDurable { .. } => "AwaitDurable",
            State::Finished => "Finished",
        }
    }

    /// Takes one input, returns the one thing to do next.
    pub fn handle(&mut self, input: InitiatorInput) -> InitiatorOutput {
        let (state, output) = match (std::mem::replace(&mut self.state, State::Finished), input) {
            (State::AwaitAnswer(parties), InitiatorInput::Frame(body)) => match on_answer(&parties, &body) {
                Ok((agreement, shown)) => (State::AwaitMerge(agreement), InitiatorOutput::Merge(Box::new(shown))),
                Err(fault) => failed(fault),
            },
            (State::AwaitAnswer(_), InitiatorInput::Deadline) => failed(ExchangeFault::TimedOut),
            (State::AwaitMerge(agreement), InitiatorInput::Merged { holds, revision }) => {
                (State::AwaitDurable { agreement, holds, revision }, InitiatorOutput::AwaitDurable(revision))
            }
            (State::AwaitDurable { agreement, holds, revision }, InitiatorInput::Durable(reached))
                if reached >= revision =>
            {
                let receipt = codec::frame(&Receipt { holds, extensions: Extensions::default() });
                (State::Finished, InitiatorOutput::Finish { receipt: Some(receipt), result: Ok(agreement) })
            }
            // Without a receipt the responder keeps its statement as undelivered and will offer it itself.
            (State::AwaitDurable { .. }, InitiatorInput::Deadline) => failed(ExchangeFault::NotDurable),
            // The peer may leave as soon as it has answered: what it said still counts, and must still become durable.
            (waiting @ State::AwaitDurable { revision, .. }, InitiatorInput::Closed) => {
                (waiting, InitiatorOutput::AwaitDurable(revision))
            }
            (State::AwaitAnswer(_), InitiatorInput::Closed) => failed(ExchangeFault::Closed),
            (State::AwaitDurable { .. }, InitiatorInput::Frame(_)) => failed(ExchangeFault::Peer(RefuseCode::BadFrame)),
            _ => failed(ExchangeFault::OutOfTurn),
        };
        self.state = state;
        output
    }
}

fn failed(fault: ExchangeFault) -> (State, InitiatorOutput) {
    (State::Finished, InitiatorOutput::Finish { receipt: None, result: Err(fault) })
}

fn on_answer(parties: &Parties, body: &[u8]) -> Result<(Agreement, Shown), ExchangeFault> {
    let answer: Answer = read_frame(body)?;
    let networks = read_networks(&answer.extensions, &parties.peer)?;
    let (theirs, ours) = parties.verify(answer.statement, answer.yours)?;
    let agreement = Agreement { disposition: answer.disposition, delivered: answer.holds };
    let shown = Shown {
        theirs,
        ours,
        holds: answer.holds,
        incarnation: answer.incarnation,
        address: parties.own_address(answer.address)?,
        networks,
    };
    Ok((agreement, shown))
}
