//! One exchange under way: two machines, what each waits for, and a byte pipe in each direction.

use std::collections::VecDeque;

use handfast_protocol::codec::Deframer;
use handfast_protocol::exchange::{
    ExchangeFault, Initiator, InitiatorInput, InitiatorOutput, Offer, Parties, Responder, ResponderInput,
    ResponderOutput, Shown,
};
use handfast_protocol::limits::FRAME_BYTES_MAX;

use super::model::{End, Offered, held};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Opener,
    Responder,
}

impl Role {
    fn other(self) -> Role {
        match self {
            Role::Opener => Role::Responder,
            Role::Responder => Role::Opener,
        }
    }
}

/// One thing that can happen to a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// The rules answer.
    Rules,
    /// The disk has confirmed what the machine waits for.
    Disk,
    /// At most so many bytes arrive.
    Read(usize),
    /// The stream has ended.
    Closed,
    /// The deadline passes.
    Deadline,
}

/// How a stream is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// One direction ends; its reader still gets what was sent before.
    OneWay,
    /// The connection is gone, with everything under way in the other direction.
    BothWays,
}

/// One direction of a stream.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    ended: bool,
    /// How many more bytes pass before it is cut.
    room: Option<(usize, Cut)>,
    /// Everything that was written, however much of it passed.
    written: usize,
}

impl Pipe {
    /// Returns true when the connection is gone.
    fn write(&mut self, bytes: &[u8]) -> bool {
        self.written += bytes.len();
        if self.ended {
            return false;
        }
        match &mut self.room {
            Some((room, cut)) if *room <= bytes.len() => {
                self.bytes.extend(&bytes[..*room]);
                self.ended = true;
                *cut == Cut::BothWays
            }
            Some((room, _)) => {
                *room -= bytes.len();
                self.bytes.extend(bytes);
                false
            }
            None => {
                self.bytes.extend(bytes);
                false
            }
        }
    }

    fn lose(&mut self) {
        self.bytes.clear();
        self.ended = true;
    }
}

/// What a machine asked for last.
enum Waits {
    Frame,
    Rules(Box<Shown>),
    RulesAgain,
    Disk(u64),
    Nothing,
}

struct Seat {
    side: usize,
    waits: Waits,
    incoming: Pipe,
    deframer: Deframer,
    /// A machine that waits for its disk hears of the end of the stream once.
    knows_end: bool,
}

impl Seat {
    fn new(side: usize) -> Seat {
        let deframer = Deframer::new(FRAME_BYTES_MAX);
        Seat { side, waits: Waits::Frame, incoming: Pipe::default(), deframer, knows_end: false }
    }
}

pub(crate) struct Conversation {
    initiator: Initiator,
    responder: Responder,
    opener: Seat,
    answerer: Seat,
    offered: Offered,
    last_frame: Vec<u8>,
    last_sender: Role,
}

impl Conversation {
    /// Starts both machines; `parties` are the opener's and the responder's.
    pub(crate) fn open(opener: usize, parties: [Parties; 2], offer: &Offer) -> Conversation {
        let [opening, responding] = parties;
        let (initiator, frame) = Initiator::start(opening, offer);
        let mut conversation = Conversation {
            initiator,
            responder: Responder::new(responding),
            opener: Seat::new(opener),
            answerer: Seat::new(1 - opener),
            offered: Offered::default(),
            last_frame: Vec::new(),
            last_sender: Role::Opener,
        };
        conversation.send(Role::Opener, &frame);
        conversation
    }

    /// Cuts the stream after `room` bytes from `role`, counted from here and from what nobody has read yet.
    pub(crate) fn cut_after(&mut self, role: Role, room: usize, cut: Cut) {
        let pipe = &mut self.seat_mut(role.other()).incoming;
        let sent = Vec::from(std::mem::take(&mut pipe.bytes));
        pipe.written -= sent.len();
        pipe.room = Some((room, cut));
        self.transmit(role, &sent);
    }

    pub(crate) fn role_of(&self, side: usize) -> Role {
        if self.opener.side == side { Role::Opener } else { Role::Responder }
    }

    pub(crate) fn side(&self, role: Role) -> usize {
        self.seat(role).side
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!((&self.opener.waits, &self.answerer.waits), (Waits::Nothing, Waits::Nothing))
    }

    /// Bytes that `role` has written in all.
    pub(crate) fn written(&self, role: Role) -> usize {
        self.seat(role.other()).incoming.written
    }

    /// The deadline that runs for the machine of `role`, in milliseconds.
    pub(crate) fn deadline_ms(&self, role: Role) -> Option<u64> {
        match role {
            Role::Opener => self.initiator.patience(),
            Role::Responder => self.responder.patience(),
        }
        .limit_ms()
        .filter(|_| !matches!(self.seat(role).waits, Waits::Nothing))
    }

    /// What can happen to the machine of `role`, the likeliest first.
    pub(crate) fn acts(&self, role: Role, durable: u64) -> Vec<Act> {
        let seat = self.seat(role);
        let mut acts = Vec::new();
        match &seat.waits {
            Waits::Rules(_) | Waits::RulesAgain => return vec![Act::Rules],
            Waits::Nothing => return acts,
            Waits::Disk(revision) if durable >= *revision => acts.push(Act::Disk),
            Waits::Disk(_) | Waits::Frame => {}
        }
        if !seat.incoming.bytes.is_empty() {
            acts.push(Act::Read(usize::MAX));
        } else if seat.incoming.ended && !seat.knows_end {
            acts.push(Act::Closed);
        }
        acts
    }

    /// Does it, and returns the frame that the machine sends.
    pub(crate) fn act(&mut self, role: Role, act: Act, end: &mut End) -> Option<Vec<u8>> {
        match act {
            Act::Read(most) => self.read(role, most, end),
            Act::Closed => {
                self.seat_mut(role).knows_end = true;
                self.feed(role, InitiatorInput::Closed, ResponderInput::Closed, end)
            }
            Act::Deadline => self.feed(role, InitiatorInput::Deadline, ResponderInput::Deadline, end),
            Act::Disk => {
                let durable = end.durable();
                self.feed(role, InitiatorInput::Durable(durable), ResponderInput::Durable(durable), end)
            }
            Act::Rules => self.ask_rules(role, end),
        }
    }

    /// Sends a frame of `role`; after its last one, its direction of the stream ends.
    pub(crate) fn send(&mut self, role: Role, frame: &[u8]) {
        self.last_frame = frame.to_vec();
        self.last_sender = role;
        self.transmit(role, frame);
        if matches!(self.seat(role).waits, Waits::Nothing) {
            self.end_outgoing(role);
        }
    }

    /// The frame that was sent last is sent again.
    pub(crate) fn repeat_last_frame(&mut self) {
        let frame = self.last_frame.clone();
        self.transmit(self.last_sender, &frame);
    }

    /// The connection is gone, with everything under way.
    pub(crate) fn lose(&mut self) {
        self.opener.incoming.lose();
        self.answerer.incoming.lose();
    }

    /// The process of `role` is gone.
    pub(crate) fn die(&mut self, role: Role) {
        let seat = self.seat_mut(role);
        seat.waits = Waits::Nothing;
        seat.incoming.lose();
        self.end_outgoing(role);
    }

    fn seat(&self, role: Role) -> &Seat {
        match role {
            Role::Opener => &self.opener,
            Role::Responder => &self.answerer,
        }
    }

    fn seat_mut(&mut self, role: Role) -> &mut Seat {
        match role {
            Role::Opener => &mut self.opener,
            Role::Responder => &mut self.answerer,
        }
    }

    fn transmit(&mut self, role: Role, bytes: &[u8]) {
        if self.seat_mut(role.other()).incoming.write(bytes) {
            self.seat_mut(role).incoming.lose();
        }
    }

    fn end_outgoing(&mut self, role: Role) {
        self.seat_mut(role.other()).incoming.ended = true;
    }

    /// Takes at most `most` bytes off the pipe and at most one frame.
    fn read(&mut self, role: Role, most: usize, end: &mut End) -> Option<Vec<u8>> {
        let seat = self.seat_mut(role);
        let mut left = most.min(seat.incoming.bytes.len());
        while left > 0 && seat.deframer.missing().unwrap() > 0 {
            let taken = left.min(seat.deframer.missing().unwrap()).min(seat.incoming.bytes.len());
            let bytes: Vec<u8> = seat.incoming.bytes.drain(..taken).collect();
            seat.deframer.push(&bytes);
            left -= taken;
        }
        let body = seat.deframer.next_frame().unwrap()?;
        self.feed(role, InitiatorInput::Frame(body.clone()), ResponderInput::Frame(body), end)
    }

    fn ask_rules(&mut self, role: Role, end: &mut End) -> Option<Vec<u8>> {
        let offered = match std::mem::replace(&mut self.seat_mut(role).waits, Waits::Nothing) {
            Waits::Rules(shown) => end.merge(&shown),
            _ => self.offered,
        };
        let revision = end.revision();
        match role {
            Role::Opener => {
                let holds = held(&end.memory().theirs);
                self.feed_initiator(InitiatorInput::Merged { holds, revision })
            }
            Role::Responder => {
                self.offered = offered;
                let terms = Box::new(end.decide(offered));
                self.feed_responder(ResponderInput::Decided { terms, revision }, end)
            }
        }
    }

    fn feed(
        &mut self,
        role: Role,
        opener: InitiatorInput,
        responder: ResponderInput,
        end: &mut End,
    ) -> Option<Vec<u8>> {
        match role {
            Role::Opener => self.feed_initiator(opener),
            Role::Responder => self.feed_responder(responder, end),
        }
    }

    fn feed_initiator(&mut self, input: InitiatorInput) -> Option<Vec<u8>> {
        let (waits, frame) = match self.initiator.handle(input) {
            InitiatorOutput::Merge(shown) => (Waits::Rules(shown), None),
            InitiatorOutput::AwaitDurable(revision) => (Waits::Disk(revision), None),
            InitiatorOutput::Finish { receipt, result } => {
                assert_ne!(result, Err(ExchangeFault::OutOfTurn), "the rig drives the opener as documented");
                (Waits::Nothing, receipt)
            }
        };
        self.opener.waits = waits;
        self.end_if_silent(Role::Opener, frame)
    }

    fn feed_responder(&mut self, input: ResponderInput, end: &mut End) -> Option<Vec<u8>> {
        let (waits, frame) = match self.responder.handle(input) {
            ResponderOutput::Merge(shown) => (Waits::Rules(shown), None),
            ResponderOutput::Reconsider => (Waits::RulesAgain, None),
            ResponderOutput::AwaitDurable(revision) => (Waits::Disk(revision), None),
            ResponderOutput::Answer(frame) => (Waits::Frame, Some(frame)),
            ResponderOutput::Finish { answer, result } => {
                assert_ne!(result, Err(ExchangeFault::OutOfTurn), "the rig drives the responder as documented");
                end.confirm(result.ok().flatten());
                (Waits::Nothing, answer)
            }
        };
        self.answerer.waits = waits;
        self.end_if_silent(Role::Responder, frame)
    }

    /// A machine that has finished without a last frame ends its direction at once.
    fn end_if_silent(&mut self, role: Role, frame: Option<Vec<u8>>) -> Option<Vec<u8>> {
        if frame.is_none() && matches!(self.seat(role).waits, Waits::Nothing) {
            self.end_outgoing(role);
        }
        frame
    }
}
