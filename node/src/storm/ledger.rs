//! The truth of a storm: what the node has acknowledged to each simulated peer, compared with what it holds afterwards.
//!
//! A statement that was acknowledged must be there, or a later one of the same peer. One that was sent and not
//! acknowledged may be there or not: nothing was promised. Anything else is *lost* (what was promised is not there) or
//! *wrong* (something is there that nobody said, or that contradicts what was said).
//!
//! Pure: peers and records in, counts out; so a record that is dropped can be shown to be noticed.

use handfast_protocol::{Held, Kind, PeerId};
use handfast_trust::trust_record::{TrustRecord, TrustState};

/// One statement that a simulated peer has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    pub held: Held,
    pub kind: Kind,
    /// The node has said that it holds it.
    pub acknowledged: bool,
}

/// Whether the operator of the node has taken its grant back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cut {
    #[default]
    Never,
    /// It was asked for, and nothing was promised: the grant may be there or its revocation.
    Asked,
    /// The node has said that the revocation is durable.
    Durable,
}

/// What one simulated peer knows of its dealings with the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    pub peer: PeerId,
    /// Its number among the identities of the run, from which its key follows.
    pub number: u64,
    /// What it said, oldest first.
    pub said: Vec<Said>,
    /// The node's grant, as the node gave it when it last said that both trust each other.
    pub granted: Option<Held>,
    /// The node may forget it: a request that waits can make room for another.
    pub may_be_forgotten: bool,
    /// It never said anything that may be stored: a record of it is wrong.
    pub is_intruder: bool,
    /// Whether the operator has taken the node's grant back.
    pub cut: Cut,
    /// An answer said two things that cannot both be.
    pub contradicted: bool,
}

/// What the node holds of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub theirs: Option<(Held, Kind)>,
    pub ours: Option<(Held, Kind)>,
    pub state: TrustState,
}

impl Stored {
    /// What of a record is compared.
    pub fn of(record: &TrustRecord, state: TrustState) -> Stored {
        let edge = |edge: &Option<handfast_trust::Edge>| edge.as_ref().map(|edge| (edge.held(), edge.terms.kind));
        Stored { theirs: edge(&record.theirs), ours: edge(&record.ours), state }
    }
}

/// What a comparison found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Truth {
    /// Acknowledged statements, of either side, that are there.
    pub durable: u64,
    pub lost: u64,
    pub wrong: u64,
}

impl Truth {
    /// Adds what was found of another peer.
    pub fn add(&mut self, other: Truth) {
        self.durable += other.durable;
        self.lost += other.lost;
        self.wrong += other.wrong;
    }
}

impl Memory {
    /// A peer that has said nothing yet.
    pub fn new(peer: PeerId, number: u64) -> Memory {
        Memory {
            peer,
            number,
            said: Vec::new(),
            granted: None,
            may_be_forgotten: false,
            is_intruder: false,
            cut: Cut::Never,
            contradicted: false,
        }
    }

    /// The node says that it holds this. What was said before it is settled with it.
    pub fn acknowledge(&mut self, held: Held) {
        match self.said.iter().position(|said| said.held == held) {
            Some(place) => self.said[..=place].iter_mut().for_each(|said| said.acknowledged = true),
            // It holds something that this peer never said.
            None => self.contradicted = true,
        }
    }

    /// Compares with what the node holds; `None`: it holds nothing of this peer.
    pub fn compare(&self, stored: Option<&Stored>) -> Truth {
        let mut truth = Truth { wrong: u64::from(self.contradicted), ..Truth::default() };
        if self.is_intruder {
            truth.wrong += u64::from(stored.is_some());
            return truth;
        }
        let Some(stored) = stored else {
            let promised = self.said.iter().any(|said| said.acknowledged) || self.granted.is_some();
            truth.lost += u64::from(promised && !self.may_be_forgotten);
            return truth;
        };
        let promised = self.said.iter().rposition(|said| said.acknowledged);
        let found =
            stored.theirs.map(|(held, kind)| self.said.iter().position(|said| said.held == held && said.kind == kind));
        match (promised, found) {
            (None, None | Some(Some(_))) => {}
            // It is there, and nobody ever said it.
            (_, Some(None)) => truth.wrong += 1,
            (Some(_), None) => truth.lost += 1,
            (Some(promised), Some(Some(found))) if found < promised => truth.lost += 1,
            (Some(_), Some(Some(_))) => truth.durable += 1,
        }
        truth.add(self.compare_granted(stored));
        let last_is_a_revoke = self.said.last().is_some_and(|said| said.acknowledged && said.kind == Kind::Revoke);
        truth.wrong += u64::from(last_is_a_revoke && stored.state == TrustState::Trusted);
        truth
    }

    /// The node's own grant, where it said that both trust each other.
    fn compare_granted(&self, stored: &Stored) -> Truth {
        let mut truth = Truth::default();
        if self.cut == Cut::Durable {
            let holds = stored.ours.is_some_and(|(_, kind)| kind == Kind::Revoke);
            return Truth { durable: u64::from(holds), lost: u64::from(!holds), wrong: 0 };
        }
        match (self.granted, stored.ours) {
            (None, _) => {}
            (Some(_), None) => truth.lost += 1,
            (Some(granted), Some((held, Kind::Grant))) if granted == held => truth.durable += 1,
            (Some(granted), Some((held, _))) if held.epoch < granted.epoch => truth.lost += 1,
            (Some(_), Some((_, Kind::Revoke))) if self.cut == Cut::Asked => truth.durable += 1,
            // Nobody but this node's rules speaks for it, and they never speak twice of one peer.
            (Some(_), Some(_)) => truth.wrong += 1,
        }
        truth
    }
}

/// Compares every peer with what `stored` finds of it.
pub fn compare<'a>(
    memories: impl IntoIterator<Item = &'a Memory>,
    stored: impl Fn(&PeerId) -> Option<Stored>,
) -> Truth {
    let mut truth = Truth::default();
    for memory in memories {
        truth.add(memory.compare(stored(&memory.peer).as_ref()));
    }
    truth
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use handfast_protocol::{Digest, SecretKey};

    use super::*;

    fn held(epoch: u64) -> Held {
        Held { epoch, digest: Digest([epoch as u8; 32]) }
    }

    /// A peer that granted (1), revoked (2) and granted again (3), the first `acknowledged` of them acknowledged.
    fn memory(number: u8, acknowledged: usize) -> Memory {
        let mut memory = Memory::new(SecretKey::from_seed(&[number; 32]).peer_id(), u64::from(number));
        for (epoch, kind) in [(1, Kind::Grant), (2, Kind::Revoke), (3, Kind::Grant)] {
            memory.said.push(Said { held: held(epoch), kind, acknowledged: false });
        }
        if acknowledged > 0 {
            memory.acknowledge(held(acknowledged as u64));
            memory.granted = Some(held(100));
        }
        memory
    }

    fn stored(epoch: u64, kind: Kind) -> Stored {
        let state = if kind == Kind::Grant { TrustState::Trusted } else { TrustState::Refused };
        Stored { theirs: Some((held(epoch), kind)), ours: Some((held(100), Kind::Grant)), state }
    }

    fn check(memory: &Memory, stored: Option<Stored>, durable: u64, lost: u64, wrong: u64) {
        assert_eq!(memory.compare(stored.as_ref()), Truth { durable, lost, wrong }, "{memory:?} {stored:?}");
    }

    #[test]
    fn a_dropped_record_is_lost() {
        let memories: Vec<Memory> = (1..=10).map(|number| memory(number, 3)).collect();
        let mut records: HashMap<PeerId, Stored> =
            memories.iter().map(|memory| (memory.peer, stored(3, Kind::Grant))).collect();
        assert_eq!(compare(&memories, |peer| records.get(peer).copied()), Truth { durable: 20, lost: 0, wrong: 0 });
        records.remove(&memories[4].peer);
        assert_eq!(compare(&memories, |peer| records.get(peer).copied()), Truth { durable: 18, lost: 1, wrong: 0 });
    }

    #[test]
    fn what_was_acknowledged_may_only_move_on() {
        check(&memory(1, 3), Some(stored(3, Kind::Grant)), 2, 0, 0);
        check(&memory(1, 2), Some(stored(2, Kind::Revoke)), 2, 0, 0);
        // Sent and not acknowledged: it may have arrived.
        check(&memory(1, 2), Some(stored(3, Kind::Grant)), 2, 0, 0);
        // A revocation that was acknowledged and is undone is the worst of all.
        check(&memory(1, 2), Some(stored(1, Kind::Grant)), 1, 1, 0);
        check(&memory(1, 0), None, 0, 0, 0);
        check(&memory(1, 0), Some(Stored { ours: None, ..stored(2, Kind::Revoke) }), 0, 0, 0);
    }

    #[test]
    fn what_nobody_said_is_wrong() {
        check(&memory(1, 3), Some(stored(9, Kind::Grant)), 1, 0, 1);
        check(&memory(1, 3), Some(stored(3, Kind::Revoke)), 1, 0, 1);
        check(&memory(1, 3), Some(Stored { theirs: None, ..stored(3, Kind::Grant) }), 1, 1, 0);
        check(&memory(1, 3), Some(Stored { ours: None, ..stored(3, Kind::Grant) }), 1, 1, 0);
        check(&memory(1, 3), Some(Stored { ours: Some((held(99), Kind::Grant)), ..stored(3, Kind::Grant) }), 1, 1, 0);
        check(&memory(1, 3), Some(Stored { ours: Some((held(101), Kind::Grant)), ..stored(3, Kind::Grant) }), 1, 0, 1);
        let revoked = Memory { said: memory(1, 2).said[..2].to_vec(), ..memory(1, 2) };
        check(&revoked, Some(Stored { state: TrustState::Trusted, ..stored(2, Kind::Revoke) }), 2, 0, 1);
        let intruder = Memory { is_intruder: true, ..memory(1, 0) };
        check(&intruder, Some(stored(1, Kind::Grant)), 0, 0, 1);
        check(&intruder, None, 0, 0, 0);
        let mut told = memory(1, 3);
        told.acknowledge(held(77));
        check(&told, Some(stored(3, Kind::Grant)), 2, 0, 1);
    }

    #[test]
    fn a_revocation_by_the_operator_must_be_there() {
        let cut = Memory { cut: Cut::Durable, ..memory(1, 1) };
        let revoked =
            Stored { ours: Some((held(200), Kind::Revoke)), state: TrustState::Revoked, ..stored(1, Kind::Grant) };
        check(&cut, Some(revoked), 2, 0, 0);
        check(&cut, Some(stored(1, Kind::Grant)), 1, 1, 0);
        check(&cut, None, 0, 1, 0);
    }

    #[test]
    fn a_revocation_that_the_operator_asked_for_may_be_there() {
        let asked = Memory { cut: Cut::Asked, ..memory(1, 1) };
        let ours = |epoch, kind| Some(Stored { ours: Some((held(epoch), kind)), ..stored(1, Kind::Grant) });
        check(&asked, ours(200, Kind::Revoke), 2, 0, 0);
        check(&asked, ours(100, Kind::Grant), 2, 0, 0);
        // Nobody asked for another grant, and an older revocation is not what was asked for.
        check(&asked, ours(200, Kind::Grant), 1, 0, 1);
        check(&asked, ours(99, Kind::Revoke), 1, 1, 0);
        check(&asked, None, 0, 1, 0);
        check(&memory(1, 1), ours(200, Kind::Revoke), 1, 0, 1);
    }

    #[test]
    fn a_waiting_request_may_make_room() {
        let waiting = Memory { may_be_forgotten: true, granted: None, ..memory(1, 1) };
        check(&waiting, None, 0, 0, 0);
        check(&waiting, Some(Stored { ours: None, state: TrustState::Pending, ..stored(1, Kind::Grant) }), 1, 0, 0);
    }
}
