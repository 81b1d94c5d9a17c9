//! The responder's side: request in, decide, make durable, decide afresh, reply out; and again.

use super::{JoinAnswer, JoinAsk, JoinFault, JoinReply, JoinRequest, Patience, SecretBytes, read_frame};
use crate::codec;
use crate::fault::RefuseCode;
use crate::limits::{BUSY_RETRY_AFTER_MS, JOIN_REQUESTS_MAX};
use crate::stream::Extensions;

/// What the driver may tell a [`JoinHost`].
#[derive(Clone, Debug)]
pub enum JoinHostInput {
    /// The body of the next frame.
    Frame(SecretBytes),
    /// What is to be replied now; `revision` is what must be durable before it may be said.
    Decided {
        /// The reply.
        reply: Box<JoinReply>,
        /// The newest change that it rests on.
        revision: u64,
    },
    /// Everything up to this revision is durable.
    Durable(u64),
    /// The deadline of [`JoinHost::patience`] has passed.
    Deadline,
    /// The stream has ended.
    Closed,
}

/// What a [`JoinHost`] asks of its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum JoinHostOutput {
    /// Decide this for the key that TLS proved, and answer with [`JoinHostInput::Decided`].
    Decide(Box<JoinRequest>),
    /// The disk has confirmed: decide the same request again, and answer with [`JoinHostInput::Decided`].
    Reconsider,
    /// Answer with [`JoinHostInput::Durable`] once this revision is durable.
    AwaitDurable(u64),
    /// Send the reply, then feed the next frame.
    Answer(Vec<u8>),
    /// The conversation is over. Send `answer`, where there is one, then end the stream.
    Finish {
        /// A last frame.
        answer: Option<Vec<u8>>,
        /// How it ended.
        result: Result<(), JoinFault>,
    },
}

/// The responder's machine. See the module of both for how to drive it.
#[derive(Debug)]
pub struct JoinHost {
    state: State,
    requests: u32,
}

#[derive(Debug)]
enum State {
    AwaitRequest,
    /// `durable` is what the disk has confirmed for this request: nothing at first.
    AwaitDecision {
        durable: Option<u64>,
    },
    AwaitDurable {
        revision: u64,
    },
    Finished,
}

impl JoinHost {
    /// A machine that waits for a request.
    #[allow(clippy::new_without_default, reason = "a conversation begins, it is not a default")]
    pub fn new() -> JoinHost {
        JoinHost { state: State::AwaitRequest, requests: 0 }
    }

    /// Which deadline runs now.
    pub fn patience(&self) -> Patience {
        match self.state {
            State::AwaitRequest => Patience::Frame,
            State::AwaitDurable { .. } => Patience::Disk,
            State::AwaitDecision { .. } | State::Finished => Patience::Own,
        }
    }

    /// True once [`JoinHostOutput::Finish`] was returned.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// The name of the state, for logs and snapshots.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::AwaitRequest => "AwaitRequest",
            State::AwaitDecision { durable: None } => "AwaitDecision",
            State::AwaitDecision { durable: Some(_) } => "AwaitReconsidered",
            State::AwaitDurable { .. } => "AwaitDurable",
            State::Finished => "Finished",
        }
    }

    /// Takes one input, returns the one thing to do next.
    pub fn handle(&mut self, input: JoinHostInput) -> JoinHostOutput {
        let (state, output) = match (std::mem::replace(&mut self.state, State::Finished), input) {
            (State::AwaitRequest, JoinHostInput::Frame(body)) => self.on_request(&body),
            (State::AwaitDecision { durable }, JoinHostInput::Decided { reply, revision }) => {
                on_decided(durable, *reply, revision)
            }
            (State::AwaitDurable { revision }, JoinHostInput::Durable(reached)) if reached >= revision => {
                (State::AwaitDecision { durable: Some(reached) }, JoinHostOutput::Reconsider)
            }
            (State::AwaitDurable { .. }, JoinHostInput::Deadline) => busy(BUSY_RETRY_AFTER_MS as u32),
            // The opener leaves when it has what it wanted.
            (State::AwaitRequest, JoinHostInput::Closed) if self.requests > 0 => finished(None, Ok(())),
            (State::AwaitRequest | State::AwaitDurable { .. }, JoinHostInput::Closed) => failed(JoinFault::Closed),
            (State::AwaitRequest, JoinHostInput::Deadline) => failed(JoinFault::TimedOut),
            (State::AwaitDurable { .. }, JoinHostInput::Frame(_)) => failed(JoinFault::Peer(RefuseCode::BadFrame)),
            _ => failed(JoinFault::OutOfTurn),
        };
        self.state = state;
        output
    }

    fn on_request(&mut self, body: &SecretBytes) -> (State, JoinHostOutput) {
        self.requests += 1;
        if self.requests > JOIN_REQUESTS_MAX {
            return failed(JoinFault::Peer(RefuseCode::BadFrame));
        }
        let asked = read_frame(body.as_slice()).and_then(|ask: JoinAsk| {
            ask.extensions.require_understood(&[]).map_err(JoinFault::Peer)?;
            Ok(ask.request)
        });
        match asked {
            Ok(request) => (State::AwaitDecision { durable: None }, JoinHostOutput::Decide(Box::new(request))),
            Err(fault) => failed(fault),
        }
    }
}

/// The only way to a reply other than `Busy` and a refusal: its revision is among what the disk has confirmed.
fn on_decided(durable: Option<u64>, reply: JoinReply, revision: u64) -> (State, JoinHostOutput) {
    if let JoinReply::Busy(retry_after_ms) = reply {
        return busy(retry_after_ms);
    }
    if durable.is_none_or(|durable| durable < revision) {
        return (State::AwaitDurable { revision }, JoinHostOutput::AwaitDurable(revision));
    }
    let ends = matches!(reply, JoinReply::Refused(_));
    let frame = frame(reply);
    if ends { finished(Some(frame), Ok(())) } else { (State::AwaitRequest, JoinHostOutput::Answer(frame)) }
}

fn frame(reply: JoinReply) -> Vec<u8> {
    codec::frame(&JoinAnswer { reply, extensions: Extensions::default() })
}

/// Nothing was promised; the opener may ask again.
fn busy(retry_after_ms: u32) -> (State, JoinHostOutput) {
    finished(Some(frame(JoinReply::Busy(retry_after_ms))), Err(JoinFault::NotDurable))
}

fn finished(answer: Option<Vec<u8>>, result: Result<(), JoinFault>) -> (State, JoinHostOutput) {
    (State::Finished, JoinHostOutput::Finish { answer, result })
}

fn failed(fault: JoinFault) -> (State, JoinHostOutput) {
    finished(None, Err(fault))
}
