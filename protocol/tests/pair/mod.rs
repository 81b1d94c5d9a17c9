//! Two ends and any number of exchanges between them, driven one step at a time without I/O, clock or sleep.
//!
//! A step is one thing that can happen next: bytes arrive, a stream ends, the rules answer, a disk confirms, a
//! deadline passes. The rig checks after every step what no step may break:
//! * an end says `holds` only of a statement that its disk had;
//! * `Granted` leaves an end only while its own edge, in memory and on disk, is a grant, and so is the peer's;
//! * a statement of an end leaves it only after its disk had it;
//! * what an end believes to be delivered is on the peer's disk, or something newer is.

mod conversation;
pub(crate) mod mix;
mod model;

use handfast_protocol::codec;
use handfast_protocol::exchange::{Answer, Disposition, Offer, Receipt};
use handfast_protocol::limits::{FRAME_BYTES_MAX, FRAME_LENGTH_BYTES};
use handfast_protocol::{Held, Kind, SignedStatement, UnixMillis, Verified};

pub(crate) use conversation::{Act, Conversation, Cut, Role};
pub(crate) use model::End;

/// Index of the first end.
pub(crate) const A: usize = 0;
/// Index of the second end.
pub(crate) const B: usize = 1;
/// Steps after which something must be going round in circles.
const STEPS_MAX: usize = 20_000;

/// One thing that can happen next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Something happens to one machine of a conversation.
    Act { conversation: usize, role: Role, act: Act },
    /// The disk of an end confirms everything.
    Flush(usize),
}

pub(crate) struct Pair {
    /// Names the case in every message.
    name: String,
    pub(crate) ends: [End; 2],
    pub(crate) conversations: Vec<Conversation>,
    /// Every Offer ever made, with its opener, to be repeated.
    pub(crate) offers: Vec<(usize, Offer)>,
    /// What both clocks show; it moves with decisions only.
    pub(crate) now: UnixMillis,
    /// `Granted` answered so far.
    pub(crate) granted: usize,
    /// `Busy` answered so far.
    pub(crate) busy: usize,
}

impl Pair {
    pub(crate) fn new(name: String, ends: [End; 2]) -> Pair {
        let now = UnixMillis(1 + ends[A].revision() + ends[B].revision());
        Pair { name, ends, conversations: Vec::new(), offers: Vec::new(), now, granted: 0, busy: 0 }
    }

    /// An operator's decision; time passes only here.
    pub(crate) fn issue(&mut self, side: usize, kind: Kind) {
        self.now = self.now.plus(1);
        self.ends[side].issue(kind, self.now);
    }

    /// The end offers what it has on disk.
    pub(crate) fn open(&mut self, opener: usize) -> usize {
        let offer = self.ends[opener].offer();
        self.open_with(opener, offer)
    }

    /// The end offers this, which may be old.
    pub(crate) fn open_with(&mut self, opener: usize, offer: Offer) -> usize {
        self.check_ours_is_durable(opener, offer.statement.as_ref());
        let parties = [self.ends[opener].parties(), self.ends[1 - opener].parties()];
        self.conversations.push(Conversation::open(opener, parties, &offer));
        self.offers.push((opener, offer));
        self.conversations.len() - 1
    }

    /// The end's process dies with all its conversations; its disk keeps what it has.
    pub(crate) fn crash(&mut self, side: usize) {
        self.ends[side].crash();
        for conversation in &mut self.conversations {
            conversation.die(conversation.role_of(side));
        }
    }

    /// Everything that can happen next. Deadlines are not among them: they can pass at any time.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (i, conversation) in self.conversations.iter().enumerate() {
            for role in [Role::Opener, Role::Responder] {
                let durable = self.ends[conversation.side(role)].durable();
                let acts = conversation.acts(role, durable);
                steps.extend(acts.into_iter().map(|act| Step::Act { conversation: i, role, act }));
            }
        }
        for side in [A, B] {
            let end = &self.ends[side];
            if end.durable() < end.revision() && !end.disk_hangs {
                steps.push(Step::Flush(side));
            }
        }
        steps
    }

    /// Every deadline that is running, the shortest first.
    pub(crate) fn deadlines(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (i, conversation) in self.conversations.iter().enumerate() {
            for role in [Role::Opener, Role::Responder] {
                let step = Step::Act { conversation: i, role, act: Act::Deadline };
                steps.extend(conversation.deadline_ms(role).map(|ms| (ms, step)));
            }
        }
        steps.sort_by_key(|(ms, _)| *ms);
        steps.into_iter().map(|(_, step)| step).collect()
    }

    pub(crate) fn perform(&mut self, step: Step) {
        match step {
            Step::Flush(side) => self.ends[side].flush(),
            Step::Act { conversation, role, act } => {
                let side = self.conversations[conversation].side(role);
                let end = &mut self.ends[side];
                let frame = self.conversations[conversation].act(role, act, end);
                if let Some(frame) = frame {
                    self.check_frame(side, role, &frame);
                    self.conversations[conversation].send(role, &frame);
                }
            }
        }
        self.check_delivered();
    }

    /// The next step in a fixed order: the latest possible disk, and deadlines only when nothing else can happen.
    pub(crate) fn next_step(&self) -> Option<Step> {
        self.steps().into_iter().next().or_else(|| self.deadlines().into_iter().next())
    }

    /// Runs until nothing can happen, calling `before` in front of every step. Returns the number of steps.
    pub(crate) fn run_with(&mut self, mut before: impl FnMut(&mut Pair, usize)) -> usize {
        for step in 0..STEPS_MAX {
            before(self, step);
            match self.next_step() {
                Some(next) => self.perform(next),
                None => return step,
            }
        }
        panic!("{}: goes round in circles", self.name);
    }

    pub(crate) fn run(&mut self) -> usize {
        let steps = self.run_with(|_, _| ());
        assert!(self.conversations.iter().all(Conversation::is_over), "{}: an exchange never ends", self.name);
        steps
    }

    /// The faults stop, what is under way ends, and one more exchange runs in each direction.
    pub(crate) fn settle(&mut self) {
        self.ends.iter_mut().for_each(|end| end.disk_hangs = false);
        self.run();
        for opener in [A, B] {
            self.open(opener);
            self.run();
        }
    }

    /// Both ends hold the same two edges, on disk too, and know that they were delivered.
    pub(crate) fn check_converged(&self) {
        for side in [A, B] {
            let (end, other) = (&self.ends[side], &self.ends[1 - side]);
            let ours = model::held(&end.memory().ours);
            let place = format!("{}: the edge of {side}", self.name);
            assert_eq!(model::held(&end.disk().ours), ours, "{place} is not on its own disk");
            assert_eq!(model::held(&other.memory().theirs), ours, "{place} did not arrive");
            assert_eq!(model::held(&other.disk().theirs), ours, "{place} is not on the peer's disk");
            assert_eq!(end.delivered, ours, "{place} is not known to be delivered");
        }
    }

    pub(crate) fn kinds(&self, side: usize) -> (Option<Kind>, Option<Kind>) {
        let kind = |edge: &Option<Verified>| edge.as_ref().map(|edge| edge.terms().kind);
        let edges = self.ends[side].memory();
        (kind(&edges.ours), kind(&edges.theirs))
    }

    fn check_frame(&mut self, side: usize, role: Role, frame: &[u8]) {
        let body = &frame[FRAME_LENGTH_BYTES..];
        match role {
            Role::Opener => {
                let receipt: Receipt = codec::decode(body, FRAME_BYTES_MAX).unwrap();
                self.check_holds(side, receipt.holds);
            }
            Role::Responder => {
                let answer: Answer = codec::decode(body, FRAME_BYTES_MAX).unwrap();
                self.check_holds(side, answer.holds);
                self.check_ours_is_durable(side, answer.statement.as_ref());
                self.check_disposition(side, &answer);
            }
        }
    }

    fn check_disposition(&mut self, side: usize, answer: &Answer) {
        let end = &self.ends[side];
        match answer.disposition {
            Disposition::Granted => {
                for edges in [end.memory(), end.disk()] {
                    let granted =
                        |edge: &Option<Verified>| edge.as_ref().is_some_and(|edge| edge.terms().kind == Kind::Grant);
                    assert!(granted(&edges.ours), "{}: {side} says Granted and does not grant", self.name);
                    assert!(granted(&edges.theirs), "{}: {side} says Granted and was not asked", self.name);
                }
                self.granted += 1;
            }
            Disposition::Busy { .. } => {
                let promised = answer.holds.is_some() || answer.statement.is_some() || answer.yours.is_some();
                assert!(!promised, "{}: {side} is busy and promises", self.name);
                self.busy += 1;
            }
            Disposition::Pending | Disposition::Refused | Disposition::Noted => {}
        }
    }

    fn check_holds(&self, side: usize, holds: Option<Held>) {
        if let Some(holds) = holds {
            let kept = self.ends[side].has_made_durable(holds);
            assert!(kept, "{}: {side} says that it holds {holds:?} and never had it on disk", self.name);
        }
    }

    fn check_ours_is_durable(&self, side: usize, statement: Option<&SignedStatement>) {
        let Some(statement) = statement else { return };
        let epoch = self.ends[side].disk().ours.as_ref().map(|ours| ours.terms().epoch);
        let kept = epoch >= Some(statement.statement.terms.epoch);
        assert!(kept, "{}: {side} sends a statement that is not on its disk", self.name);
    }

    fn check_delivered(&self) {
        for side in [A, B] {
            if let Some(delivered) = self.ends[side].delivered {
                let epoch = self.ends[1 - side].disk().theirs.as_ref().map(|theirs| theirs.terms().epoch);
                let kept = epoch >= Some(delivered.epoch);
                assert!(kept, "{}: {side} believes {delivered:?} delivered and it is not", self.name);
            }
        }
    }
}
