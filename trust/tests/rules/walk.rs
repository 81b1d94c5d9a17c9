//! A seeded random walk of operators, peers, time, the disk and restarts, beside a model that knows nothing of the code.
//!
//! The model is a few lines of the design: the last word of each side, a flag, a clock. It must agree with the book
//! after every step on the state, and on who may pass.

use std::io::Write as _;

use handfast_protocol::{Kind, Note, Terms, UnixMillis, Verified};
use handfast_trust::rules::Grant;
use handfast_trust::{Cause, Policy, TrustState};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::support::{HOUR, MINUTE, NOON, Node, Peer, SECOND, note, open_policy, shown, terms};

const STEPS: u32 = 25_000;
const PEERS: u32 = 6;

/// What one side has said last, as far as this node knows.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Word {
    Nothing,
    /// Until when.
    Grant(Option<UnixMillis>),
    Revoke,
}

impl Word {
    fn grants(self) -> bool {
        matches!(self, Word::Grant(_))
    }
}

/// A grant that ended is remembered as ended: it counts as nothing, but it was said.
#[derive(Clone, Copy, Debug)]
struct Model {
    ours: Word,
    ours_ended: bool,
    theirs: Word,
    theirs_ended: bool,
    /// The epoch of the peer's last word that counted.
    heard: u64,
    blocked: bool,
    allowed: bool,
    /// The disk holds everything.
    durable: bool,
}

impl Model {
    fn state(&self) -> TrustState {
        let ours = self.ours.grants() && !self.ours_ended;
        let theirs = self.theirs.grants() && !self.theirs_ended;
        match (self.blocked, self.ours, self.theirs) {
            (true, ..) => TrustState::Blocked,
            (_, Word::Revoke, _) => TrustState::Revoked,
            (_, _, Word::Revoke) => TrustState::Refused,
            _ if ours && theirs => TrustState::Trusted,
            _ if ours => TrustState::Requested,
            _ if theirs => TrustState::Pending,
            _ => TrustState::Unknown,
        }
    }

    fn is_known(&self) -> bool {
        self.ours != Word::Nothing || self.theirs != Word::Nothing || self.blocked
    }

    /// Of a stranger nothing is kept but a request that counts.
    fn forget(&mut self) {
        let stranger = self.ours == Word::Nothing && !self.blocked;
        if stranger && (!self.theirs.grants() || self.theirs_ended) {
            (self.theirs, self.theirs_ended, self.heard) = (Word::Nothing, false, 0);
        }
    }

    fn time_is(&mut self, now: UnixMillis) {
        let over = |word: Word| matches!(word, Word::Grant(Some(end)) if end <= now);
        self.ours_ended |= over(self.ours);
        self.theirs_ended |= over(self.theirs);
        self.forget();
    }

    fn says(&mut self, word: Word) {
        (self.ours, self.ours_ended) = (word, false);
    }

    fn hears(&mut self, epoch: u64, word: Word, now: UnixMillis) {
        let listens = match word {
            Word::Revoke => self.theirs != Word::Nothing || (self.is_known() && !self.blocked),
            _ => !self.blocked,
        };
        if listens && epoch > self.heard {
            (self.heard, self.theirs, self.theirs_ended) = (epoch, word, false);
            self.time_is(now);
        }
        if self.allowed && self.ours == Word::Nothing && self.state() == TrustState::Pending {
            self.says(Word::Grant(None));
        }
        self.forget();
    }
}

/// The peer's side: everything it ever said, to be repeated at any time.
struct Other {
    peer: Peer,
    said: Vec<(u64, Word, Verified)>,
    /// Every word of ours that it saw.
    saw: Vec<Verified>,
}

struct Walk {
    seed: u64,
    step: u32,
    rng: StdRng,
    node: Option<Node>,
    now: UnixMillis,
    others: Vec<Other>,
    models: Vec<Model>,
}

impl Drop for Walk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "walk: seed {} failed at step {}", self.seed, self.step);
        }
    }
}

impl Walk {
    fn new(seed: u64) -> Walk {
        let others: Vec<Other> =
            (1..=PEERS).map(|number| Other { peer: Peer::new(number), said: Vec::new(), saw: Vec::new() }).collect();
        // The rule knows every other peer.
        let allowed = |number: usize| number.is_multiple_of(2);
        let allow =
            others.iter().enumerate().filter(|(number, _)| allowed(*number)).map(|(_, o)| o.peer.id()).collect();
        let model = |number| Model {
            ours: Word::Nothing,
            ours_ended: false,
            theirs: Word::Nothing,
            theirs_ended: false,
            heard: 0,
            blocked: false,
            allowed: allowed(number),
            durable: true,
        };
        Walk {
            seed,
            step: 0,
            rng: StdRng::seed_from_u64(seed),
            node: Some(Node::new(Policy { allow, ..open_policy() })),
            now: NOON,
            models: (0..others.len()).map(model).collect(),
            others,
        }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }

    fn step(&mut self) {
        self.step += 1;
        let who = self.rng.random_range(0..self.others.len());
        let before = (self.models[who].state(), self.models[who].ours);
        let action = self.rng.random_range(0..100_u32);
        let operator = matches!(action, 40..=74);
        match action {
            0..=24 => self.peer_says(who),
            25..=34 => self.peer_repeats(who),
            35..=39 => self.peer_proves(who),
            40..=74 => self.operator(who, action),
            75..=84 => self.time(),
            85..=96 => self.drain(),
            _ => self.reopen(),
        }
        self.check(who, before, operator);
    }

    fn peer_says(&mut self, who: usize) {
        let epoch = self.others[who].said.len() as u64 + 1;
        let length = self.rng.random_bool(0.3).then(|| self.rng.random_range(0..90) * MINUTE);
        let (kind, word) = match self.rng.random_range(0..10) {
            0..=6 => (Kind::Grant, Word::Grant(length.map(|ms| self.now.plus(ms)))),
            _ => (Kind::Revoke, Word::Revoke),
        };
        // Their clock is anywhere.
        let issued_at = UnixMillis(self.rng.random_range(0..NOON.0 * 2));
        let expires_at = length.map(|ms| issued_at.plus(ms));
        let other = &mut self.others[who];
        let statement = other.peer.says(Terms { issued_at, expires_at, ..terms(kind, epoch) });
        other.said.push((epoch, word, statement));
        self.deliver(who, other_last(&self.others[who]));
    }

    fn peer_repeats(&mut self, who: usize) {
        if !self.others[who].said.is_empty() {
            let which = self.rng.random_range(0..self.others[who].said.len());
            self.deliver(who, which);
        }
    }

    fn deliver(&mut self, who: usize, which: usize) {
        let (epoch, mut word, statement) = self.others[who].said[which].clone();
        let terms = statement.terms();
        if let (Word::Grant(_), Some(expires_at)) = (word, terms.expires_at) {
            // As long as was meant, from when it is stored.
            word = Word::Grant(Some(self.now.plus(expires_at.since(terms.issued_at))));
        }
        let now = self.now;
        self.node().hears(&self.others[who].peer, &statement, now);
        self.models[who].hears(epoch, word, now);
        self.models[who].durable = false;
    }

    /// Words of ours that the peer saw, shown to us: never news to a node that lost nothing.
    fn peer_proves(&mut self, who: usize) {
        if !self.others[who].saw.is_empty() {
            let which = self.rng.random_range(0..self.others[who].saw.len());
            let other = &self.others[who];
            self.node().book.merge(other.peer.id(), &shown(None, Some(&other.saw[which])), None, self.now);
        }
    }

    fn operator(&mut self, who: usize, action: u32) {
        let (now, peer) = (self.now, self.others[who].peer.clone());
        let for_ms = self.rng.random_bool(0.4).then(|| self.rng.random_range(1..90) * MINUTE);
        let text: Note = note(["", "a", "b"][self.rng.random_range(0..3)]);
        let node = self.node.as_ref().unwrap();
        let model = &mut self.models[who];
        match action {
            40..=54 => {
                let done = node.book.trust(peer.id(), &Grant { note: text, for_ms, ..Grant::default() }, now);
                assert_eq!(done.is_ok(), !model.blocked);
                if !model.blocked {
                    model.says(Word::Grant(for_ms.map(|ms| now.plus(ms))));
                }
            }
            55..=64 => {
                let done = node.book.revoke(peer.id(), &text, Cause::Revoked, now);
                assert_eq!(done.is_ok(), model.is_known());
                if model.is_known() {
                    model.says(Word::Revoke);
                }
            }
            _ => {
                let blocked = action < 70;
                let done = node.book.block(peer.id(), blocked, now);
                assert_eq!(done.is_ok(), blocked || model.is_known());
                model.blocked = blocked;
                model.forget();
            }
        }
        model.durable = false;
        if let Some(ours) = node.book.record(&peer.id()).and_then(|record| record.ours.clone()) {
            self.others[who].saw.push(ours.statement(crate::support::me().peer_id(), peer.id()));
        }
    }

    fn time(&mut self) {
        let back = self.rng.random_bool(0.2);
        let ms = self.rng.random_range(0..HOUR / 2) + SECOND;
        self.now = if back { UnixMillis(self.now.0 - ms) } else { self.now.plus(ms) };
        self.node().book.expire(self.now);
        let now = self.now;
        for model in &mut self.models {
            model.time_is(now);
            model.durable = false;
        }
    }

    fn drain(&mut self) {
        self.node.as_mut().unwrap().drain();
        self.models.iter_mut().for_each(|model| model.durable = true);
    }

    fn reopen(&mut self) {
        self.node = self.node.take().map(Node::reopened);
        self.models.iter_mut().for_each(|model| model.durable = true);
    }

    fn check(&self, who: usize, (before, ours_before): (TrustState, Word), operator: bool) {
        for (other, model) in self.others.iter().zip(&self.models) {
            let (node, now) = (self.node(), self.now);
            assert_eq!(node.state(&other.peer, now), model.state(), "{model:?}");
            assert_eq!(node.knows(&other.peer), model.is_known(), "{model:?}");
            // Never unless both grant; and if they do, as soon as the disk has it.
            let passes = node.lets_in(&other.peer, now);
            let trusted = model.state() == TrustState::Trusted;
            assert!(!passes || trusted, "{model:?}");
            assert!(passes || !trusted || !model.durable, "{model:?}");
            let history = node.book.record(&other.peer.id()).map_or(Vec::new(), |record| record.history.clone());
            assert!(history.windows(2).all(|two| two[0].to == two[1].from && two[0].revision < two[1].revision));
            assert!(history.iter().all(|one| one.from != one.to));
            assert!(history.last().is_none_or(|last| last.to == model.state()));
        }
        let census = self.node().book.census();
        for state in TrustState::ALL {
            let known = self.models.iter().filter(|model| model.is_known() && model.state() == state).count();
            assert_eq!(census.of(state), known as u64, "{state}");
        }
        if !operator && ours_before == Word::Revoke {
            assert_eq!(self.models[who].ours, Word::Revoke, "nothing automatic lifts a revoke");
            assert_ne!(self.others.get(who).map(|o| self.node().state(&o.peer, self.now)), Some(TrustState::Trusted));
        }
        let heard = self.node().heard();
        assert!(heard.iter().all(|transition| transition.from != transition.to));
        // One event where the state changed, none where it did not (time moves several peers at once).
        if heard.len() == 1 && heard[0].actor != handfast_trust::Actor::Clock {
            assert_eq!((heard[0].from, heard[0].to), (before, self.models[who].state()));
        }
    }
}

fn other_last(other: &Other) -> usize {
    other.said.len() - 1
}

#[test]
fn the_book_does_what_the_design_says_on_every_walk() {
    for seed in 1..=4 {
        let mut walk = Walk::new(seed);
        for _ in 0..STEPS / 4 {
            walk.step();
        }
        assert!(walk.others.iter().all(|other| other.said.len() > 50));
    }
}
