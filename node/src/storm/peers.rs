//! The peers of a storm that nobody is using now: those that have not come yet, those that the node trusts, those that
//! are done.
//!
//! Trusted peers come in turn: each of them once before any of them twice.
//!
//! Not here: what a peer does (`peer`), who is made beforehand (`prepare`).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use handfast_protocol::SecretKey;

use super::ledger::Memory;
use super::load::locked;
use super::peer::{Conversed, Group, Peer, key_of};
use super::plan::Plan;

/// See the module.
pub struct Peers {
    seed: u64,
    /// How many friends the node's rule knows, where it does not trust everybody.
    listed: Option<u64>,
    /// The keys of the first friends, made beforehand.
    keys: OnceLock<Vec<SecretKey>>,
    trusted: Mutex<VecDeque<Peer>>,
    /// Trusted peers with a session.
    sessions: Mutex<Vec<(Peer, Conversed)>>,
    /// Peers that were turned away before they could say anything: friends and strangers.
    unheard: [Mutex<Vec<Peer>>; 2],
    /// What peers know that are done.
    memories: Mutex<Vec<Memory>>,
    next_friend: AtomicU64,
    next_stranger: AtomicU64,
}

impl Peers {
    /// Those of a storm that has not begun.
    pub fn new(plan: &Plan) -> Peers {
        Peers {
            seed: plan.seed,
            listed: plan.friends(),
            keys: OnceLock::new(),
            trusted: Mutex::default(),
            sessions: Mutex::default(),
            unheard: Default::default(),
            memories: Mutex::default(),
            next_friend: AtomicU64::new(0),
            next_stranger: AtomicU64::new(0),
        }
    }

    /// Makes the keys of the first so many friends: a peer has its key before it dials.
    pub(super) fn make_keys(&self, wanted: u64) {
        self.keys.get_or_init(|| (0..wanted).map(|number| key_of(self.seed, Group::Friends, number)).collect());
    }

    /// What every peer of the storm knows, once the load is over.
    pub(super) fn memories(&self) -> Vec<Memory> {
        let mut memories = std::mem::take(&mut *locked(&self.memories));
        memories.extend(locked(&self.trusted).drain(..).map(|peer| peer.memory));
        memories.extend(locked(&self.sessions).drain(..).map(|(peer, session)| {
            session.close();
            peer.memory
        }));
        memories
    }

    /// An identity that the node's rule trusts and that has not been used; `None` when there is none left.
    pub(super) fn new_friend(&self) -> Option<Peer> {
        if let Some(unheard) = locked(&self.unheard[Group::Friends as usize]).pop() {
            return Some(unheard);
        }
        let number = self.next_friend.fetch_add(1, Ordering::Relaxed);
        let listed = self.listed.is_none_or(|friends| number < friends);
        listed.then(|| {
            let ready = usize::try_from(number).ok().and_then(|at| self.keys.get()?.get(at));
            let key = ready.cloned().unwrap_or_else(|| key_of(self.seed, Group::Friends, number));
            Peer::with_key(key, Group::Friends, number)
        })
    }

    /// One that nobody knows.
    pub(super) fn new_stranger(&self) -> Peer {
        if let Some(unheard) = locked(&self.unheard[Group::Strangers as usize]).pop() {
            return unheard;
        }
        let number = self.next_stranger.fetch_add(1, Ordering::Relaxed);
        Peer::new(self.seed, Group::Strangers, number)
    }

    /// The trusted peer that has waited longest.
    pub(super) fn trusted(&self) -> Option<Peer> {
        locked(&self.trusted).pop_front()
    }

    /// It is trusted, and may come again.
    pub(super) fn give_back(&self, peer: Peer) {
        locked(&self.trusted).push_back(peer);
    }

    /// A session that stands.
    pub(super) fn session(&self) -> Option<(Peer, Conversed)> {
        locked(&self.sessions).pop()
    }

    /// It stands, and may be used again.
    pub(super) fn keep_session(&self, peer: Peer, session: Conversed) {
        locked(&self.sessions).push((peer, session));
    }

    /// Retires a peer, or lets it come again as if for the first time where nobody has heard of it: its key and its TLS
    /// settings cost more than an attempt that is turned away.
    pub(super) fn put_aside(&self, peer: Peer) {
        if peer.is_unheard() {
            locked(&self.unheard[peer.group as usize]).push(peer);
        } else {
            self.retire(peer);
        }
    }

    /// It does nothing any more.
    pub(super) fn retire(&self, peer: Peer) {
        locked(&self.memories).push(peer.memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::plan::Wishes;

    #[test]
    fn trusted_peers_come_in_turn() {
        let peers = Peers::new(&Plan::of(Wishes::default(), None, true, 1).unwrap());
        (0..3).for_each(|_| peers.give_back(peers.new_friend().unwrap()));
        let next = || {
            let peer = peers.trusted().unwrap();
            let number = peer.number;
            peers.give_back(peer);
            number
        };
        assert_eq!([next(), next(), next(), next()], [0, 1, 2, 0]);
    }
}
